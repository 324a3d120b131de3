package gateway

import (
	"context"
	"sync"
	"time"
)

// event is one call of Config.OnSession.
type event struct {
	node      string
	connected bool
	at        time.Time
}

// eventQueue hands events to the callback in order and outside of every lock,
// so that the callback may call the gateway.
type eventQueue struct {
	call func(node string, connected bool, at time.Time)

	mu    sync.Mutex // guards list and taken
	list  []event
	taken chan struct{} // closed when list is taken; nil: nobody has waited since
	wake  chan struct{}
}

// maxEvents is how long the queue may be before other gateways wait until it is
// taken: longer than what a gateway says that comes with all its nodes.
const maxEvents = 1 << 16

func newEventQueue(call func(string, bool, time.Time)) *eventQueue {
	return &eventQueue{call: call, wake: make(chan struct{}, 1)}
}

func (q *eventQueue) push(e event) {
	q.mu.Lock()
	q.list = append(q.list, e)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// room returns when the queue is not too long, or done is closed. Whoever can be
// made to push without end asks for it.
func (q *eventQueue) room(done <-chan struct{}) {
	q.mu.Lock()
	if len(q.list) < maxEvents {
		q.mu.Unlock()
		return
	}
	if q.taken == nil {
		q.taken = make(chan struct{})
	}
	taken := q.taken
	q.mu.Unlock()
	select {
	case <-taken:
	case <-done:
	}
}

// run returns after ctx ended; what is queued then is dropped, since whoever
// stops the gateway knows that nothing is connected.
func (q *eventQueue) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		}
		q.mu.Lock()
		list := q.list
		q.list = nil
		if q.taken != nil {
			close(q.taken)
			q.taken = nil
		}
		q.mu.Unlock()
		for _, e := range list {
			q.call(e.node, e.connected, e.at)
		}
	}
}
