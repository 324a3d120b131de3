package hub

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// maxPodConnections bounds what pods have open in all. While the link is there
	// each takes a stream of the tunnel's session: the quarter that is left is for
	// the hub and the node's components, whatever pods do. A pod's client keeps one
	// connection; a node has at most a few hundred pods.
	maxPodConnections = tunnel.MaxStreams / 4 * 3
	// maxFromAddress bounds what comes from one address, so that no pod takes what
	// is there for all. It is far more than a client of HTTP/1.1 has, which keeps a
	// connection for each of its watches; pods in the host's network share one
	// address.
	maxFromAddress = maxPodConnections / 6
	// refusalsTold is how often it is told that connections are refused: whoever is
	// refused comes again at once.
	refusalsTold = time.Minute
)

// podConnections are the connections of pods that are open, whoever answers them.
type podConnections struct {
	log   *slog.Logger
	clock clock.PassiveClock

	mu     sync.Mutex // guards what follows
	open   int
	from   map[netip.Addr]int
	told   time.Time // of the last line about refusals
	untold uint64    // refused since
	// refused in all.
	refused uint64
}

func newPodConnections(log *slog.Logger, clk clock.PassiveClock) *podConnections {
	return &podConnections{log: log, clock: clk, from: map[netip.Addr]int{}}
}

var (
	errPodsFull    = fmt.Errorf("pods have %d connections open", maxPodConnections)
	errAddressFull = fmt.Errorf("it has %d connections open", maxFromAddress)
)

// PodConnections are those of pods to the apiserver, whoever answers them.
type PodConnections struct {
	// Open at the moment.
	Open int `json:"open"`
	// Refused since the hub began, because too many were open.
	Refused uint64 `json:"refused"`
}

// PodConnections tells how many there are.
func (h *Hub) PodConnections() PodConnections {
	h.pods.mu.Lock()
	defer h.pods.mu.Unlock()
	return PodConnections{Open: h.pods.open, Refused: h.pods.refused}
}

// admit gives a connection a place, which it has until it is closed. False: there
// is none, and it was reset.
func (p *podConnections) admit(c net.Conn) (net.Conn, bool) {
	from := tunnel.AddrPort(c.RemoteAddr()).Addr()
	if err := p.enter(from); err != nil {
		p.refuse(c, err)
		return nil, false
	}
	return &podConn{Conn: c, leave: sync.OnceFunc(func() { p.leave(from) })}, true
}

func (p *podConnections) enter(from netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.from[from] >= maxFromAddress:
		return errAddressFull
	case p.open >= maxPodConnections:
		return errPodsFull
	}
	p.open++
	p.from[from]++
	return nil
}

func (p *podConnections) leave(from netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
	if p.from[from]--; p.from[from] == 0 {
		delete(p.from, from)
	}
}

// refuse resets a connection at once, and tells of it now and then.
func (p *podConnections) refuse(c net.Conn, why error) {
	remote := c.RemoteAddr().String()
	p.mu.Lock()
	p.refused++
	p.untold++
	untold, now := p.untold, p.clock.Now()
	tell := p.told.IsZero() || now.Sub(p.told) >= refusalsTold
	if tell {
		p.told, p.untold = now, 0
	}
	p.mu.Unlock()
	tunnel.Abort(c)
	if tell {
		p.log.Warn("refused pods' connections to the apiserver", "refused", untold, "last", remote, "error", why)
	}
}

// podConn is a pod's connection that has a place.
type podConn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *podConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// CloseWrite ends what the pod is sent. A connection that knows no such thing is
// ended whole.
func (c *podConn) CloseWrite() error {
	if half, ok := c.Conn.(closeWriter); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// SetLinger is how tunnel.Abort makes a close a reset, where the transport knows
// one.
func (c *podConn) SetLinger(seconds int) error {
	if lingers, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		return lingers.SetLinger(seconds)
	}
	return errors.ErrUnsupported
}
