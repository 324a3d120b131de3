//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
	"github.com/edgewright/terraform-provider-edge/internal/hub/hubload"
)

// The clusters whose nodes are measured: 500 services with one slice each, then
// with ten.
const (
	memoryServices = 500
	slicesFewer    = 1
	slicesMore     = 10
	// memoryAim is for hub and agent together on the largest node, at 500 slices.
	memoryAim = 40 // MB
)

// memoryNodes are numbers of pods.
var memoryNodes = []int{1, 50, 110}

func nodeOf(pods int) string { return fmt.Sprint("node-", pods) }

// footprint is one measurement of a hub.
type footprint struct {
	memory hubload.Memory
	disk   int64
}

// footprints are those of all rounds.
type footprints struct{ resident, own, shared, disk bench.Sample }

func (f *footprints) add(one footprint) {
	const megabytes = 1024 / 1e6 // of KiB
	f.resident = append(f.resident, float64(one.memory.Resident())*megabytes)
	f.own = append(f.own, float64(one.memory.Own)*megabytes)
	f.shared = append(f.shared, float64(one.memory.Shared)*megabytes)
	f.disk = append(f.disk, float64(one.disk)/1e6)
}

// measureMemory looks at hubs that have just taken in a node's collections.
func measureMemory(ctx context.Context, w *world) (rows []bench.Row, err error) {
	c, err := w.startCluster(ctx, "memory")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	stop, err := c.gateway(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if err := c.letYurthubsRead(ctx); err != nil {
		return nil, err
	}
	nodes := map[int]*hubload.Node{}
	for _, pods := range memoryNodes {
		if err := hubload.FillNode(ctx, c.kube, nodeOf(pods), pods); err != nil {
			return nil, err
		}
		if nodes[pods], err = hubload.NewNode(filepath.Join(c.dir, nodeOf(pods)), nodeOf(pods), c.server.Config); err != nil {
			return nil, err
		}
	}
	if err := hubload.FillServices(ctx, c.kube, 0, memoryServices, slicesFewer); err != nil {
		return nil, err
	}
	for _, slices := range []int{slicesFewer, slicesMore} {
		if slices == slicesMore {
			if err := hubload.MoreSlices(ctx, c.kube, memoryServices, slicesFewer, slicesMore); err != nil {
				return nil, err
			}
		}
		for _, pods := range memoryNodes {
			var ours, peer footprints
			for round := range w.rounds {
				measure := []func() error{
					func() error {
						one, err := w.ourFootprint(ctx, c, nodes[pods], pods, socket.LocalAddr().String())
						ours.add(one)
						return err
					},
				}
				if w.yurthub != "" {
					measure = append(measure, func() error {
						one, err := w.yurthubFootprint(ctx, c, pods)
						peer.add(one)
						return err
					})
				}
				for i := range measure {
					if err := measure[(i+round)%len(measure)](); err != nil {
						return nil, fmt.Errorf("node with %d pods: %w", pods, err)
					}
				}
			}
			rows = append(rows, memoryRows(pods, memoryServices*slices, ours, peer)...)
		}
	}
	return rows, nil
}

func memoryRows(pods, slices int, ours, peer footprints) []bench.Row {
	what := fmt.Sprintf("hub and agent, %d pods, %d slices: ", pods, slices)
	rows := bench.Spread(what+"resident", "MB", ours.resident, yurthubName, peer.resident)
	if pods == memoryNodes[len(memoryNodes)-1] && slices == memoryServices*slicesFewer {
		rows[0] = rows[0].Aiming(memoryAim)
	}
	rows = append(rows, bench.Spread(what+"resident without the pages of the program's file", "MB", ours.own, yurthubName, peer.own)...)
	rows = append(rows, bench.Spread(what+"shared pages divided among their users", "MB", ours.shared, yurthubName, peer.shared)...)
	return append(rows, bench.Spread(what+"files of the replica", "MB", ours.disk, yurthubName, peer.disk)...)
}

// ourFootprint starts a node's hub and agent anew and lets its components follow.
func (w *world) ourFootprint(ctx context.Context, c *cluster, node *hubload.Node, pods int, gateway string) (f footprint, err error) {
	dir, err := os.MkdirTemp(c.dir, "hub-")
	if err != nil {
		return f, err
	}
	p := node.Process(dir, c.address())
	p.Gateway = gateway
	running, err := p.Start(nil)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, running.Stop()) }()
	return followed(ctx, running.PID, dir, hubload.Followed{
		Node: nodeOf(pods), Pods: pods,
		Config: func(c hubload.Component) (*rest.Config, error) { return node.Config(c, running.Address) },
	})
}

// yurthubFootprint is the same with OpenYurt's. Its cache keeps plain lists only,
// so those are what its components ask for.
func (w *world) yurthubFootprint(ctx context.Context, c *cluster, pods int) (f footprint, err error) {
	dir, err := os.MkdirTemp(c.dir, "yurthub-")
	if err != nil {
		return f, err
	}
	y, err := w.startYurthub(ctx, c, nodeOf(pods), dir)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, y.stop()) }()
	f, err = followed(ctx, y.cmd.Process.Pid, y.cache, hubload.Followed{Node: nodeOf(pods), Pods: pods, Config: y.config, PlainLists: true})
	if err != nil {
		err = fmt.Errorf("%w; yurthub: %s", err, y.lastWords())
	}
	return f, err
}

// followed looks at a hub once all of its components have all they follow and its
// memory has settled.
func followed(ctx context.Context, pid int, dir string, load hubload.Followed) (f footprint, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	stop, err := hubload.Follow(ctx, load)
	if err != nil {
		return f, err
	}
	defer stop()
	if f.memory, err = rested(ctx, pid); err != nil {
		return f, err
	}
	f.disk, err = hubload.DataSize(dir)
	return f, err
}

// restTime is over which a hub's memory does not change by more than a hundredth once
// it has come to rest. It goes on in steps: pages of its program are let go of, and come
// back as it is used.
const restTime = 2 * time.Second

// rested waits for that, and returns the memory.
func rested(ctx context.Context, pid int) (hubload.Memory, error) {
	tick := time.NewTicker(restTime)
	defer tick.Stop()
	for last := -1; ; {
		now, err := hubload.MemoryOf(pid)
		if err != nil {
			return now, err
		}
		if d, all := now.Resident()-last, now.Resident(); last >= 0 && d <= all/100 && -d <= all/100 {
			return now, nil
		}
		last = now.Resident()
		select {
		case <-ctx.Done():
			return now, fmt.Errorf("memory of process %d has not come to rest: %w", pid, ctx.Err())
		case <-tick.C:
		}
	}
}
