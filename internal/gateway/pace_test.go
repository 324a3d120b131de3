package gateway

import (
	"math"
	"testing"
	"time"
)

// crowdOf says that n handshakes are done, one each every, of which each costs that
// much of processor.
func (p *pace) crowdOf(now *time.Time, used *time.Duration, n int, every, cost time.Duration) {
	for range n {
		*now = now.Add(every)
		*used += cost
		p.done(*now)
	}
}

// The slower a gateway, the longer its nodes take to return.
func TestPace(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name        string
		cores       int
		every, cost time.Duration
		n           int
		want        float64
	}{
		{"none was measured", 2, ms, ms, paceSample, mostReturns},
		{"fast", 2, 3 * ms, ms, 1000, mostReturns},
		{"slow", 2, 4 * ms, 4 * ms, 1000, 250},
		{"as slow, with twice the cores", 4, 4 * ms, 4 * ms, 1000, mostReturns},
		{"as slow, with one", 1, 4 * ms, 4 * ms, 1000, 125},
		{"very slow", 1, 15 * ms, 15 * ms, 1000, leastReturns},
		{"few a second, of a gateway that does much else", 2, 30 * ms, 60 * ms, 1000, mostReturns},
	} {
		now, used := time.Unix(1000, 0), time.Duration(0)
		p := &pace{used: func() time.Duration { return used }, cores: c.cores}
		p.crowdOf(&now, &used, c.n, c.every, c.cost)
		if got := p.returns(); math.Abs(got-c.want) > 1 {
			t.Errorf("%s: %.1f a second, want %.1f", c.name, got, c.want)
		}
	}
}

// What was measured long ago gives way to what is now.
func TestPaceChanges(t *testing.T) {
	now, used := time.Unix(1000, 0), time.Duration(0)
	p := &pace{used: func() time.Duration { return used }, cores: 2}
	p.crowdOf(&now, &used, 500, 4*time.Millisecond, 8*time.Millisecond)
	if got := p.returns(); math.Abs(got-125) > 1 {
		t.Errorf("slow: %.1f a second", got)
	}
	used += time.Hour // other work, before the next of them
	now = now.Add(time.Hour)
	p.crowdOf(&now, &used, 100_000, 4*time.Millisecond, 4*time.Millisecond)
	if got := p.returns(); math.Abs(got-250) > 1 {
		t.Errorf("faster: %.1f a second", got)
	}
}

// The system says how much this process has used.
func TestProcessorTime(t *testing.T) {
	before := processorTime()
	for deadline := time.Now().Add(10 * time.Second); processorTime() == before; {
		if time.Now().After(deadline) {
			t.Fatalf("%v, and no more after ten seconds of work", before)
		}
	}
}
