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

// flow tells whether a direction of a connection carries bulk: a bucket that leaks
// while its source has nothing. What a long-lived connection has carried in all says
// nothing; a component's to the API brings every list that it begins with and each
// change after it. Nor does time in which the line took nothing: a copy on a slow one
// is a copy.
type flow struct {
	level float64 // bytes, at most bulkAfter
	bulk  bool
}

// carried tells it of n bytes for which the source was waited for so long, and returns
// whether it is bulk.
func (f *flow) carried(n int, waited time.Duration) bool {
	f.level = max(0, f.level-bulkRate*waited.Seconds())
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
	urgency atomic.Int32 // without bulk
	bulk    atomic.Bool
}

// get returns what is in force.
func (p *priority) get() int8 {
	if p.bulk.Load() {
		return urgencyBulk
	}
	return int8(p.urgency.Load()) //nolint:gosec // from an int8
}

func (p *priority) set(urgency int8) { p.urgency.Store(int32(urgency)) }
