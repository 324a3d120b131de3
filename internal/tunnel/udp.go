package tunnel

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"sync"
	"syscall"
)

// UDPConn is a UDP socket on which a packet that could not be sent counts as
// lost in the network. quic-go ends a connection at any send error but EMSGSIZE
// (send_queue.go in v0.65.0), so that without this a route that is away for a
// second, a full queue or a firewall reload would cut every session.
//
// It embeds the socket, so that quic-go still finds what it needs for segmentation
// offload and ECN. On Linux it reads what the kernel has put together (ReadBatch).
type UDPConn struct {
	*net.UDPConn

	// fault, if set, is asked before each write in place of the kernel; for tests.
	fault func() error

	lost   *SendErrors
	reader *packetReader // made by the first read

	firstRead func()
	gathers   bool
}

// Gather lets packets come together for up to two milliseconds before they are read,
// where many come; see gatherer. It must be said before anything is read, and does
// something on Linux only.
func (c *UDPConn) Gather() { c.gathers = true }

// OnFirstRead has f called once, by who reads, when the first packet has come. It
// must be said before anything is read. On other systems than Linux it never is.
func (c *UDPConn) OnFirstRead(f func()) { c.firstRead = f }

// SendErrors counts what send errors have lost, on however many sockets. The zero
// value has counted nothing.
type SendErrors struct {
	mu sync.Mutex // guards n
	n  map[syscall.Errno]uint64
}

// Counts returns how many packets (or batches of them) were lost to each error.
func (e *SendErrors) Counts() map[syscall.Errno]uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := make(map[syscall.Errno]uint64, len(e.n))
	maps.Copy(m, e.n)
	return m
}

func (e *SendErrors) add(errno syscall.Errno) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.n == nil {
		e.n = map[syscall.Errno]uint64{}
	}
	e.n[errno]++
}

// WrapUDP wraps c. What is lost on it is counted in lost; nil: nobody asks.
func WrapUDP(c *net.UDPConn, lost *SendErrors) *UDPConn {
	if lost == nil {
		lost = &SendErrors{}
	}
	return &UDPConn{UDPConn: c, lost: lost}
}

// WrapPacketConn is WrapUDP if c is a plain UDP socket, and returns it as it is
// otherwise.
func WrapPacketConn(c net.PacketConn, lost *SendErrors) net.PacketConn {
	if u, ok := c.(*net.UDPConn); ok {
		return WrapUDP(u, lost)
	}
	return c
}

// tolerated are the errors that a working session may see while a path is away:
// no route (ENETUNREACH, EHOSTUNREACH, ENETDOWN), a firewall's drop (EPERM), a
// full queue (ENOBUFS), an address that has just left the interface
// (EADDRNOTAVAIL, EINVAL), an earlier ICMP answer (ECONNREFUSED). EMSGSIZE is
// not here: path MTU discovery needs it. Nor is EIO, by which quic-go learns
// that segmentation offload does not work.
var tolerated = map[syscall.Errno]bool{
	syscall.ENETUNREACH:   true,
	syscall.EHOSTUNREACH:  true,
	syscall.ENETDOWN:      true,
	syscall.EPERM:         true,
	syscall.ENOBUFS:       true,
	syscall.EADDRNOTAVAIL: true,
	syscall.EINVAL:        true,
	syscall.ECONNREFUSED:  true,
}

// tolerate reports whether err may be taken for loss, and counts it.
func (c *UDPConn) tolerate(err error) bool {
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok || !tolerated[errno] {
		return false
	}
	c.lost.add(errno)
	return true
}

// WriteMsgUDP is what quic-go sends with. The socket's own of that name would
// allocate for each address.
func (c *UDPConn) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error) {
	return c.WriteMsgUDPAddrPort(b, oob, addr.AddrPort())
}

// WriteMsgUDPAddrPort is WriteMsgUDP with another address type.
func (c *UDPConn) WriteMsgUDPAddrPort(b, oob []byte, addr netip.AddrPort) (n, oobn int, err error) {
	if c.fault != nil {
		err = c.fault()
	}
	if err == nil {
		n, oobn, err = c.UDPConn.WriteMsgUDPAddrPort(b, oob, addr)
	}
	if err != nil && c.tolerate(err) {
		return len(b), len(oob), nil
	}
	return n, oobn, err
}

// WriteTo is what quic-go sends with where it has no WriteMsgUDP.
func (c *UDPConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	n, err := c.UDPConn.WriteTo(b, addr)
	if err != nil && c.tolerate(err) {
		return len(b), nil
	}
	return n, err
}
