package gateway

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// session is a node's connection from its WELCOME on.
type session struct {
	node    string
	sess    tunnel.Session
	control *tunnel.Control
	hello   tunnel.Hello
	since   time.Time
	epoch   uint64
	spread  time.Duration // as the node was told; controlLoop's once that runs
	log     *slog.Logger
	streams tunnel.Inflight
	// kubeletUp: the last dial of the kubelet worked, so that the next one need
	// not be awaited before the caller is told to go on.
	kubeletUp atomic.Bool
	handlers  sync.WaitGroup // of its loops and streams
	stalls    *tunnel.Stalls

	// kinds is how many connections of each kind it carries. Those to the apiserver
	// are what the node has opened, of which Gateway.mu guards the beginning.
	kinds [tunnel.KindTun + 1]atomic.Int32

	// Guarded by Gateway.mu:
	finishing  bool        // it takes no more of the node's
	retirement *retirement // of a superseded session; nil: none has begun
}

// serveNode admits a node and starts its session, in goroutines that group
// counts; ctx ends it. It has returned by the time that the session runs: what a
// handshake needs of stack is not kept for each of ten thousand sessions.
func (g *Gateway) serveNode(ctx context.Context, sess tunnel.Session, chain []*x509.Certificate, group *sync.WaitGroup) {
	s, old := g.admit(ctx, sess, chain)
	if s == nil {
		sess.Close(tunnel.CloseGoingAway, "gateway stops") // if nothing else did
		if old != nil {
			group.Go(func() { g.retire(ctx, old) })
		}
		return
	}
	if old != nil {
		s.handlers.Go(func() { g.retire(ctx, old) })
	}
	s.handlers.Go(func() { g.controlLoop(s) })
	group.Go(func() { g.runSession(ctx, s) })
}

// admit makes a session of a connection, and returns the one that it replaces. A
// connection that it refuses is closed, and the session nil; it may have replaced
// one by then.
func (g *Gateway) admit(ctx context.Context, sess tunnel.Session, chain []*x509.Certificate) (s, old *session) {
	log := g.cfg.Logger
	refuse := func(why string, code tunnel.CloseCode, err error) (*session, *session) {
		g.metrics.refused.WithLabelValues(why).Inc()
		log.Warn("session refused", "remote", sess.Remote(), "error", err)
		sess.Close(code, err.Error())
		return nil, nil
	}
	if g.isDraining() {
		return refuse("draining", tunnel.CloseGoingAway, ErrDraining)
	}
	node, leaf, err := nodeOf(chain)
	if err != nil {
		return refuse("denied", tunnel.CloseDenied, err)
	}
	log = log.With("node", node)
	if err := g.cfg.Authorize(node, leaf); err != nil {
		return refuse("denied", tunnel.CloseDenied, err)
	}
	if !g.nodeRate.allow(node, g.cfg.Clock()) {
		return refuse("too many of the node", tunnel.CloseRateLimited,
			errors.New(tunnel.RetryReason(sessionRetry, "too many sessions of this node")))
	}
	s = &session{node: node, sess: sess, log: log, stalls: tunnel.NewStalls(tunnel.GatewayStallLimit, g.stalled)}
	if old, err = g.welcome(ctx, s); err != nil {
		if sess.Err() != nil || ctx.Err() != nil {
			return nil, nil
		}
		return refuse("protocol", tunnel.CloseProtocol, err)
	}
	// A revocation between the first check and registering found no session to
	// cut, so ask again now that Kick would.
	if err := g.cfg.Authorize(node, leaf); err != nil {
		g.unregister(s)
		refuse("denied", tunnel.CloseRevoked, err)
		return nil, old
	}
	if err := g.documents(s); err != nil {
		log.Debug("signed documents not sent", "error", err) // the control loop sees why
	}
	g.pace.done(g.cfg.Clock())
	how := "new"
	if old != nil {
		how = "superseding"
	}
	g.metrics.sessions.WithLabelValues(how, tunnel.TransportOf(sess)).Inc()
	log.Info("session began", "remote", sess.Remote(), "epoch", s.epoch,
		"congestion", tunnel.CongestionOf(sess), "engine", s.hello.EngineVersion, "superseding", old != nil)
	return s, old
}

