package tunnel

import "sync"

// sendGate keeps the queue in front of a multiplexed connection short, so that
// what is urgent does not stand behind megabytes of what is not. A stream that
// wants to send waits while more than its urgency's share is queued; it takes
// no place by waiting, since it may find its own window closed afterwards.
type sendGate struct {
	mu    sync.Mutex // guards all below
	bytes int        // handed to the multiplexer and not yet to the connection
	room  chan struct{}
}

// The shares in bytes. The bulk's is four frames: enough to keep the connection
// busy between two schedulings of a writer. Urgent streams may add to that, and
// the control stream never waits.
const (
	gateBulk   = 4 * muxChunk
	gateUrgent = 2 * gateBulk
)

func newSendGate() *sendGate { return &sendGate{room: make(chan struct{})} }

func gateShare(urgency int8) int {
	if urgency <= 2 {
		return gateUrgent
	}
	return gateBulk
}

// wait returns true when a stream of that urgency may send a frame, and false
// when it was interrupted.
func (g *sendGate) wait(urgency int8, expired, done <-chan struct{}) bool {
	for {
		select {
		case <-expired:
			return false
		case <-done:
			return false
		default:
		}
		if urgency == 0 {
			return true
		}
		g.mu.Lock()
		free, room := g.bytes < gateShare(urgency), g.room
		g.mu.Unlock()
		if free {
			return true
		}
		select {
		case <-room:
		case <-expired:
		case <-done:
		}
	}
}

// queued counts what was handed to the multiplexer.
func (g *sendGate) queued(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bytes += n
}

// sent counts the payload that left it. The send loop may be faster than the
// stream that counts what it has queued, so that the count may be below zero for
// a moment.
func (g *sendGate) sent(payload int) {
	if payload <= 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.bytes
	g.bytes -= payload
	if before >= gateBulk && g.bytes < gateUrgent {
		close(g.room)
		g.room = make(chan struct{})
	}
}
