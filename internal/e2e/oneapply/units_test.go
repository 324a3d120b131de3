//go:build linux

package oneapply

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

// failsFast shows that a unit that cannot start ends the apply with the reason
// long before any timeout.
func failsFast(t *testing.T, r *rig.Rig, hcl string) {
	unit := func(image, args string) string {
		return hcl + fmt.Sprintf(`
resource "edge_unit_deployment" "broken" {
  cluster_id = edge_cluster.quickstart.id
  name       = "broken"
  template   = { containers = { c = { image = %q, args = %s } } }
  pools      = { tokyo = {} }
  depends_on = [edge_node.node]
}
`, image, args)
	}
	for _, c := range []struct{ name, config, want string }{
		{"an image that cannot be pulled", unit("registry.invalid/none:1", "[]"), "registry.invalid/none:1"},
		{"a container that exits at once", unit(agnhost, `["no-such-command"]`), "no-such-command"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.Config(t, c.config)
			began := time.Now()
			res := r.TryTerraform(t, "apply", "-input=false", "-no-color", "-auto-approve")
			took := time.Since(began)
			if res.Err == nil {
				t.Fatalf("the apply succeeded after %.1f s\n%s%s%s%s%s", took.Seconds(), res.Stdout, res.Stderr,
					r.TryEdge(t, "kubectl", "-c", quickstart, "get", "ud,deploy,rs,pods,events", "-o", "wide").Stdout,
					r.TryEdge(t, "kubectl", "-c", quickstart, "get", "pods", "-o", "yaml", "-l", "edgewright.dev/pool=tokyo").Stdout, r.Logs())
			}
			text := strings.Join(strings.Fields(strings.ReplaceAll(res.Stderr, "│", "")), " ")
			contains(t, text, c.want)
			t.Logf("refused after %.1f s: %s", took.Seconds(), text)
			if took > 3*time.Minute {
				t.Errorf("that was no faster than waiting")
			}
			r.Config(t, hcl)
			r.Apply(t)
		})
	}
}

// cutPool shows that a pool that is cut off does not hold up a rollout, and
// catches up when its link is back.
func cutPool(t *testing.T, r *rig.Rig, hcl string) {
	lab := func(verb string) {
		t.Helper()
		if res := r.AsRoot(t, r.Edge, "lab", verb, quickstart, "tokyo"); res.Err != nil {
			t.Fatalf("lab %s: %s%s", verb, res.Stdout, res.Stderr)
		}
	}
	lab("cut")
	seen := rig.Eventually(t, 60*time.Second, "tokyo-1 is seen to be cut", func() error {
		if out := r.Kubectl(t, quickstart, "get", "edgenode", "tokyo-1", "-o", "jsonpath={.status.connected}"); out != "false" {
			return fmt.Errorf("connected is %s", out)
		}
		return nil
	})
	t.Logf("a silent cut is seen after %.1f s", seen.Seconds())
	changed := strings.NewReplacer(`SITE = "berlin"`, `SITE = "berlin-2"`, `SITE = "tokyo"`, `SITE = "tokyo-2"`).Replace(hcl)
	r.Config(t, changed)
	began := time.Now()
	r.Apply(t)
	t.Logf("the rollout to the other pool took %.1f s", time.Since(began).Seconds())
	contains(t, r.Kubectl(t, quickstart, "exec", "deploy/web-berlin", "--", "env"), "SITE=berlin-2\n")
	contains(t, r.Kubectl(t, quickstart, "get", "ud", "web", "-o", "jsonpath={.status.pools}"), `"state":"Cut"`)
	lab("restore")
	back := rig.Eventually(t, 90*time.Second, "tokyo catches up", func() error {
		res := r.TryEdge(t, "kubectl", "-c", quickstart, "--request-timeout=5s", "exec", "deploy/web-tokyo", "--", "env")
		if res.Err != nil || !strings.Contains(res.Stdout, "SITE=tokyo-2\n") {
			return fmt.Errorf("exec: %v: %s%s", res.Err, res.Stdout, res.Stderr)
		}
		return nil
	})
	t.Logf("tokyo runs the new version %.1f s after its link was back", back.Seconds())
}
