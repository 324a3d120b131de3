package crowd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
)

// Crowd is a number of nodes. Make it with New, then call Run once.
type Crowd struct{ nodes []*node }

// node is one of them.
type node struct {
	agent *agent.Agent

	mu   sync.Mutex // guards all below
	up   bool
	at   time.Time // of the last change
	lost time.Time // when the last session was lost
}

func (n *node) state(up bool, _ string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.up, n.at = up, time.Now()
	if !up {
		n.lost = n.at
	}
}

// New makes n nodes. What config leaves out of the i-th one's kubelet and log is
// filled in: none and nothing.
func New(n int, config func(i int) (agent.Config, error)) (*Crowd, error) {
	c := &Crowd{}
	for i := range n {
		conf, err := config(i)
		if err != nil {
			return nil, fmt.Errorf("node %d of the crowd: %w", i, err)
		}
		one := &node{}
		conf.OnState = one.state
		if conf.DialKubelet == nil {
			conf.DialKubelet = func(context.Context) (net.Conn, error) { return nil, net.ErrClosed }
		}
		if conf.Logger == nil {
			conf.Logger = slog.New(slog.DiscardHandler)
		}
		if one.agent, err = agent.New(conf); err != nil {
			return nil, fmt.Errorf("node %d of the crowd: %w", i, err)
		}
		c.nodes = append(c.nodes, one)
	}
	return c, nil
}

// startRate is how many nodes a second a crowd begins with. How they connect the
// first time is not what it is for, and ten thousand agents of one process that
// begin at once leave no time for the network, which may be of the same process.
const startRate = 250

// Run keeps the sessions of all nodes until ctx ends.
func (c *Crowd) Run(ctx context.Context) error {
	errs := make([]error, len(c.nodes))
	var group sync.WaitGroup
	start := time.NewTicker(time.Second / startRate)
	defer start.Stop()
	for i, n := range c.nodes {
		select {
		case <-start.C:
		case <-ctx.Done():
		}
		group.Go(func() { errs[i] = n.agent.Run(ctx) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// Connected is an error that says how many nodes are, until all are.
func (c *Crowd) Connected() error { return c.Returned(time.Time{}) }

// Returned is the same for nodes whose session is younger than since.
func (c *Crowd) Returned(since time.Time) error {
	have := 0
	for _, n := range c.nodes {
		n.mu.Lock()
		if n.up && n.at.After(since) {
			have++
		}
		n.mu.Unlock()
	}
	if have < len(c.nodes) {
		return fmt.Errorf("%d of %d nodes are connected", have, len(c.nodes))
	}
	return nil
}

// Times are durations in ascending order.
type Times []time.Duration

// Quantile returns the time that this part of them, 0 to 1, does not exceed.
func (t Times) Quantile(q float64) time.Duration {
	return t[min(int(q*float64(len(t))), len(t)-1)]
}

// Return says, for nodes that have all returned, how long after the moment at
// which their gateway went they noticed and were back.
func (c *Crowd) Return(gone time.Time) (noticed, back Times) {
	for _, n := range c.nodes {
		n.mu.Lock()
		noticed, back = append(noticed, n.lost.Sub(gone)), append(back, n.at.Sub(gone))
		n.mu.Unlock()
	}
	slices.Sort(noticed)
	slices.Sort(back)
	return noticed, back
}
