package gateway

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// What two other gateways say of a node that moves from the one to the other
// comes in any order: a dial in between waits, and finds the node.
func TestDialWhileNodeMoves(t *testing.T) {
	const node = "berlin-1"
	gone := errors.New("the caller has gone")
	for name, tc := range map[string]struct {
		next  func(g *Gateway, b *link, cancel context.CancelCauseFunc) // 200 ms after a has given the node up
		err   error
		after time.Duration
	}{
		"back elsewhere": {
			func(g *Gateway, b *link, _ context.CancelCauseFunc) { g.heard(b, owned(node, 2)) }, nil, 200 * time.Millisecond,
		},
		"back here": {
			func(g *Gateway, _ *link, _ context.CancelCauseFunc) { g.register(&session{node: node, epoch: 2}) }, nil, 200 * time.Millisecond,
		},
		"away": {
			func(*Gateway, *link, context.CancelCauseFunc) {}, ErrNotConnected, returnGrace,
		},
		"caller gone": {
			func(_ *Gateway, _ *link, cancel context.CancelCauseFunc) { cancel(gone) }, gone, 200 * time.Millisecond,
		},
		"gateway closed": {
			func(g *Gateway, _ *link, _ context.CancelCauseFunc) { closeNow(g) }, ErrClosed, 200 * time.Millisecond,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, a, b := meshOfThree(t)
				defer closeNow(g)
				g.heard(a, owned(node, 1))
				if _, l, _, err := g.find(t.Context(), node); l != a || err != nil {
					t.Fatalf("at %v, error %v", l, err)
				}
				g.heard(a, owned(node, 0))
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				start := time.Now()
				time.AfterFunc(200*time.Millisecond, func() { tc.next(g, b, cancel) })
				_, _, _, err := g.find(ctx, node)
				if took := time.Since(start); !errors.Is(err, tc.err) || took != tc.after {
					t.Errorf("%v after %s; want %v after %s", err, took, tc.err, tc.after)
				}
				start = time.Now()
				g.find(t.Context(), node)
				if took := time.Since(start); took != 0 && name != "caller gone" {
					t.Errorf("the next dial waited %s", took)
				}
				time.Sleep(returnGrace)
				synctest.Wait()
				g.mu.Lock()
				defer g.mu.Unlock()
				if len(g.departed) > 0 {
					t.Errorf("remembered after the grace: %v", g.departed)
				}
			})
		})
	}
}

// A node nobody ever held is refused at once, and so is one that a broken link
// to its gateway took away, after its grace.
func TestDialOfUnknownNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a, _ := meshOfThree(t)
		defer closeNow(g)
		for node, want := range map[string]time.Duration{"never": 0, "lost": returnGrace} {
			g.heard(a, owned("lost", 1))
			g.heard(a, tunnel.Owned{Snapshot: true})
			start := time.Now()
			if _, _, _, err := g.find(t.Context(), node); !errors.Is(err, ErrNotConnected) || time.Since(start) != want {
				t.Errorf("%s: %v after %s", node, err, time.Since(start))
			}
			time.Sleep(returnGrace)
		}
	})
}

// meshOfThree is a gateway with links to two others, on which nothing is sent.
func meshOfThree(t *testing.T) (g *Gateway, a, b *link) {
	ca := tunneltest.NewCA(t)
	g, err := New(Config{
		Certificate: tunneltest.Source(ca.Gateway(t, tunnel.ServerName)), ClientCAs: ca.Pool,
		Authorize:     func(string, *x509.Certificate) error { return nil },
		DialAPIServer: func(context.Context) (net.Conn, error) { return nil, errors.New("no apiserver") },
		Routes:        noRoutes{},
	})
	if err != nil {
		t.Fatal(err)
	}
	a, b = bareLink("a"), bareLink("b")
	g.links[a], g.links[b] = struct{}{}, struct{}{}
	return g, a, b
}

func bareLink(id string) *link {
	return &link{id: id, wake: make(chan struct{}, 1), holds: map[string]*holding{}, dirty: map[string]struct{}{}}
}

// owned is what a gateway says of one node; epoch 0: it does not hold it.
func owned(node string, epoch uint64) tunnel.Owned {
	return tunnel.Owned{Sessions: []tunnel.OwnedSession{{Node: node, Epoch: epoch}}}
}

type noRoutes struct{}

func (noRoutes) PodOwner(netip.Addr) (string, error) { return "", ErrNoRoute }
func (noRoutes) HasNode(string) bool                 { return false }

// closeNow ends g; the bare sessions it may have cannot be told of it.
func closeNow(g *Gateway) {
	for s := range g.all {
		g.unregister(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = g.Close(ctx) // its error is ctx's
}