// runSession accepts the node's streams until the session ends. Handlers may
// outlast the loops but not this function: when it returns, the session's
// goroutines are gone. It is unregistered before they are.
func (g *Gateway) runSession(ctx context.Context, s *session) {
	g.ended(s, g.acceptLoop(ctx, s))
	s.handlers.Wait()
}

func (g *Gateway) ended(s *session, err error) {
	g.unregister(s)
	g.metrics.ended.WithLabelValues(endOf(err), tunnel.TransportOf(s.sess)).Inc()
	// Wakes every handler; the code is the first one given.
	s.sess.Close(tunnel.CloseGoingAway, "gateway stops")
	s.log.Info("session ended", "epoch", s.epoch, "after", g.cfg.Clock().Sub(s.since).Round(time.Millisecond), "reason", err)
}

// welcome exchanges HELLO and WELCOME and makes s the node's current session.
// Only then may dials of the node use it, and only then is the old one retired.
func (g *Gateway) welcome(ctx context.Context, s *session) (old *session, err error) {
	hctx, cancel := context.WithTimeout(ctx, tunnel.HelloTimeout)
	defer cancel()
	st, err := s.sess.Accept(hctx)
	if err != nil {
		return nil, fmt.Errorf("control stream: %w", err)
	}
	s.control = tunnel.NewControl(st)
	if err := s.control.SetReadDeadline(time.Now().Add(tunnel.HelloTimeout)); err != nil {
		return nil, fmt.Errorf("control stream: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = s.control.SetReadDeadline(time.Unix(1, 0)) })()
	m, err := s.control.Receive()
	if err != nil {
		return nil, err
	}
	hello, ok := m.(tunnel.Hello)
	if !ok {
		return nil, fmt.Errorf("control message %d came first, want HELLO", m.Type())
	}
	if hello.Version < 1 {
		return nil, fmt.Errorf("HELLO names version %d", hello.Version)
	}
	if hello.Node != s.node {
		return nil, fmt.Errorf("HELLO names node %q but the certificate is for %q", hello.Node, s.node)
	}
	s.spread = g.spread()
	s.hello, s.since, s.epoch = hello, g.cfg.Clock(), g.nextEpoch(s.node, hello.LastEpoch)
	err = s.control.Send(tunnel.Welcome{
		Version: min(hello.Version, tunnel.Version), Gateway: g.id, Epoch: s.epoch,
		Capabilities: tunnel.Supported, SpreadMS: s.spread.Milliseconds(),
	})
	if err != nil {
		return nil, err
	}
	if err := s.control.SetReadDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("control stream: %w", err)
	}
	old, ok = g.register(s)
	if !ok {
		s.sess.Close(tunnel.CloseSuperseded, "a newer session was welcomed first")
		return nil, s.sess.Err()
	}
	return old, nil
}

// retire lets the streams of a superseded session end, within supersedeGrace, and
// takes no new ones after retireLinger. If that session ends by itself, so do they;
// if it becomes its node's current one again, nothing of that happens to it.
func (g *Gateway) retire(ctx context.Context, old *session) {
	g.metrics.superseded.Inc()
	g.cutOldest(old.node)
	ctx, cancel := context.WithTimeout(ctx, supersedeGrace)
	defer cancel()
	r := g.beginRetirement(old, cancel)
	if r == nil {
		return
	}
	linger := time.NewTimer(retireLinger)
	defer linger.Stop()
	select {
	case <-linger.C:
	case <-old.sess.Done():
		return
	case <-ctx.Done():
	}
	if !g.finish(old, r) {
		return
	}
	err := old.streams.Wait(ctx)
	if !g.endRetirement(old, r) {
		return
	}
	if err != nil && old.sess.Err() == nil {
		old.log.Info("streams of superseded session cut", "epoch", old.epoch, "streams", old.streams.Count())
	}
	old.sess.Close(tunnel.CloseSuperseded, "a newer session of this node has taken over")
}

// controlLoop answers the node's control messages until the session ends.
func (g *Gateway) controlLoop(s *session) {
	remote := s.sess.Remote()
	for {
		m, err := s.control.Receive()
		if now := s.sess.Remote(); err == nil && now != remote {
			g.metrics.migrations.Inc()
			s.log.Info("session moved to another address", "from", remote, "to", now)
			remote = now
		}
		if err != nil {
			if s.sess.Err() == nil {
				// Its end is the end of the session: an agent that closes it, or
				// says what we must understand and do not, has no session.
				s.sess.Close(tunnel.CloseProtocol, err.Error())
			}
			return
		}
		switch m := m.(type) {
		case tunnel.Ping:
			err = s.control.Send(tunnel.Pong(m))
		case tunnel.Heartbeat:
			// A superseded session only finishes: what its agent says is old.
			if g.isCurrent(s) {
				g.cfg.OnHeartbeat(s.node, m)
				err = g.respread(s)
			}
		case tunnel.Hello, tunnel.Welcome:
			err = fmt.Errorf("control message %d out of place", m.Type())
		}
		if err != nil {
			s.sess.Close(tunnel.CloseProtocol, err.Error())
			return
		}
	}
}

// respread tells the node over how long to spread its return, if that is much else
// than it was told. Who came first was told of few nodes: if all of those returned
// within what was right for few, they would be too many at once.
func (g *Gateway) respread(s *session) error {
	now := g.spread()
	if max(now, s.spread) < leastSpread || now <= s.spread*5/4 && now >= s.spread/2 {
		return nil
	}
	s.spread = now
	return s.control.Send(tunnel.Spread{Milliseconds: uint64(now.Milliseconds())})
}

// acceptLoop serves the streams that the node opens.
func (g *Gateway) acceptLoop(ctx context.Context, s *session) error {
	for {
		st, err := s.sess.Accept(ctx)
		if err != nil {
			if closed, ok := errors.AsType[*tunnel.CloseError](err); ok {
				return closed
			}
			return err
		}
		s.streams.Add()
		g.dials.Add()
		s.handlers.Go(func() {
			defer g.dials.Done()
			defer s.streams.Done()
			g.serveStream(ctx, s, st)
		})
	}
}

// serveStream carries one connection from the node to the apiserver, the only
// target a node has at the gateway.
func (g *Gateway) serveStream(ctx context.Context, s *session, st tunnel.Stream) {
	h, err := tunnel.AcceptDial(st)
	a := g.audit("node "+s.node, h.Kind.String(), "apiserver")
	a.over, a.trace = tunnel.TransportOf(s.sess), h.Trace
	if err != nil {
		a.end(tunnel.Spliced{Err: err})
		return
	}
	if h.Kind != tunnel.KindAPIServer {
		err := &tunnel.StatusError{Status: tunnel.StatusDenied, Text: fmt.Sprintf("a node may not dial kind %s through the gateway", h.Kind)}
		a.target = h.Target
		tunnel.Refuse(st, tunnel.Response{Status: err.Status, Text: err.Text})
		a.end(tunnel.Spliced{Err: err})
		return
	}
	if g.isRefusing() {
		tunnel.Refuse(st, tunnel.Response{Status: tunnel.StatusDraining, Text: ErrDraining.Error()})
		a.end(tunnel.Spliced{Err: ErrDraining})
		return
	}
	if err := g.beginStream(s); err != nil {
		tunnel.Refuse(st, tunnel.DialFailure(err))
		a.end(tunnel.Spliced{Err: err})
		return
	}
	defer s.kinds[tunnel.KindAPIServer].Add(-1)
	timeout := tunnel.AgentDialTimeout
	if h.Deadline > 0 {
		timeout = min(timeout, h.Deadline)
	}
	dctx, cancel := context.WithTimeout(ctx, timeout)
	c, err := g.cfg.DialAPIServer(dctx)
	cancel()
	if err != nil {
		tunnel.Refuse(st, tunnel.DialFailure(err))
		a.end(tunnel.Spliced{Err: fmt.Errorf("dial apiserver: %w", err)})
		return
	}
	if err := tunnel.Respond(st, tunnel.Response{Status: tunnel.StatusOK}); err != nil {
		st.Reset(tunnel.ResetAborted)
		_ = c.Close() // nothing was carried
		a.end(tunnel.Spliced{Err: err})
		return
	}
	a.end(tunnel.Splice(st, c, tunnel.SpliceOptions{Stalls: s.stalls}))
}
