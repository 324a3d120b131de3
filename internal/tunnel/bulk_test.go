package tunnel

import (
	"testing"
	"time"
)

func TestFlow(t *testing.T) {
	for _, tc := range []struct {
		name   string
		bytes  int
		waited time.Duration // for each piece
		times  int
		want   bool
	}{
		{"an answer", bulkAfter, 0, 1, false},
		{"a copy", 16 << 10, 0, 20, true},
		{"a copy from a source of 1 Mbit/s", 16 << 10, 131 * time.Millisecond, 60, true},
		{"a log", 6 << 10, 100 * time.Millisecond, 10_000, false},
		{"typing", 1, 20 * time.Millisecond, 10_000, false},
	} {
		var f flow
		got := false
		for range tc.times {
			got = f.carried(tc.bytes, tc.waited)
		}
		if got != tc.want {
			t.Errorf("%s: bulk %v", tc.name, got)
		}
	}
	var f flow
	f.carried(10*bulkAfter, 0)
	if !f.carried(100, time.Second) {
		t.Error("a copy that pauses for a second is none any more")
	}
	if f.carried(100, 5*time.Second) {
		t.Error("what comes long after a copy is bulk")
	}
}

// Bulk waits for everything else, and has its old urgency again when it is none.
func TestPriority(t *testing.T) {
	var p priority
	for _, step := range []struct {
		do   func()
		want int8
	}{
		{func() { p.set(2) }, 2},
		{func() { p.bulk.Store(true) }, urgencyBulk},
		{func() { p.set(3) }, urgencyBulk},
		{func() { p.bulk.Store(false) }, 3},
	} {
		if step.do(); p.get() != step.want {
			t.Errorf("urgency %d, want %d", p.get(), step.want)
		}
	}
}
