package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/terraform-plugin-testing/compare"
	"github.com/hashicorp/terraform-plugin-testing/helper/resource"
	"github.com/hashicorp/terraform-plugin-testing/knownvalue"
	"github.com/hashicorp/terraform-plugin-testing/plancheck"
	"github.com/hashicorp/terraform-plugin-testing/statecheck"
	"github.com/hashicorp/terraform-plugin-testing/terraform"
	"github.com/hashicorp/terraform-plugin-testing/tfjsonpath"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/cluster"
	"github.com/edgewright/terraform-provider-edge/provider/internal/acctest"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
	"github.com/edgewright/terraform-provider-edge/provider/internal/fakeengine"
)

func TestMain(m *testing.M) { acctest.Main(m) }

const address = "edge_cluster.test"

// config is a cluster with more attributes.
func config(more string) string {
	return fmt.Sprintf(`
resource "edge_cluster" "test" {
  name    = "demo"
  version = "1.36.3"
  local   = {}
  %s
}
`, more)
}

func value(attribute string, want knownvalue.Check) statecheck.StateCheck {
	return statecheck.ExpectKnownValue(address, tfjsonpath.New(attribute), want)
}

func action(a plancheck.ResourceActionType) resource.ConfigPlanChecks {
	return resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction(address, a)}}
}

func empty() resource.ConfigPlanChecks {
	return resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()}}
}

func TestLifeOfACluster(t *testing.T) {
	eng := fakeengine.New()
	same := statecheck.CompareValue(compare.ValuesSame())
	acctest.Run(t, eng,
		resource.TestStep{
			Config: config(""),
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
				plancheck.ExpectResourceAction(address, plancheck.ResourceActionCreate),
				plancheck.ExpectUnknownValue(address, tfjsonpath.New("id")),
			}},
			ConfigStateChecks: []statecheck.StateCheck{
				value("id", knownvalue.StringExact("local/demo-00000001")),
				value("status", knownvalue.StringExact("ready")),
				value("kubernetes_version", knownvalue.StringExact("1.36.3")),
				value("endpoint", knownvalue.StringExact("https://127.0.0.1:20001")),
				value("kubeconfig", knownvalue.StringExact("exec: edge credentials local/demo-00000001")),
				value("network", knownvalue.ObjectExact(map[string]knownvalue.Check{
					"pod_cidrs":     knownvalue.ListExact([]knownvalue.Check{knownvalue.StringExact("10.64.0.0/16")}),
					"service_cidrs": knownvalue.ListExact([]knownvalue.Check{knownvalue.StringExact("10.65.0.0/20")}),
					"node_mask":     knownvalue.Int64Exact(24),
					"dns_domain":    knownvalue.StringExact("cluster.local"),
				})),
				same.AddStateValue(address, tfjsonpath.New("id")),
				acctest.NoSecrets(),
			},
		},
		resource.TestStep{Config: config(""), ConfigPlanChecks: empty()},
		resource.TestStep{ // another spelling is no change
			Config: `
resource "edge_cluster" "test" {
  name    = "demo"
  version = "v1.36.3"
  local   = {}
}`,
			ConfigPlanChecks: empty(),
		},
		resource.TestStep{ // what was chosen may be written down
			Config:           config(`network = { pod_cidrs = ["10.64.0.0/16"] }`),
			ConfigPlanChecks: empty(),
		},
		resource.TestStep{ // in place, and the id stays known
			Config: config(`timeouts = { update = "20m" }`),
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
				plancheck.ExpectResourceAction(address, plancheck.ResourceActionUpdate),
				plancheck.ExpectKnownValue(address, tfjsonpath.New("id"), knownvalue.StringExact("local/demo-00000001")),
				plancheck.ExpectKnownValue(address, tfjsonpath.New("endpoint"), knownvalue.StringExact("https://127.0.0.1:20001")),
			}},
			ConfigStateChecks: []statecheck.StateCheck{
				same.AddStateValue(address, tfjsonpath.New("id")),
			},
		},
		resource.TestStep{Config: config(`timeouts = { update = "20m" }`), ConfigPlanChecks: empty()},
		resource.TestStep{
			ResourceName: address, ImportState: true, ImportStateVerify: true, ImportStateVerifyIgnore: []string{"timeouts"},
		},
		resource.TestStep{
			ResourceName: address, ImportState: true, ImportStateId: "demo",
			ExpectError: regexp.MustCompile(`imported by its id`),
		},
	)
}

