package tunnel

import (
	"errors"
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
// offload, ECN and batched reads.
type UDPConn struct {
	*net.UDPConn

	// fault, if set, is asked before each write in place of the kernel; for tests.
	fault func() error

	mu      sync.Mutex // guards dropped
	dropped map[syscall.Errno]uint64
}

// WrapUDP wraps c.
func WrapUDP(c *net.UDPConn) *UDPConn {
	return &UDPConn{UDPConn: c, dropped: map[syscall.Errno]uint64{}}
}

// WrapPacketConn wraps c if it is a plain UDP socket and returns it as it is
// otherwise.
func WrapPacketConn(c net.PacketConn) net.PacketConn {
	if u, ok := c.(*net.UDPConn); ok {
		return WrapUDP(u)
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
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropped[errno]++
	return true
}

// Dropped returns how many packets (or batches of them) were lost to each send
// error since the socket was wrapped.
func (c *UDPConn) Dropped() map[syscall.Errno]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := make(map[syscall.Errno]uint64, len(c.dropped))
	for k, v := range c.dropped {
		m[k] = v
	}
	return m
}

// WriteMsgUDP is what quic-go sends with.
func (c *UDPConn) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error) {
	if c.fault != nil {
		err = c.fault()
	}
	if err == nil {
		n, oobn, err = c.UDPConn.WriteMsgUDP(b, oob, addr)
	}
	if err != nil && c.tolerate(err) {
		return len(b), len(oob), nil
	}
	return n, oobn, err
}

// WriteMsgUDPAddrPort is WriteMsgUDP with another address type.
func (c *UDPConn) WriteMsgUDPAddrPort(b, oob []byte, addr netip.AddrPort) (n, oobn int, err error) {
	n, oobn, err = c.UDPConn.WriteMsgUDPAddrPort(b, oob, addr)
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
