package timekeep

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	testingclock "k8s.io/utils/clock/testing"
)

// machine is a clock that can be set, and a disk that outlives a boot.
type machine struct {
	t       *testing.T
	clock   *testingclock.FakeClock
	path    string
	refuses error
}

func newMachine(t *testing.T, now time.Time) *machine {
	return &machine{t: t, clock: testingclock.NewFakeClock(now), path: filepath.Join(t.TempDir(), "clock")}
}

func (m *machine) set(to time.Time) error {
	if m.refuses == nil {
		m.clock.SetTime(to)
	}
	return m.refuses
}

// boot starts a keeper in a machine whose clock shows this.
func (m *machine) boot(now time.Time) *Keeper {
	m.t.Helper()
	m.clock.SetTime(now)
	k, err := New(Options{Path: m.path, Set: m.set, Clock: m.clock, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		m.t.Fatal(err)
	}
	return k
}

// up lets a keeper write down the time at every one of these.
func (m *machine) up(k *Keeper, times ...time.Time) {
	m.t.Helper()
	for _, at := range times {
		m.clock.SetTime(at)
		if err := k.record(); err != nil {
			m.t.Fatal(err)
		}
	}
}

var (
	day   = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	epoch = time.Unix(0, 0)
)

func TestClock(t *testing.T) {
	for _, c := range []struct {
		name string
		seen []time.Time // before the boot
		boot time.Time   // what the clock shows then
		want time.Time   // after
	}{
		{"the first boot", nil, epoch, epoch},
		{"no battery", []time.Time{day.Add(-time.Hour), day}, epoch, day},
		{"the firmware's date", []time.Time{day}, day.AddDate(-2, 0, 0), day},
		{"a clock that goes on", []time.Time{day}, day.Add(8 * time.Hour), day.Add(8 * time.Hour)},
		{"a second behind", []time.Time{day}, day.Add(-time.Second), day.Add(-time.Second)},
		{"set back while it ran, by somebody who knew", []time.Time{day.AddDate(70, 0, 0), day}, day.Add(time.Minute), day.Add(time.Minute)},
		{"no battery after that", []time.Time{day.AddDate(70, 0, 0), day}, epoch, day},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t, day)
			m.up(m.boot(day), c.seen...)
			k := m.boot(c.boot)
			if got := m.clock.Now(); !got.Equal(c.want) {
				t.Errorf("the clock shows %s, want %s", got, c.want)
			}
			if f := k.Fault(); f != "" {
				t.Errorf("a fault: %s", f)
			}
		})
	}
}

// TestClockThatCannotBeSet is told of, and the last time seen is not lost by it.
func TestClockThatCannotBeSet(t *testing.T) {
	m := newMachine(t, day)
	m.up(m.boot(day), day)
	m.refuses = errors.New("operation not permitted")
	for range 2 { // the second boot knows as much as the first
		k := m.boot(epoch)
		m.up(k, epoch, epoch.Add(time.Hour))
		if f := k.Fault(); !strings.Contains(f, "1970-01-01T01:00:00Z") || !strings.Contains(f, "2026-05-01T12:00:00Z") || !strings.Contains(f, "not permitted") {
			t.Errorf("the fault is %q", f)
		}
	}
	k := m.boot(epoch)
	m.up(k, day.Add(time.Hour)) // somebody has told it the time
	if f := k.Fault(); f != "" {
		t.Errorf("a fault after that: %s", f)
	}
	info, err := os.Stat(m.path)
	if err != nil || !info.ModTime().Equal(day.Add(time.Hour)) || info.Mode().Perm() != 0o600 {
		t.Errorf("written down: %v, %v", info, err)
	}
}

func TestRunWritesDownTheTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock")
	synctest.Test(t, func(t *testing.T) {
		k, err := New(Options{Path: path, Set: func(time.Time) error { t.Error("the clock is set"); return nil }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); k.Run(ctx) }()
		for range 3 {
			synctest.Wait()
			if info, err := os.Stat(path); err != nil || time.Since(info.ModTime()) >= interval {
				t.Errorf("%v, %v", info, err)
			}
			time.Sleep(interval)
		}
		cancel()
		<-done
	})
}
