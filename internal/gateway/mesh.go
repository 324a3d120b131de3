package gateway

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/signed"
)

// maxEpochSkew is how far ahead of this clock an epoch may be: epochs are times,
// and one of the far future would keep a node from ever having a newer session.
const maxEpochSkew = 10 * time.Minute

const (
	// maxHoldings is how many nodes another gateway may say on one connection that
	// it holds: three times what a gateway is made for. Each takes some 200 bytes
	// here, and what a gateway that was taken over says must not take without end.
	maxHoldings = 1 << 15
	// maxLinks is how many connections one other gateway may have made to this one,
	// from their handshake on, whether they say anything or not: one, and those of its
	// processes before that are not known to be gone yet (for meshIdle of package
	// tunnel), also where it starts again and again.
	maxLinks = 8
)

// A mesh of gateways: every gateway keeps a connection to every other one of the
// signed list and tells it which nodes it holds. Each connection carries what
// both ends say and dials of both directions, so that a process that has taken
// over the egress socket but does not have its UDP port yet can serve already.
//
//	 gateway a                                     gateway b
//	   |  handshake: both show a gateway's certificate |
//	   |  MESH-HELLO, OWNED(snapshot)  ------------->   |
//	   |  <-------------  MESH-HELLO, OWNED(snapshot)  |
//	   |  OWNED(changes), KICK in both directions      |
//	   |  forward header, dial header, bytes ------->  |  the node's session
//
// What each link said is kept apart from what others said and forgotten with it:
// nobody speaks for another. Of several holders of a node the highest epoch is
// right; whoever hears of a higher one than its own lets its session end.

// link is a connection to another gateway process.
type link struct {
	stalls  *tunnel.Stalls // of what the link brings, for whichever node
	id      string         // of the gateway
	process string
	dialled bool // by this end
	sess    tunnel.Session
	control *tunnel.Control
	wake    chan struct{}
	streams tunnel.Inflight

	// Guarded by Gateway.mu:
	holds    map[string]*holding // by node
	dirty    map[string]struct{} // nodes to tell the other end of
	kicks    []tunnel.Kick       // to send
	hello    bool                // MESH-HELLO is to be sent again
	draining bool                // the other end takes no sessions
}

// holding is a node's session at another gateway.
type holding struct {
	epoch     uint64
	kubeletUp atomic.Bool
}

// membership is the signed list as a gateway has it.
type membership struct {
	list     *signed.Gateways
	document []byte
}

// SetGateways takes over the signed list: who may mesh, and what nodes are told.
// A list that is not newer than the present one changes nothing.
func (g *Gateway) SetGateways(document []byte) error {
	if g.cfg.CA == nil || g.cfg.ID == "" {
		return errors.New("gateway: a list of gateways needs ID and CA")
	}
	list, err := signed.VerifyGateways(g.cfg.CA, document)
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return ErrClosed
	}
	if old := g.members.list; old != nil && old.Version >= list.Version {
		g.mu.Unlock()
		return nil
	}
	g.members = membership{list, document}
	for id, stop := range g.dialers {
		if _, ok := list.Find(id); !ok {
			stop()
			delete(g.dialers, id)
		}
	}
	var gone []*link
	for l := range g.links {
		if _, ok := list.Find(l.id); !ok {
			gone = append(gone, l)
		}
	}
	for _, peer := range list.Gateways {
		if g.dialers[peer.ID] == nil {
			ctx, cancel := context.WithCancel(g.ctx)
			g.dialers[peer.ID] = cancel
			g.wg.Go(func() { g.keepLink(ctx, peer.ID) })
		}
	}
	sessions := slices.Collect(maps.Keys(g.all))
	g.mu.Unlock()
	for _, l := range gone {
		l.sess.Close(tunnel.CloseDenied, "this gateway is not in the cluster's list any more")
	}
	g.cfg.Logger.Info("list of gateways", "version", list.Version, "gateways", len(list.Gateways))
	g.tell(sessions, func(*session) tunnel.Message { return tunnel.SignedGateways{Document: document} })
	return nil
}

// PolicyChanged sends the node its policy anew, if it is here.
func (g *Gateway) PolicyChanged(node string) {
	g.mu.Lock()
	// Superseded ones too: whichever of them the node takes for its session.
	sessions := slices.Clone(g.superseded[node])
	if s := g.current[node]; s != nil {
		sessions = append(sessions, s)
	}
	g.mu.Unlock()
	if len(sessions) == 0 || g.cfg.Policy == nil {
		return
	}
	if doc := g.cfg.Policy(node); doc != nil {
		g.tell(sessions, func(*session) tunnel.Message { return tunnel.SignedPolicy{Document: doc} })
	}
}

// tellers is to how many sessions something is said at once: one whose path is
// away takes until its control stream gives up.
const tellers = 64

// tell sends a message to sessions, in the background.
func (g *Gateway) tell(sessions []*session, message func(*session) tunnel.Message) {
	if len(sessions) == 0 {
		return
	}
	if err := g.begin(); err != nil {
		return // it has stopped, and with it every session
	}
	queue := make(chan *session, len(sessions))
	for _, s := range sessions {
		queue <- s
	}
	close(queue)
	for range min(tellers, len(sessions)) {
		g.wg.Go(func() {
			for s := range queue {
				// Failing to tell a node is noticed where its session ends.
				if err := s.control.Send(message(s)); err != nil {
					s.log.Debug("control message not sent", "error", err)
				}
			}
		})
	}
	g.wg.Done()
}

