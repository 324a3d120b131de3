package gateway

import (
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

// cutOldest closes the node's oldest superseded sessions if there are more than
// may stay.
func (g *Gateway) cutOldest(node string) {
	g.mu.Lock()
	list := g.superseded[node]
	gone := slices.Clone(list[:max(0, len(list)-maxSuperseded)])
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

// finish makes the session take no more streams of the node's.
func (g *Gateway) finish(s *session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s.finishing = true
}
