package unitdeployment_test

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
	"github.com/hashicorp/terraform-plugin-testing/tfjsonpath"
	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/acctest"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
	"github.com/edgewright/terraform-provider-edge/provider/internal/fakeengine"
	"github.com/edgewright/terraform-provider-edge/provider/unitdeployment"
)

func TestMain(m *testing.M) { acctest.Main(m) }

const (
	address = "edge_unit_deployment.test"
	cluster = `
resource "edge_cluster" "main" {
  name    = "demo"
  version = "1.36.3"
  local   = {}
}
`
	small = `
  template = { containers = { web = { image = "agnhost:2.63" } } }
  pools    = { berlin = {} }
`
	// full uses every attribute, spellings that are not canonical, and empty
	// things that mean the same as none.
	full = `
  namespace = "default"
  template = {
    labels = { tier = "front" }
    containers = {
      web = {
        image   = "agnhost:2.63"
        command = ["/agnhost"]
        args    = ["netexec", "--http-port=8080"]
        env     = { SITE = "none" }
        ports   = { http = { port = 8080 }, dns = { port = 5353, protocol = "UDP" } }
        resources = {
          requests = { cpu = "0.1", memory = "65536Ki" }
          limits   = { memory = "0.5Gi" }
        }
      }
      side = {
        image   = "pause:3.10"
        command = []
        env     = {}
        ports   = {}
        resources = {}
      }
    }
  }
  pools = {
    berlin = {
      replicas = 2
      env      = { SITE = "berlin" }
      containers = {
        web = {
          image     = "agnhost:2.64"
          env       = { LANG = "de" }
          args      = ["netexec"]
          command   = ["/other"]
          resources = { limits = { cpu = "1000m" } }
        }
      }
    }
    tokyo = { env = { SITE = "tokyo" } }
    paris = { containers = {} }
  }
  service = {
    type = "NodePort"
    ports = {
      http = { port = 80, target_port = "http" }
      raw  = { port = 81, target_port = "8080" }
      dns  = { port = 53, protocol = "UDP", target_port = "dns" }
    }
  }
  wait = { rollout = false }
`
)

func config(body string) string {
	return cluster + fmt.Sprintf(`
resource "edge_unit_deployment" "test" {
  cluster_id = edge_cluster.main.id
  name       = "web"
  %s
}
`, body)
}

func action(a plancheck.ResourceActionType) resource.ConfigPlanChecks {
	return resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction(address, a)}}
}

func empty() resource.ConfigPlanChecks {
	return resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()}}
}

func TestSmall(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{
			Config: config(small),
			ConfigStateChecks: []statecheck.StateCheck{
				statecheck.ExpectKnownValue(address, tfjsonpath.New("id"), knownvalue.StringExact("local/demo-00000001/default/web")),
				statecheck.ExpectKnownValue(address, tfjsonpath.New("pools").AtMapKey("berlin").AtMapKey("replicas"), knownvalue.Int64Exact(1)),
				statecheck.ExpectKnownValue(address, tfjsonpath.New("service"), knownvalue.Null()),
			},
		},
		resource.TestStep{Config: config(small), ConfigPlanChecks: empty()},
		resource.TestStep{ResourceName: address, ImportState: true, ImportStateVerify: true},
	)
}

func TestFull(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{Config: config(full)},
		resource.TestStep{
			// The API server spells quantities its own way.
			PreConfig: func() {
				eng.Unit(func(u *engine.Unit) {
					for i := range u.Spec.Template.Containers {
						if r := u.Spec.Template.Containers[i].Resources; r != nil {
							r.Requests[corev1.ResourceCPU] = apiresource.MustParse("100m")
							r.Requests[corev1.ResourceMemory] = apiresource.MustParse("64Mi")
							r.Limits[corev1.ResourceMemory] = apiresource.MustParse("512Mi")
						}
					}
				})
			},
			Config: config(full), ConfigPlanChecks: empty(),
		},
		resource.TestStep{
			ResourceName: address, ImportState: true, ImportStateVerify: true,
			ImportStateVerifyIgnore: []string{
				"wait", "template.containers.web.resources", "pools.berlin.containers.web.resources", "template.containers.side", "pools.paris",
			},
		},
		resource.TestStep{Config: config(small), ConfigPlanChecks: action(plancheck.ResourceActionUpdate)},
		resource.TestStep{Config: config(small), ConfigPlanChecks: empty()},
		resource.TestStep{Config: config(full), ConfigPlanChecks: action(plancheck.ResourceActionUpdate)},
		resource.TestStep{Config: config(full), ConfigPlanChecks: empty()},
	)
}

