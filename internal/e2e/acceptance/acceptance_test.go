//go:build linux

package acceptance

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/terraform-plugin-framework/providerserver"
	"github.com/hashicorp/terraform-plugin-go/tfprotov6"
	"github.com/hashicorp/terraform-plugin-testing/echoprovider"
	"github.com/hashicorp/terraform-plugin-testing/helper/resource"
	"github.com/hashicorp/terraform-plugin-testing/knownvalue"
	"github.com/hashicorp/terraform-plugin-testing/plancheck"
	"github.com/hashicorp/terraform-plugin-testing/statecheck"
	"github.com/hashicorp/terraform-plugin-testing/terraform"
	"github.com/hashicorp/terraform-plugin-testing/tfjsonpath"

	"github.com/edgewright/terraform-provider-edge/internal/component"
	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider"
)

// factories serve the provider in this process with an engine that uses the
// rig's state directory and the built edge program for hosts: this process is a
// test and no daemon can run from it.
func factories(r *rig.Rig) map[string]func() (tfprotov6.ProviderServer, error) {
	open := func(s provider.Settings) (provider.Engine, error) {
		return engine.New(engine.Options{
			StateDir:     r.StateDir,
			Clusters:     s.Clusters,
			Components:   component.DefaultOptions(func(string) string { return "" }),
			EdgeBinary:   r.Edge,
			Version:      s.Version,
			FieldManager: "terraform",
		})
	}
	return map[string]func() (tfprotov6.ProviderServer, error){
		"edge": providerserver.NewProtocol6WithError(provider.New("0.1.0", provider.WithEngine(open))()),
		"echo": echoprovider.NewProviderServer(),
	}
}

const cluster = `
resource "edge_cluster" "c" {
  name    = "acceptance"
  version = "1.36.3"
  local   = {}
}
`

func pool(labels string) string {
	return fmt.Sprintf(`
resource "edge_node_pool" "p" {
  cluster_id = edge_cluster.c.id
  name       = "site"
  labels     = %s
  taints     = ["example.com/only=this:NoSchedule"]
  autonomy   = { duration = "24h0m0s" }
}
`, labels)
}

