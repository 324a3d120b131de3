//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
	"github.com/edgewright/terraform-provider-edge/internal/edgenode"
)

const joinCluster = "bench-join"

// joinConfig is a pool whose nodes are named by a variable.
const joinConfig = `terraform {
  required_providers {
    edge = { source = "edgewright/edge" }
  }
}

variable "nodes" { type = set(string) }

resource "edge_cluster" "bench" {
  name    = "` + joinCluster + `"
  version = "` + version + `"
  local   = {}
}

resource "edge_node_pool" "site" {
  cluster_id = edge_cluster.bench.id
  name       = "site"
}

resource "edge_node" "node" {
  for_each   = var.nodes
  cluster_id = edge_cluster.bench.id
  pool       = edge_node_pool.site.name
  name       = each.key
  local      = {}
}
`

func nodesVar(names ...string) string {
	v := ""
	for _, n := range names {
		v += fmt.Sprintf(",%q", n)
	}
	return "-var=nodes=[" + v[min(1, len(v)):] + "]"
}

// measureJoin adds one node at a time to a pool that has one, and takes it away
// again. Nothing like it could be had as a peer.
func measureJoin(ctx context.Context, w *world) (rows []bench.Row, err error) {
	dir, err := w.terraformDir(ctx, "join", joinConfig)
	if err != nil {
		return nil, err
	}
	if _, err := w.apply(ctx, dir, nodesVar("first")); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.terraformDestroy(ctx, dir, nodesVar())) }()
	var ready, whole, leave bench.Sample
	var phases bench.Phases
	for round := range w.rounds {
		name := fmt.Sprintf("n%d", round+1)
		j, err := w.join(ctx, dir, name)
		if err != nil {
			return nil, err
		}
		ready.Add(j.ready)
		whole.Add(j.whole)
		phases.Add(j.phases)
		w.say("round %d: %.2f s to Ready, apply %.2f s", round+1, j.ready.Seconds(), j.whole.Seconds())
		took, err := w.apply(ctx, dir, nodesVar("first"))
		if err != nil {
			return nil, err
		}
		leave.Add(took)
	}
	rows = bench.Spread("one more edge_node in a pool: apply start to Ready", "s", ready, "", nil)
	rows = append(rows, bench.Spread("one more edge_node in a pool: whole apply", "s", whole, "", nil)...)
	rows = append(rows, bench.Spread("that node removed again, drained and revoked: whole apply", "s", leave, "", nil)...)
	return append(rows, phases.Rows("join")...), nil
}

type joined struct {
	ready, whole time.Duration
	phases       []bench.Phase
}

func (w *world) join(ctx context.Context, tf, name string) (*joined, error) {
	c, err := w.dial(ctx, joinCluster)
	if err != nil {
		return nil, err
	}
	watching, stop := context.WithTimeout(ctx, roundTimeout)
	defer stop()
	seen, err := watchNode(watching, c, name)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	took, err := w.apply(ctx, tf, nodesVar("first", name))
	if err != nil {
		return nil, err
	}
	m := <-seen
	if m.ready.IsZero() {
		return nil, fmt.Errorf("node %s was never seen Ready although its apply is done", name)
	}
	phases, err := w.joinPhases(name, began, began.Add(took), m)
	if err != nil {
		return nil, err
	}
	return &joined{ready: m.ready.Sub(began), whole: took, phases: phases}, nil
}

// joinPhases reads the engine's progress up to the daemon's start, the daemon's
// own steps after it, and what was seen of the cluster.
func (w *world) joinPhases(name string, began, ended time.Time, m milestones) ([]bench.Phase, error) {
	lines, err := w.progress(joinCluster, "/"+name, began)
	if err != nil {
		return nil, err
	}
	cluster, err := w.clusterDir(joinCluster)
	if err != nil {
		return nil, err
	}
	status, err := edgenode.LoadStatus(filepath.Join(cluster, "nodes", name))
	if err != nil {
		return nil, err
	}
	type moment struct {
		at   time.Time
		name string // what ends there
	}
	var moments []moment
	before := "terraform and plugin start, refresh, node declared"
	for _, l := range lines {
		if l.Time.After(status.Started) {
			break
		}
		if before != l.Phase { // a phase may say several things
			moments = append(moments, moment{l.Time, before})
		}
		before = l.Phase
	}
	moments = append(moments, moment{status.Started, before})
	for _, s := range status.Steps {
		at := status.Started.Add(time.Duration(s.ElapsedMS) * time.Millisecond)
		moments = append(moments, moment{at, "node daemon: " + s.Name})
	}
	moments = append(moments,
		moment{m.registered, "Node registered"},
		moment{m.nodeReady, "Node Ready"},
		moment{m.ready, "EdgeNode Ready (placed)"},
		moment{ended, "noticed, state written, plugin and terraform end"})
	// Steps of the daemon and of the cluster overlap: each phase is the time
	// from whatever came before it.
	moments = slices.DeleteFunc(moments, func(m moment) bool { return m.at.IsZero() })
	slices.SortStableFunc(moments, func(a, b moment) int { return a.at.Compare(b.at) })
	t := &timeline{last: began}
	for _, m := range moments {
		t.to(m.at, m.name)
	}
	return t.phases, nil
}