func TestDrift(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{Config: config(`network = { node_mask = 24 }`)},
		resource.TestStep{ // what nobody may change is not changed back either
			PreConfig: func() { eng.Cluster(func(c *engine.Cluster) { c.Spec.Network.NodeMask = 25 }) },
			Config:    config(`network = { node_mask = 24 }`), PlanOnly: true,
			ExpectError: regexp.MustCompile(`network.node_mask of a cluster cannot be changed`),
		},
		resource.TestStep{
			PreConfig:        func() { eng.Clear() },
			Config:           config(""),
			ConfigPlanChecks: action(plancheck.ResourceActionCreate),
		},
	)
}

func TestImmutableAttributes(t *testing.T) {
	eng := fakeengine.New()
	refused := func(text, more string) resource.TestStep {
		return resource.TestStep{Config: more, PlanOnly: true, ExpectError: regexp.MustCompile(text)}
	}
	acctest.Run(t, eng,
		resource.TestStep{Config: config("")},
		refused(`version of a cluster cannot be changed yet`, `
resource "edge_cluster" "test" {
  name    = "demo"
  version = "1.37.1"
  local   = {}
}`),
		refused(`name of a cluster cannot be changed`, `
resource "edge_cluster" "test" {
  name    = "other"
  version = "1.36.3"
  local   = {}
}`),
		refused(`network.pod_cidrs of a cluster cannot be changed`, config(`network = { pod_cidrs = ["10.80.0.0/16"] }`)),
		refused(`network.service_cidrs of a cluster cannot be changed`, config(`network = { service_cidrs = ["10.80.0.0/20"] }`)),
		refused(`network.node_mask of a cluster cannot be changed`, config(`network = { node_mask = 25 }`)),
		refused(`api.port of a cluster cannot be changed yet`, config(`api = { port = 23456 }`)),
		refused(`gateway.port of a cluster cannot be changed yet`, config(`gateway = { port = 23456 }`)),
		refused(`network.dns_domain of a cluster cannot be changed`, config(`network = { dns_domain = "edge.example" }`)),
		refused(`terraform\s+taint\s+<address>`, config(`network = { dns_domain = "edge.example" }`)),
		resource.TestStep{ // what the message says works
			Taint:            []string{address},
			Config:           config(`network = { dns_domain = "edge.example" }`),
			ConfigPlanChecks: action(plancheck.ResourceActionDestroyBeforeCreate),
		},
	)
}

var unfinished = &engine.Error{
	Class: engine.Unfinished, Op: "create cluster", Object: "local/demo-00000001",
	Err: errors.New("interrupted in phase control-plane"),
}

func TestUnfinishedCreateIsFinishedInPlace(t *testing.T) {
	eng := fakeengine.New()
	eng.Fail("CreateCluster", fakeengine.Fault{Err: unfinished, Recorded: true, Status: "incomplete: control-plane"})
	acctest.Run(t, eng,
		resource.TestStep{
			Config:             config(""),
			ExpectNonEmptyPlan: true,
			ConfigStateChecks: []statecheck.StateCheck{
				value("id", knownvalue.StringExact("local/demo-00000001")),
				value("status", knownvalue.StringExact("incomplete: control-plane")),
				value("ca_certificate", knownvalue.Null()),
			},
		},
		resource.TestStep{
			Config: config(""),
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
				plancheck.ExpectResourceAction(address, plancheck.ResourceActionUpdate),
				plancheck.ExpectKnownValue(address, tfjsonpath.New("id"), knownvalue.StringExact("local/demo-00000001")),
				plancheck.ExpectUnknownValue(address, tfjsonpath.New("status")),
				plancheck.ExpectUnknownValue(address, tfjsonpath.New("ca_certificate")),
			}},
			ConfigStateChecks: []statecheck.StateCheck{
				value("status", knownvalue.StringExact("ready")),
				value("ca_certificate", knownvalue.NotNull()),
			},
		},
		resource.TestStep{Config: config(""), ConfigPlanChecks: empty()},
	)
	if n := eng.Calls("CreateCluster"); n != 1 {
		t.Errorf("the cluster was created %d times", n)
	}
}

