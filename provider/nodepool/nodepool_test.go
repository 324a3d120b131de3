package nodepool_test

import (
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
	"github.com/hashicorp/terraform-plugin-testing/terraform"
	"github.com/hashicorp/terraform-plugin-testing/tfjsonpath"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/acctest"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
	"github.com/edgewright/terraform-provider-edge/provider/internal/fakeengine"
	"github.com/edgewright/terraform-provider-edge/provider/nodepool"
)

func TestMain(m *testing.M) { acctest.Main(m) }

const (
	address = "edge_node_pool.test"
	cluster = `
resource "edge_cluster" "main" {
  name    = "demo"
  version = "1.36.3"
  local   = {}
}
`
)

func config(more string) string {
	return cluster + fmt.Sprintf(`
resource "edge_node_pool" "test" {
  cluster_id = edge_cluster.main.id
  name       = "berlin"
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
  labels      = { region = "eu", "example.com/tier" = "" }
  annotations = { "example.com/note" = "any text, really" }
  taints      = ["dedicated=edge:NoSchedule", "slow:PreferNoSchedule"]
`

func TestLifeOfAPool(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{
			Config: config(""),
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
				plancheck.ExpectUnknownValue(address, tfjsonpath.New("cluster_id")), // in one plan with the cluster
			}},
			ConfigStateChecks: []statecheck.StateCheck{
				statecheck.ExpectKnownValue(address, tfjsonpath.New("id"), knownvalue.StringExact("local/demo-00000001/berlin")),
				statecheck.ExpectKnownValue(address, tfjsonpath.New("type"), knownvalue.StringExact("edge")),
				statecheck.ExpectKnownValue(address, tfjsonpath.New("status"), knownvalue.StringExact("ready")),
			},
		},
		resource.TestStep{Config: config(full), ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
			plancheck.ExpectResourceAction(address, plancheck.ResourceActionUpdate),
			plancheck.ExpectKnownValue(address, tfjsonpath.New("id"), knownvalue.StringExact("local/demo-00000001/berlin")),
		}}},
		resource.TestStep{Config: config(full), ConfigPlanChecks: empty()},
		resource.TestStep{ResourceName: address, ImportState: true, ImportStateVerify: true},
		resource.TestStep{Config: config(`labels = {}`), ConfigPlanChecks: action(plancheck.ResourceActionUpdate)},
		resource.TestStep{Config: config(`labels = {}`), ConfigPlanChecks: empty()},
	)
}

func TestDrift(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{Config: config(full)},
		resource.TestStep{
			PreConfig: func() {
				eng.Pool(func(p *engine.Pool) {
					p.Spec = v1alpha1.NodePoolSpec{ // as the cluster orders it; no label
						Annotations: p.Spec.Annotations,
						Taints:      []corev1.Taint{p.Spec.Taints[1], p.Spec.Taints[0]},
						Labels:      map[string]string{"example.com/tier": ""},
					}
				})
			},
			Config: config(full),
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
				plancheck.ExpectResourceAction(address, plancheck.ResourceActionUpdate),
				plancheck.ExpectKnownValue(address, tfjsonpath.New("labels"), knownvalue.MapSizeExact(2)),
			}},
		},
		resource.TestStep{Config: config(full), ConfigPlanChecks: empty()},
		resource.TestStep{ // it disappears
			PreConfig: func() {
				for _, id := range eng.ClusterIDs() {
					if err := eng.DeletePool(t.Context(), id, "berlin"); err != nil {
						t.Error(err)
					}
				}
			},
			Config:           config(full),
			ConfigPlanChecks: action(plancheck.ResourceActionCreate),
		},
	)
}

