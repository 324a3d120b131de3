package node_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/terraform-plugin-testing/helper/resource"
	"github.com/hashicorp/terraform-plugin-testing/knownvalue"
	"github.com/hashicorp/terraform-plugin-testing/plancheck"
	"github.com/hashicorp/terraform-plugin-testing/statecheck"
	"github.com/hashicorp/terraform-plugin-testing/tfjsonpath"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/acctest"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
	"github.com/edgewright/terraform-provider-edge/provider/internal/fakeengine"
	"github.com/edgewright/terraform-provider-edge/provider/node"
)

func TestMain(m *testing.M) { acctest.Main(m) }

const (
	address = "edge_node.test"
	pool    = `
resource "edge_cluster" "main" {
  name    = "demo"
  version = "1.36.3"
  local   = {}
}

resource "edge_node_pool" "berlin" {
  cluster_id = edge_cluster.main.id
  name       = "berlin"
}
`
)

func config(more string) string {
	return pool + fmt.Sprintf(`
resource "edge_node" "test" {
  cluster_id = edge_cluster.main.id
  pool       = edge_node_pool.berlin.name
  name       = "cam-1"
  local      = {}
  %s
}
`, more)
}

func action(a plancheck.ResourceActionType) resource.ConfigPlanChecks {
	return resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction(address, a)}}
}

func empty() resource.ConfigPlanChecks {
	return resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()}}
}

const full = `
  labels = { rack = "a1" }
  taints = ["camera:NoExecute"]
  wait   = false
  on_destroy = {
    drain   = false
    timeout = "1h30m"
  }
`

func TestLifeOfANode(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{
			Config: config(""),
			ConfigStateChecks: []statecheck.StateCheck{
				statecheck.ExpectKnownValue(address, tfjsonpath.New("id"), knownvalue.StringExact("local/demo-00000001/cam-1")),
				statecheck.ExpectKnownValue(address, tfjsonpath.New("status"), knownvalue.StringExact("ready")),
				statecheck.ExpectKnownValue(address, tfjsonpath.New("architecture"), knownvalue.StringExact("amd64")),
				statecheck.ExpectKnownValue(address, tfjsonpath.New("wait"), knownvalue.Bool(true)),
				statecheck.ExpectKnownValue(address, tfjsonpath.New("on_destroy"), knownvalue.ObjectExact(map[string]knownvalue.Check{
					"drain": knownvalue.Bool(true), "timeout": knownvalue.StringExact("60s"),
				})),
			},
		},
		resource.TestStep{Config: config(""), ConfigPlanChecks: empty()},
		resource.TestStep{ResourceName: address, ImportState: true, ImportStateVerify: true, ImportStateVerifyIgnore: []string{"on_destroy.timeout"}},
		resource.TestStep{Config: config(`on_destroy = { timeout = "1m" }`), ConfigPlanChecks: empty()}, // another spelling
		resource.TestStep{Config: config(full), ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
			plancheck.ExpectResourceAction(address, plancheck.ResourceActionUpdate),
			plancheck.ExpectKnownValue(address, tfjsonpath.New("id"), knownvalue.StringExact("local/demo-00000001/cam-1")),
			plancheck.ExpectKnownValue(address, tfjsonpath.New("architecture"), knownvalue.StringExact("amd64")),
		}}},
		resource.TestStep{Config: config(full), ConfigPlanChecks: empty()},
	)
}

func TestDrift(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{Config: config(full)},
		resource.TestStep{
			PreConfig: func() {
				eng.Node(func(n *engine.Node) { n.Spec.Labels, n.Spec.Drain = map[string]string{"rack": "b2"}, nil })
			},
			Config:           config(full),
			ConfigPlanChecks: action(plancheck.ResourceActionUpdate),
		},
		resource.TestStep{Config: config(full), ConfigPlanChecks: empty()},
		resource.TestStep{
			PreConfig: func() {
				if err := eng.DeleteNode(t.Context(), eng.ClusterIDs()[0], "cam-1"); err != nil {
					t.Error(err)
				}
			},
			Config:           config(full),
			ConfigPlanChecks: action(plancheck.ResourceActionCreate),
		},
	)
}

// A person on another machine sees the node through the cluster alone, which
// does not know where it is placed.
func TestPlacementIsNoDrift(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{Config: config("")},
		resource.TestStep{
			PreConfig:        func() { eng.Node(func(n *engine.Node) { n.Local = false }) },
			Config:           config(""),
			ConfigPlanChecks: empty(),
		},
	)
}

