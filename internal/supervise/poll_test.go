//go:build linux

package supervise

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/utils/clock"
)

func TestPollSlowsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		var tries []time.Duration
		err := poll(ctx, clock.RealClock{}, func(context.Context) error {
			tries = append(tries, time.Since(begin))
			return errors.New("no")
		}, func(error) {})
		if err == nil {
			t.Error("it was never ready")
		}
		fast := 0
		for i, at := range tries[1:] {
			d := at - tries[i]
			if at <= probeFastFor && d != probeFirst {
				t.Fatalf("try at %s comes after %s", at, d)
			}
			if d < probeFirst || d > probeLast {
				t.Fatalf("try at %s comes after %s", at, d)
			}
			if d == probeFirst {
				fast++
			}
		}
		if last := tries[len(tries)-1] - tries[len(tries)-2]; last != probeLast {
			t.Errorf("the last distance is %s", last)
		}
	})
}

func TestPollEndsWithWhatIsBroken(t *testing.T) {
	want := &BrokenError{Err: errors.New("no inotify left")}
	tries := 0
	err := poll(t.Context(), clock.RealClock{}, func(context.Context) error {
		tries++
		return want
	}, func(error) {})
	if !errors.Is(err, want) || tries != 1 {
		t.Errorf("%d tries, %v", tries, err)
	}
}
