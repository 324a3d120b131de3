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

	mu   sync.Mutex // guards list
	list []event
	wake chan struct{}
}

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
		q.mu.Unlock()
		for _, e := range list {
			q.call(e.node, e.connected, e.at)
		}
	}
}
