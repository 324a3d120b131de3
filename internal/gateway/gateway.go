package gateway

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// supersedeGrace is how long the streams of a replaced session may go on: long
// enough for a log request or an API call to end, short against a watch, which
// reconnects anyway.
const supersedeGrace = 30 * time.Second

// Gateway is the cloud end of the tunnel. Make it with New, end it with Close.
type Gateway struct {
	cfg Config
	id  string

	ctx    context.Context // ends when everything is to stop at once
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine that outlives its caller

	dials      tunnel.Inflight // carried connections and dials, for draining
	joins      chan struct{}
	joinRate   *addrLimiter
	handshakes *rate.Limiter
	events     *eventQueue

	mu       sync.Mutex // guards all below
	current  map[string]*session
	all      map[*session]struct{}
	epoch    uint64
	draining bool
	closed   bool
}

// New makes a gateway that serves nothing yet.
func New(cfg Config) (*Gateway, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("gateway: identifier: %w", err)
	}
	g := &Gateway{
		cfg:        cfg,
		id:         hex.EncodeToString(id[:]),
		joins:      make(chan struct{}, maxJoins),
		joinRate:   newAddrLimiter(joinRate, joinBurst, maxJoinSources),
		handshakes: rate.NewLimiter(handshakeRate, handshakeRate),
		current:    map[string]*session{},
		all:        map[*session]struct{}{},
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.events = newEventQueue(cfg.OnSession)
	g.wg.Go(func() { g.events.run(g.ctx) })
	return g, nil
}

// SessionInfo describes a session at the moment of the call.
type SessionInfo struct {
	Node          string
	Remote        netip.AddrPort
	Since         time.Time
	Epoch         uint64
	EngineVersion string
	Architecture  string
	BootID        string
	// Streams carried at the moment, both directions.
	Streams int
	// Superseded: a newer session has taken over; this one only finishes.
	Superseded bool
}

// Sessions lists all sessions by node name, a node's newest first.
func (g *Gateway) Sessions() []SessionInfo {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]SessionInfo, 0, len(g.all))
	for s := range g.all {
		out = append(out, SessionInfo{
			Node: s.node, Remote: s.sess.Remote(), Since: s.since, Epoch: s.epoch,
			EngineVersion: s.hello.EngineVersion, Architecture: s.hello.Architecture, BootID: s.hello.BootID,
			Streams: s.streams.Count(), Superseded: g.current[s.node] != s,
		})
	}
	slices.SortFunc(out, func(a, b SessionInfo) int {
		if c := strings.Compare(a.Node, b.Node); c != 0 {
			return c
		}
		if a.Epoch > b.Epoch {
			return -1
		}
		return 1
	})
	return out
}

// Connected reports whether the node has a current session.
func (g *Gateway) Connected(node string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.current[node] != nil
}

// Kick ends every session of the node and every stream of it at once, and
// returns how many there were. The reason is sent to the node. Authorize has to
// refuse the node from before the call, or it comes back.
func (g *Gateway) Kick(node, reason string) int {
	g.mu.Lock()
	var gone []*session
	for s := range g.all {
		if s.node == node {
			gone = append(gone, s)
		}
	}
	g.mu.Unlock()
	for _, s := range gone {
		s.sess.Close(tunnel.CloseRevoked, reason)
		g.unregister(s)
	}
	if len(gone) > 0 {
		g.cfg.Logger.Info("node kicked", "node", node, "sessions", len(gone), "reason", reason)
	}
	return len(gone)
}

// Close stops the gateway. New dials are refused from the call on and the nodes
// are told; carried connections may go on until they end or ctx does. When it
// returns every Serve call has returned and nothing runs any more. Its error is
// ctx's if connections had to be cut.
func (g *Gateway) Close(ctx context.Context) error {
	g.mu.Lock()
	first := !g.draining
	g.draining = true
	var told []*session
	if first {
		for s := range g.all {
			told = append(told, s)
		}
	}
	g.mu.Unlock()
	drain := tunnel.Drain{Reason: "gateway stops"}
	if dl, ok := ctx.Deadline(); ok {
		drain.DeadlineMS = max(0, time.Until(dl).Milliseconds())
	}
	for _, s := range told {
		g.wg.Go(func() {
			// Failing to tell a node is not failing to stop.
			if err := s.control.Send(drain); err != nil {
				s.log.Debug("drain not sent", "error", err)
			}
		})
	}
	err := g.dials.Wait(ctx)
	if err != nil {
		err = fmt.Errorf("gateway: %d carried connections cut: %w", g.dials.Count(), err)
	}
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel()
	g.wg.Wait()
	return err
}

// begin counts a goroutine of Serve*, unless the gateway is closed.
func (g *Gateway) begin() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return ErrClosed
	}
	g.wg.Add(1)
	return nil
}

// isDraining reports whether new dials are to be refused.
func (g *Gateway) isDraining() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.draining
}

// nextEpoch returns a number above all that this gateway has given out, and
// above those of an earlier process while the clock runs forward.
func (g *Gateway) nextEpoch() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.epoch = max(g.epoch+1, uint64(g.cfg.Clock().UnixNano()))
	return g.epoch
}

// register makes s its node's current session and returns the one it replaces.
// It returns false if a newer one is there already.
func (g *Gateway) register(s *session) (old *session, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old = g.current[s.node]
	if old != nil && old.epoch > s.epoch {
		return nil, false
	}
	g.current[s.node] = s
	g.all[s] = struct{}{}
	g.events.push(event{s.node, true, s.since})
	return old, true
}

// unregister forgets s. It may be called twice.
func (g *Gateway) unregister(s *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.all, s)
	if g.current[s.node] == s {
		delete(g.current, s.node)
		g.events.push(event{s.node, false, g.cfg.Clock()})
	}
}

// isCurrent reports whether s is its node's current session.
func (g *Gateway) isCurrent(s *session) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.current[s.node] == s
}

// lookup returns the node's current session.
func (g *Gateway) lookup(node string) (*session, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch s := g.current[node]; {
	case g.closed:
		return nil, ErrClosed
	case g.draining:
		return nil, ErrDraining
	case s == nil:
		return nil, ErrNotConnected
	default:
		return s, nil
	}
}

// serving runs serve until ctx or the gateway ends, then closes c.
func (g *Gateway) serving(ctx context.Context, c interface{ Close() error }, serve func(ctx context.Context) error) error {
	if err := g.begin(); err != nil {
		_ = c.Close() // not ours to report: nothing was served on it
		return err
	}
	defer g.wg.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.ctx, cancel)()
	err := serve(ctx)
	if cerr := c.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) && err == nil {
		err = cerr
	}
	return err
}
