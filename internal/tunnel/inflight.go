package tunnel

import (
	"context"
	"sync"
)

// Inflight counts what is going on and lets others wait for none.
type Inflight struct {
	mu   sync.Mutex // guards n and idle
	n    int
	idle chan struct{} // closed when n becomes 0; nil: nobody has waited since
}

// Add counts one more.
func (i *Inflight) Add() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.n++
}

// Done counts one less.
func (i *Inflight) Done() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.n--
	if i.n == 0 && i.idle != nil {
		close(i.idle)
		i.idle = nil
	}
}

// Count returns how many there are.
func (i *Inflight) Count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.n
}

// Wait returns when nothing is going on, or with ctx's error.
func (i *Inflight) Wait(ctx context.Context) error {
	i.mu.Lock()
	if i.n == 0 {
		i.mu.Unlock()
		return nil
	}
	if i.idle == nil {
		i.idle = make(chan struct{})
	}
	idle := i.idle
	i.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
