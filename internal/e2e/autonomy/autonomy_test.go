//go:build linux

package autonomy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

const (
	cluster = "autonomy"
	node    = "edge-1"
	pool    = "site"
	// replicas of the test's Deployment.
	replicas = 3
)

const hcl = `
terraform {
  required_providers {
    edge = { source = "edgewright/edge" }
  }
}
provider "edge" {}
resource "edge_cluster" "c" {
  name    = "autonomy"
  version = "1.36.3"
  local   = {}
}
resource "edge_node_pool" "site" {
  cluster_id = edge_cluster.c.id
  name       = "site"
}
resource "edge_node" "n" {
  cluster_id = edge_cluster.c.id
  pool       = edge_node_pool.site.name
  name       = "edge-1"
  local      = {}
}
output "cluster_id" {
  value = edge_cluster.c.id
}
`

// workload is an ordinary Deployment, with a Secret, a ConfigMap and a token.
const workload = `
apiVersion: v1
kind: Secret
metadata: {name: word}
stringData: {word: mellon}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {setting: "on"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      # For ever, as the policy on edge nodes' pods will have it.
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute}
      containers:
      - name: web
        image: registry.k8s.io/e2e-test-images/agnhost:2.63.0
        imagePullPolicy: IfNotPresent
        args: [netexec, --http-port=8080]
        env:
        - name: WORD
          valueFrom: {secretKeyRef: {name: word, key: word}}
        volumeMounts:
        - {name: settings, mountPath: /settings}
      volumes:
      - name: settings
        configMap: {name: settings}
`

// lab is one cut node.
type lab struct {
	*rig.Rig
	dir string // of the node
}

func (l *lab) lab(t *testing.T, verb, target string) {
	t.Helper()
	if res := l.AsRoot(t, l.Edge, "lab", verb, cluster, target); res.Err != nil {
		t.Fatalf("lab %s: %s%s", verb, res.Stdout, res.Stderr)
	}
}

// status of the node's daemon.
func (l *lab) status() (cutReason string, faults []string, err error) {
	raw, err := os.ReadFile(filepath.Join(l.dir, "status.json"))
	if err != nil {
		return "", nil, err
	}
	var s struct {
		CutReason string
		Faults    []struct{ Reason, Message string }
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", nil, err
	}
	for _, f := range s.Faults {
		faults = append(faults, f.Reason+": "+f.Message)
	}
	return s.CutReason, faults, nil
}

// servers are the processes of the test's containers: pid to start time. Another
// pid, or another start, is another container.
func (l *lab) servers(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	found, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range found {
		cgroup, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err != nil || !strings.Contains(string(cgroup), "/"+node+"/pods/") {
			continue
		}
		args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !strings.Contains(string(args), "netexec") {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		out[filepath.Base(dir)] = fields[19]
	}
	return out
}

// pods are the uids of the pods with their containers, as the cloud has them.
func (l *lab) pods(t *testing.T) map[string]string {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ UID string }
			Status   struct {
				ContainerStatuses []struct {
					ContainerID  string
					RestartCount int
					Ready        bool
				}
			}
		}
	}
	res := l.TryEdge(t, "kubectl", "-c", cluster, "--request-timeout=10s", "get", "pods", "-l", "app=web", "-o", "json")
	if res.Err != nil || json.Unmarshal([]byte(res.Stdout), &list) != nil {
		return nil
	}
	out := map[string]string{}
	for _, p := range list.Items {
		for _, c := range p.Status.ContainerStatuses {
			out[p.Metadata.UID] = fmt.Sprintf("%s restarts=%d ready=%v", c.ContainerID, c.RestartCount, c.Ready)
		}
	}
	return out
}

// TestCutNode carries one node through a cut: restarts of everything on it, a
// container's death, a reboot, and back.
func TestCutNode(t *testing.T) {
	r := rig.New(t)
	l := &lab{Rig: r}
	r.Config(t, hcl)
	r.Apply(t)
	t.Cleanup(func() {
		if r.TryEdge(t, "status").Err == nil {
			r.Destroy(t)
		}
	})
	dirs, err := filepath.Glob(filepath.Join(r.StateDir, "clusters/*/nodes", node))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("the node's directory: %v, %v", dirs, err)
	}
	l.dir = dirs[0]
	manifest := filepath.Join(r.Work(), "workload.yaml")
	if err := os.WriteFile(manifest, []byte(workload), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Kubectl(t, cluster, "apply", "-f", manifest)
	r.Kubectl(t, cluster, "rollout", "status", "deployment/web", "--timeout=120s")
	rig.Eventually(t, time.Minute, "the node could be without its cluster", func() error {
		if _, faults, err := l.status(); err != nil || len(faults) > 0 {
			return fmt.Errorf("%v %v", faults, err)
		}
		return nil
	})
	before, running := l.pods(t), l.servers(t)
	if len(before) != replicas || len(running) != replicas {
		t.Fatalf("pods %v, processes %v", before, running)
	}

	l.lab(t, "cut", pool)
	noticed := rig.Eventually(t, time.Minute, "the node notices the cut", func() error {
		if reason, _, err := l.status(); reason == "" {
			return fmt.Errorf("not cut: %v", err)
		}
		return nil
	})
	t.Logf("the cut is noticed after %.1f s", noticed.Seconds())
	t.Run("a person at the device sees and helps", l.person)
	t.Run("nothing restarts that is restarted around it", func(t *testing.T) { l.restarts(t, running) })
	t.Run("a container that dies comes back", l.dies)
	t.Run("the node reboots", l.reboots)
	t.Run("the link is back", func(t *testing.T) { l.converges(t, before) })
}

