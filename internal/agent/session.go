package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/signed"
)

// session is a welcomed session.
type session struct {
	a       *Agent
	sess    *link
	gateway string // the address that was dialled
	id      string // of the gateway, from its certificate; may be empty
	control *tunnel.Control
	welcome tunnel.Welcome
	number  uint64 // of this agent's sessions, from 1
	began   time.Time
	poke    chan struct{}
	beat    chan struct{}
	changed chan struct{} // the network has, below a session over QUIC
	moved   chan struct{} // the same over TCP
	stalls  *tunnel.Stalls
	streams tunnel.Inflight // carried connections of both directions

	spread atomic.Int64 // in milliseconds, of the next return; as the gateway said last

	drained chan tunnel.Drain // takes one
	leaving atomic.Bool       // the gateway drains

	ended chan struct{} // closed when the session has ended; then err is set
	err   error
}

// connect makes a session to one gateway.
func (a *Agent) connect(ctx context.Context, to candidate) (*session, error) {
	s, err := a.connectVia(ctx, to, a.route(a.mem.transport(a.cfg.Network())))
	// What is chosen says nothing of what else gets through.
	if err == nil && a.transport() == Auto {
		a.remember(s.sess.transport)
	}
	return s, err
}

// remember records what gets through on this network.
func (a *Agent) remember(t Transport) {
	if err := a.mem.remember(a.cfg.Network(), t, time.Now()); err != nil {
		a.log.Warn("it will be found out again after a restart", "error", err)
	}
}