func TestSpecThatReachesTheEngine(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng, resource.TestStep{
		Config: config(full),
		PostApplyFunc: func() {
			eng.Unit(func(u *engine.Unit) {
				pools := map[string]int32{}
				for _, p := range u.Spec.Pools {
					pools[p.Name] = *p.Replicas
				}
				if diff := cmp.Diff(map[string]int32{"berlin": 2, "tokyo": 1, "paris": 1}, pools); diff != "" {
					t.Error(diff)
				}
				if u.Spec.Service.Type != corev1.ServiceTypeNodePort || len(u.Spec.Service.Ports) != 3 {
					t.Errorf("service is %+v", u.Spec.Service)
				}
				if len(u.Spec.Template.Containers) != 2 {
					t.Errorf("containers are %+v", u.Spec.Template.Containers)
				}
			})
		},
	})
}

func TestChangesInPlaceAndDrift(t *testing.T) {
	eng := fakeengine.New()
	scaled := regexp.MustCompile(`berlin = \{\}`).ReplaceAllString(small, `berlin = { replicas = 3, env = { A = "b" } }`)
	acctest.Run(t, eng,
		resource.TestStep{Config: config(small)},
		resource.TestStep{Config: config(scaled), ConfigPlanChecks: action(plancheck.ResourceActionUpdate)},
		resource.TestStep{
			PreConfig: func() {
				eng.Unit(func(u *engine.Unit) { *u.Spec.Pools[0].Replicas = 9; u.Spec.Pools[0].Env = nil })
			},
			Config:           config(scaled),
			ConfigPlanChecks: action(plancheck.ResourceActionUpdate),
		},
		resource.TestStep{Config: config(scaled), ConfigPlanChecks: empty()},
		resource.TestStep{
			Config: cluster + `
resource "edge_unit_deployment" "test" {
  cluster_id = edge_cluster.main.id
  name       = "other"
` + small + `}`,
			ConfigPlanChecks: action(plancheck.ResourceActionDestroyBeforeCreate),
		},
	)
}

func TestRolloutThatRanOutOfTime(t *testing.T) {
	eng := fakeengine.New()
	eng.Fail("CreateUnit", fakeengine.Fault{Recorded: true, Status: "incomplete: rollout",
		Err: &engine.Error{Class: engine.Unfinished, Op: "roll out", Object: "web", Err: errors.New("berlin waits for a node")}})
	acctest.Run(t, eng,
		resource.TestStep{
			Config: config(small), ExpectNonEmptyPlan: true,
			ConfigStateChecks: []statecheck.StateCheck{
				statecheck.ExpectKnownValue(address, tfjsonpath.New("status"), knownvalue.StringExact("incomplete: rollout")),
			},
		},
		resource.TestStep{Config: config(small), ConfigPlanChecks: action(plancheck.ResourceActionUpdate)},
		resource.TestStep{Config: config(small), ConfigPlanChecks: empty()},
	)
}

func TestFailedRollout(t *testing.T) {
	eng := fakeengine.New()
	acctest.Run(t, eng,
		resource.TestStep{Config: config(small)},
		resource.TestStep{
			PreConfig: func() {
				eng.Fail("UpdateUnit", fakeengine.Fault{Recorded: true, Status: "incomplete: rollout", Err: &engine.Error{
					Class: engine.Failed, Op: "roll out", Object: "web in berlin", Field: "template.containers.web.image", Err: errors.New("ErrImagePull: no such image")}})
			},
			Config:      config(regexp.MustCompile(`agnhost:2.63`).ReplaceAllString(small, `nosuch:1`)),
			ExpectError: regexp.MustCompile(`(?s)Cannot roll out web in berlin.*ErrImagePull.*template.containers.web.image`),
		},
		// State holds what is: going back is a change, and so is going on.
		resource.TestStep{Config: config(small), ConfigPlanChecks: action(plancheck.ResourceActionUpdate)},
		resource.TestStep{Config: config(small), ConfigPlanChecks: empty()},
	)
}

