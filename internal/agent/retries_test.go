package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

func TestBackoff(t *testing.T) {
	var got []time.Duration
	for n := range 9 {
		got = append(got, backoff(n))
	}
	want := []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second, 30 * time.Second}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if backoff(1<<40) != maxWait || backoff(-1) != firstWait {
		t.Error("out of range")
	}
}

// Each step is one failure after the one before, with the bounds of the wait that
// follows.
func TestRetries(t *testing.T) {
	const second, minute = time.Second, time.Minute
	timeout := errors.New("timeout")
	said := func(code tunnel.CloseCode, reason string) error {
		return &tunnel.CloseError{Code: code, Reason: reason, Remote: true}
	}
	type step struct {
		lasted, spread time.Duration // lasted 0: no session
		err            error
		least, most    time.Duration
	}
	for name, steps := range map[string][]step{
		"attempts": {{0, 0, timeout, 0, second}, {0, 0, timeout, 0, 2 * second}},
		"sessions that last": {
			{0, 0, timeout, 0, second}, {minute, 0, timeout, 0, second / 2}, {0, 0, timeout, 0, second}, {minute, 0, timeout, 0, second / 2},
		},
		"sessions that do not": {{second, 0, timeout, 0, second}, {second, 0, timeout, 0, 2 * second}},
		"one of many nodes": {
			{minute, 20 * second, timeout, 0, 20 * second}, {0, 0, timeout, 0, 10 * second}, {0, 0, timeout, 0, 10 * second},
			{0, 0, timeout, 0, 10 * second}, {0, 0, timeout, 0, 10 * second}, {0, 0, timeout, 0, 16 * second}, {0, 0, timeout, 0, 30 * second},
			{minute, 0, timeout, 0, second / 2}, {0, 0, timeout, 0, second},
		},
		"a gateway that asks for too much": {{minute, time.Hour, timeout, 0, 10 * minute}},
		"refused": {
			{second, 0, said(tunnel.CloseDenied, "no such node"), 15 * second, 30 * second}, {0, 0, timeout, 0, 30 * second},
		},
		"its place taken": {{minute, 0, said(tunnel.CloseSuperseded, ""), 15 * second, 30 * second}},
		"asked to wait": {
			{0, 0, said(tunnel.CloseRateLimited, tunnel.RetryReason(45*second, "too many sessions")), 15 * second, 45 * second},
			{0, 0, timeout, 0, 30 * second},
		},
		"its gateway stops": {{second, 0, said(tunnel.CloseGoingAway, ""), 0, second / 2}},
	} {
		var r retries
		for i, s := range steps {
			if s.lasted > 0 {
				r.lost(s.lasted, s.spread, s.err)
			} else {
				r.failed(s.err)
			}
			least := r.wait(func(time.Duration) time.Duration { return 0 })
			most := r.wait(func(max time.Duration) time.Duration { return max })
			if least != s.least || most != s.most || r.longest() != most {
				t.Errorf("%s, failure %d: %s to %s", name, i+1, least, most)
			}
		}
	}
}
