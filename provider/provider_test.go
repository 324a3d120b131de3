package provider_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/terraform-plugin-framework/providerserver"
	"github.com/hashicorp/terraform-plugin-go/tfprotov6"
	"github.com/hashicorp/terraform-plugin-log/tflogtest"
	"github.com/hashicorp/terraform-plugin-testing/helper/resource"
	"github.com/hashicorp/terraform-plugin-testing/plancheck"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider"
	"github.com/edgewright/terraform-provider-edge/provider/internal/acctest"
	"github.com/edgewright/terraform-provider-edge/provider/internal/fakeengine"
)

func TestMain(m *testing.M) { acctest.Main(m) }

// serve is a provider whose engine is opened by open, with that environment.
func serve(open provider.EngineFactory, env map[string]string) func() (tfprotov6.ProviderServer, error) {
	return providerserver.NewProtocol6WithError(provider.New("1.2.3",
		provider.WithEngine(open),
		provider.WithEnvironment(func(name string) string { return env[name] }))())
}

func schemaOf(t *testing.T, open provider.EngineFactory) *tfprotov6.GetProviderSchemaResponse {
	t.Helper()
	server, err := serve(open, nil)()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := server.GetProviderSchema(t.Context(), &tfprotov6.GetProviderSchemaRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range resp.Diagnostics {
		t.Errorf("%s: %s", d.Summary, d.Detail)
	}
	return resp
}

func TestSchemaOpensNothing(t *testing.T) {
	schemaOf(t, func(provider.Settings) (provider.Engine, error) {
		t.Error("the engine was opened")
		return nil, errors.New("opened")
	})
}

func TestEverythingIsDescribed(t *testing.T) {
	resp := schemaOf(t, nil)
	all := map[string]*tfprotov6.Schema{"provider": resp.Provider}
	for name, s := range resp.ResourceSchemas {
		all[name] = s
	}
	for name, s := range resp.EphemeralResourceSchemas {
		all["ephemeral "+name] = s
	}
	for name, s := range resp.DataSourceSchemas {
		all["data "+name] = s
	}
	if len(all) != 7 {
		t.Errorf("there are %d schemas", len(all))
	}
	for name, s := range all {
		if s.Block.Description == "" {
			t.Errorf("%s is not described", name)
		}
		described(t, name, s.Block.Attributes)
	}
}

func described(t *testing.T, at string, attributes []*tfprotov6.SchemaAttribute) {
	t.Helper()
	for _, a := range attributes {
		name := at + "." + a.Name
		if !strings.HasSuffix(a.Description, ".") && !strings.HasSuffix(a.Description, "`.") {
			t.Errorf("%s: the description is %q", name, a.Description)
		}
		if a.Optional && a.Computed && !strings.Contains(a.Description, "Default") && a.NestedType == nil {
			t.Errorf("%s has a default that its description does not say", name)
		}
		if a.NestedType != nil {
			described(t, name, a.NestedType.Attributes)
		}
	}
}

const cluster = `
resource "edge_cluster" "main" {
  name    = "demo"
  version = "1.36.3"
  local   = {}
}
`

func TestSettings(t *testing.T) {
	for name, c := range map[string]struct {
		block string
		env   map[string]string
		want  provider.Settings
	}{
		"empty": {"", nil, provider.Settings{Clusters: map[string]engine.ClusterAccess{}, Version: "1.2.3", FieldManager: "terraform"}},
		"environment": {"", map[string]string{
			"EDGE_STATE_DIR": "/s", "EDGE_COMPONENT_SOURCE": "cache", "EDGE_COMPONENT_MIRROR": "/m", "EDGE_COMPONENT_CACHE": "/c", "KUBECONFIG": "/never",
		}, provider.Settings{StateDir: "/s", ComponentSource: "cache", ComponentMirror: "/m", ComponentCache: "/c", Clusters: map[string]engine.ClusterAccess{}, Version: "1.2.3", FieldManager: "terraform"}},
		"block": {`
  state_dir = "/t"
  components = { source = "module", cache = "/d" }
  clusters = {
    "local/a-00000001" = { kubeconfig_path = "/k", context = "x" }
    "local/b-00000002" = { host = "https://h:6443", ca_certificate = "ca", token = "secret" }
    "local/c-00000003" = { gone = true }
  }`, map[string]string{"EDGE_STATE_DIR": "/s", "EDGE_COMPONENT_MIRROR": "/m"},
			provider.Settings{
				StateDir: "/t", ComponentSource: "module", ComponentMirror: "/m", ComponentCache: "/d", Version: "1.2.3", FieldManager: "terraform",
				Clusters: map[string]engine.ClusterAccess{
					"local/a-00000001": {KubeconfigPath: "/k", Context: "x"},
					"local/b-00000002": {Host: "https://h:6443", CACertificate: "ca", Token: "secret"},
					"local/c-00000003": {Gone: true},
				},
			}},
	} {
		t.Run(name, func(t *testing.T) {
			eng := fakeengine.New()
			var got []provider.Settings
			open := func(s provider.Settings) (provider.Engine, error) {
				got = append(got, s)
				return eng, nil
			}
			resource.UnitTest(t, resource.TestCase{
				ProtoV6ProviderFactories: map[string]func() (tfprotov6.ProviderServer, error){"edge": serve(open, c.env)},
				Steps:                    []resource.TestStep{{Config: "provider \"edge\" {" + c.block + "\n}\n" + cluster}},
			})
			if len(got) == 0 {
				t.Fatal("the engine was never opened")
			}
			for _, s := range got {
				if diff := cmp.Diff(c.want, s); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

func TestBadSettings(t *testing.T) {
	access := func(lines string) string {
		return fmt.Sprintf("clusters = { \"local/a-00000001\" = { %s } }", lines)
	}
	for name, c := range map[string]struct{ block, want string }{
		"two ways":       {access(`kubeconfig_path = "/k", gone = true`), `exactly one of`},
		"no way":         {access(`gone = false`), `exactly one of`},
		"context":        {access(`host = "https://h", ca_certificate = "c", token = "t", context = "x"`), `context goes with`},
		"host alone":     {access(`host = "https://h"`), `host needs`},
		"token":          {access(`kubeconfig_path = "/k", token = "t"`), `go with host`},
		"plain http":     {access(`host = "http://h", ca_certificate = "c", token = "t"`), `begins with https`},
		"empty path":     {access(`kubeconfig_path = ""`), `at least 1`},
		"not an id":      {`clusters = { "demo" = { gone = true } }`, `an\s+id\s+looks\s+like`},
		"unknown source": {`components = { source = "magic" }`, `one of`},
	} {
		t.Run(name, func(t *testing.T) {
			config := "provider \"edge\" {\n" + c.block + "\n}\n" + cluster
			resource.UnitTest(t, resource.TestCase{
				ProtoV6ProviderFactories: acctest.Factories(fakeengine.New()),
				Steps:                    []resource.TestStep{{Config: config, PlanOnly: true, ExpectError: regexp.MustCompile(c.want)}},
			})
		})
	}
}

// A provider block that waits for another resource plans, keeps what is in state,
// and applies.
func TestUnknownSettings(t *testing.T) {
	eng := fakeengine.New()
	config := func(input string) string {
		return fmt.Sprintf(`
resource "terraform_data" "late" {
  triggers_replace = %q
  input            = %[1]q
}
provider "edge" {
  state_dir  = terraform_data.late.output
  components = { cache = terraform_data.late.output }
  clusters   = { "local/other-00000009" = { kubeconfig_path = terraform_data.late.output } }
}
`, input) + cluster
	}
	acctest.Run(t, eng,
		resource.TestStep{Config: config("/a")},
		resource.TestStep{
			Config: config("/b"),
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
				plancheck.ExpectResourceAction("edge_cluster.main", plancheck.ResourceActionNoop),
			}},
		},
	)
}

// A cluster that cannot be reached is one warning, however much is in it.
func TestOneWarningForACluster(t *testing.T) {
	eng := fakeengine.New()
	server, err := serve(func(provider.Settings) (provider.Engine, error) { return eng, nil }, nil)()
	if err != nil {
		t.Fatal(err)
	}
	resp := configured(t, server)
	eng.SetUnreachable(true)
	warnings := 0
	for range 3 {
		for _, name := range []string{"edge_node_pool", "edge_node"} {
			out, err := server.ReadResource(t.Context(), &tfprotov6.ReadResourceRequest{
				TypeName:     name,
				CurrentState: stateOf(t, resp.ResourceSchemas[name], map[string]string{"cluster_id": "local/demo-00000001", "name": "berlin", "status": "ready"}),
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range out.Diagnostics {
				if d.Severity != tfprotov6.DiagnosticSeverityWarning {
					t.Errorf("%s: %s", d.Summary, d.Detail)
				}
				warnings++
			}
		}
	}
	if warnings != 1 {
		t.Errorf("%d warnings", warnings)
	}
}

func TestLogsReachTerraform(t *testing.T) {
	var out bytes.Buffer
	ctx := tflogtest.RootLogger(context.Background(), &out)
	logger := provider.NewLogger()
	logger.With("cluster", "demo").WithGroup("etcd").InfoContext(ctx, "started", "port", 1, slog.Group("at", "host", "h"), "error", errors.New("none"))
	logger.WarnContext(ctx, "careful")
	logger.ErrorContext(ctx, "broken")
	logger.DebugContext(ctx, "detail")
	logger.Info("without a logger in its context") // is dropped, and does not panic
	entries, err := tflogtest.MultilineJSONDecode(&out)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 4 {
		t.Fatalf("got %v", entries)
	}
	first := entries[0]
	delete(first, "@module")
	want := map[string]any{
		"@level": "info", "@message": "started", "cluster": "demo",
		"etcd.port": float64(1), "etcd.at.host": "h", "etcd.error": "none",
	}
	if diff := cmp.Diff(want, first); diff != "" {
		t.Error(diff)
	}
}
