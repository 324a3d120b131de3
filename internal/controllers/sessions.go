package controllers

import (
	"context"
	"sync"
)

// Sessions is what the controllers need to know of the gateway.
type Sessions interface {
	// Connected says whether a gateway holds a session of the node now.
	Connected(node string) bool
	// Subscribe returns a channel of names of nodes whose session began or
	// ended; it is closed some time after ctx ends. Names may be coalesced:
	// a name means "ask Connected again".
	Subscribe(ctx context.Context) <-chan string
}

// Notifier turns calls of a gateway's session hook into subscriptions. Notify
// never blocks, however slow a subscriber is, and memory is bounded by the
// number of nodes.
type Notifier struct {
	mu   sync.Mutex
	subs map[*subscription]struct{} // guarded by mu
}

type subscription struct {
	mu      sync.Mutex
	pending map[string]struct{} // guarded by mu
	wake    chan struct{}       // holds one token while pending may be non-empty
}

// NewNotifier returns a Notifier without subscribers.
func NewNotifier() *Notifier { return &Notifier{subs: map[*subscription]struct{}{}} }

// Notify tells every subscriber that the node's session began or ended.
func (n *Notifier) Notify(node string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for sub := range n.subs {
		sub.mu.Lock()
		sub.pending[node] = struct{}{}
		sub.mu.Unlock()
		select {
		case sub.wake <- struct{}{}:
		default:
		}
	}
}

// Subscribe implements that part of Sessions. Only what is notified after it
// returns is delivered.
func (n *Notifier) Subscribe(ctx context.Context) <-chan string {
	sub := &subscription{pending: map[string]struct{}{}, wake: make(chan struct{}, 1)}
	n.mu.Lock()
	n.subs[sub] = struct{}{}
	n.mu.Unlock()
	out := make(chan string)
	go func() {
		defer close(out)
		defer func() {
			n.mu.Lock()
			delete(n.subs, sub)
			n.mu.Unlock()
		}()
		for {
			select {
			case <-ctx.Done():
				return
			case <-sub.wake:
			}
			sub.mu.Lock()
			names := sub.pending
			sub.pending = map[string]struct{}{}
			sub.mu.Unlock()
			for name := range names {
				select {
				case <-ctx.Done():
					return
				case out <- name:
				}
			}
		}
	}()
	return out
}
