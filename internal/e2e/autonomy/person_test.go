//go:build linux

package autonomy

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

// person is somebody at the device: while the node is cut off they see how it
// does, read what it holds, and get into its pods, and change nothing.
func (l *lab) person(t *testing.T) {
	kubectl := func(args ...string) rig.Result {
		return l.TryEdge(t, append([]string{"node", "kubectl", "--dir", l.dir}, args...)...)
	}
	must := func(want string, args ...string) string {
		t.Helper()
		res := kubectl(args...)
		if res.Err != nil || !strings.Contains(res.Stdout, want) {
			t.Fatalf("edge node kubectl %s: %v, want %q in\n%s%s", strings.Join(args, " "), res.Err, want, res.Stdout, res.Stderr)
		}
		return res.Stdout
	}
	began := time.Now()
	pods := strings.Fields(must("pod/web-", "get", "pods", "-l", "app=web", "--field-selector=status.phase=Running", "-o", "name"))
	must(node, "get", "nodes")
	must("kubernetes", "get", "services,endpointslices", "-A")
	must("netexec", "get", pods[0], "-o", "yaml")
	must("", "logs", "--tail=5", pods[0])
	must("mellon", "exec", pods[0], "--", "env")
	if res := kubectl("exec", pods[0], "--", "/nothing"); res.Err == nil {
		t.Errorf("a command that is not there: %v %s", res.Err, res.Stderr)
	}
	t.Logf("a person's questions took %.1f s", time.Since(began).Seconds())
	for _, refused := range [][]string{
		{"delete", pods[0], "--wait=false"}, {"label", pods[0], "a=b"}, {"get", "secret", "word"}, {"get", "secrets", "-A"},
	} {
		if res := kubectl(refused...); res.Err == nil || !strings.Contains(res.Stderr, "an operator on the node") {
			t.Errorf("%v: %v %s%s", refused, res.Err, res.Stdout, res.Stderr)
		}
	}

	var status struct {
		Phase string
		Live  *struct {
			Link struct {
				Online bool
				Reason string
			}
			Faults      []struct{ Reason, Message string }
			Collections []struct {
				Name     string
				Complete bool
				Objects  int
			}
			Certificates []struct{ Name string }
		}
	}
	res := l.TryEdge(t, "node", "status", "--dir", l.dir, "-o", "json")
	if res.Err != nil {
		t.Fatalf("edge node status: %s", res.Stderr)
	}
	if err := json.Unmarshal([]byte(res.Stdout), &status); err != nil {
		t.Fatal(err)
	}
	if status.Live == nil {
		t.Fatalf("the daemon does not answer: %s%s", res.Stdout, res.Stderr)
	}
	if status.Live.Link.Online || status.Live.Link.Reason == "" || len(status.Live.Faults) > 0 || len(status.Live.Certificates) != 3 {
		t.Errorf("status: %+v", *status.Live)
	}
	whole := 0
	for _, c := range status.Live.Collections {
		if !c.Complete {
			t.Errorf("%s is not whole", c.Name)
		}
		whole += c.Objects
	}
	if whole < 10 {
		t.Errorf("the node holds %d objects: %+v", whole, status.Live.Collections)
	}
	if res := l.TryEdge(t, "node", "status", "--dir", l.dir); res.Err != nil || !strings.Contains(res.Stdout, "Link:") {
		t.Errorf("edge node status: %v %s%s", res.Err, res.Stdout, res.Stderr)
	} else {
		t.Log("\n" + res.Stdout)
	}
}
