//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
	"github.com/edgewright/terraform-provider-edge/internal/component"
	"github.com/edgewright/terraform-provider-edge/internal/controlplane"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
)

// engineCommand as first argument makes this program create one cluster through
// the engine, as a command line would: a process from its start to its end, like
// kwokctl's.
const engineCommand = "engine-create"

// engineMain is `create engine-create <state dir> <edge> <name>`.
func engineMain(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	e, err := engine.New(engine.Options{StateDir: args[0], EdgeBinary: args[1], Version: pluginVersion, Components: component.DefaultOptions(os.Getenv)})
	if err == nil {
		_, err = e.CreateCluster(ctx, engine.ClusterSpec{Name: args[2], Version: version})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// engineCreate makes a cluster through the engine and says where the time went.
func (w *world) engineCreate(ctx context.Context, name string) (time.Duration, []bench.Phase, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, nil, err
	}
	began := time.Now()
	_, _, took, err := w.command(ctx, w.dir, w.environment(), self, engineCommand, w.state, w.edge, name)
	if err != nil {
		return 0, nil, err
	}
	phases, err := w.clusterPhases(name, began, began.Add(took))
	return took, phases, err
}

func (w *world) destroy(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), roundTimeout)
	defer cancel()
	id, err := w.engine.Resolve(name)
	if err != nil {
		return err
	}
	return w.engine.DeleteCluster(ctx, id)
}

func (w *world) clusterDir(name string) (string, error) {
	id, err := w.engine.Resolve(name)
	if err != nil {
		return "", err
	}
	return w.engine.ClusterDir(id)
}

// progress returns what the engine recorded of an object, whose id ends so.
func (w *world) progress(cluster, objectSuffix string, since time.Time) ([]engine.Progress, error) {
	dir, err := w.clusterDir(cluster)
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(filepath.Join(dir, "progress.ndjson"))
	if err != nil {
		return nil, err
	}
	var out []engine.Progress
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		var p engine.Progress
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			return nil, fmt.Errorf("progress of %s: %w", cluster, err)
		}
		if strings.HasSuffix(p.Object, objectSuffix) && !p.Time.Before(since) {
			out = append(out, p)
		}
	}
	return out, lines.Err()
}

// timeline turns moments into the phases between them.
type timeline struct {
	last   time.Time
	phases []bench.Phase
}

// to ends a phase at a moment.
func (t *timeline) to(at time.Time, phase string) {
	t.phases = append(t.phases, bench.Phase{Name: phase, Duration: at.Sub(t.last)})
	t.last = at
}

// clusterPhases reads the engine's progress and the daemon's own phases.
func (w *world) clusterPhases(name string, began, ended time.Time) ([]bench.Phase, error) {
	dir, err := w.clusterDir(name)
	if err != nil {
		return nil, err
	}
	lines, err := w.progress(name, "", began)
	if err != nil {
		return nil, err
	}
	status, err := controlplane.LoadStatus(dir)
	if err != nil {
		return nil, err
	}
	first := map[string]time.Time{}
	for _, p := range lines {
		if _, ok := first[p.Phase]; !ok {
			first[p.Phase] = p.Time
		}
	}
	for _, needed := range []string{"components", "control-plane", "declare", "ready"} {
		if first[needed].IsZero() {
			return nil, fmt.Errorf("the engine recorded no phase %q", needed)
		}
	}
	if len(status.Phases) == 0 {
		return nil, fmt.Errorf("the daemon of %s recorded no phases", name)
	}
	daemon := status.Since.Add(-status.Phases[len(status.Phases)-1].Elapsed)
	t := &timeline{last: began}
	t.to(first["components"], "start of the program, choice of ports and ranges")
	t.to(first["control-plane"], "components looked up in the cache")
	t.to(daemon, "edge program laid out, daemon started")
	for _, p := range status.Phases {
		t.to(daemon.Add(p.Elapsed), "daemon: "+p.Phase)
	}
	t.to(first["declare"], "ready noticed")
	t.to(first["ready"], "spec declared in the cluster")
	t.to(ended, "end of the program")
	return t.phases, nil
}
