//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
	"github.com/edgewright/terraform-provider-edge/internal/edgenode"
)

const (
	rebootName  = "offline reboot to the tenth pod's container"
	withoutName = "link up, no hub"
)

// booted is when something was there after a boot had begun.
type booted struct{ runtime, first, last time.Duration }

func (b booted) phases() []bench.Phase {
	return []bench.Phase{
		{Name: "container runtime answers", Duration: b.runtime},
		{Name: "first pod's container", Duration: b.first - b.runtime},
		{Name: "the nine others", Duration: b.last - b.first},
	}
}

// measureReboot reboots a real node in turn: cut off, behind its hub; and with its
// link up, with components that talk to the apiserver themselves.
func measureReboot(ctx context.Context, w *world) (rows []bench.Row, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a node is rebooted as root only")
	}
	g, err := openGround(ctx, w.edge)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.close(ctx)) }()
	ctx, cancel := context.WithCancel(ctx)
	running, ctx := errgroup.WithContext(ctx)
	defer func() { cancel(); err = errors.Join(err, running.Wait()) }()
	n, err := g.makeNode(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.converged(ctx); err != nil {
		return nil, err
	}
	if err := n.bared(); err != nil {
		return nil, fmt.Errorf("see how the node runs: %w", err)
	}
	server, err := n.straightWay(ctx, running)
	if err != nil {
		return nil, err
	}
	return w.rebootInTurn(ctx, n, server)
}

// rebootInTurn goes every other round the other way round.
func (w *world) rebootInTurn(ctx context.Context, n *realNode, server string) ([]bench.Row, error) {
	var ours, peer bench.Sample
	var oursPhases, peerPhases bench.Phases
	for round := range w.reboots {
		steps := []func() error{
			func() error {
				b, err := n.rebootCut(ctx)
				if err != nil {
					return err
				}
				ours.Add(b.last)
				oursPhases.Add(b.phases())
				w.say("round %d: cut off %.2f s", round+1, b.last.Seconds())
				return nil
			},
			func() error {
				b, err := n.rebootStraight(ctx, server)
				if err != nil {
					return err
				}
				peer.Add(b.last)
				peerPhases.Add(b.phases())
				w.say("round %d: %s %.2f s", round+1, withoutName, b.last.Seconds())
				return nil
			},
		}
		for i := range steps {
			if err := steps[(i+round)%len(steps)](); err != nil {
				return nil, fmt.Errorf("round %d: %w", round+1, err)
			}
		}
	}
	rows := bench.Spread(rebootName, "s", ours, withoutName, peer)
	ratio := bench.Row{Name: rebootName + ", ratio to " + withoutName + " of the same round", Unit: "ratio", Ours: ours.Ratios(peer).Median()}
	rows = append(rows, ratio.Aiming(1))
	rows = append(rows, oursPhases.Rows("offline reboot")...)
	return append(rows, peerPhases.Rows("reboot, "+withoutName)...), nil
}

// rebootCut reboots the node cut off, behind its hub.
func (n *realNode) rebootCut(ctx context.Context) (b booted, err error) {
	if err := n.restore(ctx); err != nil {
		return b, err
	}
	if n.bare {
		if _, err := n.reboot(ctx, false); err != nil {
			return b, fmt.Errorf("bring the hub back: %w", err)
		}
		if err := n.converged(ctx); err != nil {
			return b, err
		}
	}
	if err := n.autonomous(ctx); err != nil {
		return b, err
	}
	if err := n.cutOff(ctx); err != nil {
		return b, err
	}
	return n.reboot(ctx, false)
}

// rebootStraight reboots the node with its link up and without a hub.
func (n *realNode) rebootStraight(ctx context.Context, server string) (b booted, err error) {
	if err := n.restore(ctx); err != nil {
		return b, err
	}
	if err := n.pointStraight(server); err != nil {
		return b, err
	}
	return n.reboot(ctx, true)
}

// restore restores the node's link and waits until the cluster sees it as it is.
func (n *realNode) restore(ctx context.Context) error {
	if err := n.site.SetCut(ctx, "", false); err != nil {
		return err
	}
	return n.converged(ctx)
}

// reboot pulls the node's plug and starts it again, bare or with its hub.
func (n *realNode) reboot(ctx context.Context, bare bool) (b booted, err error) {
	ctx, cancel := context.WithTimeout(ctx, realPatience)
	defer cancel()
	program := n.edge
	if n.bare = bare; bare {
		if program, err = os.Executable(); err != nil {
			return b, err
		}
	}
	if err := n.tidy(ctx); err != nil {
		return b, err
	}
	if err := edgenode.PowerCut(ctx, n.dir); err != nil {
		return b, err
	}
	began := time.Now()
	up := make(chan error, 1)
	upping, done := context.WithCancel(ctx)
	go func() {
		defer close(up)
		up <- edgenode.Up(upping, edgenode.UpOptions{Dir: n.dir, Edge: program})
	}()
	b, err = n.watchBoot(ctx, began, up)
	done()         // what is up stays
	for range up { // until it has ended, too
	}
	return b, err
}

// watchBoot looks at the node's container runtime until all pods' containers run
// that it has made since the boot began.
func (n *realNode) watchBoot(ctx context.Context, began time.Time, up <-chan error) (b booted, err error) {
	look := time.NewTicker(realLook)
	defer look.Stop()
	for {
		select {
		case err := <-up:
			if err != nil {
				return b, err
			}
			up = nil
		case <-ctx.Done():
			return b, fmt.Errorf("wait for the tenth pod: %w", context.Cause(ctx))
		case <-look.C:
		}
		running, err := n.running(ctx, began)
		if err != nil {
			continue // it does not serve yet
		}
		since := time.Since(began)
		if b.runtime == 0 {
			b.runtime = since
		}
		if b.first == 0 && len(running) > 0 {
			b.first = since
		}
		if len(running) >= realPods {
			b.last = since
			return b, nil
		}
	}
}
