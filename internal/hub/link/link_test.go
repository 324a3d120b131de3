package link

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// apiserver is one that can be silent, refuse, or answer.
type apiserver struct {
	how atomic.Pointer[func(context.Context) error]
}

func (a *apiserver) will(answer func(context.Context) error) { a.how.Store(&answer) }
func (a *apiserver) probe(ctx context.Context) error         { return (*a.how.Load())(ctx) }

func answers(context.Context) error { return nil }
func refuses(context.Context) error { return errors.New("connection refused") }
func silent(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestMonitor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &apiserver{}
		api.will(answers)
		var changes atomic.Int32
		m := New(Options{Probe: api.probe, OnChange: func(State) { changes.Add(1) }})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = m.Run(ctx) }()
		is := func(online bool, n int, why string) {
			t.Helper()
			synctest.Wait()
			if s := m.State(); s.Online != online || int(changes.Load()) != n {
				t.Fatalf("%s: %+v after %d changes, want online=%v after %d", why, s, changes.Load(), online, n)
			}
		}
		is(false, 0, "no session")
		time.Sleep(2 * ProbeInterval)
		is(false, 0, "no session, for long")
		m.Session(true)
		is(true, 1, "a session and an answer")
		period, ok := m.Online()
		if !ok || period.Err() != nil {
			t.Fatal("the online period is over")
		}

		// The first failed request is enough; the next probe finds it was nothing.
		block := make(chan struct{})
		api.will(func(context.Context) error { <-block; return nil })
		m.Failed(errors.New("broken pipe"))
		is(false, 2, "a request failed")
		if !errors.Is(context.Cause(period), ErrCut) {
			t.Fatalf("the period ended with %v", context.Cause(period))
		}
		// What failed meanwhile is not outweighed by a probe from before.
		m.Failed(errors.New("broken pipe"))
		close(block)
		api.will(refuses)
		is(false, 2, "a probe from before a failure")
		api.will(answers)
		time.Sleep(again)
		is(true, 3, "a probe after it")

		// A cut that nobody runs into.
		api.will(silent)
		time.Sleep(ProbeInterval + ProbeTimeout)
		is(false, 4, "silence")
		api.will(answers)
		time.Sleep(ProbeTimeout + again)
		is(true, 5, "an answer after silence")

		m.Session(false)
		is(false, 6, "no session any more")
		time.Sleep(ProbeInterval)
		is(false, 6, "an apiserver that answers, without a session")
		m.Session(true)
		is(true, 7, "a new session")
		stop()
		<-done
		is(false, 8, "the end")
	})
}

// TestOneProbe: a session that is there before Run begins is asked over once. A second
// probe under way would make whatever takes longer than it count as a cut.
func TestOneProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var probes atomic.Int32
		m := New(Options{Probe: func(context.Context) error { probes.Add(1); return nil }})
		ctx, stop := context.WithCancel(t.Context())
		m.Session(true)
		done := make(chan struct{})
		go func() { defer close(done); _ = m.Run(ctx) }()
		synctest.Wait()
		if !m.State().Online || probes.Load() != 1 {
			t.Errorf("online=%v after %d probes, want one", m.State().Online, probes.Load())
		}
		stop()
		<-done
	})
}
