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

// supersedeGrace is how long the streams of a replaced session may go on. A node
// that lost its path cannot use them, and the idle timeout ends such a session
// soon; one that moved to another gateway or transport on purpose can, and an
// exec session or a long copy should not notice. What is longer than this is a
// watch, which reconnects.
const supersedeGrace = 15 * time.Minute

// retireLinger is how long a replaced session stays although it carries nothing:
// another gateway may tell of the new one before the node itself knows that it is
// welcomed there, and what the node opens until then is still on its way here. A
// few round trips of a very bad link.
const retireLinger = 5 * time.Second

// moveRate is how many nodes a second are asked to move to another gateway when
// this one drains: well below what the others admit (handshakeRate).
const moveRate = 200

// Gateway is the cloud end of the tunnel. Make it with New, end it with Close.
type Gateway struct {
	cfg Config
	id  string

	ctx    context.Context // ends when everything is to stop at once
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine that outlives its caller

	dials      tunnel.Inflight // carried connections and dials, for draining
	held       tunnel.Inflight // nodes whose current session is here
	joins      chan struct{}
	joinRate   *keyLimiter[netip.Prefix]
	nodeRate   *keyLimiter[string]
	handshakes *rate.Limiter // without address validation
	accepted   *rate.Limiter // all
	underWay   underWay      // over QUIC
	pace       *pace         // of nodes that return
	events     *eventQueue
	metrics    *metrics
	budget     *tunnel.Budget    // of receive windows
	stalled    *tunnel.StallPool // of all sessions
	lost       tunnel.SendErrors // of all sockets

	mu      sync.Mutex          // guards all below
	current map[string]*session // none of a node whose newest session is elsewhere
	all     map[*session]struct{}
	// superseded are sessions that a newer one has taken over from, here or
	// elsewhere, by node, oldest first.
	superseded map[string][]*session
	members    membership
	links      map[*link]struct{}
	peers      map[string]int                // connections that each other gateway has made, by id
	dialers    map[string]context.CancelFunc // of links to the listed gateways
	departed   map[string]*departure         // by node
	epoch      uint64
	draining   bool // takes no sessions
	refusing   bool // takes no dials either
	closed     bool
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
		joinRate:   newKeyLimiter[netip.Prefix](joinRate, joinBurst, maxJoinSources),
		nodeRate:   newKeyLimiter[string](sessionRate, sessionBurst, maxSessionNodes),
		handshakes: rate.NewLimiter(handshakeRate, handshakeRate),
		budget:     tunnel.NewBudget(windowBudget),
		stalled:    tunnel.NewStallPool(stallBudget),
		accepted:   rate.NewLimiter(maxHandshakeRate, maxHandshakeRate),
		metrics:    newMetrics(),
		pace:       newPace(cfg.ProcessorTime),
		current:    map[string]*session{},
		all:        map[*session]struct{}{},
		superseded: map[string][]*session{},
		links:      map[*link]struct{}{},
		peers:      map[string]int{},
		dialers:    map[string]context.CancelFunc{},
		departed:   map[string]*departure{},
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
	// Kinds is how many of them there are by kind; those whose header is still
	// awaited have none, and kinds of which there are none are left out.
	Kinds map[string]int `json:",omitempty"`
	// Superseded: a newer session has taken over; this one only finishes.
	Superseded bool
	// Congestion is how what is sent to the node answers loss; empty: the kernel
	// decides (TCP).
	Congestion tunnel.Congestion
	// Stats of the transport.
	Stats tunnel.Stats
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
			Streams: s.streams.Count(), Kinds: s.byKind(), Superseded: g.current[s.node] != s,
			Congestion: tunnel.CongestionOf(s.sess), Stats: tunnel.StatsOf(s.sess),
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

// byKind is how many connections the session carries, by kind; nil: none.
func (s *session) byKind() map[string]int {
	var out map[string]int
	for k := range s.kinds {
		if n := s.kinds[k].Load(); n > 0 {
			if out == nil {
				out = map[string]int{}
			}
			out[tunnel.Kind(k).String()] = int(n) //nolint:gosec // an index of kinds
		}
	}
	return out
}

// Connected reports whether a gateway holds a session of the node.
func (g *Gateway) Connected(node string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.heldLocked(node)
}

// Kick ends every session of the node and every stream of it at once, at every
// gateway, and returns how many there were here. The reason is sent to the node.
// Authorize has to refuse the node from before the call, or it comes back.
func (g *Gateway) Kick(node, reason string) int {
	g.mu.Lock()
	for l := range g.links {
		l.kicks = append(l.kicks, tunnel.Kick{Node: node, Reason: reason})
		l.wakeUp()
	}
	g.mu.Unlock()
	return g.kick(node, reason)
}

// kick is Kick at this gateway.
func (g *Gateway) kick(node, reason string) int {
	g.mu.Lock()
	var gone []*session
	for s := range g.all {
		if s.node == node {
			gone = append(gone, s)
		}
	}
	delete(g.superseded, node) // or one would become current while others are closed
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

// Close stops the gateway. It takes no session from the call on and tells the
// nodes. With other gateways in the mesh, nodes are served until they have moved
// there; then, or at once where there is none, new dials are refused, and carried
// connections may go on until they end or ctx does. When it returns every Serve
// call has returned and nothing runs any more. Its error is ctx's if connections
// had to be cut.
func (g *Gateway) Close(ctx context.Context) error {
	alternates := g.drain(ctx)
	var err error
	if len(alternates) > 0 {
		err = g.held.Wait(ctx)
	}
	g.mu.Lock()
	g.refusing = true
	g.mu.Unlock()
	err = errors.Join(err, g.dials.Wait(ctx))
	if err != nil {
		err = fmt.Errorf("gateway: %d carried connections cut: %w", g.dials.Count(), ctx.Err())
	}
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel()
	g.wg.Wait()
	return err
}

// drain tells nodes and other gateways that this one stops, and returns which
// gateways can take the nodes over.
func (g *Gateway) drain(ctx context.Context) (alternates []string) {
	g.mu.Lock()
	alternates = g.alternatesLocked()
	if g.draining {
		g.mu.Unlock()
		return alternates
	}
	g.draining = true
	var told []*session
	for s := range g.all {
		told = append(told, s)
	}
	for l := range g.links {
		l.hello = true
		l.wakeUp()
	}
	g.mu.Unlock()
	m := tunnel.Drain{Reason: "gateway stops", Alternates: alternates, SpreadMS: int64(len(told)) * 1000 / moveRate}
	if dl, ok := ctx.Deadline(); ok {
		m.DeadlineMS = max(0, time.Until(dl).Milliseconds())
		m.SpreadMS = min(m.SpreadMS, m.DeadlineMS/2)
	}
	g.cfg.Logger.Info("draining", "sessions", len(told), "alternates", alternates)
	g.tell(told, func(*session) tunnel.Message { return m })
	return alternates
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

// isDraining reports whether new sessions are to be refused.
func (g *Gateway) isDraining() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.draining
}

// isRefusing reports whether new dials are to be refused.
func (g *Gateway) isRefusing() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refusing
}

// nextEpoch returns a number above all that this gateway has given out, above
// those of the node that it has heard of, and above those of earlier processes
// while the clock runs forward. last is what the node itself remembers; it may
// raise only its own.
func (g *Gateway) nextEpoch(node string, last uint64) uint64 {
	now := g.cfg.Clock()
	if newest := uint64(now.Add(maxEpochSkew).UnixNano()); last > newest {
		last = newest
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.epoch = max(g.epoch+1, uint64(now.UnixNano()))
	epoch := max(g.epoch, last+1)
	if _, h := g.farLocked(node); h != nil {
		epoch = max(epoch, h.epoch+1)
	}
	if s := g.current[node]; s != nil {
		epoch = max(epoch, s.epoch+1)
	}
	return epoch
}

// register makes s its node's current session and returns the one it replaces.
// It returns false if a newer one is there already, here or elsewhere.
func (g *Gateway) register(s *session) (old *session, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old = g.current[s.node]
	if old != nil && old.epoch > s.epoch {
		return nil, false
	}
	if _, h := g.farLocked(s.node); h != nil && h.epoch > s.epoch {
		return nil, false
	}
	g.current[s.node] = s
	g.all[s] = struct{}{}
	if old == nil {
		g.held.Add()
	} else {
		g.supersedeLocked(old)
	}
	g.settledLocked(s.node)
	g.events.push(event{s.node, true, s.since})
	g.changedLocked(s.node)
	return old, true
}

// unregister forgets s. It may be called twice.
func (g *Gateway) unregister(s *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.all, s)
	g.forgetSupersededLocked(s)
	if g.current[s.node] == s {
		delete(g.current, s.node)
		g.reinstateLocked(s.node)
		g.held.Done() // after what takes its place is counted
		g.changedLocked(s.node)
		g.announceLocked(s.node, true)
	}
}

// isCurrent reports whether s is its node's current session.
func (g *Gateway) isCurrent(s *session) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.current[s.node] == s
}

// lookup returns the node's current session: here, or else the link to the
// gateway that holds it.
func (g *Gateway) lookup(node string) (*session, *link, *holding, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.current[node]
	switch {
	case g.closed:
		return nil, nil, nil, ErrClosed
	case g.refusing:
		return nil, nil, nil, ErrDraining
	case s != nil:
		return s, nil, nil, nil
	}
	if l, h := g.farLocked(node); l != nil {
		return nil, l, h, nil
	}
	return nil, nil, nil, ErrNotConnected
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
