package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// firstWait spreads the nodes of a gateway that has just gone: full jitter
	// of half a second, which a person does not notice.
	firstWait = 500 * time.Millisecond
	// maxWait bounds a wait: a site that is back is noticed within it.
	maxWait = 30 * time.Second
	// settled is how long a session must have lasted for its end to count as a
	// first failure and not as one more.
	settled = 10 * time.Second
	// refusedTry is where the count of failures stands at least after a gateway
	// refused the node or another process took its session over: trying again
	// soon changes nothing there.
	refusedTry = 6
)

// backoff is the longest wait before try number n (0 is the first): full jitter
// under min(maxWait, 0.5 s * 2^n), except that the first is spread over firstWait.
func backoff(n int) time.Duration {
	if n <= 0 {
		return firstWait
	}
	if n > 6 { // 0.5 s * 2^6 is above maxWait already
		n = 6
	}
	return min(maxWait, 500*time.Millisecond<<n)
}

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
	for try := 0; a.wait(ctx, a.cfg.Jitter(backoff(try))); {
		began, err := a.round(ctx)
		if ctx.Err() != nil {
			break
		}
		if !began.IsZero() && time.Since(began) >= settled {
			try = 0
		} else {
			try++
		}
		if closed, ok := errors.AsType[*tunnel.CloseError](err); ok && closed.Remote {
			switch closed.Code {
			case tunnel.CloseGoingAway:
				if !began.IsZero() {
					try = 0
				}
			case tunnel.CloseDenied, tunnel.CloseRevoked, tunnel.CloseSuperseded, tunnel.CloseRateLimited:
				try = max(try, refusedTry)
			}
		}
		a.log.Warn("not connected to a gateway", "error", err, "retry_within", backoff(try))
	}
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

// round tries every gateway once and runs the first session that it gets, to its
// end. began is when that session was welcomed, zero if none was. The error is
// never nil.
func (a *Agent) round(ctx context.Context) (began time.Time, err error) {
	var errs []error
	for _, gw := range a.cfg.Gateways {
		s, err := a.connect(ctx, gw)
		if err != nil {
			errs = append(errs, fmt.Errorf("gateway %s: %w", gw, err))
			continue
		}
		began = time.Now()
		a.set(s)
		a.log.Info("connected", "gateway", gw, "remote", s.sess.Remote(), "epoch", s.welcome.Epoch)
		a.cfg.OnState(true, gw)
		err = s.run(ctx, func() {
			a.set(nil)
			a.cfg.OnState(false, gw)
		})
		return began, fmt.Errorf("gateway %s: session ended after %s: %w", gw, time.Since(began).Round(time.Millisecond), err)
	}
	return time.Time{}, errors.Join(errs...)
}
