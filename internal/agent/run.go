package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// rebalance is how often an agent that is not at its home gateway tries to
	// return there: after a restart of that one nodes are spread again within
	// minutes, and a gateway that comes and goes is not chased.
	rebalance = 5 * time.Minute
	// moveGrace is how long the streams of a session that was left for another
	// may go on at most: an exec session survives a roll of the gateways unless
	// it is longer than this. The gateway that was left has a deadline of its own.
	moveGrace = 15 * time.Minute
	// moveRetry is the wait before the next attempt to leave a draining gateway.
	moveRetry = 2 * time.Second
)

// Run keeps a session until ctx ends, and returns nil then; when it returns,
// nothing of the agent runs any more. It is an error to call it twice.
func (a *Agent) Run(ctx context.Context) error {
	a.mu.Lock()
	if a.running {
		a.mu.Unlock()
		return errors.New("agent: Run was called twice")
	}
	a.running = true
	a.lostAt = time.Now()
	a.mu.Unlock()
	var sessions sync.WaitGroup
	var r retries
	for a.pause(ctx, r.wait(a.cfg.Jitter), r.silent, r.spread) {
		mode := a.transport()
		s, err := a.connectAny(ctx, a.dir.candidates(time.Now()))
		if err != nil {
			r.failed(err)
			a.troubled(mode, err)
			if ctx.Err() == nil {
				a.history.Add(0, tunnel.EventFailed, err.Error())
			}
		} else {
			began := time.Now()
			s, err = a.hold(ctx, &sessions, s)
			err = fmt.Errorf("gateway %s: session ended after %s: %w", s.gateway, time.Since(s.began).Round(time.Millisecond), err)
			r.lost(time.Since(began), time.Duration(s.spread.Load())*time.Millisecond, err)
		}
		if ctx.Err() != nil {
			break
		}
		a.log.Warn("not connected to a gateway", "error", err, "retry_within", r.longest())
	}
	sessions.Wait()
	a.mu.Lock()
	a.running = false
	a.mu.Unlock()
	return nil
}

// wait waits for d or a Poke; false when ctx ended.
func (a *Agent) wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-a.poke:
	}
	return ctx.Err() == nil
}

// connectAny tries each gateway once and returns the first session that it gets.
func (a *Agent) connectAny(ctx context.Context, list []candidate) (*session, error) {
	var errs []error
	for _, c := range list {
		s, err := a.connect(ctx, c)
		if err == nil {
			return s, nil
		}
		if ctx.Err() == nil {
			a.dir.avoiding(c.id, time.Now().Add(avoidFor))
		}
		errs = append(errs, fmt.Errorf("gateway %s: %w", c, err))
	}
	if len(errs) == 0 {
		return nil, errors.New("no other gateway")
	}
	return nil, errors.Join(errs...)
}

// hold runs s and whichever sessions replace it, until the newest has ended and
// none has replaced it. It returns that one and why it ended. What older ones
// still carry goes on; wg counts them.
func (a *Agent) hold(ctx context.Context, wg *sync.WaitGroup, s *session) (last *session, err error) {
	a.begin(ctx, wg, s)
	home := time.NewTimer(rebalance)
	defer home.Stop()
	carrier := newRetaker()
	defer carrier.stop()
	carrier.reset(a.transport())
	var leave <-chan time.Time
	for {
		move, recarry := false, false
		select {
		case <-s.ended:
			return s, s.err
		case d := <-s.drained:
			a.dir.avoiding(s.id, time.Now().Add(avoidFor))
			if len(d.Alternates) > 0 {
				leave = time.After(a.cfg.Jitter(max(time.Duration(d.SpreadMS)*time.Millisecond, 1)))
			}
		case <-leave:
			leave, move = nil, true
		case <-home.C:
			// Not to the minute, so that the nodes of a site do not move as one.
			home.Reset(rebalance/2 + a.cfg.Jitter(rebalance))
			move = len(a.dir.better(s.id, time.Now())) > 0
		case <-s.moved:
			carrier.soon(a.transport())
		case <-a.remix:
			carrier.reset(a.transport())
			recarry = true
		case <-carrier.timer.C:
			recarry = true
		}
		var next *session
		err = nil
		switch {
		case move:
			next, err = a.connectAny(ctx, a.alternatives(s))
		case recarry:
			mode := a.transport()
			if next, err = a.recarry(ctx, s, mode); err != nil {
				level := slog.LevelDebug
				// Where the transport was chosen somebody waits for it; told once.
				if mode != Auto && a.troubled(mode, err) && ctx.Err() == nil {
					level = slog.LevelWarn
				}
				a.log.Log(ctx, level, "no session over the other transport yet", "gateway", s.gateway, "want", mode, "have", s.sess.transport, "error", err)
				carrier.later()
				continue
			}
		}
		switch {
		case next == nil && err == nil: // nothing to do, or not yet
		case err == nil:
			carrier.reset(a.transport())
			a.begin(ctx, wg, next)
			left := s
			wg.Go(func() { left.retire(ctx) })
			s = next
		case s.leaving.Load():
			a.log.Warn("no other gateway takes this node yet", "gateway", s.gateway, "error", err)
			leave = time.After(moveRetry)
		}
	}
}

// begin makes s the session and serves it.
func (a *Agent) begin(ctx context.Context, wg *sync.WaitGroup, s *session) {
	s.began = time.Now()
	a.begun++
	s.number = a.begun
	a.history.Add(s.number, tunnel.EventConnected, fmt.Sprintf("to %s over %s", s.gateway, s.sess.transport))
	tunnel.Keep(s.sess.Session, a.history, s.number)
	old := a.adopt(s)
	a.counters.session(s.sess.transport, old != nil)
	a.log.Info("connected", "gateway", s.gateway, "id", s.id, "remote", s.sess.Remote(), "transport", s.sess.transport, "congestion", tunnel.CongestionOf(s.sess.Session), "epoch", s.welcome.Epoch, "moved", old != nil)
	wg.Go(func() { s.run(ctx) })
}

// alternatives are the gateways to move to: any other one if this one drains,
// those that come before it otherwise.
func (a *Agent) alternatives(s *session) []candidate {
	now := time.Now()
	if !s.leaving.Load() {
		return a.dir.better(s.id, now)
	}
	return slices.DeleteFunc(a.dir.candidates(now), func(c candidate) bool { return c.id == s.id || c.id == "" })
}