func TestReplaced(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{Config: config("")},
		resource.TestStep{
			Config: pool + `
resource "edge_node_pool" "tokyo" {
  cluster_id = edge_cluster.main.id
  name       = "tokyo"
}

resource "edge_node" "test" {
  cluster_id = edge_cluster.main.id
  pool       = edge_node_pool.tokyo.name
  name       = "cam-1"
  local      = {}
}`,
			ConfigPlanChecks: action(plancheck.ResourceActionDestroyBeforeCreate),
		},
	)
}

func TestUnfinishedJoinIsFinishedInPlace(t *testing.T) {
	eng := fakeengine.New()
	eng.Fail("CreateNode", fakeengine.Fault{Recorded: true, Status: "incomplete: joining",
		Err: &engine.Error{Class: engine.Unfinished, Op: "create node", Object: "x", Err: context.Canceled}})
	acctest.Run(t, eng,
		resource.TestStep{
			Config: config(""), ExpectNonEmptyPlan: true,
			ConfigStateChecks: []statecheck.StateCheck{
				statecheck.ExpectKnownValue(address, tfjsonpath.New("status"), knownvalue.StringExact("incomplete: joining")),
				statecheck.ExpectKnownValue(address, tfjsonpath.New("architecture"), knownvalue.Null()),
			},
		},
		resource.TestStep{
			Config: config(""),
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
				plancheck.ExpectResourceAction(address, plancheck.ResourceActionUpdate),
				plancheck.ExpectUnknownValue(address, tfjsonpath.New("architecture")),
			}},
			ConfigStateChecks: []statecheck.StateCheck{
				statecheck.ExpectKnownValue(address, tfjsonpath.New("architecture"), knownvalue.StringExact("amd64")),
			},
		},
		resource.TestStep{Config: config(""), ConfigPlanChecks: empty()},
	)
}

func TestRebootedMachine(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{Config: config("")},
		resource.TestStep{
			PreConfig: func() {
				eng.Cluster(func(c *engine.Cluster) { c.Status = engine.StatusStopped })
				eng.Node(func(n *engine.Node) { n.Status = engine.StatusStopped })
			},
			Config: config(""),
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
				plancheck.ExpectResourceAction("edge_cluster.main", plancheck.ResourceActionUpdate),
				plancheck.ExpectResourceAction("edge_node_pool.berlin", plancheck.ResourceActionNoop),
				plancheck.ExpectResourceAction(address, plancheck.ResourceActionUpdate),
			}},
		},
		resource.TestStep{Config: config(""), ConfigPlanChecks: empty()},
	)
}

// The cluster is down too, so that only the machine can tell that the node is.
func TestStoppedNodeOfAStoppedCluster(t *testing.T) {
	eng := fakeengine.New()
	unreachable := &engine.Error{Class: engine.Unreachable, Op: "read node", Object: "x", Err: errors.New("connection refused")}
	acctest.Run(t, eng,
		resource.TestStep{Config: config("")},
		resource.TestStep{
			PreConfig: func() {
				eng.Cluster(func(c *engine.Cluster) { c.Status = engine.StatusStopped })
				eng.Node(func(n *engine.Node) {
					n.Status, n.Spec, n.Architecture = engine.StatusStopped, v1alpha1.EdgeNodeSpec{}, "" // all that is known
				})
				eng.Fail("ReadNode", fakeengine.Fault{Err: unreachable, Recorded: true})
			},
			Config: config(""),
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
				plancheck.ExpectResourceAction("edge_cluster.main", plancheck.ResourceActionUpdate),
				plancheck.ExpectResourceAction(address, plancheck.ResourceActionUpdate),
				plancheck.ExpectKnownValue(address, tfjsonpath.New("pool"), knownvalue.StringExact("berlin")),
			}},
		},
		resource.TestStep{Config: config(""), ConfigPlanChecks: empty()},
	)
}

func TestUnreachableClusterPlansNothing(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{Config: config("")},
		resource.TestStep{PreConfig: func() { eng.SetUnreachable(true) }, Config: config(""), ConfigPlanChecks: empty()},
		resource.TestStep{PreConfig: func() { eng.SetUnreachable(false) }, Config: config(""), ConfigPlanChecks: empty()},
	)
}

