package tunnel

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// TuneTCP prepares a connection for NewMuxSession. A kernel without BBR keeps
// its own congestion control. Anything but a TCP socket is left as it is.
func TuneTCP(c net.Conn) error {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return fmt.Errorf("tune connection to %s: %w", c.RemoteAddr(), err)
	}
	var errs []error
	err = raw.Control(func(fd uintptr) {
		s := int(fd)
		errs = append(errs,
			unix.SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(tcpUserTimeout.Milliseconds())),
			unix.SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, tcpUnsent))
		if err := unix.SetsockoptString(s, unix.IPPROTO_TCP, unix.TCP_CONGESTION, tcpCongestion); err != nil &&
			!errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EPERM) {
			errs = append(errs, fmt.Errorf("congestion control %s: %w", tcpCongestion, err))
		}
	})
	if err = errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("tune connection to %s: %w", c.RemoteAddr(), err)
	}
	return nil
}
