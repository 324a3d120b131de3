//go:build linux

package oneapply

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

// nodes of examples/quickstart with their pools.
var quickstartNodes = map[string]string{"berlin-1": "berlin", "berlin-2": "berlin", "tokyo-1": "tokyo"}

const quickstart = "quickstart"

// TestQuickstart applies examples/quickstart once and shows on it every promise
// that does not need a cluster of its own.
func TestQuickstart(t *testing.T) {
	r := rig.New(t)
	hcl, err := os.ReadFile(filepath.Join(r.Root, "examples", "quickstart", "main.tf"))
	if err != nil {
		t.Fatal(err)
	}
	r.Config(t, string(hcl))
	began := time.Now()
	trace := filepath.Join(r.Work(), "apply-trace.log")
	res := r.Run(t.Context(), []string{"TF_LOG=TRACE", "TF_LOG_PATH=" + trace}, r.TerraformPath(), "apply", "-input=false", "-no-color", "-auto-approve")
	if res.Err != nil {
		t.Fatalf("apply: %v\n%s%s%s", res.Err, res.Stdout, res.Stderr, r.Logs())
	}
	t.Logf("apply to three Ready nodes and running units: %.1f s", time.Since(began).Seconds())
	t.Cleanup(func() {
		if r.TryEdge(t, "status").Err == nil {
			r.Destroy(t)
		}
	})

	id := strings.TrimSpace(r.Terraform(t, "output", "-raw", "cluster_id"))
	t.Run("nodes and pods run", func(t *testing.T) { runs(t, r) })
	t.Run("no changes after apply", func(t *testing.T) { r.ExpectNoChanges(t) })
	t.Run("nothing secret in state, plan, log or arguments", func(t *testing.T) { holdsNoSecret(t, r) })
	t.Run("operations go through the tunnel", func(t *testing.T) { tunnelled(t, r, id) })
	t.Run("pods reach pods, services and names", func(t *testing.T) { podNetwork(t, r) })
	t.Run("changes in place", func(t *testing.T) { changes(t, r, string(hcl)) })
	t.Run("drift is seen and put back", func(t *testing.T) { drift(t, r) })
	t.Run("survives SIGKILL of each process", func(t *testing.T) { survivesKills(t, r) })
	t.Run("units that cannot start fail fast", func(t *testing.T) { failsFast(t, r, string(hcl)) })
	t.Run("a cut pool holds up nobody", func(t *testing.T) { cutPool(t, r, string(hcl)) })
	t.Run("destroy leaves nothing, a node that is cut off included", func(t *testing.T) {
		if res := r.AsRoot(t, r.Edge, "lab", "cut", quickstart, "tokyo"); res.Err != nil {
			t.Fatalf("lab cut: %s%s", res.Stdout, res.Stderr)
		}
		r.Destroy(t)
		uid := id[strings.LastIndexByte(id, '-')+1:]
		out, err := exec.CommandContext(t.Context(), filepath.Join(r.Root, "scripts", "leftovers.sh"), uid).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Logf("%s", out)
	})
}

type nodeList struct {
	Items []struct {
		Metadata struct {
			Name   string
			Labels map[string]string
		}
		Spec struct {
			PodCIDR string
			Taints  []struct{ Key string }
		}
		Status struct {
			Conditions []struct{ Type, Status string }
			Addresses  []struct{ Type, Address string }
		}
	}
}

type podList struct {
	Items []struct {
		Metadata struct {
			Name   string
			Labels map[string]string
			UID    string
		}
		Spec   struct{ NodeName string }
		Status struct {
			Phase             string
			PodIP             string
			ContainerStatuses []struct {
				Ready        bool
				RestartCount int
				ContainerID  string
			}
		}
	}
}

