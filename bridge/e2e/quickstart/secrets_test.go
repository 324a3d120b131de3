//go:build linux

package quickstart

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// holdsNoSecret looks in the exported state for the passphrase, and for every
// private key and token that is kept below the state directory.
func holdsNoSecret(t *testing.T, w *world) {
	state := w.pulumi(t, "stack", "export", "-s", stackName)
	if !strings.Contains(state, "edge:index/unitDeployment:UnitDeployment") {
		t.Fatalf("the exported state does not hold the stack:\n%s", state)
	}
	for _, word := range []string{"PRIVATE KEY", "client-key-data", passphrase} {
		if strings.Contains(state, word) {
			t.Errorf("%q is in the exported state", word)
		}
	}
	keys := 0
	err := filepath.WalkDir(w.StateDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Ext(path) != ".key" {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(raw)) {
			line = strings.TrimSpace(line)
			if len(line) < 16 || strings.HasPrefix(line, "-----") {
				continue
			}
			keys++
			if strings.Contains(state, line) {
				t.Errorf("a line of %s is in the exported state", path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if keys == 0 {
		t.Error("there is no private key below the state directory to look for")
	}
}

// leaksNothing looks into the environment of every process of the cluster: nothing
// of Pulumi's, the passphrase above all, may have reached one.
func leaksNothing(t *testing.T, w *world) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, e := range entries {
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || !strings.Contains(string(cmdline), filepath.Join(w.StateDir, "clusters")) {
			continue
		}
		res := w.AsRoot(t, "cat", filepath.Join("/proc", e.Name(), "environ"))
		if res.Err != nil {
			continue // it has ended
		}
		seen++
		for v := range strings.SplitSeq(res.Stdout, "\x00") {
			if strings.HasPrefix(v, "PULUMI_") || strings.Contains(v, passphrase) {
				t.Errorf("process %s (%s) has %s", e.Name(), strings.ReplaceAll(string(cmdline), "\x00", " "), v)
			}
		}
	}
	// etcd, kube-apiserver, two more, a daemon and its parent; the same of three nodes.
	if seen < 4*6 {
		t.Errorf("looked into %d processes only", seen)
	}
	t.Logf("%d processes of the cluster have nothing of Pulumi's in their environment", seen)
}