func TestDeleteTimeout(t *testing.T) {
	eng := fakeengine.New()
	c := config(`timeouts = { delete = "50ms" }`)
	acctest.Run(t, eng,
		resource.TestStep{Config: c},
		resource.TestStep{
			PreConfig:   func() { eng.Fail("DeleteNode", fakeengine.Fault{Block: true}) },
			Config:      pool,
			ExpectError: regexp.MustCompile(`(?s)timeouts\.delete.*goes\s+on\s+where`),
		},
		resource.TestStep{
			RefreshState: true, ExpectNonEmptyPlan: true, // the node is in state and not in the configuration
			Check: resource.TestCheckResourceAttr(address, "timeouts.delete", "50ms"),
		},
		resource.TestStep{Config: pool},
	)
}

func TestPoolUnknownToTheCluster(t *testing.T) {
	eng := fakeengine.New()
	eng.Fail("CreateNode", fakeengine.Fault{Err: &engine.Error{Class: engine.Refused, Op: "create node", Object: "cam-1", Field: "pool", Err: errors.New("there is no pool \"berlin\"")}})
	acctest.Run(t, eng,
		resource.TestStep{Config: config(""), ExpectError: regexp.MustCompile(`(?s)pool\s+= edge_node_pool.berlin.name.*there is no pool`)},
		resource.TestStep{Config: config("")},
	)
}

// A user who may not have local nodes learns it from the plan, whether the node
// is to be made, finished or started; a node that runs is not asked about.
func TestMachineThatMayNotHaveNodes(t *testing.T) {
	eng := fakeengine.New()
	refuse := func() {
		eng.Fail("CheckLocalNode", fakeengine.Fault{Err: &engine.Error{
			Class: engine.Invalid, Op: "check", Object: "this machine for local nodes", Field: "local",
			Err: errors.New("a local node needs root, and sudo asks for a password"),
		}})
	}
	told := regexp.MustCompile(`(?s)local\s+= \{\}.*sudo\s+asks\s+for\s+a\s+password`)
	acctest.Run(t, eng,
		resource.TestStep{PreConfig: refuse, Config: config(""), PlanOnly: true, ExpectError: told},
		resource.TestStep{
			PreConfig: func() {
				if n := eng.Calls("CreateCluster") + eng.Calls("CreateNode"); n != 0 {
					t.Errorf("%d things were made", n)
				}
			},
			Config: config(""),
		},
		resource.TestStep{PreConfig: refuse, Config: config(full), ConfigPlanChecks: action(plancheck.ResourceActionUpdate)},
		resource.TestStep{ // the refusal is still there for whom it concerns
			PreConfig: func() { eng.Node(func(n *engine.Node) { n.Status = engine.StatusStopped }) },
			Config:    config(full), PlanOnly: true, ExpectError: told,
		},
	)
}

func TestBadInput(t *testing.T) {
	acctest.Refused(t, "edge_node", map[string]string{"name": `name = "cam-1"`, "pool": `pool = "berlin"`, "local": `local = {}`, "cluster_id": `cluster_id = "local/demo-00000001"`}, map[string][2]string{
		"name":         {`name = "cam_1"`, `lower-case letters`},
		"reserved":     {`name = "edge-gateway"`, `name of the cluster's own`},
		"pool":         {`pool = ""`, `lower-case letters`},
		"cluster id":   {`cluster_id = "local/demo"`, `an id looks like`},
		"no placement": {`local = null`, `(?i)local`},
		"timeout":      {`on_destroy = { timeout = "soon" }`, `not a duration`},
		"no time":      {`on_destroy = { timeout = "-1s" }`, `longer than nothing`},
		"taint":        {`taints = ["x:y"]`, `is no effect`},
		"label":        {`labels = { "edgewright.dev/pool" = "tokyo" }`, `own controllers`},
	})
}

func TestBadImport(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{Config: config("")},
		resource.TestStep{ResourceName: address, ImportState: true, ImportStateId: "cam-1", ExpectError: regexp.MustCompile(`<cluster\s+id>/<node>`)},
		resource.TestStep{ResourceName: address, ImportState: true, ImportStateId: "local/demo-00000001/cam-9", ExpectError: regexp.MustCompile(`(?i)non-existent`)},
	)
}

func TestDefaultTimeouts(t *testing.T) {
	want := entity.Timeouts{Create: 20 * time.Minute, Read: 30 * time.Second, Update: 20 * time.Minute, Delete: 10 * time.Minute}
	if diff := cmp.Diff(want, node.DefaultTimeouts); diff != "" {
		t.Error(diff)
	}
}
