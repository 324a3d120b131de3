package tunnel

import (
	"testing"
	"time"
)

// Packets gather where many come and few are found together, and only there.
func TestGatherer(t *testing.T) {
	const most = 8
	for name, c := range map[string]struct {
		every time.Duration // between reads
		n     int           // packets read
		want  bool
	}{
		"few":                            {10 * time.Millisecond, 1, false},
		"just too few":                   {1010 * time.Microsecond, 1, false},
		"many, one by one":               {time.Millisecond, 1, true},
		"many, some of them at once":     {2 * time.Millisecond, 3, true},
		"as many as a read has room for": {100 * time.Microsecond, most, false},
	} {
		now, slept := time.Unix(1000, 0), 0
		g := newGatherer()
		g.sleep = func(d time.Duration) {
			if d != gatherFor {
				t.Errorf("%s: sleeps %s", name, d)
			}
			slept++
		}
		for range 10 * gatherOver {
			g.before(c.n == most)
			now = now.Add(c.every)
			g.after(c.n, now)
		}
		if got := slept > 0; got != c.want {
			t.Errorf("%s: slept %d times", name, slept)
		}
	}
}

// When few come again, nothing waits any more.
func TestGathererEnds(t *testing.T) {
	now, slept := time.Unix(1000, 0), 0
	g := newGatherer()
	g.sleep = func(time.Duration) { slept++ }
	read := func(every time.Duration, times int) {
		for range times {
			g.before(false)
			now = now.Add(every)
			g.after(1, now)
		}
	}
	read(time.Millisecond/2, 3*gatherOver)
	if slept == 0 {
		t.Fatal("nothing gathers")
	}
	read(time.Second, 2*gatherOver)
	slept = 0
	if read(time.Second, gatherOver); slept > 0 {
		t.Errorf("slept %d times", slept)
	}
}
