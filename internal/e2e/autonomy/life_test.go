//go:build linux

package autonomy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
	"github.com/edgewright/terraform-provider-edge/internal/site"
)

func full() bool { return os.Getenv("EDGE_TEST_SCALE") == "full" }

// cutFor is how long the node stays cut at full length: six times the 300 s after
// which an ordinary cluster evicts.
const cutFor = 30 * time.Minute

// notices waits until the node knows that it is cut.
func (l *lab) notices(t *testing.T) {
	t.Helper()
	took := rig.Eventually(t, time.Minute, "the node notices the cut", func() error {
		if reason, _, err := l.status(); reason == "" {
			return fmt.Errorf("not cut: %v", err)
		}
		return nil
	})
	t.Logf("the cut is noticed after %.1f s", took.Seconds())
}

// connected is what the cloud says of the node's session.
func (l *lab) connected(t *testing.T) (bool, error) {
	t.Helper()
	res := l.TryEdge(t, "kubectl", "-c", cluster, "--request-timeout=10s", "get", "edgenode", node, "-o", "json")
	if res.Err != nil {
		return false, errors.New(res.Stderr)
	}
	var object struct {
		Status struct{ Connected bool }
	}
	if err := json.Unmarshal([]byte(res.Stdout), &object); err != nil {
		return false, err
	}
	return object.Status.Connected, nil
}

// oneWay loses the packets of one direction, seen at the router's link to the
// cloud side, until both ends know, and in the full form until the cloud has given the
// node up; then the link is whole again. Nothing restarts.
func (l *lab) oneWay(t *testing.T, direction string, before, running map[string]string) {
	t.Helper()
	router := site.RouterNamespace(l.uid, pool)
	nft := func(command string) {
		t.Helper()
		if res := l.AsRoot(t, "ip", "netns", "exec", router, "nft", command); res.Err != nil {
			t.Fatalf("nft %s: %s", command, res.Stderr)
		}
	}
	nft(fmt.Sprintf(`table ip oneway { chain forward { type filter hook forward priority -10; %s "wan0" drop; }; }`, direction))
	healed := false
	heal := func() {
		if !healed {
			healed = true
			nft("delete table ip oneway")
		}
	}
	defer heal()
	l.notices(t)
	rig.Eventually(t, time.Minute, "the cloud notices the cut", func() error {
		up, err := l.connected(t)
		if err == nil && up {
			err = errors.New("connected")
		}
		return err
	})
	if full() {
		l.givenUp(t)
		l.unchanged(t, before, running)
		l.tolerates(t)
	}
	heal()
	took := rig.Eventually(t, 2*time.Minute, "both ends have each other again", func() error {
		up, err := l.connected(t)
		if err != nil || !up {
			return fmt.Errorf("connected: %v %v", up, err)
		}
		if reason, faults, err := l.status(); err != nil || reason != "" {
			return fmt.Errorf("%q %v %v", reason, faults, err)
		}
		return nil
	})
	t.Logf("back %.1f s after the link", took.Seconds())
	l.unchanged(t, before, running)
}

// unchanged: the same containers on the node, and in the cloud the same pods,
// Ready, with the same containers.
func (l *lab) unchanged(t *testing.T, before, running map[string]string) {
	t.Helper()
	if now := l.servers(t); !maps.Equal(now, running) {
		t.Errorf("containers changed (-before +now):\n%s", cmp.Diff(running, now))
	}
	if now := l.pods(t); !maps.Equal(now, before) {
		t.Errorf("pods in the cloud changed (-before +now):\n%s", cmp.Diff(before, now))
	}
}

// lives waits until the cloud has given the node up, by the taint that evicts, and
// finds every pod tolerating it for ever, Ready, and running.
func (l *lab) lives(t *testing.T, cut time.Time, before, running map[string]string) {
	l.givenUp(t)
	t.Logf("the cloud finds the node unreachable %.1f s after the cut", time.Since(cut).Seconds())
	l.unchanged(t, before, running)
	l.tolerates(t)
	l.known(t, false)
	if !full() {
		return
	}
	end := time.NewTimer(time.Until(cut.Add(cutFor)))
	defer end.Stop()
	look := time.NewTicker(30 * time.Second)
	defer look.Stop()
	for !t.Failed() {
		select {
		case <-end.C:
			t.Logf("cut for %s", time.Since(cut).Round(time.Second))
			l.unchanged(t, before, running)
			return
		case <-look.C:
			l.unchanged(t, before, running)
		}
	}
}

// givenUp waits until the node has the taint that evicts.
func (l *lab) givenUp(t *testing.T) {
	t.Helper()
	rig.Eventually(t, 2*time.Minute, "the node has the taint that evicts", func() error {
		res := l.TryEdge(t, "kubectl", "-c", cluster, "--request-timeout=10s", "get", "node", node,
			"-o", `jsonpath={.spec.taints[?(@.effect=="NoExecute")].key}`)
		if res.Err != nil || !strings.Contains(res.Stdout, "node.kubernetes.io/unreachable") {
			return fmt.Errorf("taints %q %s", res.Stdout, res.Stderr)
		}
		return nil
	})
}

// known: the data source tells of the node what the cloud knows, and a cut is no
// change to what was applied.
func (l *lab) known(t *testing.T, connected bool) {
	t.Helper()
	l.ExpectNoChanges(t)
	rig.Eventually(t, time.Minute, "the data source has the node's state", func() error {
		l.Terraform(t, "refresh", "-input=false", "-no-color")
		var n struct {
			Phase, Pool, Architecture string
			Connected                 bool
			CutSince                  *string `json:"cut_since"`
			Autonomy                  struct {
				Ready  bool
				Reason string
			}
		}
		if err := json.Unmarshal([]byte(l.Terraform(t, "output", "-json", "node")), &n); err != nil {
			return err
		}
		if n.Connected != connected || n.Pool != pool || n.Architecture == "" || (n.CutSince == nil) != connected || !n.Autonomy.Ready || n.Autonomy.Reason != "Autonomous" {
			return fmt.Errorf("%+v", n)
		}
		if connected && n.Phase != "Ready" {
			return fmt.Errorf("it is %s", n.Phase)
		}
		return nil
	})
}

// tolerates: no pod has an end to its toleration, so no timer runs that a longer
// cut would see expire.
func (l *lab) tolerates(t *testing.T) {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Name, DeletionTimestamp string }
			Spec     struct {
				Tolerations []struct {
					Key, Effect       string
					TolerationSeconds *int64
				}
			}
		}
	}
	raw := l.Kubectl(t, cluster, "get", "pods", "-l", "app=web", "-o", "json")
	if err := json.Unmarshal([]byte(raw), &list); err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Items {
		forever := map[string]bool{}
		for _, tol := range p.Spec.Tolerations {
			forever[tol.Key] = tol.TolerationSeconds == nil
		}
		if !forever["node.kubernetes.io/unreachable"] || !forever["node.kubernetes.io/not-ready"] || p.Metadata.DeletionTimestamp != "" {
			t.Errorf("pod %s: tolerations %+v, deleted %q", p.Metadata.Name, p.Spec.Tolerations, p.Metadata.DeletionTimestamp)
		}
	}
}
