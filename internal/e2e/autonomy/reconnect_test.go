//go:build linux

package autonomy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

// converges: what the cloud has changed during the cut has come to the node, and
// the other pods are the same, Ready, and none of them restarted for the link's return.
func (l *lab) converges(t *testing.T, before map[string]string) {
	running := l.servers(t)
	gone := l.changesMeanwhile(t, before)
	l.lab(t, "restore", pool)
	session := rig.Eventually(t, 2*time.Minute, "the node has a session", func() error {
		up, err := l.connected(t)
		if err == nil && !up {
			err = errors.New("not connected")
		}
		return err
	})
	began, last := time.Now(), ""
	took := rig.Eventually(t, 2*time.Minute, "cloud and node agree", func() error {
		err := l.agree(t, before, gone)
		if err != nil && err.Error() != last {
			last = err.Error()
			t.Logf("after %.1f s: %s", time.Since(began).Seconds(), last)
		}
		return err
	})
	t.Logf("a session %.1f s after the link was back; converged %.1f s after that", session.Seconds(), took.Seconds())
	kept, fresh := 0, 0
	for pid, start := range l.servers(t) {
		want := word
		if running[pid] == start {
			kept++
		} else {
			fresh++
			want = rotated
		}
		if res := l.AsRoot(t, "cat", filepath.Join("/proc", pid, "environ")); !strings.Contains(res.Stdout, "WORD="+want) {
			t.Errorf("container %s has not WORD=%s: %v", pid, want, res.Err)
		}
	}
	if kept != replicas-1 || fresh != 2 {
		t.Errorf("%d containers kept and %d new, want %d and 2", kept, fresh, replicas-1)
	}
	l.freshTokens(t)
	l.word = rotated
}

// changesMeanwhile deletes a pod in the cloud, adds a replica and rotates the
// Secret; it returns the uid of the deleted one.
func (l *lab) changesMeanwhile(t *testing.T, before map[string]string) string {
	t.Helper()
	l.Kubectl(t, cluster, "patch", "secret", "word", "-p", `{"stringData":{"word":"`+rotated+`"}}`)
	named := strings.Fields(l.Kubectl(t, cluster, "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.uid} {.items[0].metadata.name}"))
	if len(named) != 2 || before[named[0]] == "" {
		t.Fatalf("pod %v is none of %v", named, before)
	}
	l.Kubectl(t, cluster, "delete", "pod", named[1], "--wait=false")
	l.want = replicas + 1
	l.Kubectl(t, cluster, "scale", "deployment/web", fmt.Sprintf("--replicas=%d", l.want))
	return named[0]
}

// agree: the cloud's pods are those that the node runs, and what the node holds of
// the API is what a fresh list in the cloud has.
func (l *lab) agree(t *testing.T, before map[string]string, gone string) error {
	t.Helper()
	after := l.pods(t)
	if _, still := after[gone]; still || len(after) != l.want {
		return fmt.Errorf("%d pods, the deleted one among them: %v", len(after), still)
	}
	running := l.containers(t)
	survivors := 0
	for uid, c := range after {
		if before[uid] != "" {
			survivors++
		}
		id, _, _ := strings.Cut(strings.TrimPrefix(c, "containerd://"), " ")
		if !strings.HasSuffix(c, "ready=true") || !running[id] {
			return fmt.Errorf("pod %s is %q in the cloud, the node runs %v", uid, c, running)
		}
	}
	if survivors != replicas-1 || len(running) != l.want {
		return fmt.Errorf("%d pods of before, %d containers", survivors, len(running))
	}
	return l.sameObjects(t)
}

// sameObjects compares the cloud's answers with the hub's, object by object.
func (l *lab) sameObjects(t *testing.T) error {
	t.Helper()
	for _, c := range []struct {
		resource, template string
	}{
		{"pods,services,endpointslices,namespaces", `{range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name} {.metadata.uid} {.metadata.resourceVersion}{"\n"}{end}`},
		// Of its own Node the node drops what is a heartbeat and no more.
		{"nodes", `{range .items[*]}{.metadata.uid} {.spec} {.status.addresses} {.status.nodeInfo}` +
			`{range .status.conditions[*]}{"\n"}{.type} {.status} {.reason} {.lastTransitionTime}{end}{end}`},
	} {
		ask := []string{"--request-timeout=5s", "get", c.resource, "-A", "-o", "jsonpath=" + c.template}
		cloud := l.TryEdge(t, append([]string{"kubectl", "-c", cluster}, ask...)...)
		here := l.TryEdge(t, append([]string{"node", "kubectl", "--dir", l.dir}, ask...)...)
		if cloud.Err != nil || here.Err != nil || cloud.Stdout == "" {
			return fmt.Errorf("%s: the cloud: %w %s, the node: %w %s", c.resource, cloud.Err, cloud.Stderr, here.Err, here.Stderr)
		}
		if diff := cmp.Diff(withoutAPIServer(cloud.Stdout), withoutAPIServer(here.Stdout)); diff != "" {
			return fmt.Errorf("%s differ (-cloud +node):\n%s", c.resource, diff)
		}
	}
	return nil
}

// withoutAPIServer leaves out the slice of the service "kubernetes": on a node it
// names the hub, and is the hub's own.
func withoutAPIServer(objects string) []string {
	return slices.DeleteFunc(strings.Split(objects, "\n"), func(line string) bool {
		return strings.HasPrefix(line, "EndpointSlice default/kubernetes ")
	})
}

// containers are the ids of the Deployment's containers that run on the node: the
// last parts of their cgroups.
func (l *lab) containers(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for pid := range l.servers(t) {
		raw, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
		if err != nil {
			continue // it has just ended
		}
		out[filepath.Base(strings.TrimSpace(string(raw)))] = true
	}
	return out
}
