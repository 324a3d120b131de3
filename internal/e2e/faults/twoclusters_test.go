//go:build linux

package faults

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/controlplane"
	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

// TestTwoClusters makes two clusters with a node each on one machine whose
// firewall forwards nothing, and shows on them what needs a cluster.
func TestTwoClusters(t *testing.T) {
	r := rig.New(t)
	forwardNothing(t, r)
	hcl := header + cluster("one", "") + site("one") + unit("one") + cluster("two", "") + site("two") + unit("two")
	r.Config(t, hcl)
	began := time.Now()
	r.Apply(t)
	t.Logf("apply of two clusters with a node and a pod each: %.1f s", time.Since(began).Seconds())
	one, two := output(t, r, "one"), output(t, r, "two")

	t.Run("they share nothing", func(t *testing.T) { shareNothing(t, r, one, two) })
	t.Run("join and exec need no forwarding", func(t *testing.T) {
		answers(t, r, "one")
		answers(t, r, "two")
	})
	t.Run("wrong input names what there is", func(t *testing.T) { wrongInput(t, r, hcl, one) })
	t.Run("a second operator", func(t *testing.T) { secondOperator(t, r, one, two) })
	t.Run("one ends and the other stays", func(t *testing.T) {
		r.Config(t, header+cluster("one", "")+site("one")+unit("one"))
		r.Apply(t)
		expectNothingLeft(t, r, two)
		answers(t, r, "one")
	})
	t.Run("a machine reboot", func(t *testing.T) { reboot(t, r, one) })
	t.Run("the state directory is removed", func(t *testing.T) { lostDirectory(t, r, one) })
}

// forwardNothing is a host firewall as many distributions and container engines
// set it up.
func forwardNothing(t *testing.T, r *rig.Rig) {
	t.Helper()
	const table = "edge_test_forward"
	nft := func(args ...string) rig.Result { return r.AsRoot(t, "nft", args...) }
	if res := nft("add table inet " + table + "; add chain inet " + table + " forward { type filter hook forward priority 0; policy drop; }"); res.Err != nil {
		t.Fatalf("%v\n%s", res.Err, res.Stderr)
	}
	t.Cleanup(func() {
		if res := nft("delete", "table", "inet", table); res.Err != nil {
			t.Errorf("%v\n%s", res.Err, res.Stderr)
		}
	})
}

