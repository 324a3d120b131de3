//go:build linux

package rig

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
)

// note is what a rig records of itself, so that a later run can clean up after
// one that was killed.
type note struct {
	PID      int    `json:"pid"`
	Start    string `json:"start"` // field 22 of /proc/<pid>/stat
	StateDir string `json:"stateDir"`
	Dir      string `json:"dir"`
	Edge     string `json:"edge"`
}

func notesDir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "edge", "e2e")
	return dir, os.MkdirAll(dir, 0o700)
}

func startTime(pid int) string {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	if len(fields) < 20 {
		return ""
	}
	return fields[19]
}

func remember(t testing.TB, r *Rig) (forget func()) {
	t.Helper()
	dir, err := notesDir()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(note{os.Getpid(), startTime(os.Getpid()), r.StateDir, filepath.Dir(r.work), r.Edge})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, filepath.Base(filepath.Dir(r.work))+".json")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Errorf("forget the rig: %v", err)
		}
	}
}

// sweep destroys what killed runs have left.
func sweep(t testing.TB) {
	t.Helper()
	dir, err := notesDir()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		var n note
		raw, err := os.ReadFile(f)
		if err != nil || json.Unmarshal(raw, &n) != nil {
			continue // being written or removed by another run
		}
		if startTime(n.PID) == n.Start {
			continue // it runs
		}
		t.Logf("sweeping up after a run that was killed: %s", n.StateDir)
		r := &Rig{StateDir: n.StateDir, work: "/", Edge: n.Edge}
		for _, left := range r.destroyClusters(context.WithoutCancel(t.Context())) {
			t.Logf("left by it: %s", left)
		}
		if err := errors.Join(os.RemoveAll(n.Dir), os.Remove(f)); err != nil {
			t.Errorf("sweep up: %v", err)
		}
	}
}

func (r *Rig) destroyLeftClusters(t testing.TB) {
	for _, left := range r.destroyClusters(context.WithoutCancel(t.Context())) {
		t.Errorf("the test left %s", left)
	}
}

// destroyClusters destroys every cluster of the state directory and returns what
// there was to destroy, with what went wrong.
func (r *Rig) destroyClusters(ctx context.Context) []string {
	e, err := engine.New(engine.Options{StateDir: r.StateDir})
	if err != nil {
		return []string{err.Error()}
	}
	clusters, err := e.ListClusters(ctx)
	if err != nil {
		return []string{err.Error()}
	}
	var left []string
	for _, c := range clusters {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
		cmd := exec.CommandContext(ctx, r.Edge, "--state-dir", r.StateDir, "destroy", "--yes", c.ID)
		out, err := cmd.CombinedOutput()
		cancel()
		what := "cluster " + c.ID
		if err != nil {
			what += ", which cannot be destroyed: " + string(out)
		}
		left = append(left, what)
	}
	return left
}
