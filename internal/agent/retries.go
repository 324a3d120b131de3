package agent

import (
	"errors"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// firstWait spreads the nodes of a gateway that has just gone: full jitter
	// of half a second, which a person does not notice.
	firstWait = 500 * time.Millisecond
	// maxWait bounds a wait: a site that is back is noticed within it, and sooner
	// where its gateway answers knocks (see pause).
	maxWait = 30 * time.Second
	// settled is how long a session must have lasted for its end to count as a
	// first failure and not as one more.
	settled = 10 * time.Second
	// refusedTry is where the count of failures stands at least after a gateway
	// refused the node or another process took its session over: trying again
	// soon changes nothing there.
	refusedTry = 6
	// maxSpread bounds the spread that a gateway may ask for.
	maxSpread = 10 * time.Minute
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

// retries says how long to wait before the next attempt to connect. The zero value
// is before the first.
type retries struct {
	try    int           // attempts that failed since a session lasted
	least  time.Duration // a refused agent waits this long at least
	asked  time.Duration // by who refused the last attempt, to wait up to
	silent bool          // nothing was heard from any gateway

	// spread was asked for by the gateway that was lost, for the first attempt.
	// Until there is another session those that follow are spread over half of it:
	// if all whom the crowd has left no place for came at once, they would be more
	// than any gateway answers in time, and none would succeed.
	spread time.Duration
	first  bool // no attempt was made since
}

// longest is how long the wait may be.
func (r *retries) longest() time.Duration { return max(backoff(r.try), r.spread, r.asked) }

// wait is how long it is; jitter returns a duration in [0, max).
func (r *retries) wait(jitter func(max time.Duration) time.Duration) time.Duration {
	return r.least + jitter(r.longest()-r.least)
}

// failed counts an attempt that did not become a session.
func (r *retries) failed(err error) {
	r.try++
	if r.first {
		r.spread, r.first = r.spread/2, false
	}
	r.learn(err)
}

// lost counts a session that has ended after it lasted so long. Its gateway asked
// for that spread.
func (r *retries) lost(lasted, spread time.Duration, err error) {
	r.try++
	if closed, ok := errors.AsType[*tunnel.CloseError](err); lasted >= settled || ok && closed.Remote && closed.Code == tunnel.CloseGoingAway {
		r.try = 0
	}
	r.spread, r.first = min(spread, maxSpread), true
	r.learn(err)
}

// learn takes what a gateway has said, if one has.
func (r *retries) learn(err error) {
	r.asked, r.least, r.silent = 0, 0, unanswered(err)
	closed, ok := errors.AsType[*tunnel.CloseError](err)
	if !ok || !closed.Remote {
		return
	}
	r.asked, _ = tunnel.ParseRetry(closed.Reason) // 0: it does not ask
	switch closed.Code {
	case tunnel.CloseDenied, tunnel.CloseRevoked, tunnel.CloseSuperseded, tunnel.CloseRateLimited:
		// An answer that is the same at once: two daemons with one identity,
		// above all, would take the place from each other for ever.
		r.try, r.least = max(r.try, refusedTry), maxWait/2
	}
}
