package congestion

import "time"

const (
	// pacingGranularity is how fine the sender's timer is. Packets that are due
	// within it leave together.
	pacingGranularity = time.Millisecond
	// minBurst is what may always leave at once, in packets: a request or an
	// answer of some kilobytes need not be spread, and every queue holds it.
	minBurst = 4
	// burstTime is how late the sender may be scheduled and still catch up, and
	// maxBurst what may leave at once for that in bytes: a few segmented sends.
	burstTime = 4 * pacingGranularity
	maxBurst  = 256 << 10
)

// pacer is a bucket of bytes that fills at the pacing rate.
type pacer struct {
	bytes float64
	at    time.Duration // when bytes was true
}

// burst is the size of the bucket.
func burst(rate float64, datagram int64) float64 {
	return max(min(rate*burstTime.Seconds(), maxBurst), float64(minBurst*datagram))
}

// budget is what may be sent at once.
func (p *pacer) budget(now time.Duration, rate float64, datagram int64) float64 {
	b := p.bytes
	if now > p.at {
		b += rate * (now - p.at).Seconds()
	}
	return min(b, burst(rate, datagram))
}

func (p *pacer) sent(now time.Duration, bytes int64, rate float64, datagram int64) {
	p.bytes = max(p.budget(now, rate, datagram)-float64(bytes), 0)
	p.at = max(p.at, now)
}

// next is when one packet may be sent.
func (p *pacer) next(rate float64, datagram int64) time.Duration {
	missing := float64(datagram) - p.bytes
	wait := time.Duration(missing/rate*float64(time.Second)) + 1
	return p.at + max(wait, pacingGranularity)
}