// TestCluster is one cluster's life under Terraform's test framework.
func TestCluster(t *testing.T) {
	r := rig.New(t)
	t.Setenv("TF_ACC_TERRAFORM_PATH", r.TerraformPath())
	kubectl := func(args ...string) {
		t.Helper()
		r.Kubectl(t, "acceptance", args...)
	}
	empty := resource.ConfigPlanChecks{PostApplyPostRefresh: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()}}
	resource.UnitTest(t, resource.TestCase{
		ProtoV6ProviderFactories: factories(r),
		Steps: []resource.TestStep{
			{ // a real cluster and a pool
				Config:           cluster + pool(`{ a = "1" }`),
				ConfigPlanChecks: empty,
				ConfigStateChecks: []statecheck.StateCheck{
					statecheck.ExpectKnownValue("edge_cluster.c", tfjsonpath.New("status"), knownvalue.StringExact("ready")),
					statecheck.ExpectKnownValue("edge_cluster.c", tfjsonpath.New("kubernetes_version"), knownvalue.StringExact("1.36.3")),
					statecheck.ExpectKnownValue("edge_cluster.c", tfjsonpath.New("id"), knownvalue.StringRegexp(regexp.MustCompile(`^local/acceptance-[0-9a-f]{8}$`))),
					statecheck.ExpectKnownValue("edge_cluster.c", tfjsonpath.New("kubeconfig"), knownvalue.StringRegexp(regexp.MustCompile(`credentials`))),
				},
			},
			{ // labels change in place
				Config: cluster + pool(`{ a = "2", b = "3" }`),
				ConfigPlanChecks: resource.ConfigPlanChecks{
					PreApply: []plancheck.PlanCheck{
						plancheck.ExpectResourceAction("edge_cluster.c", plancheck.ResourceActionNoop),
						plancheck.ExpectResourceAction("edge_node_pool.p", plancheck.ResourceActionUpdate),
					},
					PostApplyPostRefresh: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()},
				},
			},
			{ // another spelling of a duration is no change, another duration one in place
				Config:           cluster + strings.Replace(pool(`{ a = "2", b = "3" }`), "24h0m0s", "1440m", 1),
				ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()}},
			},
			{
				Config: cluster + strings.Replace(pool(`{ a = "2", b = "3" }`), "24h0m0s", "48h", 1),
				ConfigPlanChecks: resource.ConfigPlanChecks{
					PreApply:             []plancheck.PlanCheck{plancheck.ExpectResourceAction("edge_node_pool.p", plancheck.ResourceActionUpdate)},
					PostApplyPostRefresh: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()},
				},
			},
			{Config: cluster + pool(`{ a = "2", b = "3" }`), ConfigPlanChecks: empty},
			{ResourceName: "edge_cluster.c", ImportState: true, ImportStateVerify: true, ImportStateVerifyIgnore: []string{"timeouts"}},
			{ResourceName: "edge_node_pool.p", ImportState: true, ImportStateVerify: true, ImportStateVerifyIgnore: []string{"timeouts"}},
			{ // drift: a label and a taint taken away with kubectl come back
				PreConfig: func() {
					kubectl("patch", "nodepool", "site", "--type=json", `-p=[{"op":"remove","path":"/spec/labels/b"},{"op":"remove","path":"/spec/taints"}]`)
				},
				Config: cluster + pool(`{ a = "2", b = "3" }`),
				ConfigPlanChecks: resource.ConfigPlanChecks{
					PreApply:             []plancheck.PlanCheck{plancheck.ExpectResourceAction("edge_node_pool.p", plancheck.ResourceActionUpdate)},
					PostApplyPostRefresh: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()},
				},
			},
			{ // a pool that disappears is made again
				PreConfig:        func() { kubectl("delete", "nodepool", "site") },
				Config:           cluster + pool(`{ a = "2", b = "3" }`),
				ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction("edge_node_pool.p", plancheck.ResourceActionCreate)}},
			},
			{ // credentials are handed on without a trace in the state
				Config: cluster + pool(`{ a = "2", b = "3" }`) + `
ephemeral "edge_cluster_credentials" "admin" {
  cluster_id = edge_cluster.c.id
  ttl        = "10m"
}

provider "echo" {
  data = {
    host     = ephemeral.edge_cluster_credentials.admin.host
    is_key   = startswith(ephemeral.edge_cluster_credentials.admin.client_key, "-----BEGIN")
    is_chain = startswith(ephemeral.edge_cluster_credentials.admin.client_certificate, "-----BEGIN CERTIFICATE")
  }
}

resource "echo" "seen" {}
`,
				ConfigStateChecks: []statecheck.StateCheck{
					statecheck.ExpectKnownValue("echo.seen", tfjsonpath.New("data").AtMapKey("host"), knownvalue.StringRegexp(regexp.MustCompile(`^https://127\.0\.0\.1:`))),
					statecheck.ExpectKnownValue("echo.seen", tfjsonpath.New("data").AtMapKey("is_key"), knownvalue.Bool(true)),
					statecheck.ExpectKnownValue("echo.seen", tfjsonpath.New("data").AtMapKey("is_chain"), knownvalue.Bool(true)),
				},
			},
			{ // what cannot be changed fails the plan
				Config:      regexp.MustCompile(`local\s+= \{\}`).ReplaceAllString(cluster, "local = {}\n  network = { dns_domain = \"other.example\" }") + pool(`{ a = "2", b = "3" }`),
				ExpectError: regexp.MustCompile(`cannot be\s+changed`),
			},
		},
		CheckDestroy: func(*terraform.State) error {
			out, err := exec.CommandContext(context.WithoutCancel(t.Context()), r.Edge, "--state-dir", r.StateDir, "-o", "json", "status").Output()
			if err != nil {
				return err
			}
			if got := regexp.MustCompile(`"acceptance`).FindString(string(out)); got != "" {
				return fmt.Errorf("the cluster is still there: %s", out)
			}
			return nil
		},
	})
}
