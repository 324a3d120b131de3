package congestion

import (
	"testing"
	"time"
)

// wan is what most measurements are made on.
func wan(change ...func(*path)) path {
	p := path{rate: 50e6, rtt: 60 * time.Millisecond, queue: 60 * time.Millisecond}
	for _, f := range change {
		f(&p)
	}
	return p
}

func loss(l float64) func(*path)             { return func(p *path) { p.loss = l } }
func rtt(d time.Duration) func(*path)        { return func(p *path) { p.rtt = d } }
func jitter(d time.Duration) func(*path)     { return func(p *path) { p.jitter = d } }
func stall(d time.Duration) func(*path)      { return func(p *path) { p.stall = d } }
func queue(d time.Duration) func(*path)      { return func(p *path) { p.queue = d } }
func rate(bitsPerSecond float64) func(*path) { return func(p *path) { p.rate = bitsPerSecond } }

// All of it is simulated: the same on every machine.
func TestRateOfPaths(t *testing.T) {
	for _, tc := range []struct {
		name     string
		path     path
		least    float64       // Mbit/s after the first second or two
		most     float64       // 0: the line is the bound
		queue    time.Duration // mean, at most
		dropped  float64       // share that the queue drops, at most
		warmTime time.Duration
	}{
		{name: "clean", path: wan(), least: 48, queue: 10 * time.Millisecond, dropped: 0.001},
		{name: "1 % loss", path: wan(loss(0.01)), least: 47, queue: 10 * time.Millisecond, dropped: 0.001},
		{name: "3 % loss", path: wan(loss(0.03)), least: 46, queue: 10 * time.Millisecond, dropped: 0.001},
		{name: "5 % loss", path: wan(loss(0.05)), least: 45, queue: 10 * time.Millisecond, dropped: 0.001},
		{name: "5 % loss behind the line", path: wan(func(p *path) { p.behind = 0.05 }), least: 44, queue: 20 * time.Millisecond, dropped: 0.001},
		{name: "5 % loss, busy machine", path: wan(loss(0.05), stall(20*time.Millisecond)), least: 36, queue: 15 * time.Millisecond, dropped: 0.02},
		{name: "8 % loss", path: wan(loss(0.08)), least: 35, queue: 10 * time.Millisecond, dropped: 0.001},
		// Above the ceiling loss is congestion: it gives way, and not to nothing.
		{name: "15 % loss", path: wan(loss(0.15)), least: 1.5, most: 15, queue: 10 * time.Millisecond, dropped: 0.001},
		{name: "long", path: wan(rtt(250*time.Millisecond), loss(0.001)), least: 47, queue: 15 * time.Millisecond, dropped: 0.01, warmTime: 4 * time.Second},
		{name: "reordering", path: wan(jitter(40*time.Millisecond), loss(0.005)), least: 30, queue: 45 * time.Millisecond, dropped: 0.02},
		{name: "busy machine", path: wan(stall(10 * time.Millisecond)), least: 42, queue: 15 * time.Millisecond, dropped: 0.01},
		// A policer: what it drops is below the ceiling, and the line is used.
		{name: "short queue", path: wan(queue(5 * time.Millisecond)), least: 46, queue: 5 * time.Millisecond, dropped: 0.07},
		{name: "slow line", path: wan(rate(1e6), queue(300*time.Millisecond)), least: 0.9, queue: 120 * time.Millisecond, dropped: 0.001},
		{name: "LAN", path: wan(rate(1e9), rtt(300*time.Microsecond), queue(20*time.Millisecond)), least: 990, queue: 8 * time.Millisecond, dropped: 0.001},
	} {
		t.Run(tc.name, func(t *testing.T) {
			warm := max(tc.warmTime, 2*time.Second)
			for seed := range uint64(3) {
				r := tc.path.run(seed, New(1232), warm, warm+4*time.Second)
				if r.mbps < tc.least || tc.most > 0 && r.mbps > tc.most {
					t.Errorf("seed %d: %.1f Mbit/s, want %.1f to %.1f; by second: %.0f", seed, r.mbps, tc.least, tc.most, r.delivery)
				}
				if r.queue > tc.queue {
					t.Errorf("seed %d: packets wait %s for the line, want at most %s", seed, r.queue, tc.queue)
				}
				if r.dropped > tc.dropped {
					t.Errorf("seed %d: the queue dropped %.4f, want at most %.4f", seed, r.dropped, tc.dropped)
				}
			}
		})
	}
}

// The startup finds the rate of a line within a few round trips, overfills its queue
// little, and what it has overfilled is given back without the line running dry: of
// the first second's 50 Mbit at most 13 are not delivered, some 10 of which it takes to
// come from the first window to the rate in doublings of 60 ms.
func TestStartup(t *testing.T) {
	r := wan().run(0, New(1232), 0, 2*time.Second)
	if r.delivery[0] < 37 || r.dropped > 0.02 {
		t.Errorf("%.1f Mbit in the first second, %.4f dropped; want 37, 0.02", r.delivery[0], r.dropped)
	}
	t.Logf("%.1f Mbit in the first second, %.4f dropped", r.delivery[0], r.dropped)
}