func get[T any](t *testing.T, r *rig.Rig, args ...string) T {
	t.Helper()
	var out T
	raw := r.Kubectl(t, quickstart, append([]string{"get", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(raw), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func runs(t *testing.T, r *rig.Rig) {
	nodes := get[nodeList](t, r, "nodes")
	if len(nodes.Items) != len(quickstartNodes) {
		t.Errorf("%d nodes, want %d", len(nodes.Items), len(quickstartNodes))
	}
	for _, n := range nodes.Items {
		pool := quickstartNodes[n.Metadata.Name]
		if got := n.Metadata.Labels["edgewright.dev/pool"]; got != pool || pool == "" {
			t.Errorf("node %s: pool label %q, want %q", n.Metadata.Name, got, pool)
		}
		if got := n.Metadata.Labels["example.com/site"]; got != pool {
			t.Errorf("node %s: label of its pool %q, want %q", n.Metadata.Name, got, pool)
		}
		for _, taint := range n.Spec.Taints {
			t.Errorf("node %s keeps taint %s", n.Metadata.Name, taint.Key)
		}
		for _, c := range n.Status.Conditions {
			if c.Type == "Ready" && c.Status != "True" {
				t.Errorf("node %s: Ready is %s", n.Metadata.Name, c.Status)
			}
		}
	}
	perPool := map[string]int{}
	for _, p := range get[podList](t, r, "pods", "-n", "default").Items {
		if p.Status.Phase != "Running" {
			t.Errorf("pod %s is %s", p.Metadata.Name, p.Status.Phase)
		}
		perPool[quickstartNodes[p.Spec.NodeName]]++
	}
	if perPool["berlin"] != 2 || perPool["tokyo"] != 1 || len(perPool) != 2 {
		t.Errorf("pods by pool: %v, want 2 in berlin and 1 in tokyo", perPool)
	}
}

// podOn returns a web pod of a node.
func podOn(t *testing.T, r *rig.Rig, node string) (name, ip string) {
	t.Helper()
	for _, p := range get[podList](t, r, "pods", "-n", "default").Items {
		if p.Spec.NodeName == node && p.Status.Phase == "Running" {
			return p.Metadata.Name, p.Status.PodIP
		}
	}
	t.Fatalf("no running pod on %s", node)
	return "", ""
}

// changes shows that replicas, env, labels and the transport change in place.
func changes(t *testing.T, r *rig.Rig, hcl string) {
	changed := strings.NewReplacer(
		"berlin = { replicas = 2, env = { SITE = \"berlin\" } }", "berlin = { replicas = 1, env = { SITE = \"changed\" } }",
		`labels     = { "example.com/site" = each.key }`, `labels     = { "example.com/site" = each.key, "example.com/new" = "yes" }
  taints     = ["example.com/soft=1:PreferNoSchedule"]
  network    = { transport = "tcp" }`,
	).Replace(hcl)
	if changed == hcl {
		t.Fatal("the example no longer has what this test changes")
	}
	r.Config(t, changed)
	for _, c := range r.Plan(t) {
		if len(c.Actions) != 1 || c.Actions[0] != "update" {
			t.Errorf("%s: %v, want an update in place", c.Address, c.Actions)
		}
	}
	r.Apply(t)
	r.ExpectNoChanges(t)
	rig.Eventually(t, 20*time.Second, "labels and taints reach the nodes", func() error {
		for _, n := range get[nodeList](t, r, "nodes").Items {
			if n.Metadata.Labels["example.com/new"] != "yes" {
				return fmt.Errorf("node %s lacks the pool's new label", n.Metadata.Name)
			}
			if len(n.Spec.Taints) != 1 || n.Spec.Taints[0].Key != "example.com/soft" {
				return fmt.Errorf("node %s has taints %v", n.Metadata.Name, n.Spec.Taints)
			}
		}
		return nil
	})
	carriedBy(t, r, "tcp", "tcp")
	startsOver(t, r, "tokyo-1", "tcp")
	if res := r.TryEdge(t, "kubectl", "-c", quickstart, "patch", "nodepool", "tokyo", "--type=merge", `-p={"spec":{"network":{"transport":"pigeon"}}}`); res.Err == nil || !strings.Contains(res.Stderr, "pigeon") {
		t.Errorf("a transport that there is not: %v %s%s", res.Err, res.Stdout, res.Stderr)
	}
	contains(t, r.Kubectl(t, quickstart, "exec", "deploy/web-berlin", "--", "env"), "SITE=changed\n")
	r.Config(t, hcl)
	r.Apply(t)
	rig.Eventually(t, 20*time.Second, "labels and taints leave the nodes", func() error {
		for _, n := range get[nodeList](t, r, "nodes").Items {
			if _, there := n.Metadata.Labels["example.com/new"]; there || len(n.Spec.Taints) > 0 {
				return fmt.Errorf("node %s keeps label or taint", n.Metadata.Name)
			}
		}
		return nil
	})
	carriedBy(t, r, "auto", "quic")
}

// drift shows that a label taken off with kubectl is put back, by the controller
// on a node and by the next apply on the declared pool.
func drift(t *testing.T, r *rig.Rig) {
	r.Kubectl(t, quickstart, "label", "node", "tokyo-1", "example.com/site-")
	rig.Eventually(t, 20*time.Second, "the node's label is put back", func() error {
		if got := get[nodeListItem](t, r, "node", "tokyo-1").Metadata.Labels["example.com/site"]; got != "tokyo" {
			return fmt.Errorf("label is %q", got)
		}
		return nil
	})
	r.Kubectl(t, quickstart, "patch", "nodepool", "tokyo", "--type=json", `-p=[{"op":"remove","path":"/spec/labels/example.com~1site"}]`)
	plan := r.Plan(t)
	if len(plan) != 1 || plan[0].Address != `edge_node_pool.site["tokyo"]` || plan[0].Actions[0] != "update" {
		t.Errorf("plan after the pool's label was removed: %+v", plan)
	}
	r.Apply(t)
	r.ExpectNoChanges(t)
	if got := get[nodeListItem](t, r, "nodepool", "tokyo"); got.Spec.Labels["example.com/site"] != "tokyo" {
		t.Errorf("the pool's label is not back: %v", got.Spec.Labels)
	}
}

type nodeListItem struct {
	Metadata struct{ Labels map[string]string }
	Spec     struct{ Labels map[string]string }
}

// secretMarks are what must never be seen outside of the state directory.
var secretMarks = []string{"PRIVATE KEY", "edge1.", "client-key-data", "secretbox"}

func holdsNoSecret(t *testing.T, r *rig.Rig) {
	scan := func(where, text string) {
		for _, mark := range secretMarks {
			if strings.Contains(text, mark) {
				t.Errorf("%s holds %q", where, mark)
			}
		}
	}
	state, err := os.ReadFile(filepath.Join(r.Work(), "terraform.tfstate"))
	if err != nil {
		t.Fatal(err)
	}
	scan("the state", string(state))
	log := filepath.Join(r.Work(), "trace.log")
	res := r.Run(t.Context(), []string{"TF_LOG=TRACE", "TF_LOG_PATH=" + log}, r.TerraformPath(), "plan", "-input=false", "-no-color", "-out=secret.bin")
	if res.Err != nil {
		t.Fatal(res.Stderr)
	}
	scan("the plan as text", res.Stdout)
	scan("the plan as JSON", r.Terraform(t, "show", "-json", "secret.bin"))
	for _, log := range []string{log, filepath.Join(r.Work(), "apply-trace.log")} {
		trace, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(trace), "[TRACE]") {
			t.Errorf("%s holds no trace", log)
		}
		scan("the TRACE log "+filepath.Base(log), string(trace))
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		raw, err := os.ReadFile(p)
		if err != nil {
			continue // gone
		}
		if args := strings.ReplaceAll(string(raw), "\x00", " "); strings.Contains(args, r.StateDir) {
			scan("the arguments of "+p, args)
		}
		environ, err := os.ReadFile(strings.TrimSuffix(p, "cmdline") + "environ")
		if err != nil || !strings.Contains(string(raw), "clusters/") {
			continue
		}
		for v := range strings.SplitSeq(string(environ), "\x00") {
			if strings.HasPrefix(v, "TF_") || strings.HasPrefix(v, "AWS_") {
				t.Errorf("a daemon got %s", strings.SplitN(v, "=", 2)[0])
			}
		}
	}
	err = filepath.WalkDir(r.StateDir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // files of running nodes come and go
		}
		if ext := filepath.Ext(path); ext != ".key" && ext != ".kubeconfig" {
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil && info.Mode().Perm() != 0o600 && !strings.Contains(path, "/data/") {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
