package agent

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// retakeFirst is how long after a session over TCP began QUIC is tried
	// again, and retakeMax what the wait grows to by doubling. A network that
	// blocks UDP seldom stops to, and each attempt costs a few packets.
	retakeFirst = time.Minute
	retakeMax   = 10 * time.Minute
	// remixFirst and remixMax are the same where the transport was chosen and
	// the session has another: somebody waits for it.
	remixFirst = 2 * time.Second
	remixMax   = time.Minute
	// retakeBudget bounds the handshake of an attempt at QUIC: what a first packet
	// lost twice takes on a slow path. Once that is done UDP gets through, and a
	// gateway with much to do may take for its WELCOME what it may always take.
	retakeBudget = 3 * time.Second
	// settle is the wait after a change of the network, which seldom comes
	// alone: address, route and neighbours follow each other.
	settle = time.Second

	// silence is how long the other end of a QUIC session may be silent before
	// the agent asks every second: one keep-alive and its answer are overdue
	// then. QUIC's own probes come ever later, the next one after an outage as
	// late as the outage was long.
	silence = tunnel.KeepAlive + 2*time.Second
)

// retaker says when to try for a session with the right transport.
type retaker struct {
	timer *time.Timer
	wait  time.Duration
	max   time.Duration
}

func newRetaker() *retaker { return &retaker{timer: time.NewTimer(retakeFirst)} }

// reset begins anew for a session. Where that has the right transport, the timer
// fires all the same and finds nothing to do.
func (r *retaker) reset(mode Transport) {
	r.wait, r.max = retakeFirst, retakeMax
	if mode != Auto {
		r.wait, r.max = remixFirst, remixMax
	}
	r.timer.Reset(r.wait)
}

// soon is for a network that has changed.
func (r *retaker) soon(mode Transport) {
	r.reset(mode)
	r.timer.Reset(settle)
}

// later is for an attempt that failed.
func (r *retaker) later() {
	r.wait = min(2*r.wait, r.max)
	r.timer.Reset(r.wait)
}

func (r *retaker) stop() { r.timer.Stop() }

// recarry makes a session to the gateway of s over the transport that it should
// have by mode; nil if s has it.
func (a *Agent) recarry(ctx context.Context, s *session, mode Transport) (*session, error) {
	want := mode
	if mode == Auto {
		want = QUIC
	}
	if s.sess.transport == want {
		return nil, nil
	}
	to := route{transport: want}
	if want == QUIC {
		to.budget = retakeBudget
	}
	next, err := a.connectVia(ctx, candidate{id: s.id, addresses: []string{s.gateway}}, to)
	if err == nil && mode == Auto {
		a.remember(want)
	}
	return next, err
}

// ping sends one.
func (s *session) ping(n uint64) bool {
	var p tunnel.Ping
	for i := range p.Payload {
		p.Payload[i] = byte(n >> (8 * i))
	}
	return s.push(p)
}

// push says m past whatever is under way.
func (s *session) push(m tunnel.Message) bool {
	tunnel.Nudge(s.sess.Session)
	return s.say(m)
}

// say sends m. A session whose control stream does not work any more could not be
// ended or moved, and is closed.
func (s *session) say(m tunnel.Message) bool {
	if err := s.control.Send(m); err != nil {
		s.sess.Close(tunnel.CloseProtocol, err.Error())
		return false
	}
	return true
}

// aliveLoop asks the gateway to answer while it is silent, so that a session
// outlives an outage that ends before IdleTimeout. With a Pad, to which one that
// does not know the session any more can say so.
func (s *session) aliveLoop(ctx context.Context) {
	if s.sess.stats == nil {
		return // TCP retransmits by itself, and at least as often as we would ask
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	received, heard := s.sess.stats(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.sess.Done():
			return
		case <-tick.C:
		}
		if now := s.sess.stats(); now != received {
			received, heard = now, time.Now()
		}
		if time.Since(heard) >= silence && !s.push(tunnel.Pad{}) {
			return
		}
	}
}

// readdressed is how long an address may be away from this node while it is set
// anew, with another lease say, without a connection from it being given up.
const readdressed = 50 * time.Millisecond

// networkChanged is told after a Poke. A connection over TCP ends with the
// address it was made from, which nobody else would notice for IdleTimeout.
func (s *session) networkChanged(ctx context.Context, addresses func() ([]net.Addr, error)) {
	if s.sess.transport != TCP {
		tunnel.Moved(s.sess.Session)
		select {
		case s.changed <- struct{}{}:
		default:
		}
		return
	}
	left := func() bool {
		if !s.sess.local.IsValid() || s.sess.local.IsLoopback() {
			return false
		}
		have, err := addresses()
		return err == nil && !contains(have, s.sess.local)
	}
	if left() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(readdressed):
		}
		if left() {
			s.sess.Close(tunnel.CloseGoingAway, "address "+s.sess.local.String()+" has left this node")
			return
		}
	}
	select {
	case s.moved <- struct{}{}:
	default:
	}
}

func contains(have []net.Addr, want netip.Addr) bool {
	for _, a := range have {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap().WithZone("") == want.WithZone("") {
			return true
		}
	}
	return false
}