// Everything may be unknown in a plan.
func TestUnknownAtPlan(t *testing.T) {
	eng := fakeengine.New()
	c := `
resource "terraform_data" "late" {
  input = { pools = { berlin = { replicas = 2 } }, image = "agnhost:2.63", containers = { web = { image = "agnhost:2.63" } }, cpu = "0.50", name = "web" }
}
` + config(`
  template = { containers = { web = {
    image     = terraform_data.late.output.image
    resources = { requests = { cpu = terraform_data.late.output.cpu } }
  } } }
  pools = terraform_data.late.output.pools
  service = { ports = { http = { port = 80, target_port = terraform_data.late.output.name } } }
`)
	acctest.Run(t, eng,
		resource.TestStep{Config: regexp.MustCompile(`  service.*\n`).ReplaceAllString(c, "")},
		resource.TestStep{Config: regexp.MustCompile(`  service.*\n`).ReplaceAllString(c, ""), ConfigPlanChecks: empty()},
	)
}

func TestBadInput(t *testing.T) {
	acctest.Refused(t, "edge_unit_deployment", map[string]string{"name": `name = "web"`, "cluster_id": `cluster_id = "local/demo-00000001"`, "template": `template = { containers = { web = { image = "a" } } }`, "pools": `pools = {}`}, map[string][2]string{
		"no containers":   {`template = { containers = {} }`, `at least 1`},
		"container name":  {`template = { containers = { Web = { image = "a" } } }`, `lower-case`},
		"no image":        {`template = { containers = { web = {} } }`, `image`},
		"bad image":       {`template = { containers = { web = { image = "a b" } } }`, `without spaces`},
		"env":             {`template = { containers = { web = { image = "a", env = { "1A" = "x" } } } }`, `environment variable`},
		"port":            {`template = { containers = { web = { image = "a", ports = { http = { port = 0 } } } } }`, `between 1 and`},
		"port name":       {`template = { containers = { web = { image = "a", ports = { "HTTP" = { port = 1 } } } } }`, `name of a port`},
		"protocol":        {`template = { containers = { web = { image = "a", ports = { http = { port = 1, protocol = "SCTP" } } } } }`, `one of`},
		"quantity":        {`template = { containers = { web = { image = "a", resources = { limits = { cpu = "much" } } } } }`, `not a quantity`},
		"above limit":     {`template = { containers = { web = { image = "a", resources = { requests = { cpu = "2" }, limits = { cpu = "500m" } } } } }`, `above the limit`},
		"pool name":       {`pools = { "Berlin" = {} }`, `lower-case`},
		"replicas":        {`pools = { berlin = { replicas = -1 } }`, `between 0 and`},
		"no such":         {`pools = { berlin = { containers = { db = { image = "a" } } } }`, `no container "db"`},
		"service type":    {`service = { type = "LoadBalancer", ports = { http = { port = 80 } } }`, `one of`},
		"no ports":        {`service = { ports = {} }`, `at least 1`},
		"target port":     {`service = { ports = { http = { port = 80, target_port = "http" } } }`, `No container of the template has a port "http"`},
		"target number":   {`service = { ports = { http = { port = 80, target_port = "0" } } }`, `from 1 to 65535`},
		"namespace":       {`namespace = "kube_system"`, `lower-case`},
		"reserved labels": {`template = { labels = { "edgewright.dev/x" = "y" }, containers = { web = { image = "a" } } }`, `own controllers`},
	})
}

func TestDefaultTimeouts(t *testing.T) {
	want := entity.Timeouts{Create: 10 * time.Minute, Read: 30 * time.Second, Update: 10 * time.Minute, Delete: 10 * time.Minute}
	if diff := cmp.Diff(want, unitdeployment.DefaultTimeouts); diff != "" {
		t.Error(diff)
	}
}
