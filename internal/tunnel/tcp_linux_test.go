package tunnel

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTuneTCP(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := TuneTCP(c); err != nil {
		t.Fatal(err)
	}
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		for name, o := range map[string]struct{ opt, want int }{
			"user timeout": {unix.TCP_USER_TIMEOUT, 20_000}, "unsent": {unix.TCP_NOTSENT_LOWAT, 128 << 10},
		} {
			if v, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, o.opt); err != nil || v != o.want {
				t.Errorf("%s: %d, %v", name, v, err)
			}
		}
		cc, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		t.Log("congestion control:", cc, err)
	})
	a, b := net.Pipe()
	if err := TuneTCP(a); err != nil {
		t.Error(err)
	}
	a.Close()
	b.Close()
}