// The deadline of the create ends while the engine works.
func TestCreateTimeout(t *testing.T) {
	eng := fakeengine.New()
	eng.Fail("CreateCluster", fakeengine.Fault{Block: true, Recorded: true, Status: "incomplete: components"})
	c := config(`timeouts = { create = "50ms" }`)
	acctest.Run(t, eng,
		resource.TestStep{
			Config: c, ExpectNonEmptyPlan: true,
			ConfigStateChecks: []statecheck.StateCheck{value("status", knownvalue.StringExact("incomplete: components"))},
		},
		resource.TestStep{Config: c, ConfigPlanChecks: action(plancheck.ResourceActionUpdate)},
	)
}

func TestUnfinishedUpdate(t *testing.T) {
	eng := fakeengine.New()
	changed := config(`timeouts = { update = "20m" }`)
	acctest.Run(t, eng,
		resource.TestStep{Config: config("")},
		resource.TestStep{
			PreConfig: func() {
				eng.Fail("UpdateCluster", fakeengine.Fault{Err: unfinished, Recorded: true, Status: "incomplete: gateway"})
			},
			Config: changed, ExpectNonEmptyPlan: true,
			ConfigStateChecks: []statecheck.StateCheck{value("status", knownvalue.StringExact("incomplete: gateway"))},
		},
		resource.TestStep{Config: changed, ConfigPlanChecks: action(plancheck.ResourceActionUpdate)},
		resource.TestStep{Config: changed, ConfigPlanChecks: empty()},
	)
}

func TestFailedCreateWithoutAnythingLeavesNoState(t *testing.T) {
	eng := fakeengine.New()
	eng.Fail("CreateCluster", fakeengine.Fault{Err: &engine.Error{
		Class: engine.Invalid, Op: "use", Object: "10.0.0.0/8", Field: "network.pod_cidrs",
		Err: errors.New("it overlaps a route"), Next: "Choose another range",
	}})
	acctest.Run(t, eng,
		resource.TestStep{
			Config:      config(`network = { pod_cidrs = ["10.0.0.0/8"] }`),
			ExpectError: regexp.MustCompile(`(?s)Cannot use 10.0.0.0/8.*overlaps a\s+route.*Choose another range.*network.pod_cidrs`),
		},
		resource.TestStep{Config: config(""), ConfigPlanChecks: action(plancheck.ResourceActionCreate)},
	)
}

func TestFailedCreateIsKeptAndReplaced(t *testing.T) {
	eng := fakeengine.New()
	eng.Fail("CreateCluster", fakeengine.Fault{
		Err:      &engine.Error{Class: engine.Failed, Op: "create cluster", Object: "local/demo-00000001", Err: errors.New("etcd dies at once")},
		Recorded: true, Status: "incomplete: control-plane",
	})
	acctest.Run(t, eng,
		resource.TestStep{Config: config(""), ExpectError: regexp.MustCompile(`etcd dies at once`)},
		resource.TestStep{Config: config(""), ConfigPlanChecks: action(plancheck.ResourceActionDestroyBeforeCreate)},
	)
}

