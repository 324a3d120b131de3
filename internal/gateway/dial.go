package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// Target is what to reach at a node.
type Target struct {
	kind tunnel.Kind
	addr netip.AddrPort
}

// Kubelet is the node's own kubelet; the agent knows where it listens.
func Kubelet() Target { return Target{kind: tunnel.KindKubelet} }

// TCP is an address that the node reaches: one of its pods. The agent decides
// whether it allows it.
func TCP(addr netip.AddrPort) Target { return Target{kind: tunnel.KindTCP, addr: addr} }

// String is "kubelet" or "ip:port".
func (t Target) String() string {
	if t.kind == tunnel.KindTCP {
		return t.addr.String()
	}
	return t.kind.String()
}

// DialError is a dial through a session that failed. Err is ErrNotConnected,
// ErrDraining, ErrClosed, tunnel.ErrStreamLimit, a *tunnel.StatusError (the
// node's own answer), the context's error, or an error of the session.
type DialError struct {
	Node   string
	Target Target
	Err    error
}

// Error implements error.
func (e *DialError) Error() string {
	return fmt.Sprintf("dial %s of node %s: %v", e.Target, e.Node, e.Err)
}

// Unwrap returns Err.
func (e *DialError) Unwrap() error { return e.Err }

// Dial connects to a target of the node through its session. It waits for one
// only if the node lost its last within returnGrace (else ErrNotConnected), and
// for it and the node's answer never longer than tunnel.GatewayDialTimeout. Errors
// are *DialError. The connection has CloseWrite; an audit line is logged when it is
// closed.
func (g *Gateway) Dial(ctx context.Context, node string, t Target) (net.Conn, error) {
	a := g.audit("gateway", t.kind.String(), t.String())
	a.node = node
	g.dials.Add()
	ctx, cancel := bounded(ctx)
	defer cancel()
	d, w, err := g.open(ctx, node, t, 0)
	a.over, a.trace = w.over, w.trace
	if err == nil {
		if err = g.await(ctx, d, w, t); err != nil {
			w.end()
		}
	}
	if err != nil {
		g.dials.Done()
		a.end(tunnel.Spliced{Err: err})
		return nil, err
	}
	return &auditedConn{Stream: d, end: func(in, out int64) {
		w.end()
		g.dials.Done()
		a.end(tunnel.Spliced{AToB: out, BToA: in})
	}}, nil
}

// bounded is ctx for a whole dial, from finding the node to its answer: within
// GatewayDialTimeout.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, tunnel.GatewayDialTimeout,
		fmt.Errorf("no answer within %s: %w", tunnel.GatewayDialTimeout, context.DeadlineExceeded))
}

// way is how a dial reaches its node.
type way struct {
	node  string
	trace uint64 // the header's, also of a dial that failed
	// end says that the dial, which is counted, is over; called once.
	end       func()
	kubeletUp *atomic.Bool
	stalls    *tunnel.Stalls
	over      string // what carries it from here; see auditLine
}

// open begins a dial, until ctx ends, and counts it until the caller calls the way's
// end. On error nothing is counted.
func (g *Gateway) open(ctx context.Context, node string, t Target, flags tunnel.Flags) (*tunnel.Dialed, way, error) {
	h := tunnel.Header{Kind: t.kind, Flags: flags, Trace: rand.Uint64N(1 << 62), Deadline: tunnel.AgentDialTimeout}
	if t.kind == tunnel.KindTCP {
		h.Target = t.addr.String()
	}
	d, w, err := g.openHeader(ctx, node, h, forwardHops)
	if err != nil {
		return nil, way{trace: h.Trace}, &DialError{node, t, err}
	}
	return d, w, nil
}

// forwardHops is how often a dial may be passed on between gateways: to the one
// that holds the node, and once more if the node is just moving from there.
const forwardHops = 2

