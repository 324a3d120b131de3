//go:build linux

package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

const header = `
terraform {
  required_providers {
    edge = { source = "edgewright/edge" }
  }
}
`

// cluster is a configuration of one cluster; body goes into its block.
func cluster(name, body string) string {
	return fmt.Sprintf(`
resource "edge_cluster" %[1]q {
  name    = %[1]q
  version = "1.36.3"
  local   = {}
%[2]s
}

output %[1]q {
  value = edge_cluster.%[1]s.id
}
`, name, body)
}

// site is a pool with one local node and one pod on it, all called <cluster>-<what>.
func site(cluster string) string {
	return fmt.Sprintf(`
resource "edge_node_pool" %[1]q {
  cluster_id = edge_cluster.%[1]s.id
  name       = "site"
}

resource "edge_node" %[1]q {
  cluster_id = edge_cluster.%[1]s.id
  pool       = edge_node_pool.%[1]s.name
  name       = "%[1]s-1"
  local      = {}
}
`, cluster)
}

func unit(cluster string) string {
	return fmt.Sprintf(`
resource "edge_unit_deployment" %[1]q {
  cluster_id = edge_cluster.%[1]s.id
  name       = "web"
  namespace  = "default"
  template = {
    containers = {
      web = { image = "registry.k8s.io/e2e-test-images/agnhost:2.63.0", args = ["netexec", "--http-port=8080"] }
    }
  }
  pools = { site = { replicas = 1 } }
  depends_on = [edge_node.%[1]s]
}
`, cluster)
}

func output(t *testing.T, r *rig.Rig, name string) string {
	t.Helper()
	return strings.TrimSpace(r.Terraform(t, "output", "-raw", name))
}

func uidOf(id string) string { return id[strings.LastIndexByte(id, '-')+1:] }

func dirOf(r *rig.Rig, id string) string {
	return filepath.Join(r.StateDir, "clusters", strings.TrimPrefix(id, "local/"))
}

// expectNothingLeft runs the script that users can run too.
func expectNothingLeft(t *testing.T, r *rig.Rig, id string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(r.Root, "scripts", "leftovers.sh"), uidOf(id)).CombinedOutput()
	if err != nil {
		t.Errorf("cluster %s: %v\n%s", id, err, out)
	}
}

// stateOf returns the attributes of a resource in the Terraform state, nil if it
// is not there.
func stateOf(t *testing.T, r *rig.Rig, address string) map[string]any {
	t.Helper()
	var state struct {
		Values struct {
			RootModule struct {
				Resources []struct {
					Address string
					Values  map[string]any
					Tainted bool
				}
			} `json:"root_module"`
		}
	}
	if err := json.Unmarshal([]byte(r.Terraform(t, "show", "-json")), &state); err != nil {
		t.Fatal(err)
	}
	for _, res := range state.Values.RootModule.Resources {
		if res.Address == address {
			if res.Tainted {
				t.Errorf("%s is tainted: the next apply would replace it", address)
			}
			return res.Values
		}
	}
	return nil
}

// expectNoReplacement fails if a plan would destroy anything.
func expectNoReplacement(t *testing.T, plan []rig.Change) {
	t.Helper()
	for _, c := range plan {
		if slices.Contains(c.Actions, "delete") {
			t.Errorf("%s: %v; nothing may be replaced", c.Address, c.Actions)
		}
	}
}

func actions(plan []rig.Change) map[string]string {
	out := map[string]string{}
	for _, c := range plan {
		out[c.Address] = strings.Join(c.Actions, "+")
	}
	return out
}

// journal is the phase in a cluster's record, empty where there is none yet.
func journal(r *rig.Rig) string {
	files, err := filepath.Glob(filepath.Join(r.StateDir, "clusters", "*", "cluster.json"))
	if err != nil || len(files) == 0 {
		return ""
	}
	raw, err := os.ReadFile(files[0])
	var rec struct{ Phase string }
	if err != nil || json.Unmarshal(raw, &rec) != nil {
		return ""
	}
	return rec.Phase
}

// until waits for what a program that runs is expected to do before it ends.
func until(t *testing.T, p *rig.Running, what string, ok func() bool) {
	t.Helper()
	rig.Eventually(t, time.Minute, what, func() error {
		if ok() {
			return nil
		}
		if p.Ended() {
			res := p.Wait(t, time.Second)
			t.Fatalf("it ended before %s: %v\n%s%s", what, res.Err, res.Stdout, res.Stderr)
		}
		return fmt.Errorf("not yet")
	})
}

func contains(t *testing.T, got, want string) {
	t.Helper()
	if !strings.Contains(strings.Join(strings.Fields(got), " "), want) {
		t.Errorf("%q is not in:\n%s", want, got)
	}
}

var applyArgs = []string{"apply", "-input=false", "-no-color", "-auto-approve"}
var destroyArgs = []string{"destroy", "-input=false", "-no-color", "-auto-approve"}