func (a *Agent) connectVia(ctx context.Context, to candidate, r route) (*session, error) {
	var errs []error
	for _, addr := range to.addresses {
		s, err := a.connectAddress(ctx, to.id, addr, r)
		if err == nil {
			return s, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

func (a *Agent) connectAddress(ctx context.Context, id, gateway string, r route) (*session, error) {
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    a.cfg.RootCAs,
		ServerName: tunnel.ServerName,
		NextProtos: []string{tunnel.ALPN},
		// Sent whatever the gateway asks for: it is the only identity there is.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return a.cfg.Certificate() },
		VerifyConnection:     func(cs tls.ConnectionState) error { return a.dir.verify(id, cs) },
	}
	l, err := a.net.dial(ctx, gateway, conf, r)
	if err != nil {
		return nil, err
	}
	s := &session{
		a: a, sess: l, gateway: gateway, id: tunnel.GatewayID(l.state.PeerCertificates[0]),
		poke: make(chan struct{}, 1), beat: make(chan struct{}, 1), moved: make(chan struct{}, 1), changed: make(chan struct{}, 1), drained: make(chan tunnel.Drain, 1), ended: make(chan struct{}),
		stalls: tunnel.NewStalls(tunnel.AgentStallLimit, a.counters.stalled),
	}
	if err := s.hello(ctx); err != nil {
		// The gateway checks the certificate after our handshake is done, so its
		// refusal shows here, and says more than the stream's error.
		if cause := l.Err(); cause != nil {
			err = cause
		}
		l.Close(tunnel.CloseProtocol, err.Error())
		if rerr := l.release(); rerr != nil {
			a.log.Warn("release socket", "error", rerr)
		}
		return nil, err
	}
	return s, nil
}

// hello opens the control stream and exchanges HELLO and WELCOME.
func (s *session) hello(ctx context.Context) error {
	st, err := s.sess.Open()
	if err != nil {
		return err
	}
	s.control = tunnel.NewControl(st)
	info := s.a.cfg.Info
	err = s.control.Send(tunnel.Hello{
		Version: tunnel.Version, Node: s.a.cfg.NodeName, BootID: info.BootID,
		EngineVersion: info.EngineVersion, Architecture: info.Architecture,
		Capabilities: tunnel.Supported, LastEpoch: s.a.lastEpoch(),
	})
	if err != nil {
		return err
	}
	if err := s.control.SetReadDeadline(time.Now().Add(tunnel.HelloTimeout)); err != nil {
		return fmt.Errorf("control stream: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { s.sess.Close(tunnel.CloseNormal, "agent stops") })
	defer stop()
	m, err := s.control.Receive()
	if err != nil {
		return fmt.Errorf("await WELCOME: %w", err)
	}
	w, ok := m.(tunnel.Welcome)
	if !ok {
		return fmt.Errorf("control message %d came first, want WELCOME", m.Type())
	}
	if w.Version < 1 || w.Version > tunnel.Version {
		return fmt.Errorf("WELCOME names version %d, this agent speaks 1 to %d", w.Version, tunnel.Version)
	}
	s.welcome = w
	s.spread.Store(w.SpreadMS)
	if err := s.control.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("control stream: %w", err)
	}
	return nil
}

// run serves the session until it or ctx ends. The session is no more the
// agent's as soon as that is so; when run returns, every stream is closed and
// the socket is free.
func (s *session) run(ctx context.Context) {
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { s.controlLoop() })
	wg.Go(func() { s.pokeLoop(ctx) })
	wg.Go(func() { s.speakLoop(ctx) })
	wg.Go(func() { s.aliveLoop(ctx) })
	wg.Go(func() { s.roamLoop(ctx) })
	var err error
	for {
		var st tunnel.Stream
		if st, err = s.sess.Accept(ctx); err != nil {
			break
		}
		s.streams.Add()
		wg.Go(func() {
			defer s.streams.Done()
			s.a.serve(ctx, s, st)
		})
	}
	s.sess.Close(tunnel.CloseNormal, "agent stops")
	if cause := s.sess.Err(); cause != nil {
		err = cause
	}
	s.err = err
	s.a.history.Add(s.number, tunnel.EventEnded, fmt.Sprintf("after %s: %v", time.Since(s.began).Round(time.Millisecond), err))
	s.a.lost(s)
	close(s.ended)
	cancel()
	wg.Wait()
	if rerr := s.sess.release(); rerr != nil {
		s.a.log.Warn("release socket", "gateway", s.gateway, "error", rerr)
	}
}

// retire bounds a session that another one has replaced. The gateway ends it
// when its streams have ended, as soon as it learns of the new one: it knows of
// the dials that are on their way. If it never learns, moveGrace is the end.
func (s *session) retire(ctx context.Context) {
	deadline := time.NewTimer(moveGrace)
	defer deadline.Stop()
	select {
	case <-s.ended:
		return
	case <-ctx.Done():
		return
	case <-deadline.C:
	}
	s.a.log.Info("streams of a session that was left cut", "gateway", s.gateway, "streams", s.streams.Count())
	s.sess.Close(tunnel.CloseSuperseded, "left for another gateway")
}

// controlLoop reads control messages until the session ends.
func (s *session) controlLoop() {
	for {
		m, err := s.control.Receive()
		if err != nil {
			if s.sess.Err() == nil {
				s.sess.Close(tunnel.CloseProtocol, err.Error())
			}
			return
		}
		switch m := m.(type) {
		case tunnel.Ping:
			err = s.control.Send(tunnel.Pong(m))
		case tunnel.Drain:
			s.a.log.Info("gateway stops", "gateway", s.gateway, "reason", m.Reason,
				"within", time.Duration(m.DeadlineMS)*time.Millisecond, "alternates", m.Alternates)
			s.a.history.Add(s.number, tunnel.EventDrain, m.Reason)
			s.leaving.Store(len(m.Alternates) > 0)
			select {
			case s.drained <- m:
			default: // it has said so before
			}
		case tunnel.Spread:
			s.spread.Store(int64(min(m.Milliseconds, uint64(maxSpread.Milliseconds()))))
		case tunnel.SignedGateways:
			s.take(signed.KindGateways, m.Document)
		case tunnel.SignedPolicy:
			s.take(signed.KindPolicy, m.Document)
		case tunnel.Pong:
		default:
			err = fmt.Errorf("control message %d out of place", m.Type())
		}
		if err != nil {
			s.sess.Close(tunnel.CloseProtocol, err.Error())
			return
		}
	}
}

// take keeps a signed document that the gateway brought. One that is not the
// authority's is no reason to end the session: what there is stays in force.
func (s *session) take(kind string, doc []byte) {
	changed, err := s.a.dir.take(kind, doc)
	switch {
	case err != nil:
		s.a.log.Warn("document of the gateway", "kind", kind, "gateway", s.gateway, "in_force", changed, "error", err)
	case changed:
		s.a.log.Info("new document", "kind", kind, "gateway", s.gateway)
	}
}

// speakLoop keeps the session alive and tells the gateway how the node is: at
// first, after a Beat and then with every other sign of life. Nodes that have come
// at once do not go on speaking at once: a gateway that is killed and starts again
// answers few of many packets that come together (quic-go queues four resets).
func (s *session) speakLoop(ctx context.Context) {
	tick := time.NewTimer(s.a.cfg.Jitter(tunnel.SignOfLife))
	defer tick.Stop()
	for beat := true; ; {
		if !s.say(s.signOfLife(beat)) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-s.sess.Done():
			return
		case <-s.beat:
			beat = true
		case <-tick.C:
			beat = !beat
		}
		tick.Reset(tunnel.SignOfLife)
	}
}

// signOfLife is a heartbeat if it is time for one and there is a source of them.
func (s *session) signOfLife(beat bool) tunnel.Message {
	if beat && s.a.cfg.Heartbeat != nil {
		return s.a.cfg.Heartbeat()
	}
	return tunnel.Pad{}
}

// pokeLoop pings for a while after each Poke.
func (s *session) pokeLoop(ctx context.Context) {
	tick := time.NewTimer(pokeInterval)
	defer tick.Stop()
	left := 0
	for n := uint64(0); ; {
		var next <-chan time.Time
		if left > 0 {
			next = tick.C
		}
		select {
		case <-ctx.Done():
			return
		case <-s.sess.Done():
			return
		case <-s.poke:
			left = pokePings
			s.networkChanged(ctx, s.a.cfg.Addresses)
		case <-next:
		}
		n++
		left--
		if !s.ping(n) {
			return
		}
		if left > pokePings-pokesSoon {
			tick.Reset(pokeSoon)
		} else {
			tick.Reset(pokeInterval)
		}
	}
}
