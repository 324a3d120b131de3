package tunnel

import (
	"testing"
	"time"
)

func TestFlow(t *testing.T) {
	now := time.Unix(1e9, 0)
	for _, tc := range []struct {
		name  string
		bytes int
		every time.Duration
		times int
		want  bool
	}{
		{"an answer", bulkAfter, 0, 1, false},
		{"a copy", 16 << 10, time.Millisecond, 20, true},
		{"a copy on a line of 1 Mbit/s", 16 << 10, 131 * time.Millisecond, 60, true},
		{"a log", 6 << 10, 100 * time.Millisecond, 10_000, false},
		{"typing", 1, 20 * time.Millisecond, 10_000, false},
	} {
		var f flow
		got, at := false, now
		for range tc.times {
			got = f.carried(tc.bytes, at)
			at = at.Add(tc.every)
		}
		if got != tc.want {
			t.Errorf("%s: bulk %v", tc.name, got)
		}
	}
	var f flow
	f.carried(10*bulkAfter, now)
	if !f.carried(100, now.Add(time.Second)) {
		t.Error("a copy that pauses for a second is none any more")
	}
	if f.carried(100, now.Add(6*time.Second)) {
		t.Error("what comes long after a copy is bulk")
	}
}
