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
	replicas = 10
	// word is the value of its Secret, and rotated that which the cloud gives it
	// during the cut.
	word, rotated = "mellon", "friend"
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
data "edge_node" "n" {
  cluster_id = edge_cluster.c.id
  name       = edge_node.n.name
}
output "cluster_id" {
  value = edge_cluster.c.id
}
output "node" {
  value = data.edge_node.n
}
`

// workload is an ordinary Deployment of one pool, with a Secret, a ConfigMap, a
// token of ten minutes, the least that Kubernetes gives, and a right to read. What
// makes it live through a cut is given to it at its admission. The pod "poor" has
// no rights.
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
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules:
- {apiGroups: [""], resources: [services], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects:
- {kind: ServiceAccount, name: default, namespace: default}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 10
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      nodeSelector: {edgewright.dev/pool: site}
      containers:
      - name: web
        image: registry.k8s.io/e2e-test-images/agnhost:2.63.0
        imagePullPolicy: Always
        args: [netexec, --http-port=8080]
        env:
        - name: WORD
          valueFrom: {secretKeyRef: {name: word, key: word}}
        volumeMounts:
        - {name: settings, mountPath: /settings}
        - {name: short, mountPath: /short}
      volumes:
      - name: settings
        configMap: {name: settings}
      - name: short
        projected: {sources: [{serviceAccountToken: {path: token, expirationSeconds: 600}}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: poor}
---
apiVersion: v1
kind: Pod
metadata: {name: poor}
spec:
  serviceAccountName: poor
  terminationGracePeriodSeconds: 1
  nodeSelector: {edgewright.dev/pool: site}
  containers:
  - name: poor
    image: registry.k8s.io/e2e-test-images/agnhost:2.63.0
    args: [pause]
`

// lab is one cut node.
type lab struct {
	*rig.Rig
	dir string // of the node
	uid string // of the cluster
	// want is how many containers the Deployment has now.
	want int
	// word is what the Secret's value is on the node for containers that start.
	word string
	// service is the address of the Deployment's Service.
	service string
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
		if err != nil || !strings.Contains(string(cgroup), "/"+l.uid+"/"+node+"/pods/") {
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
			Metadata struct{ UID, DeletionTimestamp string }
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
		if p.Metadata.DeletionTimestamp != "" {
			out[p.Metadata.UID] = "is being deleted"
			continue
		}
		for _, c := range p.Status.ContainerStatuses {
			out[p.Metadata.UID] = fmt.Sprintf("%s restarts=%d ready=%v", c.ContainerID, c.RestartCount, c.Ready)
		}
	}
	return out
}

// TestCutNode carries one node through cuts: of one direction and the other;
// then of both, with restarts of everything on it, a container's death, a reboot
// and a cloud that changes meanwhile; and then with certificates that end.
func TestCutNode(t *testing.T) {
	r := rig.New(t)
	l := &lab{Rig: r, want: replicas, word: word}
	r.Config(t, hcl)
	r.Apply(t)
	t.Cleanup(func() {
		if r.TryEdge(t, "status").Err == nil {
			r.Destroy(t)
		}
	})
	l.find(t)
	manifest := filepath.Join(r.Work(), "workload.yaml")
	if err := os.WriteFile(manifest, []byte(workload), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Kubectl(t, cluster, "apply", "-f", manifest)
	r.Kubectl(t, cluster, "rollout", "status", "deployment/web", "--timeout=120s")
	r.Kubectl(t, cluster, "wait", "pod/poor", "--for=condition=Ready", "--timeout=60s")
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
	t.Run("Terraform knows how it does", func(t *testing.T) { l.known(t, true) })
	t.Run("pods and strangers while it is connected", l.callers)
	l.findService(t)
	t.Run("its Service answers", l.answers)

	t.Run("what leaves the site is lost", func(t *testing.T) { l.oneWay(t, "oifname", before, running) })
	t.Run("what comes to the site is lost", func(t *testing.T) { l.oneWay(t, "iifname", before, running) })

	cut := time.Now()
	l.lab(t, "cut", pool)
	l.notices(t)
	t.Run("a person at the device sees and helps", l.person)
	t.Run("pods and strangers while it is cut off", l.callers)
	t.Run("nothing restarts that is restarted around it", func(t *testing.T) { l.restarts(t, running) })
	t.Run("the cloud leaves its pods as they are", func(t *testing.T) { l.lives(t, cut, before, running) })
	t.Run("a container that dies comes back", l.dies)
	if full() {
		t.Run("its tokens have ended", l.tokensEnd)
	}
	t.Run("the node reboots", l.reboots)
	t.Run("its Service answers at the pods' new addresses", l.answers)
	t.Run("the link is back", func(t *testing.T) { l.converges(t, before) })

	t.Run("its certificates end while it is cut off", l.expires)
}

// find finds the node's directory and the part of its cluster's id that names
// namespaces.
func (l *lab) find(t *testing.T) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(l.StateDir, "clusters/*/nodes", node))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("the node's directory: %v, %v", dirs, err)
	}
	l.dir = dirs[0]
	id := strings.TrimSpace(l.Terraform(t, "output", "-raw", "cluster_id")) // local/<name>-<uid>
	l.uid = id[strings.LastIndexByte(id, '-')+1:]
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
		if len(now) != l.want || now[victim] == before[victim] {
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
		for what, holds := range map[string]func(string) error{
			"environ": l.hasWord,
			"root/settings/setting": func(is string) error {
				if is != "on" {
					return fmt.Errorf("it is %q", is)
				}
				return nil
			},
			"root/var/run/secrets/kubernetes.io/serviceaccount/token": isToken, "root/short/token": isToken,
		} {
			res := l.AsRoot(t, "cat", filepath.Join("/proc", pid, what))
			err := res.Err
			if err == nil {
				err = holds(res.Stdout)
			}
			if err != nil {
				t.Errorf("%s of container %s: %v %s", what, pid, err, res.Stderr)
			}
		}
	}
}

// hasWord: the environment of a process has the Secret's value.
func (l *lab) hasWord(environ string) error {
	if !slices.Contains(strings.Split(environ, "\x00"), "WORD="+l.word) {
		return errors.New("WORD is not " + l.word)
	}
	return nil
}

func isToken(content string) error {
	_, err := tokenEnd(content)
	return err
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
		if len(now) != l.want {
			return fmt.Errorf("%d of %d processes", len(now), l.want)
		}
		return nil
	})
	t.Logf("an offline reboot, to the last container and to what edge lab waits for: %.1f s", time.Since(began).Seconds())
	if reason, faults, err := l.status(); err != nil || reason == "" {
		t.Errorf("the node is not cut off: %q %v %v", reason, faults, err)
	}
	l.holds(t)
}
