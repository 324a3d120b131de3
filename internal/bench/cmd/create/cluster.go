//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
)

// clusterConfig is the least that makes a cluster.
const clusterConfig = `terraform {
  required_providers {
    edge = { source = "edgewright/edge" }
  }
}

resource "edge_cluster" "bench" {
  name    = "bench-apply"
  version = "` + version + `"
  local   = {}
}
`

const (
	engineCluster = "bench-engine"
	applyCluster  = "bench-apply"
)

// settle is how long a cluster is left alone before its memory is read.
const settle = 10 * time.Second

// measureClusters makes clusters in turn: kwokctl's, ours through the engine,
// ours through terraform. A first round warms the page cache and does not count.
// Every other round goes the other way round.
func measureClusters(ctx context.Context, w *world) ([]bench.Row, error) {
	tf, err := w.terraformDir(ctx, "cluster", clusterConfig)
	if err != nil {
		return nil, err
	}
	var kwok, engine, apply bench.Sample
	var enginePhases, applyPhases bench.Phases
	var ourMemory, kwokMemory memory
	once := func(round int, counts bool) error {
		last := round == w.rounds-1 && counts
		steps := []func() error{
			func() error {
				if w.kwokctl == "" {
					return nil
				}
				took, err := w.kwokCreate(ctx)
				if err != nil {
					return err
				}
				if counts {
					kwok.Add(took)
					w.say("round %d: %s %.2f s", round+1, kwokName, took.Seconds())
				}
				if last {
					if kwokMemory, err = w.kwokMemory(ctx); err != nil {
						return err
					}
				}
				return w.kwokDelete(context.WithoutCancel(ctx))
			},
			func() error {
				took, phases, err := w.engineCreate(ctx, engineCluster)
				if err != nil {
					return err
				}
				if counts {
					engine.Add(took)
					enginePhases.Add(phases)
					w.say("round %d: engine %.2f s", round+1, took.Seconds())
				}
				if last {
					if ourMemory, err = w.clusterMemory(ctx, engineCluster); err != nil {
						return err
					}
				}
				return w.destroy(ctx, engineCluster)
			},
			func() error {
				began := time.Now()
				took, err := w.apply(ctx, tf)
				if err != nil {
					return err
				}
				if counts {
					phases, err := w.clusterPhases(applyCluster, began, began.Add(took))
					if err != nil {
						return err
					}
					apply.Add(took)
					applyPhases.Add(renameEnds(phases))
					w.say("round %d: terraform apply %.2f s", round+1, took.Seconds())
				}
				return w.terraformDestroy(ctx, tf)
			},
		}
		for i := range steps {
			if round%2 == 1 {
				i = len(steps) - 1 - i
			}
			if err := steps[i](); err != nil {
				return err
			}
		}
		return nil
	}
	w.say("a round that warms up and does not count")
	if err := once(0, false); err != nil {
		return nil, err
	}
	for round := range w.rounds {
		if err := once(round, true); err != nil {
			return nil, err
		}
	}
	rows := compare("edge_cluster create through the engine, process start to end", engine, kwok)
	rows = append(rows, compare("edge_cluster create through a whole terraform apply", apply, kwok)...)
	rows = append(rows, enginePhases.Rows("create through the engine")...)
	rows = append(rows, applyPhases.Rows("create through terraform apply")...)
	return append(rows, memoryRows("idle control plane", ourMemory, kwokName, kwokMemory)...), nil
}

// compare returns the rows of ours beside kwokctl: no slower is the aim.
func compare(name string, ours, kwok bench.Sample) []bench.Row {
	rows := bench.Spread(name, "s", ours, kwokName, kwok)
	if len(kwok) == 0 {
		return rows
	}
	rows[0] = rows[0].Aiming(kwok.Median())
	ratio := bench.Row{Name: name + ", ratio to " + kwokName + " of the same round", Unit: "ratio", Ours: ours.Ratios(kwok).Median()}
	return append(rows, ratio.Aiming(1))
}

// renameEnds names what terraform does before and after the engine's work.
func renameEnds(phases []bench.Phase) []bench.Phase {
	phases[0].Name = "terraform and plugin start, plan, choice of ports and ranges"
	phases[len(phases)-1].Name = "state written, plugin and terraform end"
	return phases
}

// terraformDir makes an initialised working directory.
func (w *world) terraformDir(ctx context.Context, name, config string) (string, error) {
	dir := filepath.Join(w.dir, "tf-"+name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "main.tf"), []byte(config), 0o600); err != nil {
		return "", err
	}
	_, _, _, err := w.command(ctx, dir, w.environment(), w.terraform, "init", "-input=false", "-no-color")
	return dir, err
}

func (w *world) apply(ctx context.Context, dir string, args ...string) (time.Duration, error) {
	_, _, took, err := w.command(ctx, dir, w.environment(), w.terraform, append([]string{"apply", "-input=false", "-no-color", "-auto-approve"}, args...)...)
	return took, err
}

func (w *world) terraformDestroy(ctx context.Context, dir string, args ...string) error {
	_, _, _, err := w.command(context.WithoutCancel(ctx), dir, w.environment(), w.terraform, append([]string{"destroy", "-input=false", "-no-color", "-auto-approve"}, args...)...)
	if err != nil {
		return fmt.Errorf("destroy: %w", err)
	}
	return nil
}