// A path that gets worse is not kept full of packets, and one that gets better
// is used soon.
func TestPathChanges(t *testing.T) {
	at := func(when time.Duration, bitsPerSecond float64) func(*path) {
		return func(p *path) {
			p.change = func(p *path, now time.Duration) {
				if now == when {
					p.rate = bitsPerSecond
				}
			}
		}
	}
	worse := wan(loss(0.01), queue(200*time.Millisecond), at(3*time.Second, 10e6))
	if r := worse.run(1, New(1232), 5*time.Second, 9*time.Second); r.mbps < 8.5 || r.queue > 50*time.Millisecond {
		t.Errorf("50 became 10 Mbit/s: %.1f Mbit/s, queue %s; by second: %.0f", r.mbps, r.queue, r.delivery)
	}
	better := wan(loss(0.01), rate(10e6), at(3*time.Second, 50e6))
	if r := better.run(1, New(1232), 6*time.Second, 10*time.Second); r.mbps < 40 {
		t.Errorf("10 became 50 Mbit/s: %.1f Mbit/s; by second: %.0f", r.mbps, r.delivery)
	}
	longer := wan()
	longer.change = func(p *path, now time.Duration) {
		if now == 2*time.Second {
			p.rtt = 150 * time.Millisecond
		}
	}
	if r := longer.run(1, New(1232), 14*time.Second, 18*time.Second); r.mbps < 44 {
		t.Errorf("60 became 150 ms: %.1f Mbit/s; by second: %.0f", r.mbps, r.delivery)
	}
	longer.moved = 2 * time.Second
	if r := longer.run(1, New(1232), 3*time.Second, 8*time.Second); r.mbps < 44 {
		t.Errorf("60 became 150 ms, as the sender knows: %.1f Mbit/s; by second: %.0f", r.mbps, r.delivery)
	}
}

// What an outage has swallowed says nothing of how much the path carries: the
// sender goes on where it was. Another path may carry less, and need not lose
// anything to show it.
func TestOutages(t *testing.T) {
	const begin = 3 * time.Second
	for _, tc := range []struct {
		name   string
		outage time.Duration
		moved  time.Duration // after the outage has begun; 0: nobody knows
		after  float64       // bits a second
		queue  time.Duration
		from   time.Duration // after the outage
		want   float64       // Mbit/s in the second from there on
		waits  time.Duration // at most, for the line
		busy   time.Duration // until then the sender sends much
	}{
		{"half a second", 500 * time.Millisecond, 0, 50e6, 60 * time.Millisecond, 200 * time.Millisecond, 42, 20 * time.Millisecond, time.Hour},
		{"two seconds", 2 * time.Second, 0, 50e6, 60 * time.Millisecond, 200 * time.Millisecond, 42, 20 * time.Millisecond, time.Hour},
		{"half a second and another address", 500 * time.Millisecond, 400 * time.Millisecond, 50e6, 60 * time.Millisecond, 200 * time.Millisecond, 42, 20 * time.Millisecond, time.Hour},
		{"a slower path", 500 * time.Millisecond, 400 * time.Millisecond, 5e6, 60 * time.Millisecond, 200 * time.Millisecond, 3.5, 50 * time.Millisecond, time.Hour},
		{"a slower path with a deep queue", 500 * time.Millisecond, 400 * time.Millisecond, 5e6, 2 * time.Second, time.Second, 4.5, 60 * time.Millisecond, time.Hour},
		{"a slower path with a deep queue, of which little is seen at first", 500 * time.Millisecond, 400 * time.Millisecond, 5e6, 2 * time.Second, 3 * time.Second, 4.5, 60 * time.Millisecond, 2500 * time.Millisecond},
		{"the same of a sender that has always had little", 500 * time.Millisecond, 400 * time.Millisecond, 5e6, 2 * time.Second, 3 * time.Second, 4.5, 60 * time.Millisecond, 200 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := wan(loss(0.01))
			p.change = func(p *path, now time.Duration) {
				switch now {
				case begin:
					p.loss = 1
				case begin + tc.outage:
					p.loss, p.rate, p.queue = 0.01, tc.after, tc.queue
				}
			}
			if tc.moved > 0 {
				p.moved = begin + tc.moved
			}
			// From busy on little is sent, and much again a second and a half after the
			// outage.
			p.quiet = func(now time.Duration) bool { return now > tc.busy && now < begin+tc.outage+1500*time.Millisecond }
			from := begin + tc.outage + tc.from
			r := p.run(1, New(1232), from, from+time.Second)
			t.Logf("%.1f Mbit/s, packets wait %s", r.mbps, r.queue)
			if r.mbps < tc.want || r.queue > tc.waits {
				t.Errorf("%.1f Mbit/s, want %.1f; packets wait %s, want %s; by second: %.0f", r.mbps, tc.want, r.queue, tc.waits, r.delivery)
			}
		})
	}
}

