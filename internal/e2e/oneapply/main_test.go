//go:build linux

package oneapply

import (
	"fmt"
	"strings"
	"testing"
)

// site is the part of a configuration that makes a pool with nodes.
func site(pool string, nodes ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `
resource "edge_node_pool" %[1]q {
  cluster_id = edge_cluster.c.id
  name       = %[1]q
  labels     = { "example.com/site" = %[1]q }
}
`, pool)
	for _, n := range nodes {
		fmt.Fprintf(&b, `
resource "edge_node" %[2]q {
  cluster_id = edge_cluster.c.id
  pool       = edge_node_pool.%[1]s.name
  name       = %[2]q
  local      = {}
}
`, pool, n)
	}
	return b.String()
}

func cluster(name string) string {
	return fmt.Sprintf(`
terraform {
  required_providers {
    edge = { source = "edgewright/edge" }
  }
}

provider "edge" {}

resource "edge_cluster" "c" {
  name    = %q
  version = "1.36.3"
  local   = {}
}

output "id" {
  value = edge_cluster.c.id
}
`, name)
}

// agnhost is upstream's test image, imported from the component cache.
const agnhost = "registry.k8s.io/e2e-test-images/agnhost:2.63.0"

func contains(t *testing.T, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("%q is not in:\n%s", want, got)
	}
}
