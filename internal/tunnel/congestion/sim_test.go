package congestion

import (
	"container/heap"
	"math/rand/v2"
	"time"
)

// path is a simulated line with a sender that always has something to send.
type path struct {
	rate   float64 // bits a second
	rtt    time.Duration
	queue  time.Duration // how long the line's queue is
	loss   float64       // before the line, as on an uplink's radio
	behind float64       // the same behind the line
	jitter time.Duration // each packet alone, so that they overtake each other
	// stall holds up the sender for so long, ten times a second on average: a
	// machine that is busy with other things.
	stall time.Duration
	// change is called at each millisecond.
	change func(p *path, now time.Duration)
	// moved is when the sender is told that it is on another path.
	moved time.Duration
	// quiet says when the sender has one packet in 100 ms only.
	quiet func(now time.Duration) bool
}

// result is what became of a transfer.
type result struct {
	mbps     float64       // delivered, after warm
	queue    time.Duration // mean wait for the line, after warm
	dropped  float64       // share of packets that the queue had no room for, after warm
	delivery []float64     // Mbit/s of each second
}

type event struct {
	at     time.Duration
	order  int
	number int64
	kind   int // 0 ack, 1 loss timer
	sent   time.Duration
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].order < e[j].order
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

// run sends for d, and counts from warm on. Losses are noticed as quic-go does
// after it has seen reordering: by time, 9/8 of the smoothed round trip after
// sending, once something sent later was acknowledged.
func (p path) run(seed uint64, c *Controller, warm, d time.Duration) result {
	const size, step = 1400, 250 * time.Microsecond
	c.SetDatagramSize(size)
	random := rand.New(rand.NewPCG(seed, 0))
	var q events
	var inFlight, number, counted, tail, sentCount int64
	var lineFree, stalledTill, lastSent, waits time.Duration
	srtt := p.rtt
	alive := map[int64]bool{}
	var largestAcked int64 = -1
	perSecond := make([]float64, int(d/time.Second)+1)
	order := 0
	push := func(e event) { order++; e.order = order; heap.Push(&q, e) }
	for now := time.Duration(0); now < d; now += step {
		if p.change != nil && now%time.Millisecond == 0 {
			p.change(&p, now)
		}
		if p.moved > 0 && now == p.moved {
			c.Moved(inFlight)
		}
		for len(q) > 0 && q[0].at <= now {
			e := heap.Pop(&q).(event)
			switch {
			case e.kind == 0:
				if !alive[e.number] {
					c.OnSpuriousLoss(e.number)
					break
				}
				delete(alive, e.number)
				largestAcked = max(largestAcked, e.number)
				srtt += (e.at - e.sent - srtt) / 8
				c.OnAcked(e.at, e.number, size, inFlight)
				inFlight -= size
				perSecond[int(e.at/time.Second)] += size * 8 / 1e6
				if e.at >= warm {
					counted++
				}
			case alive[e.number] && largestAcked > e.number:
				delete(alive, e.number)
				c.OnLost(e.number, size)
				inFlight -= size
			case alive[e.number]:
				push(event{at: now + srtt, number: e.number, kind: 1})
			}
		}
		if p.stall > 0 && random.Float64() < 10*step.Seconds() {
			stalledTill = now + time.Duration(random.Float64()*2*float64(p.stall))
		}
		// The sender's timer ticks each millisecond, like quic-go's.
		if now < stalledTill || now%time.Millisecond != 0 {
			continue
		}
		// As quic-go probes: whatever the controller says, but not doubling the wait.
		probes := 0
		if inFlight > 0 && now-lastSent > 3*srtt {
			probes = 2
		}
		most := number + 1<<30
		if p.quiet != nil && p.quiet(now) {
			most = number
			if now-lastSent >= 100*time.Millisecond {
				most++
			}
		}
		for c.CanSend(inFlight) && c.HasBudget(now) && number < most || probes > 0 {
			probes--
			lastSent = now
			c.OnSent(now, inFlight, number, size, true)
			inFlight += size
			alive[number] = true
			push(event{at: now + srtt*9/8 + 2*time.Millisecond, number: number, kind: 1})
			lineFree = max(lineFree, now)
			wait := lineFree - now
			jitter := time.Duration(random.Float64() * float64(p.jitter))
			lost := random.Float64() < p.loss
			if now >= warm {
				sentCount++
			}
			if wait > p.queue {
				if now >= warm {
					tail++
				}
			} else if !lost {
				lineFree += time.Duration(size * 8 / p.rate * float64(time.Second))
				if now >= warm {
					waits += wait
				}
				if p.behind == 0 || random.Float64() >= p.behind {
					push(event{at: lineFree + p.rtt + jitter, number: number, sent: now})
				}
			}
			number++
		}
	}
	return result{
		mbps:     float64(counted*size*8) / (d - warm).Seconds() / 1e6,
		queue:    waits / time.Duration(max(sentCount, 1)),
		dropped:  float64(tail) / float64(max(sentCount, 1)),
		delivery: perSecond,
	}
}
