//go:build linux

package faults

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

// TestInterrupt shows that Ctrl-C loses nothing: not while a cluster or a node
// is made, not while they are destroyed.
func TestInterrupt(t *testing.T) {
	r := rig.New(t)
	r.Config(t, header+cluster("stop", "")+site("stop"))
	secrets := []string{"TF_VAR_secret=do-not-leak", "AWS_SECRET_ACCESS_KEY=do-not-leak", "GOOGLE_CREDENTIALS=do-not-leak"}

	began := time.Now()
	p := r.Start(t, secrets, r.TerraformPath(), applyArgs...)
	until(t, p, "the control plane is being started", func() bool { return journal(r) == "control-plane" })
	p.CtrlC(t)
	res := p.Wait(t, 30*time.Second)
	t.Logf("Ctrl-C in a cluster's create: ended after %.1f s", time.Since(began).Seconds())
	made := stateOf(t, r, "edge_cluster.stop")
	if made == nil {
		t.Fatalf("the cluster is not in state\n%s%s", res.Stdout, res.Stderr)
	}
	id, _ := made["id"].(string)
	if status, _ := made["status"].(string); !strings.HasPrefix(status, "incomplete: ") {
		t.Errorf("status %q, want incomplete", status)
	}
	plan := r.Plan(t)
	expectNoReplacement(t, plan)
	if got := actions(plan)["edge_cluster.stop"]; got != "update" {
		t.Errorf("the next plan wants %q of the cluster, want an update in place", got)
	}

	// The cluster is finished, and the next Ctrl-C comes while its node joins.
	p = r.Start(t, secrets, r.TerraformPath(), applyArgs...)
	record := filepath.Join(r.StateDir, "clusters", "*", "nodes", "stop-1", "logs", "node.log")
	until(t, p, "the node is being started", func() bool {
		found, err := filepath.Glob(record)
		return err == nil && len(found) > 0
	})
	p.CtrlC(t)
	res = p.Wait(t, 40*time.Second)
	node := stateOf(t, r, "edge_node.stop")
	if node == nil {
		t.Fatalf("the node is not in state\n%s%s", res.Stdout, res.Stderr)
	}
	if status, _ := node["status"].(string); !strings.HasPrefix(status, "incomplete: ") {
		t.Errorf("status of the node %q, want incomplete", status)
	}
	if status, _ := stateOf(t, r, "edge_cluster.stop")["status"].(string); status != "ready" {
		t.Errorf("status of the cluster %q, want ready", status)
	}
	plan = r.Plan(t)
	expectNoReplacement(t, plan)
	if got := actions(plan); got["edge_node.stop"] != "update" || len(got) != 1 {
		t.Errorf("the next plan wants %v, want an update of the node alone", got)
	}
	began = time.Now()
	res = r.Run(t.Context(), secrets, r.TerraformPath(), applyArgs...)
	if res.Err != nil {
		t.Fatalf("%v\n%s%s%s", res.Err, res.Stdout, res.Stderr, r.Logs())
	}
	t.Logf("apply that finishes: %.1f s", time.Since(began).Seconds())
	if got := output(t, r, "stop"); got != id {
		t.Errorf("id %s became %s", id, got)
	}
	r.ExpectNoChanges(t)
	noEnvironment(t, r, uidOf(id))

	// Ctrl-C while a node leaves, and while the cluster ends.
	p = r.Start(t, nil, r.TerraformPath(), destroyArgs...)
	until(t, p, "the node is being removed", func() bool { return strings.Contains(progress(r), `"stopping"`) })
	p.CtrlC(t)
	res = p.Wait(t, 40*time.Second)
	if res.Err == nil {
		t.Error("an interrupted destroy must say that it failed")
	}
	if stateOf(t, r, "edge_cluster.stop") == nil {
		t.Fatalf("the cluster is not in state any more\n%s%s", res.Stdout, res.Stderr)
	}
	p = r.Start(t, nil, r.TerraformPath(), destroyArgs...)
	until(t, p, "the cluster is being destroyed", func() bool { return journal(r) == "destroying" })
	p.CtrlC(t)
	res = p.Wait(t, 40*time.Second)
	left := stateOf(t, r, "edge_cluster.stop")
	if left == nil {
		t.Fatalf("the cluster is not in state any more\n%s%s", res.Stdout, res.Stderr)
	}
	if left["status"] != "incomplete: destroying" {
		t.Errorf("status %q", left["status"])
	}
	r.Destroy(t)
	expectNothingLeft(t, r, id)
}

func progress(r *rig.Rig) string {
	files, err := filepath.Glob(filepath.Join(r.StateDir, "clusters", "*", "progress.ndjson"))
	if err != nil || len(files) == 0 {
		return ""
	}
	raw, err := os.ReadFile(files[0])
	if err != nil {
		return ""
	}
	return string(raw)
}

// noEnvironment shows that nothing of Terraform's environment reached a process
// of the cluster: those that name it in their arguments, and those in the
// cgroups of its nodes.
func noEnvironment(t *testing.T, r *rig.Rig, uid string) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, p := range procs {
		cmdline, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil {
			continue // gone
		}
		cgroup, err := os.ReadFile(filepath.Join(p, "cgroup"))
		if err != nil || !strings.Contains(string(cmdline)+string(cgroup), uid) {
			continue
		}
		environ, err := os.ReadFile(filepath.Join(p, "environ"))
		if err != nil {
			continue
		}
		seen++
		for v := range strings.SplitSeq(string(environ), "\x00") {
			name, _, _ := strings.Cut(v, "=")
			if strings.Contains(v, "do-not-leak") || strings.HasPrefix(name, "TF_") {
				t.Errorf("process %s (%s) has %s", filepath.Base(p), strings.SplitN(string(cmdline), "\x00", 2)[0], name)
			}
		}
	}
	if seen < 12 { // control plane 4 + daemon + parent; node 4 + daemon + parent
		t.Errorf("only %d processes of the cluster were looked at", seen)
	}
}
