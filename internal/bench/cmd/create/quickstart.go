//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
)

const (
	quickstartCluster = "quickstart"
	quickstartNodes   = 3
	quickstartPods    = 3
	// quickstartAim is in seconds, from terraform's start to its end.
	quickstartAim = 20
	// quickstartRounds at most: one is half a minute with its destroy.
	quickstartRounds = 3
)

// measureQuickstart applies examples/quickstart and sees for itself that nodes
// are Ready and pods run as it ends.
func measureQuickstart(ctx context.Context, w *world) ([]bench.Row, error) {
	config, err := os.ReadFile(filepath.Join(w.examples, "main.tf"))
	if err != nil {
		return nil, err
	}
	dir, err := w.terraformDir(ctx, "quickstart", string(config))
	if err != nil {
		return nil, err
	}
	var apply, destroy bench.Sample
	var phases bench.Phases
	var node, all memory
	for round := range min(w.rounds, quickstartRounds) {
		took, ph, err := w.quickstart(ctx, dir)
		if err != nil {
			return nil, errors.Join(err, w.terraformDestroy(ctx, dir))
		}
		apply.Add(took)
		phases.Add(ph)
		w.say("round %d: quickstart apply %.2f s", round+1, took.Seconds())
		if round == min(w.rounds, quickstartRounds)-1 {
			if node, all, err = w.quickstartMemory(ctx); err != nil {
				return nil, errors.Join(err, w.terraformDestroy(ctx, dir))
			}
		}
		began := time.Now()
		if err := w.terraformDestroy(ctx, dir); err != nil {
			return nil, err
		}
		destroy.Add(time.Since(began))
	}
	rows := bench.Spread(fmt.Sprintf("quickstart apply to %d Ready nodes and %d running pods", quickstartNodes, quickstartPods), "s", apply, "", nil)
	rows[0] = rows[0].Aiming(quickstartAim)
	rows = append(rows, bench.Spread("quickstart destroy", "s", destroy, "", nil)...)
	rows = append(rows, phases.Rows("quickstart apply")...)
	rows = append(rows, memoryRows("a node with one pod", node, "", nil)...)
	return append(rows, memoryRows("the quickstart's control plane", all, "", nil)...), nil
}

// hook is a line of `terraform apply -json`.
type hook struct {
	Time time.Time `json:"@timestamp"`
	Type string    `json:"type"`
	Hook struct {
		Resource struct {
			Addr string `json:"addr"`
		} `json:"resource"`
	} `json:"hook"`
}

func (w *world) quickstart(ctx context.Context, dir string) (time.Duration, []bench.Phase, error) {
	began := time.Now()
	out, _, took, err := w.command(ctx, dir, w.environment(), w.terraform, "apply", "-input=false", "-auto-approve", "-json")
	if err != nil {
		return 0, nil, err
	}
	if err := w.quickstartRuns(ctx); err != nil {
		return 0, nil, err
	}
	phases, err := resourcePhases(out, began, began.Add(took))
	return took, phases, err
}

// quickstartRuns fails unless everything runs at this moment.
func (w *world) quickstartRuns(ctx context.Context) error {
	c, err := w.dial(ctx, quickstartCluster)
	if err != nil {
		return err
	}
	nodes, pods := &corev1.NodeList{}, &corev1.PodList{}
	if err := errors.Join(c.List(ctx, nodes), c.List(ctx, pods, client.InNamespace("default"))); err != nil {
		return err
	}
	ready, running := 0, 0
	for _, n := range nodes.Items {
		if slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		}) {
			ready++
		}
	}
	for _, p := range pods.Items {
		if slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}) {
			running++
		}
	}
	if ready != quickstartNodes || running != quickstartPods {
		return fmt.Errorf("apply is done and %d of %d nodes are Ready, %d of %d pods run", ready, quickstartNodes, running, quickstartPods)
	}
	return nil
}

// resourcePhases divides an apply by kind of resource: from the first that
// begins to the last of the kind that is complete.
func resourcePhases(out string, began, ended time.Time) ([]bench.Phase, error) {
	type span struct{ from, to time.Time }
	var kinds []string
	spans := map[string]*span{}
	lines := bufio.NewScanner(strings.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var h hook
		if json.Unmarshal(lines.Bytes(), &h) != nil {
			continue // not a line of the machine-readable UI
		}
		kind, _, _ := strings.Cut(h.Hook.Resource.Addr, ".")
		switch h.Type {
		case "apply_start":
			if spans[kind] == nil {
				kinds = append(kinds, kind)
				spans[kind] = &span{from: h.Time}
			}
		case "apply_complete":
			if s := spans[kind]; s != nil {
				s.to = h.Time
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(kinds) == 0 {
		return nil, errors.New("terraform reported no resource")
	}
	phases := []bench.Phase{{Name: "terraform and plugin start, plan", Duration: spans[kinds[0]].from.Sub(began)}}
	last := began
	for _, k := range kinds {
		phases = append(phases, bench.Phase{Name: k, Duration: spans[k].to.Sub(spans[k].from)})
		if spans[k].to.After(last) {
			last = spans[k].to
		}
	}
	return append(phases, bench.Phase{Name: "plugin and terraform end", Duration: ended.Sub(last)}), nil
}

// quickstartMemory reads a node with one pod, and the control plane with three
// nodes.
func (w *world) quickstartMemory(ctx context.Context) (node, control memory, err error) {
	if control, err = w.clusterMemory(ctx, quickstartCluster); err != nil {
		return nil, nil, err
	}
	dir, err := w.clusterDir(quickstartCluster)
	if err != nil {
		return nil, nil, err
	}
	node, err = nodeMemory(dir, "tokyo-1")
	return node, control, err
}
