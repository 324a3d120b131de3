//go:build linux

package edgenode

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

// cutPatience is how long a node that has joined before is given to reach its
// gateway before it counts as cut off: a handshake takes a fraction of a second,
// a lost packet one or two more.
const cutPatience = 10 * time.Second

// ready is what awaitRunning waits for.
type ready struct {
	engine, components *supervise.Supervisor
	images             <-chan error
	certified, network <-chan struct{}
	tunnel             *agent.Agent
}

// awaitRunning says when the node is up: its programs are healthy, its images
// there, its pod network written and its kubelet certified. A node that has
// joined before and is cut off is up without what only the cluster can give.
func (n *node) awaitRunning(ctx context.Context, r ready) error {
	var doubts []string
	doubt := func(err error) error {
		if err != nil && ctx.Err() == nil {
			doubts = append(doubts, err.Error())
			n.log.Error("the node comes up without", "error", err)
			return nil
		}
		return err
	}
	again := r.connectedOrCut(ctx, n.podCIDRs.Load() != nil)
	steps := []struct {
		name, next string
		wait       func() error
	}{
		{"runtime", "importing images", func() error { return n.programs(ctx, r.engine, ProgramContainerd) }},
		{"images", "starting kubelet, kube-proxy and CoreDNS", func() error { return doubt(receive(ctx, r.images)) }},
		{"components", "waiting for kube-proxy to know the cluster's services", func() error {
			return n.programs(ctx, r.components, ProgramKubelet, ProgramCoreDNS)
		}},
		{"services", "waiting for the cluster to give the node its pod addresses", func() error {
			return n.programs(again, r.components, ProgramKubeProxy)
		}},
		{"network", "waiting for the kubelet's certificate", func() error { return receive(again, r.network) }},
		{"certified", "", func() error { return receive(again, r.certified) }},
	}
	up := func(but ...string) {
		n.status.update(func(s *Status) {
			s.Phase, s.Message, s.LastFailure = PhaseRunning, "the node is up", ""
			if s.Running.IsZero() {
				s.Running = time.Now()
			}
			if but = append(doubts, but...); len(but) > 0 {
				s.Message += ", but " + strings.Join(but, "; ")
			}
		})
	}
	for _, s := range steps {
		err := s.wait()
		if errors.Is(err, errCut) && ctx.Err() == nil {
			n.log.Warn("the node is cut off from its cluster", "waiting_for", s.name)
			up("it is cut off from its cluster: what needs the cluster starts once the link is back")
			again = ctx // from here on as long as it takes
			err = s.wait()
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		n.status.step(s.name, s.next)
	}
	up()
	return nil
}

// errCut ends a wait for something that only the cluster can give.
var errCut = errors.New("cut off from the cluster")

// connectedOrCut returns a context that ends with errCut if a node that has
// joined before has no session after cutPatience.
func (r ready) connectedOrCut(ctx context.Context, joinedBefore bool) context.Context {
	if !joinedBefore {
		return ctx
	}
	ctx, cut := context.WithCancelCause(ctx)
	time.AfterFunc(cutPatience, func() {
		if _, ok := r.tunnel.Connected(); !ok {
			cut(errCut)
		}
	})
	return ctx
}

// programs waits for programs to be healthy. One that keeps failing is tried
// again and again by its supervisor; its last words are shown meanwhile.
func (n *node) programs(ctx context.Context, s *supervise.Supervisor, names ...string) error {
	for {
		err := s.WaitReady(ctx, names...)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n.log.Error("not up yet", "error", err)
		n.status.update(func(s *Status) { s.Message = err.Error() })
		if err := n.wait(ctx, joinRetry); err != nil {
			return err
		}
	}
}
