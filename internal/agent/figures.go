package agent

import (
	"context"
	"errors"
	"maps"
	"math"
	"sync"
	"syscall"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// Figures are what an agent has counted since it was made, and its state at the
// moment.
type Figures struct {
	// Transport carries the session: QUIC or TCP; "" without one.
	Transport Transport
	// Fallback: it is TCP because QUIC did not get through.
	Fallback bool
	// Wanted is what it should be: Config's Transport, or what SetTransport has
	// made of it.
	Wanted Transport
	// Trouble is why the last attempt failed, without a session or with one over
	// another transport than was chosen; nil: there is none.
	Trouble error
	// Sessions that began, by what carried them.
	Sessions map[Transport]uint64
	// Takeovers are those among them that took over from another: the node moved
	// to another gateway, or to the other transport.
	Takeovers uint64
	// Migrations are sessions that were moved to another socket after the network
	// had changed.
	Migrations uint64
	// Dials by what and result.
	Dials map[DialResult]uint64
	// Streams are the connections carried at the moment.
	Streams int
	// SendErrors are packets that a send error lost, on all sockets there were.
	SendErrors map[syscall.Errno]uint64
	// StalledBytes is what connections that nobody reads may hold at the moment;
	// StallAborts is how many were cut for it.
	StalledBytes int64
	StallAborts  uint64
}

// DialResult is what was dialled (a tunnel.Kind's name: "apiserver" by this node,
// all else by the gateway), and one of few words for what came of it.
type DialResult struct{ Kind, Result string }

// counters are those of Figures that are counted as they happen.
type counters struct {
	lost    tunnel.SendErrors
	stalled *tunnel.StallPool

	mu                    sync.Mutex // guards all below
	sessions              map[Transport]uint64
	takeovers, migrations uint64
	dials                 map[DialResult]uint64
}

func newCounters() *counters {
	return &counters{
		// Without a bound of its own: an agent has one session, which has one.
		stalled:  tunnel.NewStallPool(math.MaxInt64),
		sessions: map[Transport]uint64{}, dials: map[DialResult]uint64{},
	}
}

func (c *counters) session(t Transport, takeover bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions[t]++
	if takeover {
		c.takeovers++
	}
}

func (c *counters) migrated() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.migrations++
}

func (c *counters) dialled(kind tunnel.Kind, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dials[DialResult{kind.String(), resultOf(err)}]++
}

// resultOf is one of few words for how a dial ended.
func resultOf(err error) string {
	if err == nil {
		return "ok"
	}
	if se, ok := errors.AsType[*tunnel.StatusError](err); ok {
		if se.Status > tunnel.StatusNotConnected {
			return "unknown status" // the gateway's choice, of which there are many
		}
		return se.Status.String()
	}
	switch {
	case errors.Is(err, ErrNotConnected):
		return "not connected"
	case errors.Is(err, tunnel.ErrStreamLimit):
		return "stream limit"
	case errors.Is(err, tunnel.ErrStalled):
		return "stalled"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "broken"
}

// History is what has happened to the agent's sessions and their paths of late, the
// oldest first; see tunnel.History.
func (a *Agent) History() []tunnel.Happened { return a.history.Events() }

// Figures returns them. They are for operators: reading them costs the agent
// nothing that matters, and decides nothing.
func (a *Agent) Figures() Figures {
	a.mu.Lock()
	s, mode, trouble := a.session, a.mode, a.trouble
	a.mu.Unlock()
	c := a.counters
	c.mu.Lock()
	defer c.mu.Unlock()
	f := Figures{
		Sessions: maps.Clone(c.sessions), Takeovers: c.takeovers, Migrations: c.migrations, Dials: maps.Clone(c.dials),
		Wanted: mode, Trouble: trouble, SendErrors: c.lost.Counts(), StalledBytes: c.stalled.Held(), StallAborts: c.stalled.Cuts(),
	}
	if s != nil {
		f.Transport, f.Streams = s.sess.transport, s.streams.Count()
		f.Fallback = mode == Auto && f.Transport == TCP
	}
	return f
}