func TestFailedUpdateKeepsWhatIs(t *testing.T) {
	eng := fakeengine.New()
	changed := config(`timeouts = { update = "20m" }`)
	acctest.Run(t, eng,
		resource.TestStep{Config: config("")},
		resource.TestStep{
			PreConfig: func() {
				eng.Fail("UpdateCluster", fakeengine.Fault{Err: &engine.Error{Class: engine.Refused, Op: "update cluster", Object: "x", Err: errors.New("not now")}})
			},
			Config: changed, ExpectError: regexp.MustCompile(`(?i)not now`),
		},
		resource.TestStep{Config: config(""), ConfigPlanChecks: empty()},
		resource.TestStep{Config: changed, ConfigPlanChecks: action(plancheck.ResourceActionUpdate)},
	)
}

func TestStoppedClusterIsStartedInPlace(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{Config: config("")},
		resource.TestStep{
			PreConfig: func() { eng.Cluster(func(c *engine.Cluster) { c.Status = engine.StatusStopped }) },
			Config:    config(""),
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
				plancheck.ExpectResourceAction(address, plancheck.ResourceActionUpdate),
				plancheck.ExpectKnownValue(address, tfjsonpath.New("ca_certificate"), knownvalue.NotNull()),
			}},
			ConfigStateChecks: []statecheck.StateCheck{value("status", knownvalue.StringExact("ready"))},
		},
		resource.TestStep{Config: config(""), ConfigPlanChecks: empty()},
	)
}

func TestUnreachableClusterKeepsState(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{Config: config("")},
		resource.TestStep{
			PreConfig:        func() { eng.SetUnreachable(true) },
			Config:           config(""),
			ConfigPlanChecks: empty(),
		},
		resource.TestStep{
			ResourceName: address, ImportState: true, ImportStateId: "local/demo-00000001",
			ExpectError: regexp.MustCompile(`connection refused`),
		},
		resource.TestStep{
			PreConfig:        func() { eng.SetUnreachable(false) },
			Config:           config(""),
			ConfigPlanChecks: empty(),
		},
	)
}

func TestInterruptedDestroy(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{Config: config("")},
		resource.TestStep{
			PreConfig: func() {
				eng.Fail("DeleteCluster", fakeengine.Fault{
					Err:      &engine.Error{Class: engine.Unfinished, Op: "delete cluster", Object: "local/demo-00000001", Err: context.Canceled},
					Recorded: true, Status: engine.StatusDestroying,
				})
			},
			Config: config(""), Destroy: true,
			ExpectError: regexp.MustCompile(`(?s)next\s+terraform\s+destroy\s+goes\s+on`),
		},
		resource.TestStep{
			RefreshState: true, ExpectNonEmptyPlan: true,
			Check: resource.TestCheckResourceAttr(address, "status", "incomplete: destroying"),
		},
		resource.TestStep{Config: config(""), Destroy: true},
	)
}

func TestExistingClusterIsNotAdopted(t *testing.T) {
	eng := fakeengine.New()
	if _, err := eng.CreateCluster(t.Context(), engine.ClusterSpec{Name: "demo", Version: "1.36.3"}); err != nil {
		t.Fatal(err)
	}
	acctest.Run(t, eng,
		resource.TestStep{Config: config(""), ExpectError: regexp.MustCompile("(?s)Import\\s+it:\\s+`terraform\\s+import\\s+<address>\\s+local/demo-00000001`")},
		resource.TestStep{
			Config: config(""), ResourceName: address, ImportState: true, ImportStateId: "local/demo-00000001", ImportStatePersist: true,
			ImportStateCheck: func(s []*terraform.InstanceState) error {
				if len(s) != 1 || s[0].Attributes["name"] != "demo" {
					return fmt.Errorf("imported %v", s)
				}
				return nil
			},
		},
		resource.TestStep{Config: config(""), ConfigPlanChecks: empty()},
	)
}