// documents sends a node at the begin of its session what was signed for it.
func (g *Gateway) documents(s *session) error {
	g.mu.Lock()
	list := g.members.document
	g.mu.Unlock()
	if list != nil {
		if err := s.control.Send(tunnel.SignedGateways{Document: list}); err != nil {
			return err
		}
	}
	if g.cfg.Policy == nil {
		return nil
	}
	if doc := g.cfg.Policy(s.node); doc != nil {
		return s.control.Send(tunnel.SignedPolicy{Document: doc})
	}
	return nil
}

// farLocked returns the highest epoch of the node at another gateway, and the
// link to it; nil if none holds it. Of two links to it the one that it made is
// taken, because there it admits more streams (tunnel.MeshConfig).
func (g *Gateway) farLocked(node string) (*link, *holding) {
	var at *link
	var best *holding
	for l := range g.links {
		if h := l.holds[node]; h != nil && (best == nil || h.epoch > best.epoch || h.epoch == best.epoch && at.dialled) {
			at, best = l, h
		}
	}
	return at, best
}

// changedLocked tells every link that what we hold of the node has changed.
func (g *Gateway) changedLocked(node string) {
	for l := range g.links {
		l.dirty[node] = struct{}{}
		l.wakeUp()
	}
}

func (l *link) wakeUp() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// announceLocked tells OnSession, and dials that wait for the node, whether
// anybody holds it, if that has changed.
func (g *Gateway) announceLocked(node string, before bool) {
	now := g.heldLocked(node)
	if now == before {
		return
	}
	if now {
		g.settledLocked(node)
	} else {
		g.departedLocked(node)
	}
	g.events.push(event{node, now, g.cfg.Clock()})
}

func (g *Gateway) heldLocked(node string) bool {
	if g.current[node] != nil {
		return true
	}
	_, h := g.farLocked(node)
	return h != nil
}

// heard takes over what another gateway says it holds, up to maxHoldings.
func (g *Gateway) heard(l *link, m tunnel.Owned) error {
	newest := uint64(g.cfg.Clock().Add(maxEpochSkew).UnixNano())
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.links[l]; !ok {
		return nil
	}
	if m.Snapshot {
		g.forgetLocked(l)
	}
	for _, o := range m.Sessions {
		before := g.heldLocked(o.Node)
		switch h := l.holds[o.Node]; {
		case o.Epoch == 0:
			delete(l.holds, o.Node)
		case o.Epoch > newest:
			g.cfg.Logger.Warn("epoch of the future ignored: is the clock of the other gateway right?", "gateway", l.id, "node", o.Node)
		case h == nil && len(l.holds) >= maxHoldings:
			return fmt.Errorf("gateway %s says that it holds more than %d nodes", l.id, maxHoldings)
		case h == nil || h.epoch != o.Epoch:
			l.holds[o.Node] = &holding{epoch: o.Epoch}
		}
		if h := l.holds[o.Node]; h != nil {
			g.yieldLocked(o.Node, h.epoch, l.id)
		} else {
			g.reinstateLocked(o.Node)
		}
		g.announceLocked(o.Node, before)
	}
	return nil
}

// yieldLocked gives the node up if a newer session of it is at another gateway.
func (g *Gateway) yieldLocked(node string, epoch uint64, to string) {
	s := g.current[node]
	if s == nil || s.epoch >= epoch {
		return
	}
	delete(g.current, node)
	g.supersedeLocked(s)
	g.held.Done()
	g.changedLocked(node)
	s.log.Info("node has moved", "to", to, "streams", s.streams.Count())
	g.wg.Go(func() { g.retire(g.ctx, s) })
}

// forgetLocked drops what a link said.
func (g *Gateway) forgetLocked(l *link) {
	old := l.holds
	l.holds = map[string]*holding{}
	for node := range old {
		g.reinstateLocked(node)
		g.announceLocked(node, true)
	}
}

// isGateway reports whether a verified certificate is a gateway's. Both usages
// are asked for because no signer of the cluster's API issues both in one
// certificate.
func isGateway(leaf *x509.Certificate) bool {
	return tunnel.GatewayID(leaf) != "" &&
		slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) &&
		slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
}

// MeshPeer describes a connection to another gateway process.
type MeshPeer struct {
	ID       string
	Process  string
	Draining bool
	// Nodes is how many it holds.
	Nodes int
	// Streams are the dials carried on the connection.
	Streams int
}

// Peers lists the connections to other gateways by ID; there are mostly two to
// each.
func (g *Gateway) Peers() []MeshPeer {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []MeshPeer
	for l := range g.links {
		out = append(out, MeshPeer{ID: l.id, Process: l.process, Draining: l.draining, Nodes: len(l.holds), Streams: l.streams.Count()})
	}
	slices.SortFunc(out, func(a, b MeshPeer) int {
		if a.ID != b.ID {
			if a.ID < b.ID {
				return -1
			}
			return 1
		}
		return 0
	})
	return out
}

// alternatesLocked are the gateways that could take nodes over.
func (g *Gateway) alternatesLocked() []string {
	ids := map[string]bool{}
	for l := range g.links {
		if l.id != g.cfg.ID && !l.draining {
			ids[l.id] = true
		}
	}
	return slices.Sorted(maps.Keys(ids))
}

// Missing lists the other gateways of the list that this one has no link to.
func (g *Gateway) Missing() (ids []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.members.list == nil {
		return nil
	}
	for _, gw := range g.members.list.Gateways {
		if gw.ID == g.cfg.ID {
			continue
		}
		if !slices.ContainsFunc(slices.Collect(maps.Keys(g.links)), func(l *link) bool { return l.id == gw.ID }) {
			ids = append(ids, gw.ID)
		}
	}
	return ids
}
