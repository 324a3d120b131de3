// Package link judges whether the node's apiserver can be reached. It is told of
// the tunnel's session and of every request that failed on the way, and asks the
// apiserver itself; it carries nothing and repairs nothing.
//
//	           session up, then a probe is answered
//	cut ───────────────────────────────────────────────────► online
//	 ▲  (probed at once when the session begins, and           │
//	 │   every ProbeInterval for as long as it lasts)          │
//	 └─────────────────────────────────────────────────────────┘
//	  session gone, a request failed on the way, or a probe was
//	  not answered
//
// One failed request is enough: whoever made it is answered from what the node
// holds, now, and so is everybody after. Being wrong costs until the next probe,
// which follows at once.
package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

const (
	// ProbeInterval is how often the apiserver is asked: a cut that nobody runs
	// into is known ProbeTimeout after it at the latest, within the 20 s after
	// which the tunnel itself gives a silent session up. A probe is some 350 bytes
	// on the link with all that goes with it, so this is 3 MB a day.
	ProbeInterval = 10 * time.Second
	// ProbeTimeout of one probe: several round trips of the worst link.
	ProbeTimeout = 5 * time.Second
	// again is the wait after a probe that failed while there is a session.
	again = time.Second
)

// ErrCut is the cause of the end of an online period's context.
var ErrCut = errors.New("the link is cut")

// Options of New. Probe is required.
type Options struct {
	// Probe asks the apiserver something, and returns nil if it answered,
	// whatever it said.
	Probe func(ctx context.Context) error
	// OnChange is told of every change, one call at a time; it must not block.
	// May be nil.
	OnChange func(State)
	// Clock; real time where nil.
	Clock clock.WithDelayedExecution
	// Logger; slog.Default where nil.
	Logger *slog.Logger
}

// State of the link.
type State struct {
	Online bool
	Since  time.Time
	// Reason of a cut, as a sentence's end: "the link is cut: <reason>".
	Reason string
}

// Monitor judges one link. Make it with New, and Run it once.
type Monitor struct {
	options Options

	poke chan struct{} // asks for a probe

	mu      sync.Mutex // guards what follows, and OnChange
	state   State
	session bool
	// failures counts what has failed: a probe that began before a failure
	// proves nothing about the time after it.
	failures int
	online   context.Context // of the present or last online period
	cut      context.CancelCauseFunc
}

// New makes one, of a link that is cut.
func New(o Options) *Monitor {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.OnChange == nil {
		o.OnChange = func(State) {}
	}
	m := &Monitor{options: o, poke: make(chan struct{}, 1)}
	m.state = State{Since: o.Clock.Now(), Reason: "no session to a gateway yet"}
	m.online, m.cut = context.WithCancelCause(context.Background())
	m.cut(ErrCut)
	return m
}

// State returns how the link is.
func (m *Monitor) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// Online returns a context that lasts as long as the link does, or false.
func (m *Monitor) Online() (context.Context, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.online, m.state.Online
}

// Session tells of the tunnel: whether it has a session. It does not block.
func (m *Monitor) Session(up bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.session = up
	if up {
		m.Doubt()
	} else {
		m.lost("no session to a gateway")
	}
}

// Failed tells of a request that got no answer, for a reason on the way.
func (m *Monitor) Failed(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost(err.Error())
	m.Doubt()
}

// Doubt has the apiserver asked at once: something was slow that may be so because the
// link is, and may not. It does not block.
func (m *Monitor) Doubt() {
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// lost: the caller holds mu.
func (m *Monitor) lost(reason string) {
	m.failures++
	if !m.state.Online {
		return
	}
	m.options.Logger.Warn("the link to the cluster is cut", "reason", reason)
	m.state = State{Since: m.options.Clock.Now(), Reason: reason}
	m.cut(fmt.Errorf("%w: %s", ErrCut, reason))
	m.options.OnChange(m.state)
}

// Run probes until ctx ends; the link then counts as cut.
func (m *Monitor) Run(ctx context.Context) error {
	for {
		wait := ProbeInterval
		session, failures := m.begin()
		if session && ctx.Err() == nil && !m.probe(ctx, failures) {
			wait = again
		}
		over := make(chan struct{})
		timer := m.options.Clock.AfterFunc(wait, func() { close(over) })
		select {
		case <-over:
		case <-m.poke:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			m.mu.Lock()
			defer m.mu.Unlock()
			m.lost("the hub ends")
			return nil
		}
	}
}

// begin returns what a probe that begins now is of. Whatever asked for one before has
// it then, and gets no second.
func (m *Monitor) begin() (session bool, failures int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.poke:
	default:
	}
	return m.session, m.failures
}

// probe asks once and draws the conclusion; false if the link is cut.
func (m *Monitor) probe(ctx context.Context, failures int) bool {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := m.options.Clock.AfterFunc(ProbeTimeout, func() { cancel(fmt.Errorf("the apiserver has not answered for %s", ProbeTimeout)) })
	err := m.options.Probe(ctx)
	timer.Stop()
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err != nil:
		m.lost(err.Error())
	case m.failures != failures || !m.session:
		// Something failed while the probe was under way.
	case !m.state.Online:
		m.options.Logger.Info("the link to the cluster is there", "cut_for", m.options.Clock.Since(m.state.Since).Round(time.Millisecond))
		m.state = State{Online: true, Since: m.options.Clock.Now()}
		m.online, m.cut = context.WithCancelCause(context.Background())
		m.options.OnChange(m.state)
	}
	return m.state.Online
}