func TestBadInput(t *testing.T) {
	acctest.Refused(t, "edge_cluster", map[string]string{"name": `name = "demo"`, "version": `version = "1.36.3"`, "local": `local = {}`}, map[string][2]string{
		"name":           {`name = "Demo_1"`, `lower-case letters`},
		"long name":      {`name = "a2345678901234567890123456789012345678901"`, `40 characters at most`},
		"version":        {`version = "latest"`, `not a Kubernetes version`},
		"no version":     {`version = "1.36"`, `write three numbers`},
		"host bits":      {`network = { pod_cidrs = ["10.64.0.1/16"] }`, `10.64.0.0/16`},
		"not a range":    {`network = { pod_cidrs = ["10.64.0.0"] }`, `CIDR`},
		"IPv6":           {`network = { pod_cidrs = ["fd00::/64"] }`, `IPv6 ranges cannot be used yet`},
		"two ranges":     {`network = { pod_cidrs = ["10.64.0.0/16", "10.65.0.0/16"] }`, `at most 1 elements`},
		"node mask":      {`network = { node_mask = 8 }`, `between 16 and 28`},
		"domain":         {`network = { dns_domain = "Cluster_local" }`, `DNS domain`},
		"port":           {`api = { port = 443 }`, `between 1024 and`},
		"gateway port":   {`gateway = { port = 70000 }`, `between 1024 and`},
		"timeout":        {`timeouts = { create = "soon" }`, `(?i)duration`},
		"no placement":   {`local = null`, `(?i)local`},
		"no such option": {`ssh = {}`, `(?i)unsupported argument`},
	})
}

// These take more than one attribute to see, and are seen by the plan.
func TestBadInputTogether(t *testing.T) {
	acctest.Refused(t, "edge_cluster", map[string]string{"name": `name = "demo"`, "version": `version = "1.36.3"`, "local": `local = {}`}, map[string][2]string{
		"unknown":    {`version = "1.2.3"`, `unknown Kubernetes version.*known are`},
		"overlap":    {`network = { pod_cidrs = ["10.64.0.0/16"], service_cidrs = ["10.64.16.0/20"] }`, `overlaps pod range`},
		"small pods": {`network = { pod_cidrs = ["10.64.0.0/26"] }`, `does not hold a single node`},
	})
}

func TestDefaultTimeouts(t *testing.T) {
	want := entity.Timeouts{Create: 45 * time.Minute, Read: 30 * time.Second, Update: 45 * time.Minute, Delete: 10 * time.Minute}
	if diff := cmp.Diff(want, cluster.DefaultTimeouts); diff != "" {
		t.Error(diff)
	}
}

func TestCredentials(t *testing.T) {
	eng := fakeengine.New()
	c := config("") + `
ephemeral "edge_cluster_credentials" "admin" {
  cluster_id = edge_cluster.test.id
  ttl        = "30m"
}
provider "echo" {
  data = {
    host       = ephemeral.edge_cluster_credentials.admin.host
    expires_at = ephemeral.edge_cluster_credentials.admin.expires_at
    has_key    = ephemeral.edge_cluster_credentials.admin.client_key != ""
  }
}
resource "echo" "test" {}
`
	data := tfjsonpath.New("data")
	acctest.Run(t, eng,
		resource.TestStep{
			Config: config("") + `
ephemeral "edge_cluster_credentials" "admin" {
  cluster_id = "demo"
  ttl        = "2s"
}`,
			ExpectError: regexp.MustCompile(`an id looks like local/quickstart`),
		},
		resource.TestStep{ // in one apply with the cluster
			Config: c,
			ConfigStateChecks: []statecheck.StateCheck{
				statecheck.ExpectKnownValue("echo.test", data.AtMapKey("host"), knownvalue.StringExact("https://127.0.0.1:20001")),
				statecheck.ExpectKnownValue("echo.test", data.AtMapKey("expires_at"), knownvalue.StringExact("2030-01-02T03:34:05Z")),
				statecheck.ExpectKnownValue("echo.test", data.AtMapKey("has_key"), knownvalue.Bool(true)),
				acctest.NoSecrets(),
			},
		},
	)
}
