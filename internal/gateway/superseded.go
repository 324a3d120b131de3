package gateway

import (
	"context"
	"fmt"
	"slices"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// maxSuperseded is how many superseded sessions of one node may finish here at
	// once. A node leaves one behind with each move, to another gateway and back or
	// to TCP and back, and within supersedeGrace it moves a few times at most.
	// Whoever leaves more loses the oldest.
	maxSuperseded = 8
	// maxNodeStreams is how many connections a node may have to the apiserver
	// through this gateway, over all its sessions: what the newest one admits, and
	// as many again, since those of a session whose path is lost count until that
	// is noticed, and their owners are back on the newest before.
	maxNodeStreams = 2 * tunnel.MaxStreams
)

// supersedeLocked remembers a session that has just ceased to be its node's
// current one. Only nodes that have such sessions take memory for them.
func (g *Gateway) supersedeLocked(s *session) {
	g.superseded[s.node] = append(g.superseded[s.node], s)
}

// forgetSupersededLocked forgets s, if it is superseded.
func (g *Gateway) forgetSupersededLocked(s *session) {
	list := g.superseded[s.node]
	i := slices.Index(list, s)
	switch {
	case i < 0:
	case len(list) == 1:
		delete(g.superseded, s.node)
	default:
		g.superseded[s.node] = slices.Delete(list, i, i+1)
	}
}

// reinstateLocked makes the newest session that a node has left behind here its
// current one again, if nobody holds the node any more. It tells the other gateways,
// and leaves it to the caller to announce.
//
// The node may never have taken up the session that took over: its WELCOME came too
// late, it was refused after all, or it was lost on the way back. To that node the
// old session is the one it has, and it makes no other while that lives. A node that
// did take up the other one has left this one for its streams alone, but serves what
// is dialled over it, and says on it how it is, for as long as it has it: better
// reached that way than not at all until its next session, which takes over as ever.
func (g *Gateway) reinstateLocked(node string) {
	if g.superseded[node] == nil || g.refusing || g.closed || g.heldLocked(node) {
		return
	}
	for _, s := range slices.Backward(g.superseded[node]) {
		if s.sess.Err() != nil {
			continue // it is about to be forgotten
		}
		g.forgetSupersededLocked(s)
		s.finishing = false
		if s.retirement != nil {
			s.retirement.cancel()
			s.retirement = nil
		}
		g.current[node] = s
		g.held.Add()
		g.changedLocked(node)
		s.log.Info("superseded session is the node's current one again: the one that took over is gone", "epoch", s.epoch)
		return
	}
}

// retirement is the bounded end of a superseded session. It is the session's only
// as long as that is superseded: one that becomes current again and is superseded
// once more has another.
type retirement struct{ cancel context.CancelFunc }

// beginRetirement returns nil if there is nothing to retire: the session has ended
// or is current again, or somebody else retires it.
func (g *Gateway) beginRetirement(s *session, cancel context.CancelFunc) *retirement {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.retirement != nil || !slices.Contains(g.superseded[s.node], s) {
		return nil
	}
	s.retirement = &retirement{cancel}
	return s.retirement
}

// finish makes the session take no more streams of the node's, unless it is not
// retired any more.
func (g *Gateway) finish(s *session, r *retirement) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.retirement != r {
		return false
	}
	s.finishing = true
	return true
}

// endRetirement reports whether the session is to be closed now; it cannot become
// current again then.
func (g *Gateway) endRetirement(s *session, r *retirement) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.retirement != r {
		return false
	}
	g.forgetSupersededLocked(s)
	return true
}

// cutOldest closes the node's oldest superseded sessions if there are more than
// may stay.
func (g *Gateway) cutOldest(node string) {
	g.mu.Lock()
	list := g.superseded[node]
	gone := slices.Clone(list[:max(0, len(list)-maxSuperseded)])
	for _, s := range gone {
		g.forgetSupersededLocked(s) // or it could become current again
	}
	g.mu.Unlock()
	for _, s := range gone {
		s.log.Info("superseded session cut: the node has left too many behind", "epoch", s.epoch, "streams", s.streams.Count())
		s.sess.Close(tunnel.CloseSuperseded, fmt.Sprintf("this node has more than %d older sessions", maxSuperseded))
		g.unregister(s)
	}
}

// errFinishing is the answer to what a node still opens on a session that only
// finishes.
var errFinishing = &tunnel.StatusError{
	Status: tunnel.StatusDraining,
	Text:   "a newer session of this node has taken over; dial again through that one",
}

// beginStream counts a connection that the node opens, in the session's kinds, or
// says why it may have no more of them.
func (g *Gateway) beginStream(s *session) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.finishing {
		return errFinishing
	}
	n := int32(0)
	if newest := g.current[s.node]; newest != nil {
		n = newest.kinds[tunnel.KindAPIServer].Load()
	}
	for _, old := range g.superseded[s.node] {
		n += old.kinds[tunnel.KindAPIServer].Load()
	}
	if n >= maxNodeStreams {
		return fmt.Errorf("%w: node %s has %d connections through this gateway; close some", tunnel.ErrStreamLimit, s.node, n)
	}
	s.kinds[tunnel.KindAPIServer].Add(1)
	return nil
}