// openHeader begins a dial at the node's session or, with hops left, at the
// gateway that holds it.
func (g *Gateway) openHeader(ctx context.Context, node string, h tunnel.Header, hops uint8) (*tunnel.Dialed, way, error) {
	s, l, far, err := g.find(ctx, node)
	if err != nil {
		return nil, way{}, err
	}
	if s != nil {
		s.streams.Add()
		s.kinds[h.Kind].Add(1)
		end := func() {
			s.kinds[h.Kind].Add(-1)
			s.streams.Done()
		}
		d, err := tunnel.OpenDialContext(ctx, s.sess, h)
		if err != nil {
			end()
			return nil, way{}, err
		}
		return d, way{node, h.Trace, end, &s.kubeletUp, s.stalls, tunnel.TransportOf(s.sess)}, nil
	}
	if hops == 0 {
		return nil, way{}, fmt.Errorf("%w: it is at gateway %s", ErrNotConnected, l.id)
	}
	l.streams.Add()
	d, err := tunnel.OpenForward(ctx, l.sess, tunnel.Forward{Hops: hops - 1, Node: node}, h)
	if err != nil {
		l.streams.Done()
		return nil, way{}, fmt.Errorf("through gateway %s: %w", l.id, err)
	}
	return d, way{node, h.Trace, l.streams.Done, &far.kubeletUp, l.stalls, overMesh}, nil
}

// await reads the node's answer, until ctx (see bounded) ends.
func (g *Gateway) await(ctx context.Context, d *tunnel.Dialed, w way, t Target) error {
	began := time.Now()
	err := d.Await(ctx)
	if err == nil {
		g.metrics.dialSeconds.WithLabelValues(t.kind.String()).Observe(time.Since(began).Seconds())
	}
	if t.kind == tunnel.KindKubelet {
		w.kubeletUp.Store(err == nil)
	}
	if err != nil {
		return &DialError{w.node, t, err}
	}
	return nil
}

// auditedConn counts bytes and reports them when it is closed.
type auditedConn struct {
	tunnel.Stream
	in, out atomic.Int64
	once    sync.Once
	end     func(in, out int64)
}

func (c *auditedConn) Read(p []byte) (int, error) {
	n, err := c.Stream.Read(p)
	c.in.Add(int64(n))
	return n, err
}

func (c *auditedConn) Write(p []byte) (int, error) {
	n, err := c.Stream.Write(p)
	c.out.Add(int64(n))
	return n, err
}

func (c *auditedConn) Close() error {
	err := c.Stream.Close()
	c.once.Do(func() { c.end(c.in.Load(), c.out.Load()) })
	return err
}

func (c *auditedConn) Reset(code tunnel.ResetCode) {
	c.Stream.Reset(code)
	c.once.Do(func() { c.end(c.in.Load(), c.out.Load()) })
}

// What carries a dial that no session of this gateway does: a connection to
// another gateway, or none, for what is dialled outside of the tunnel.
const (
	overMesh    = "mesh"
	overNothing = "none"
)

// auditLine is the record of one dial: who wanted what, and what came of it.
type auditLine struct {
	g                       *Gateway
	who, kind, target, node string
	over                    string // tunnel.OverQUIC or OverTCP, overMesh, overNothing, or "": it got nowhere
	trace                   uint64 // as in the log of the node; 0: it got nowhere
	optimistic              bool
	start                   time.Time
	inFlight                prometheus.Gauge // counts it until its end
}

// audit begins the record of a dial; its end has to be called.
func (g *Gateway) audit(who, kind, target string) *auditLine {
	a := &auditLine{
		g: g, who: who, kind: kind, target: target, start: g.cfg.Clock(),
		inFlight: g.metrics.inFlight.WithLabelValues(kindLabel(kind)),
	}
	a.inFlight.Inc()
	return a
}

// end writes the line. Bytes are seen from who dialled.
func (a *auditLine) end(s tunnel.Spliced) {
	a.inFlight.Dec()
	a.g.metrics.dialled(a.kind, a.over, s)
	result := "ok"
	if s.Err != nil {
		result = s.Err.Error()
		if se, ok := errors.AsType[*tunnel.StatusError](s.Err); ok {
			result = se.Error()
		}
	}
	attrs := []slog.Attr{
		slog.String("who", a.who), slog.String("kind", a.kind), slog.String("target", a.target),
		slog.Int64("sent", s.AToB), slog.Int64("received", s.BToA),
		slog.Duration("duration", a.g.cfg.Clock().Sub(a.start)), slog.String("result", result),
	}
	if a.node != "" {
		attrs = append(attrs, slog.String("node", a.node))
	}
	if a.trace != 0 {
		attrs = append(attrs, slog.Uint64("trace", a.trace))
	}
	if a.optimistic {
		attrs = append(attrs, slog.Bool("optimistic", true))
	}
	// Without ctx's cancellation: the line is written also for what was cut.
	a.g.cfg.Logger.LogAttrs(context.Background(), slog.LevelInfo, "dial", attrs...)
}