func specOf(t *testing.T, r *rig.Rig, id string) *controlplane.Spec {
	t.Helper()
	s, err := controlplane.LoadSpec(dirOf(r, id))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func shareNothing(t *testing.T, r *rig.Rig, one, two string) {
	a, b := specOf(t, r, one), specOf(t, r, two)
	used := map[int]string{a.Ports.Gateway: "gateway"}
	for name, p := range a.Ports.All() {
		used[p] = name
	}
	for name, p := range b.Ports.All() {
		if other, taken := used[p]; taken {
			t.Errorf("port %d is %s of one and %s of the other", p, other, name)
		}
	}
	if a.Ports.Gateway == b.Ports.Gateway {
		t.Errorf("both gateways have port %d", a.Ports.Gateway)
	}
	ranges := map[string]bool{}
	for _, c := range [][]string{a.PodCIDRs, a.ServiceCIDRs, b.PodCIDRs, b.ServiceCIDRs} {
		if ranges[c[0]] {
			t.Errorf("range %s is used twice", c[0])
		}
		ranges[c[0]] = true
	}
	if la, lb := link(t, r, one), link(t, r, two); la == "" || la == lb {
		t.Errorf("site links %q and %q", la, lb)
	}
}

// link is the range of a cluster's site link, as its router has it.
func link(t *testing.T, r *rig.Rig, id string) string {
	t.Helper()
	res := r.AsRoot(t, "ip", "-n", "edge-"+uidOf(id)+"-r-site", "-4", "-o", "address", "show", "dev", "wan0")
	fields := strings.Fields(res.Stdout)
	i := slices.Index(fields, "inet")
	if res.Err != nil || i < 0 || i+1 == len(fields) {
		t.Fatalf("%v: %s%s", res.Err, res.Stdout, res.Stderr)
	}
	return fields[i+1]
}

// answers shows that a cluster's pod runs and can be entered through the tunnel.
func answers(t *testing.T, r *rig.Rig, cluster string) {
	t.Helper()
	rig.Eventually(t, 60*time.Second, "an exec in the pod of "+cluster, func() error {
		res := r.TryEdge(t, "kubectl", "-c", cluster, "exec", "deploy/web-site", "--", "hostname")
		if res.Err != nil || !strings.HasPrefix(res.Stdout, "web-site-") {
			return fmt.Errorf("%w: %s%s", res.Err, res.Stdout, res.Stderr)
		}
		return nil
	})
}

func wrongInput(t *testing.T, r *rig.Rig, hcl, one string) {
	defer r.Config(t, hcl)
	fails := func(what, config, address, says string) {
		t.Helper()
		r.Config(t, config)
		res := r.TryTerraform(t, append(applyArgs, "-target="+address)...)
		if res.Err == nil {
			t.Errorf("%s: accepted", what)
		}
		contains(t, plain(res.Stderr), says)
	}
	fails("a node of an unknown pool", hcl+`
resource "edge_node" "lost" {
  cluster_id = edge_cluster.one.id
  pool       = "nowhere"
  name       = "lost"
  local      = {}
}
`, "edge_node.lost", `pool "nowhere" does not exist; these do: site`)
	fails("a unit of an unknown pool", hcl+strings.NewReplacer(`"one"`, `"lost"`, `"web"`, `"lost"`, "site =", "nowhere =", "edge_node.one", "edge_node.one").Replace(
		strings.ReplaceAll(unit("one"), `resource "edge_unit_deployment" "one"`, `resource "edge_unit_deployment" "lost"`)),
		"edge_unit_deployment.lost", `pool "nowhere" does not exist; these do: site`)
	for attribute, body := range map[string]string{
		"network.pod_cidrs": `network = { pod_cidrs = ["10.250.0.0/16"] }`,
		"api.port":          `api = { port = 21999 }`,
	} {
		fails("changing "+attribute, strings.Replace(hcl, cluster("one", ""), cluster("one", body), 1), "edge_cluster.one", attribute+" of a cluster cannot be changed")
		res := r.TryTerraform(t, "plan", "-input=false", "-no-color")
		contains(t, plain(res.Stderr), "-replace=")
	}
	taken := strconv.Itoa(specOf(t, r, one).Ports.API)
	fails("a port of another cluster", header+cluster("three", `api = { port = `+taken+` }`), "edge_cluster.three", "API port "+taken+" with edge_cluster.three")
	if files, err := filepath.Glob(filepath.Join(r.StateDir, "clusters", "three-*")); err != nil || len(files) > 0 {
		t.Errorf("something was made of a refused cluster: %v, %v", files, err)
	}
}

// plain is a diagnostic without Terraform's frame.
func plain(s string) string {
	return strings.Join(strings.Fields(strings.NewReplacer("│", " ", "╷", " ", "╵", " ").Replace(s)), " ")
}

// secondOperator is somebody with another state directory and a token.
func secondOperator(t *testing.T, r *rig.Rig, one, two string) {
	r.Kubectl(t, "one", "create", "serviceaccount", "second", "-n", "default")
	r.Kubectl(t, "one", "create", "clusterrolebinding", "second", "--clusterrole=cluster-admin", "--serviceaccount=default:second")
	token := strings.TrimSpace(r.Kubectl(t, "one", "create", "token", "second", "--duration=1h"))
	ca := filepath.Join(dirOf(r, one), "pki", "ca.crt")
	endpoint, other := specOf(t, r, one).Endpoint(), specOf(t, r, two).Endpoint()

	op := rig.New(t)
	config := func(id, access, labels string) string {
		return header + fmt.Sprintf(`
provider "edge" {
  clusters = { %q = { %s } }
}

resource "edge_node_pool" "remote" {
  cluster_id = %q
  name       = "remote"
  labels     = { %s }
}
`, id, access, id, labels)
	}
	byToken := func(host, ca string) string {
		return fmt.Sprintf("host = %q, ca_certificate = file(%q), token = %q", host, ca, token)
	}
	op.Config(t, config(one, byToken(endpoint, ca), ""))
	if got := actions(op.Plan(t)); got["edge_node_pool.remote"] != "create" {
		t.Errorf("plan %v", got)
	}
	op.Apply(t)
	op.ExpectNoChanges(t)
	state, err := os.ReadFile(filepath.Join(op.Work(), "terraform.tfstate"))
	if err != nil || strings.Contains(string(state), token) {
		t.Errorf("the state holds the token, or %v", err)
	}

	kubeconfig := filepath.Join(op.Work(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "wrong",
"clusters": [{"name": "c", "cluster": {"server": %q, "certificate-authority": %q}}],
"users": [{"name": "u", "user": {"token": %q}}],
"contexts": [{"name": "right", "context": {"cluster": "c", "user": "u"}}, {"name": "wrong", "context": {"cluster": "none", "user": "none"}}]}`, endpoint, ca, token)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	op.Config(t, config(one, fmt.Sprintf("kubeconfig_path = %q, context = %q", kubeconfig, "right"), `"example.com/by" = "kubeconfig"`))
	op.Apply(t)
	op.ExpectNoChanges(t)
	if got := r.Kubectl(t, "one", "get", "nodepool", "remote", "-o", `jsonpath={.spec.labels.example\.com/by}`); got != "kubeconfig" {
		t.Errorf("label %q", got)
	}

	// An entry that leads to another cluster must never be written through.
	wrong := strings.Replace(one, uidOf(one), "0a0b0c0d", 1)
	stranger := rig.New(t)
	stranger.Config(t, config(wrong, byToken(endpoint, ca), ""))
	res := stranger.TryTerraform(t, applyArgs...)
	if res.Err == nil {
		t.Error("a wrong cluster was written to")
	}
	contains(t, plain(res.Stderr), "connected to a different cluster")
	// Another CA is not even spoken to.
	op.Config(t, config(one, byToken(other, ca), ""))
	res = op.TryTerraform(t, "plan", "-input=false", "-no-color")
	contains(t, plain(res.Stdout+res.Stderr), "Cannot reach cluster "+one)

	op.Config(t, config(one, "gone = true", ""))
	op.Destroy(t)
	if got := r.Kubectl(t, "one", "get", "nodepool", "remote", "-o", "name"); !strings.Contains(got, "remote") {
		t.Errorf("gone = true reached the cluster: %q", got)
	}
	r.Kubectl(t, "one", "delete", "nodepool", "remote")
}

// processesOf lists the processes of a cluster: those that name its directory,
// and those in the cgroups of its nodes.
func processesOf(t *testing.T, id string) []int {
	t.Helper()
	name := "clusters/" + strings.TrimPrefix(id, "local/")
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, p := range procs {
		cmdline, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil {
			continue // gone
		}
		cgroup, err := os.ReadFile(filepath.Join(p, "cgroup"))
		if err != nil || !strings.Contains(string(cmdline), name) && !strings.Contains(string(cgroup), uidOf(id)) {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(p, "stat"))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// powerOff does to a cluster what a reboot of the machine does: every process
// ends at once, and all that the kernel held is gone.
func powerOff(t *testing.T, r *rig.Rig, id string) {
	t.Helper()
	rig.Eventually(t, 30*time.Second, "every process is gone", func() error {
		pids := processesOf(t, id)
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
				t.Fatal(err)
			}
		}
		if len(pids) > 0 {
			return fmt.Errorf("%d are left", len(pids))
		}
		return nil
	})
	spaces, err := filepath.Glob("/run/netns/edge-" + uidOf(id) + "-*")
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range spaces {
		if res := r.AsRoot(t, "ip", "netns", "del", filepath.Base(ns)); res.Err != nil {
			t.Fatalf("%v\n%s", res.Err, res.Stderr)
		}
	}
	// The kernel keeps a cgroup busy until it has taken leave of the last of the
	// dead, which on version 1 may be after they left /proc.
	rig.Eventually(t, 30*time.Second, "every cgroup is gone", func() error {
		out, err := exec.CommandContext(t.Context(), "find", "/sys/fs/cgroup", "-depth", "-type", "d", "-path", "*"+uidOf(id)+"*").Output()
		if err != nil {
			return err
		}
		for _, dir := range strings.Fields(string(out)) {
			if err := syscall.Rmdir(dir); err != nil && err != syscall.ENOENT {
				return fmt.Errorf("%s: %w", dir, err)
			}
		}
		return nil
	})
}

func reboot(t *testing.T, r *rig.Rig, id string) {
	spec := specOf(t, r, id)
	powerOff(t, r, id)
	plan := r.Plan(t)
	expectNoReplacement(t, plan)
	if got := actions(plan); got["edge_cluster.one"] != "update" || got["edge_node.one"] != "update" || len(got) != 2 {
		t.Errorf("plan after a reboot: %v, want updates of the cluster and its node", got)
	}
	for _, c := range plan {
		if c.Before["status"] != "stopped" {
			t.Errorf("%s has status %v", c.Address, c.Before["status"])
		}
	}

	// Somebody took a port meanwhile.
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", spec.Ports.Scheduler))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	res := r.TryTerraform(t, applyArgs...)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if res.Err == nil {
		t.Error("started over somebody else's port")
	}
	contains(t, plain(res.Stderr), fmt.Sprintf("kube-scheduler cannot have its TCP port %d", spec.Ports.Scheduler))
	t.Logf("a taken port is told after %.1f s", time.Since(began).Seconds())

	began = time.Now()
	r.Apply(t)
	t.Logf("apply after a reboot: %.1f s", time.Since(began).Seconds())
	answers(t, r, "one")
	t.Logf("until the pod answers: %.1f s", time.Since(began).Seconds())
	r.ExpectNoChanges(t)
}

func lostDirectory(t *testing.T, r *rig.Rig, id string) {
	rig.Eventually(t, 20*time.Second, "the state directory is removed", func() error { return os.RemoveAll(r.StateDir) })
	res := r.TryTerraform(t, "plan", "-input=false", "-no-color", "-out=lost.bin")
	if res.Err != nil {
		t.Errorf("plan: %v\n%s%s", res.Err, res.Stdout, res.Stderr)
	}
	contains(t, plain(res.Stdout+res.Stderr), "Cannot reach cluster "+id)
	contains(t, plain(res.Stdout+res.Stderr), "edge destroy "+id)
	if n := strings.Count(res.Stdout+res.Stderr, "Cannot reach cluster"); n != 1 {
		t.Errorf("%d warnings about one cluster", n)
	}
	if strings.Contains(res.Stdout, "will be created") {
		t.Errorf("a lost cluster is planned anew:\n%s", res.Stdout)
	}
	elsewhere := r.Run(t.Context(), []string{"EDGE_STATE_DIR=" + t.TempDir()}, r.Edge, "destroy", "--yes", id)
	if elsewhere.Err == nil {
		t.Error("destroyed from another state directory")
	}
	contains(t, elsewhere.Stderr, "EDGE_STATE_DIR="+r.StateDir)
	began := time.Now()
	r.Destroy(t)
	t.Logf("destroy of a lost cluster: %.1f s", time.Since(began).Seconds())
	expectNothingLeft(t, r, id)
}
