package tunneltest

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"
)

// Network carries packets between the sockets made with Listen, in order and
// after a fixed delay. It works inside testing/synctest.
type Network struct {
	delay time.Duration
	queue chan delayed
	stop  chan struct{}
	done  chan struct{}

	mu    sync.Mutex // guards all below
	nodes map[netip.AddrPort]simnet.PacketReceiver
	cut   map[netip.Addr]bool
	port  uint16
	noUDP bool
	// Of connections: who listens, and what is open.
	listeners map[netip.AddrPort]*Listener
	conns     map[*PipeConn]struct{}
}

type delayed struct {
	at time.Time
	p  simnet.Packet
}

// NewNetwork starts a network that ends with the test.
func NewNetwork(t testing.TB, delay time.Duration) *Network {
	n := &Network{
		delay: delay, queue: make(chan delayed, 1<<16), stop: make(chan struct{}), done: make(chan struct{}),
		nodes: map[netip.AddrPort]simnet.PacketReceiver{}, cut: map[netip.Addr]bool{}, port: 40000,
		listeners: map[netip.AddrPort]*Listener{}, conns: map[*PipeConn]struct{}{},
	}
	go n.run()
	t.Cleanup(func() {
		close(n.stop)
		<-n.done
	})
	return n
}

// Listen opens a socket of the address; port 0 chooses a free one. A socket of
// the same address that was closed before is replaced.
func (n *Network) Listen(addr netip.AddrPort) net.PacketConn {
	if addr.Port() == 0 {
		n.mu.Lock()
		n.port++
		addr = netip.AddrPortFrom(addr.Addr(), n.port)
		n.mu.Unlock()
	}
	return simnet.NewBlockingSimConn(net.UDPAddrFromAddrPort(addr), n)
}

// ListenStream listens for connections at the address. A listener of the same
// address that was closed before is replaced.
func (n *Network) ListenStream(addr netip.AddrPort) *Listener {
	l := NewListener()
	l.addr = net.TCPAddrFromAddrPort(addr)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[addr] = l
	return l
}

// DialStream connects to a listener. Where one of the addresses is cut it waits
// until ctx ends.
func (n *Network) DialStream(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	cut, l := n.cut[from] || n.cut[to.Addr()], n.listeners[to]
	n.port++
	local := netip.AddrPortFrom(from, n.port)
	n.mu.Unlock()
	switch {
	case cut:
		<-ctx.Done()
		return nil, ctx.Err()
	case l == nil:
		return nil, syscall.ECONNREFUSED
	}
	c, err := l.dial(net.TCPAddrFromAddrPort(local))
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[c] = struct{}{}
	return c, nil
}

// Cut drops every packet from and to the address and holds back its
// connections, until Cut is called with false.
func (n *Network) Cut(addr netip.Addr, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[addr] = cut
	for c := range n.conns {
		if AddrOf(c.local) == addr || AddrOf(c.remote) == addr {
			c.Stall(cut)
		}
	}
}

// BlockUDP drops every packet, as a firewall does that lets only connections
// through.
func (n *Network) BlockUDP(blocked bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.noUDP = blocked
}

// AddrOf is the IP address of a *net.TCPAddr; the zero value for others.
func AddrOf(a net.Addr) netip.Addr {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return t.AddrPort().Addr().Unmap()
}

// AddNode implements simnet.Router.
func (n *Network) AddNode(addr net.Addr, r simnet.PacketReceiver) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[key(addr)] = r
}

// SendPacket implements simnet.Router.
func (n *Network) SendPacket(p simnet.Packet) error {
	select {
	case n.queue <- delayed{time.Now().Add(n.delay), p}:
	default: // a full queue loses the packet
	}
	return nil
}

func (n *Network) run() {
	defer close(n.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-n.stop:
			return
		case d := <-n.queue:
			timer.Reset(time.Until(d.at))
			select {
			case <-n.stop:
				return
			case <-timer.C:
			}
			n.mu.Lock()
			to := n.nodes[key(d.p.To)]
			if n.noUDP || n.cut[key(d.p.To).Addr()] || n.cut[key(d.p.From).Addr()] {
				to = nil
			}
			n.mu.Unlock()
			if to != nil {
				to.RecvPacket(d.p)
			}
		}
	}
}

func key(a net.Addr) netip.AddrPort {
	ap := a.(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