// On another path what is on the way counts anew, and little is sent there until
// something has come of it.
func TestMoved(t *testing.T) {
	c := New(1232)
	now, number, inFlight := time.Duration(0), int64(0), int64(0)
	send := func() (n int64) {
		for ; c.CanSend(inFlight); n++ {
			for !c.HasBudget(now) {
				now = c.Next()
			}
			c.OnSent(now, inFlight, number, 1232, true)
			inFlight += 1232
			number++
		}
		return n
	}
	for range 20 { // rounds of 50 ms
		first := number - inFlight/1232
		send()
		now += 50 * time.Millisecond
		for ; first < number; first++ {
			c.OnAcked(now, first, 1232, inFlight)
			inFlight -= 1232
		}
	}
	window := c.Window()
	if window < 2*initialWindow*1232 {
		t.Fatalf("a window of %d bytes is too small to see anything", window)
	}
	old := number - inFlight/1232
	send()
	c.Moved(inFlight)
	moved := number
	if n := send(); n != initialWindow {
		t.Errorf("%d packets on a path that nothing is known of, want %d", n, initialWindow)
	}
	now += 50 * time.Millisecond
	for ; old < moved; old++ {
		c.OnLost(old, 1232)
		inFlight -= 1232
	}
	if n := send(); n != 0 {
		t.Errorf("%d packets more, although nothing has come of the first ones", n)
	}
	c.OnAcked(now, moved, 1232, inFlight)
	inFlight -= 1232
	if got := c.Window(); got < window*4/10 || got > window*6/10 {
		t.Errorf("a window of %d bytes on a path that is proven, want half of %d", got, window)
	}
	if c.onPath(inFlight) != inFlight {
		t.Errorf("%d bytes of the old path still count", c.path.inFlight)
	}
	if c.loss.lost != 0 {
		t.Errorf("%d packets of the old path count as lost on this one", c.loss.lost)
	}
}

// A sender with little to send keeps what is known of the path, and sends the
// little at once.
func TestSenderWithLittle(t *testing.T) {
	c := New(1232)
	now := time.Hour // any moment
	number := int64(0)
	exchange := func(packets int64) {
		for range packets {
			if !c.CanSend(0) || !c.HasBudget(now) {
				t.Fatalf("at %s packet %d has to wait until %s", now, number, c.Next())
			}
			c.OnSent(now, 0, number, 500, true)
			now += 30 * time.Millisecond
			c.OnAcked(now, number, 500, 500)
			number++
			now += time.Second
		}
	}
	exchange(20)
	if s := c.Stats(); s.Phase != "startup" || s.MinRTT != 30*time.Millisecond || s.Window < initialWindow*1232 {
		t.Errorf("after twenty small exchanges: %+v", s)
	}
	exchange(1000)
	if s := c.Stats(); s.Window < minWindow*1232 {
		t.Errorf("after a thousand: %+v", s)
	}
	if n := len(c.sent.ring); n > smallRing {
		t.Errorf("an idle session remembers %d packets", n)
	}
}

// Times may lie before the origin, as quic-go's do in a synctest bubble.
func TestTimesBeforeTheOrigin(t *testing.T) {
	c := New(1232)
	now := -1000 * time.Hour
	if !c.HasBudget(now) {
		t.Error("the first packet has to wait")
	}
	for number := range int64(100) {
		if !c.HasBudget(now) {
			now = c.Next()
			if !c.HasBudget(now) {
				t.Fatalf("packet %d may not be sent when it was said to", number)
			}
		}
		c.OnSent(now, number*1232, number, 1232, true)
	}
	for number := range int64(100) {
		c.OnAcked(now+50*time.Millisecond, number, 1232, (100-number)*1232)
	}
	if s := c.Stats(); s.Rate == 0 || s.MinRTT == 0 {
		t.Errorf("%+v", s)
	}
}

func TestMarksEndStartup(t *testing.T) {
	c := New(1232)
	c.OnMarked()
	if c.InStartup() {
		t.Error("goes on to double what it sends after a mark")
	}
}

func TestFlights(t *testing.T) {
	var f flights
	add := func(n int64) { f.add(flight{number: n, sent: time.Duration(n), here: true}) }
	for n := range int64(1000) {
		add(2 * n) // numbers may be skipped
	}
	if _, ok := f.take(3); ok {
		t.Error("took a number that was never sent")
	}
	if p, ok := f.take(1000); !ok || p.number != 1000 {
		t.Errorf("%+v, %v", p, ok)
	}
	if _, ok := f.take(1000); ok {
		t.Error("took a packet twice")
	}
	f.expire(999) // all before 1000, which is gone too
	if f.count != 499 || f.at(0).number != 1002 {
		t.Errorf("%d left, the oldest is %d", f.count, f.at(0).number)
	}
	for n := int64(1999); n >= 1001; n-- {
		f.take(n)
	}
	if f.count != 0 || f.ring != nil {
		t.Errorf("%d left in a ring of %d", f.count, len(f.ring))
	}
	for n := range int64(2 * maxRing) {
		add(10_000 + n)
	}
	if len(f.ring) != maxRing || f.count != maxRing {
		t.Errorf("%d in a ring of %d", f.count, len(f.ring))
	}
	if _, ok := f.take(10_000); ok {
		t.Error("the oldest was not forgotten")
	}
}