func TestAutonomy(t *testing.T) {
	eng := fakeengine.New()
	specIs := func(want *v1alpha1.AutonomySpec) func(*terraform.State) error {
		return func(*terraform.State) (err error) {
			eng.Pool(func(p *engine.Pool) {
				if d := cmp.Diff(want, p.Spec.Autonomy); d != "" {
					err = errors.New(d)
				}
			})
			return err
		}
	}
	day := &metav1.Duration{Duration: 24 * time.Hour}
	acctest.Run(t, eng,
		resource.TestStep{Config: config(""), Check: specIs(nil)},
		resource.TestStep{
			Config: config(`autonomy = { duration = "24h" }`), ConfigPlanChecks: action(plancheck.ResourceActionUpdate),
			Check: specIs(&v1alpha1.AutonomySpec{Duration: day, ImagePullPolicy: v1alpha1.PullIfNotPresent}),
			ConfigStateChecks: []statecheck.StateCheck{
				statecheck.ExpectKnownValue(address, tfjsonpath.New("autonomy").AtMapKey("duration"), knownvalue.StringExact("24h")),
				statecheck.ExpectKnownValue(address, tfjsonpath.New("autonomy").AtMapKey("image_pull_policy"), knownvalue.StringExact("IfNotPresent")),
			},
		},
		resource.TestStep{Config: config(`autonomy = { duration = "1440m" }`), ConfigPlanChecks: empty()}, // another spelling
		resource.TestStep{ResourceName: address, ImportState: true, ImportStateVerify: true, ImportStateVerifyIgnore: []string{"autonomy.duration"}},
		resource.TestStep{
			Config: config(`autonomy = { image_pull_policy = "AsDeclared" }`), ConfigPlanChecks: action(plancheck.ResourceActionUpdate),
			Check: specIs(&v1alpha1.AutonomySpec{ImagePullPolicy: v1alpha1.PullAsDeclared}),
		},
		resource.TestStep{ // drift
			PreConfig:        func() { eng.Pool(func(p *engine.Pool) { p.Spec.Autonomy.Duration = day }) },
			Config:           config(`autonomy = { image_pull_policy = "AsDeclared" }`),
			ConfigPlanChecks: action(plancheck.ResourceActionUpdate),
		},
		resource.TestStep{Config: config(`autonomy = {}`), ConfigPlanChecks: action(plancheck.ResourceActionUpdate)},
		resource.TestStep{Config: config(`autonomy = {}`), ConfigPlanChecks: empty()},
		resource.TestStep{Config: config(""), ConfigPlanChecks: action(plancheck.ResourceActionUpdate), Check: specIs(nil)},
	)
}

func TestNetwork(t *testing.T) {
	eng := fakeengine.New()
	specIs := func(want *v1alpha1.NetworkSpec) func(*terraform.State) error {
		return func(*terraform.State) (err error) {
			eng.Pool(func(p *engine.Pool) {
				if d := cmp.Diff(want, p.Spec.Network); d != "" {
					err = errors.New(d)
				}
			})
			return err
		}
	}
	transportIs := func(want string) []statecheck.StateCheck {
		return []statecheck.StateCheck{statecheck.ExpectKnownValue(address, tfjsonpath.New("network").AtMapKey("transport"), knownvalue.StringExact(want))}
	}
	acctest.Run(t, eng,
		resource.TestStep{Config: config(""), Check: specIs(nil)},
		resource.TestStep{
			Config: config(`network = { transport = "tcp" }`), ConfigPlanChecks: action(plancheck.ResourceActionUpdate),
			Check: specIs(&v1alpha1.NetworkSpec{Transport: v1alpha1.TransportTCP}), ConfigStateChecks: transportIs("tcp"),
		},
		resource.TestStep{Config: config(`network = { transport = "tcp" }`), ConfigPlanChecks: empty()},
		resource.TestStep{ResourceName: address, ImportState: true, ImportStateVerify: true},
		resource.TestStep{ // drift
			PreConfig:        func() { eng.Pool(func(p *engine.Pool) { p.Spec.Network = nil }) },
			Config:           config(`network = { transport = "tcp" }`),
			ConfigPlanChecks: action(plancheck.ResourceActionUpdate),
		},
		resource.TestStep{
			Config: config(`network = { transport = "quic" }`), ConfigPlanChecks: action(plancheck.ResourceActionUpdate),
			Check: specIs(&v1alpha1.NetworkSpec{Transport: v1alpha1.TransportQUIC}),
		},
		resource.TestStep{Config: config(`network = {}`), ConfigPlanChecks: action(plancheck.ResourceActionUpdate), ConfigStateChecks: transportIs("auto")},
		resource.TestStep{Config: config(`network = {}`), ConfigPlanChecks: empty()},
		resource.TestStep{Config: config(""), ConfigPlanChecks: action(plancheck.ResourceActionUpdate), Check: specIs(nil)},
		resource.TestStep{ // what others have written and means nothing
			PreConfig: func() {
				eng.Pool(func(p *engine.Pool) { p.Spec.Network = &v1alpha1.NetworkSpec{Transport: v1alpha1.TransportAuto} })
			},
			Config: config(""), ConfigPlanChecks: empty(),
		},
	)
}

