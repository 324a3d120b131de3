package gateway

import (
	"context"
	"errors"
	"time"
)

// returnGrace is how long a dial waits for a node that nobody holds any more: a
// few round trips of a very bad link. When a node moves, this gateway may hear
// that the old gateway has given it up before it hears from the new one, since
// each tells for itself; and a node whose session has just broken is mostly on
// its way back. Of a node that is away for longer, only the dials of its first
// second wait; all later ones are answered at once.
const returnGrace = time.Second

// maxDeparted is how many nodes are waited for at once: all of a gateway that is
// lost, and not what one that was taken over makes up.
const maxDeparted = maxHoldings

// departure is a node that nobody holds since less than returnGrace.
type departure struct {
	over  chan struct{} // closed when the node is back or its grace has passed
	timer *time.Timer
}

// departedLocked remembers that nobody holds the node from now on.
func (g *Gateway) departedLocked(node string) {
	g.settledLocked(node)
	if len(g.departed) >= maxDeparted {
		return
	}
	d := &departure{over: make(chan struct{})}
	d.timer = time.AfterFunc(returnGrace, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.departed[node] == d {
			g.settledLocked(node)
		}
	})
	g.departed[node] = d
}

// settledLocked ends the waiting for the node, if any waits.
func (g *Gateway) settledLocked(node string) {
	if d := g.departed[node]; d != nil {
		d.timer.Stop()
		close(d.over)
		delete(g.departed, node)
	}
}

// find is lookup that gives a node that has just departed until its grace has
// passed, ctx ends (whose cause is then the error) or the gateway ends.
func (g *Gateway) find(ctx context.Context, node string) (*session, *link, *holding, error) {
	s, l, far, err := g.lookup(node)
	if !errors.Is(err, ErrNotConnected) {
		return s, l, far, err
	}
	g.mu.Lock()
	d := g.departed[node]
	g.mu.Unlock()
	if d != nil {
		select {
		case <-d.over:
		case <-g.ctx.Done():
		case <-ctx.Done():
			return nil, nil, nil, context.Cause(ctx)
		}
	}
	return g.lookup(node)
}
