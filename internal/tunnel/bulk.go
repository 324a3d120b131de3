package tunnel

import (
	"sync/atomic"
	"time"
)

const (
	// bulkAfter is what a direction may carry at once before it counts as bulk,
	// whose bytes wait for those of others: more than most answers that somebody
	// waits for, and little of a copy.
	bulkAfter = 256 << 10
	// bulkRate, in bytes a second, is what it may carry for ever: the changes of a
	// watch, a log. After a copy it takes four seconds of silence for a direction to
	// be as any other again.
	bulkRate = 64 << 10
)

// flow tells whether a direction of a connection carries bulk: a bucket that leaks.
// What a long-lived connection has carried in all says nothing; a component's to the
// API brings every list that it begins with and each change after it.
type flow struct {
	level float64 // bytes, at most bulkAfter
	at    time.Time
	bulk  bool
}

// carried tells it of n bytes and returns whether it is bulk.
func (f *flow) carried(n int, now time.Time) bool {
	if !f.at.IsZero() {
		f.level = max(0, f.level-bulkRate*now.Sub(f.at).Seconds())
	}
	f.at = now
	if f.level == 0 {
		f.bulk = false
	}
	f.level += float64(n)
	if f.level > bulkAfter {
		f.level, f.bulk = bulkAfter, true
	}
	return f.bulk
}

// priority is the urgency of what one end of a stream sends.
type priority struct {
	urgency atomic.Int32
	bulk    atomic.Bool
}

// get returns what is in force, as set and setBulk do.
func (p *priority) get() int8 {
	if p.bulk.Load() {
		return urgencyBulk
	}
	return int8(p.urgency.Load()) //nolint:gosec // from an int8
}

func (p *priority) set(urgency int8) int8 {
	p.urgency.Store(int32(urgency))
	return p.get()
}

func (p *priority) setBulk(bulk bool) int8 {
	p.bulk.Store(bulk)
	return p.get()
}