// restarts kills each of the node's programs and its daemon: no pod dies of it.
func (l *lab) restarts(t *testing.T, running map[string]string) {
	files, err := filepath.Glob(filepath.Join(l.dir, "run", "*", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, filepath.Join(l.dir, "run", "daemon.json"))
	killed := 0
	for _, file := range files {
		pid := l.pid(t, file)
		if pid == 0 {
			continue
		}
		killed++
		if res := l.AsRoot(t, "kill", "-KILL", fmt.Sprint(pid)); res.Err != nil {
			t.Fatalf("kill %s: %s", file, res.Stderr)
		}
		took := rig.Eventually(t, time.Minute, filepath.Base(file)+" is back", func() error {
			now := l.pid(t, file)
			if now == 0 || now == pid {
				return fmt.Errorf("pid %d", now)
			}
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", now)); err != nil {
				return err
			}
			return nil
		})
		t.Logf("SIGKILL of %s: back after %.1f s", strings.TrimSuffix(filepath.Base(file), ".json"), took.Seconds())
	}
	if killed < 4 {
		t.Errorf("killed %d of %v", killed, files)
	}
	// Kubelet has begun anew with what the hub holds; what it does not see there
	// it kills, and it looks every ten seconds (syncFrequency is a minute).
	l.kubeletSees(t)
	if now := l.servers(t); !maps.Equal(now, running) {
		t.Errorf("containers changed: %v, before %v", now, running)
	}
}

// kubeletSees waits until the kubelet has all pods from the hub: it says so on
// its own port, which only the node reaches, by the metric of what it runs.
func (l *lab) kubeletSees(t *testing.T) {
	t.Helper()
	log := filepath.Join(l.dir, "logs", "kubelet.log")
	rig.Eventually(t, 90*time.Second, "the kubelet has synced its pods", func() error {
		res := l.AsRoot(t, "tail", "-n", "2000", log)
		at := strings.LastIndex(res.Stdout, "Starting kubelet main sync loop")
		if at < 0 {
			return errors.New("it has not begun")
		}
		if n := strings.Count(res.Stdout[at:], "SyncLoop ADD") + strings.Count(res.Stdout[at:], "VerifyControllerAttachedVolume started"); n == 0 {
			return errors.New("it has seen no pod")
		}
		return nil
	})
}

func (l *lab) pid(t *testing.T, file string) int {
	t.Helper()
	res := l.AsRoot(t, "cat", file)
	var record struct {
		PID int `json:"pid"`
	}
	if res.Err != nil || json.Unmarshal([]byte(res.Stdout), &record) != nil {
		return 0
	}
	return record.PID
}

// dies: the container comes back with its token, Secret and ConfigMap.
func (l *lab) dies(t *testing.T) {
	before := l.servers(t)
	victim := slices.Sorted(maps.Keys(before))[0]
	if res := l.AsRoot(t, "kill", "-KILL", victim); res.Err != nil {
		t.Fatal(res.Stderr)
	}
	took := rig.Eventually(t, 90*time.Second, "the container is back", func() error {
		now := l.servers(t)
		if len(now) != replicas || now[victim] == before[victim] {
			return fmt.Errorf("processes %v, before %v", now, before)
		}
		return nil
	})
	t.Logf("a killed container is back after %.1f s", took.Seconds())
	l.holds(t)
}

// holds looks into every container.
func (l *lab) holds(t *testing.T) {
	t.Helper()
	for pid := range l.servers(t) {
		for what, want := range map[string]string{"environ": "WORD=mellon", "root/settings/setting": "on", "root/var/run/secrets/kubernetes.io/serviceaccount/token": "."} {
			res := l.AsRoot(t, "cat", filepath.Join("/proc", pid, what))
			if res.Err != nil || !strings.Contains(res.Stdout, want) {
				t.Errorf("%s of container %s: %v %s", what, pid, res.Err, res.Stderr)
			}
		}
	}
}

// reboots: everything that ran is gone, and comes back without the cloud.
func (l *lab) reboots(t *testing.T) {
	before := l.servers(t)
	began := time.Now()
	l.lab(t, "reboot", node)
	rig.Eventually(t, 3*time.Minute, "all pods run again", func() error {
		now := l.servers(t)
		for pid, start := range before {
			if now[pid] == start {
				return fmt.Errorf("process %s has survived", pid)
			}
		}
		if len(now) != replicas {
			return fmt.Errorf("%d of %d processes", len(now), replicas)
		}
		return nil
	})
	t.Logf("an offline reboot to the last container: %.1f s", time.Since(began).Seconds())
	if reason, faults, err := l.status(); err != nil || reason == "" {
		t.Errorf("the node is not cut off: %q %v %v", reason, faults, err)
	}
	l.holds(t)
}

// converges: the same pods, Ready, within moments, and none of them restarted
// for it.
func (l *lab) converges(t *testing.T, before map[string]string) {
	running := l.servers(t)
	l.lab(t, "restore", pool)
	took := rig.Eventually(t, 2*time.Minute, "the cloud sees the node's pods", func() error {
		after := l.pods(t)
		if !slices.Equal(slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after))) {
			return fmt.Errorf("pods %v, before %v", after, before)
		}
		for uid, c := range after {
			if !strings.HasSuffix(c, "ready=true") || c == before[uid] {
				return fmt.Errorf("pod %s: %s, before %s", uid, c, before[uid])
			}
		}
		res := l.TryEdge(t, "kubectl", "-c", cluster, "--request-timeout=5s", "wait", "node/"+node, "--for=condition=Ready", "--timeout=1s")
		return res.Err
	})
	t.Logf("converged %.1f s after the link was back", took.Seconds())
	if now := l.servers(t); !maps.Equal(now, running) {
		t.Errorf("containers restarted for the link's return: %v, before %v", now, running)
	}
}
