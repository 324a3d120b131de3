package node_test

import (
	"fmt"
	"regexp"
	"testing"
	"time"

	"github.com/hashicorp/terraform-plugin-testing/helper/resource"
	"github.com/hashicorp/terraform-plugin-testing/knownvalue"
	"github.com/hashicorp/terraform-plugin-testing/plancheck"
	"github.com/hashicorp/terraform-plugin-testing/statecheck"
	"github.com/hashicorp/terraform-plugin-testing/tfjsonpath"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/acctest"
	"github.com/edgewright/terraform-provider-edge/provider/internal/fakeengine"
)

const lookedUp = `
data "edge_node" "test" {
  cluster_id = edge_cluster.main.id
  name       = edge_node.test.name
}
`

// TestDataSource: what a cluster knows of a node follows the node, and changes
// nothing of the resource.
func TestDataSource(t *testing.T) {
	eng := fakeengine.New()
	const data = "data.edge_node.test"
	says := func(want map[string]knownvalue.Check) (checks []statecheck.StateCheck) {
		for name, check := range want {
			checks = append(checks, statecheck.ExpectKnownValue(data, tfjsonpath.New(name), check))
		}
		return checks
	}
	since := time.Date(2026, 3, 29, 2, 30, 0, 0, time.FixedZone("CET", 3600))
	eng.Look(engine.NodeSummary{Phase: "Ready", Connected: true, Autonomy: "Autonomous"})
	acctest.Run(t, eng,
		resource.TestStep{
			Config: config("") + lookedUp,
			ConfigStateChecks: says(map[string]knownvalue.Check{
				"id": knownvalue.StringExact("local/demo-00000001/cam-1"), "pool": knownvalue.StringExact("berlin"),
				"phase": knownvalue.StringExact("Ready"), "connected": knownvalue.Bool(true), "cut_since": knownvalue.Null(),
				"autonomy": knownvalue.ObjectExact(map[string]knownvalue.Check{
					"ready": knownvalue.Bool(true), "reason": knownvalue.StringExact("Autonomous"), "message": knownvalue.Null(),
				}),
				"architecture": knownvalue.StringExact("amd64"), "kubernetes_version": knownvalue.StringExact("1.36.3"),
			}),
		},
		resource.TestStep{
			PreConfig: func() {
				eng.Look(engine.NodeSummary{Phase: "NotReady", CutSince: &since, Autonomy: "DiskError", AutonomyMessage: "no space left on device"})
			},
			Config:           config("") + lookedUp,
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()}},
			ConfigStateChecks: says(map[string]knownvalue.Check{
				"phase": knownvalue.StringExact("NotReady"), "connected": knownvalue.Bool(false), "cut_since": knownvalue.StringExact("2026-03-29T01:30:00Z"),
				"autonomy": knownvalue.ObjectExact(map[string]knownvalue.Check{
					"ready": knownvalue.Bool(false), "reason": knownvalue.StringExact("DiskError"), "message": knownvalue.StringExact("no space left on device"),
				}),
			}),
		},
	)
}

func TestDataSourceOfNoNode(t *testing.T) {
	eng := fakeengine.New()
	step := func(cluster, name, want string) resource.TestStep {
		return resource.TestStep{
			Config:      pool + fmt.Sprintf("data \"edge_node\" \"test\" {\n  cluster_id = %s\n  name = %q\n}\n", cluster, name),
			ExpectError: regexp.MustCompile(want),
		}
	}
	acctest.Run(t, eng,
		step(`"here"`, "cam-1", `(?s)Must be the id of a cluster`),
		step("edge_cluster.main.id", "UPPER", `(?s)Must be a DNS label`),
		resource.TestStep{Config: pool},
		step("edge_cluster.main.id", "nobody", `(?s)Cannot look up node local/demo-00000001/nobody`),
		resource.TestStep{Config: pool},
	)
}
