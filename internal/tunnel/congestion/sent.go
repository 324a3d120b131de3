package congestion

import "time"

// flight is what the controller remembers of a packet on its way: how much had
// been delivered when it was sent, and when, so that its acknowledgement tells
// at which rate the path delivered in between.
type flight struct {
	number        int64
	sent          time.Duration
	delivered     int64         // total at that moment
	deliveredAt   time.Duration // when the last of it was delivered
	firstSent     time.Duration // when the packet was sent whose delivery that was
	size          int32
	senderLimited bool // the sender had nothing to send
	here          bool // neither acknowledged nor lost
}

// flights is a queue of packets in the order of their numbers, from which any
// can be taken. It holds nothing while nothing is on its way: ten thousand idle
// sessions must not cost a table each.
type flights struct {
	ring  []flight // its length is a power of two
	head  int      // index of the oldest
	count int
}

const (
	// smallRing suits a session that carries a request now and then.
	smallRing = 16
	// maxRing bounds the memory (4 MiB): more packets on the way than any window
	// allows. What does not fit goes without a rate sample.
	maxRing = 1 << 16
)

func (f *flights) at(i int) *flight { return &f.ring[(f.head+i)&(len(f.ring)-1)] }

// add appends p, whose number is above all others.
func (f *flights) add(p flight) {
	if f.count == len(f.ring) {
		f.compact()
	}
	if f.count == len(f.ring) {
		if len(f.ring) >= maxRing {
			f.head = (f.head + 1) & (len(f.ring) - 1) // forget the oldest
			f.count--
		} else {
			bigger := make([]flight, max(smallRing, 2*len(f.ring)))
			for i := range f.count {
				bigger[i] = *f.at(i)
			}
			f.ring, f.head = bigger, 0
		}
	}
	*f.at(f.count) = p
	f.count++
}

// take removes a packet; ok is false if it is not known.
func (f *flights) take(number int64) (p flight, ok bool) {
	low, high := 0, f.count
	if f.count > 0 && f.at(0).number == number {
		high = 0 // as nearly always: they arrive in the order in which they were sent
	}
	for low < high {
		mid := (low + high) / 2
		if f.at(mid).number < number {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == f.count || f.at(low).number != number || !f.at(low).here {
		return flight{}, false
	}
	f.at(low).here = false
	p = *f.at(low)
	f.compact()
	return p, true
}

// compact lets go of what was taken from the old end.
func (f *flights) compact() {
	for f.count > 0 && !f.at(0).here {
		f.head = (f.head + 1) & (len(f.ring) - 1)
		f.count--
	}
	if f.count == 0 && len(f.ring) > smallRing {
		f.ring, f.head = nil, 0
	}
}

// expire forgets what was sent before t and was never heard of: packets whose
// loss is not reported, such as those that probe the path's MTU.
func (f *flights) expire(t time.Duration) {
	for f.count > 0 && f.at(0).sent < t {
		f.at(0).here = false
		f.compact()
	}
}
