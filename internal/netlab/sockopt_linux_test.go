package netlab_test

import (
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// congestion is the algorithm that a TCP connection uses.
func congestion(t *testing.T, c net.Conn) string {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var name string
	var serr error
	if err := raw.Control(func(fd uintptr) {
		name, serr = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	}); err != nil || serr != nil {
		t.Fatal(err, serr)
	}
	return strings.TrimRight(name, "\x00")
}