func TestImmutableAndReplaced(t *testing.T) {
	eng := fakeengine.New()
	renamed := cluster + `
resource "edge_node_pool" "test" {
  cluster_id = edge_cluster.main.id
  name       = "tokyo"
  type       = "cloud"
}
`
	acctest.Run(t, eng,
		resource.TestStep{Config: config("")},
		resource.TestStep{Config: config(`type = "cloud"`), PlanOnly: true, ExpectError: regexp.MustCompile(`type of a node pool cannot be changed`)},
		// What replaces anyway may change what is immutable.
		resource.TestStep{Config: renamed, ConfigPlanChecks: action(plancheck.ResourceActionDestroyBeforeCreate)},
		// A cluster that is replaced on purpose takes its pools along.
		resource.TestStep{Config: renamed, Taint: []string{"edge_cluster.main"}, ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
			plancheck.ExpectResourceAction(address, plancheck.ResourceActionDestroyBeforeCreate),
			plancheck.ExpectUnknownValue(address, tfjsonpath.New("cluster_id")),
		}}},
	)
}

func TestUnfinishedCreate(t *testing.T) {
	eng := fakeengine.New()
	eng.Fail("CreatePool", fakeengine.Fault{Recorded: true, Err: &engine.Error{Class: engine.Unfinished, Op: "create pool", Object: "x", Err: errors.New("interrupted")}})
	acctest.Run(t, eng,
		resource.TestStep{
			Config: config(""),
			ConfigStateChecks: []statecheck.StateCheck{
				statecheck.ExpectKnownValue(address, tfjsonpath.New("id"), knownvalue.StringExact("local/demo-00000001/berlin")),
			},
		},
		resource.TestStep{Config: config(""), ConfigPlanChecks: empty()},
	)
}

func TestInterruptedDestroy(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{Config: config("")},
		resource.TestStep{
			PreConfig: func() {
				eng.Fail("DeletePool", fakeengine.Fault{Err: &engine.Error{Class: engine.Unfinished, Op: "delete pool", Object: "x", Err: errors.New("interrupted")}})
			},
			Config: cluster, ExpectError: regexp.MustCompile(`(?s)stays\s+in\s+state`),
		},
		resource.TestStep{Config: cluster},
	)
}

func TestPoolWithNodesIsRefused(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{Config: config("")},
		resource.TestStep{
			PreConfig: func() {
				eng.Fail("DeletePool", fakeengine.Fault{Err: &engine.Error{
					Class: engine.Refused, Op: "delete pool", Object: "local/demo-00000001/berlin",
					Err: errors.New("these nodes belong to it: cam-1, cam-2"), Next: "Destroy them first",
				}})
			},
			Config: cluster, ExpectError: regexp.MustCompile(`(?s)Cannot delete pool local/demo-00000001/berlin.*cam-1, cam-2.*Destroy\s+them\s+first`),
		},
		resource.TestStep{Config: config(""), ConfigPlanChecks: empty()},
	)
}

func TestBadInput(t *testing.T) {
	acctest.Refused(t, "edge_node_pool", map[string]string{"name": `name = "berlin"`, "cluster_id": `cluster_id = "local/demo-00000001"`}, map[string][2]string{
		"name":           {`name = "Berlin"`, `lower-case letters`},
		"long name":      {`name = "a2345678901234567890123456789012345678901"`, `40 characters`},
		"cluster id":     {`cluster_id = "demo"`, `an id looks like`},
		"type":           {`type = "fog"`, `one of`},
		"label key":      {`labels = { "a b" = "c" }`, `labels`},
		"label value":    {`labels = { a = "b c" }`, `labels`},
		"null label":     {`labels = { a = null }`, `leave the key out`},
		"no duration":    {`autonomy = { duration = "long" }`, `not a duration`},
		"zero duration":  {`autonomy = { duration = "0s" }`, `longer than nothing`},
		"pull policy":    {`autonomy = { image_pull_policy = "Always" }`, `one of`},
		"cloud autonomy": {"type = \"cloud\"\n autonomy = { duration = \"1h\" }", `beside the\s+control\s+plane`},
		"transport":      {`network = { transport = "udp" }`, `one of`},
		"own label":      {`labels = { "edgewright.dev/pool" = "other" }`, `own controllers`},
		"annotation":     {`annotations = { "-" = "c" }`, `annotations`},
		"taint":          {`taints = ["dedicated"]`, `has no effect`},
		"taint effect":   {`taints = ["dedicated:Never"]`, `is no effect`},
		"taint spelling": {`taints = ["dedicated=:NoSchedule"]`, `leave out the =`},
		"two taints":     {`taints = ["a=b:NoSchedule", "a=c:NoSchedule"]`, `one taint of a key and effect`},
	})
}

func TestDefaultTimeouts(t *testing.T) {
	want := entity.Timeouts{Create: 10 * time.Minute, Read: 30 * time.Second, Update: 10 * time.Minute, Delete: 10 * time.Minute}
	if diff := cmp.Diff(want, nodepool.DefaultTimeouts); diff != "" {
		t.Error(diff)
	}
}
