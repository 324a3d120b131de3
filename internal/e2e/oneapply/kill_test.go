//go:build linux

package oneapply

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

// running is a supervised process, daemon or parent as its run directory
// records it.
type running struct {
	name string // "kubelet of tokyo-1"
	file string
	pid  int
}

func record(t *testing.T, r *rig.Rig, file string) (pid int, start string) {
	t.Helper()
	res := r.AsRoot(t, "cat", file)
	if res.Err != nil {
		return 0, ""
	}
	var rec struct {
		PID       int         `json:"pid"`
		StartTime json.Number `json:"startTime"`
	}
	if json.Unmarshal([]byte(res.Stdout), &rec) != nil {
		return 0, "" // being replaced
	}
	return rec.PID, rec.StartTime.String()
}

// survivesKills kills every process of the control plane and of one node, one at
// a time, and waits until everything works again without help.
func survivesKills(t *testing.T, r *rig.Rig) {
	dirs := map[string]string{}
	for what, pattern := range map[string]string{"control plane": "clusters/*/run", "tokyo-1": "clusters/*/nodes/tokyo-1/run"} {
		found, err := filepath.Glob(filepath.Join(r.StateDir, pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("run directory of %s: %v, %v", what, found, err)
		}
		dirs[what] = found[0]
	}
	var victims []running
	for what, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err != nil {
			t.Fatal(err)
		}
		below, err := filepath.Glob(filepath.Join(dir, "*", "*.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range append(files, below...) {
			name := strings.TrimSuffix(filepath.Base(f), ".json")
			if pid, _ := record(t, r, f); pid != 0 && name != "status" {
				victims = append(victims, running{name + " of " + what, f, pid})
			}
		}
	}
	slices.SortFunc(victims, func(a, b running) int { return strings.Compare(a.name, b.name) })
	if len(victims) != 4+2+4+2 {
		t.Fatalf("victims: %+v, want etcd, apiserver, controller-manager, scheduler, containerd, kubelet, kube-proxy, coredns and two daemons with their parents", victims)
	}
	before := containers(t, r)
	for _, v := range victims {
		t.Run(v.name, func(t *testing.T) {
			pid, _ := record(t, r, v.file) // an earlier kill may have replaced it
			if res := r.AsRoot(t, "kill", "-KILL", fmt.Sprint(pid)); res.Err != nil {
				t.Fatalf("kill %d: %s", pid, res.Stderr)
			}
			took := rig.Eventually(t, 60*time.Second, v.name+" is back", func() error {
				now, _ := record(t, r, v.file)
				if now == pid || now == 0 || !alive(now) {
					return fmt.Errorf("recorded pid %d", now)
				}
				return works(t, r)
			})
			t.Logf("SIGKILL of %s: everything works again after %.1f s", v.name, took.Seconds())
			if after := containers(t, r); !slices.Equal(before, after) {
				t.Errorf("containers changed:\nbefore %v\nafter  %v", before, after)
			}
		})
	}
}

// alive reads the process's state: a signal 0 would need root.
func alive(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	return len(fields) > 0 && fields[0] != "Z" && fields[0] != "X"
}

// works asks what a user would: the API answers and changes, tokyo-1 is Ready,
// and an exec goes through the tunnel.
func works(t *testing.T, r *rig.Rig) error {
	for _, args := range [][]string{
		{"get", "--raw", "/readyz"},
		{"annotate", "namespace", "default", "--overwrite", fmt.Sprintf("example.com/probe=%d", time.Now().UnixNano())},
		{"wait", "node/tokyo-1", "--for=condition=Ready", "--timeout=1s"},
		{"exec", "deploy/web-tokyo", "--", "hostname"},
	} {
		res := r.TryEdge(t, append([]string{"kubectl", "-c", quickstart, "--request-timeout=5s"}, args...)...)
		if res.Err != nil {
			return fmt.Errorf("kubectl %s: %w: %s", args[0], res.Err, strings.TrimSpace(res.Stderr))
		}
	}
	return nil
}

// containers are the pods' containers with their restart counts.
func containers(t *testing.T, r *rig.Rig) []string {
	t.Helper()
	var out []string
	for _, p := range get[podList](t, r, "pods", "-n", "default").Items {
		for _, c := range p.Status.ContainerStatuses {
			out = append(out, fmt.Sprintf("%s %s %s restarts=%d", p.Metadata.Name, p.Metadata.UID, c.ContainerID, c.RestartCount))
		}
	}
	slices.Sort(out)
	return out
}
