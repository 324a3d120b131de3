package bridge

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider"
)

// stub is an engine of which a test needs a few use cases.
type stub struct {
	provider.Engine // nil: what is not stubbed is not called
	createCluster   func(context.Context, engine.ClusterSpec) (*engine.Cluster, error)
	createUnit      func(context.Context, engine.UnitSpec) (*engine.Unit, error)
}

func (s *stub) CreateCluster(ctx context.Context, spec engine.ClusterSpec) (*engine.Cluster, error) {
	return s.createCluster(ctx, spec)
}

func (s *stub) CreateUnit(ctx context.Context, spec engine.UnitSpec) (*engine.Unit, error) {
	return s.createUnit(ctx, spec)
}

// serve returns the plugin's service, configured, over a stub.
func serve(t *testing.T, s *stub) (pulumirpc.ResourceProviderServer, *provider.Settings) {
	t.Helper()
	var got provider.Settings
	server, err := newServer(t.Context(), nil, providerInfo(
		provider.WithEngine(func(settings provider.Settings) (provider.Engine, error) { got = settings; return s, nil }),
		provider.WithEnvironment(func(string) string { return "" })))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := server.Configure(t.Context(), &pulumirpc.ConfigureRequest{Args: properties(t, nil), AcceptSecrets: true}); err != nil {
		t.Fatal(err)
	}
	return server, &got
}

func properties(t *testing.T, values map[string]any) *structpb.Struct {
	t.Helper()
	s, err := structpb.NewStruct(values)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// create checks and creates, as the CLI does.
func create(t *testing.T, server pulumirpc.ResourceProviderServer, resource, name string, inputs map[string]any) (*pulumirpc.CreateResponse, error) {
	t.Helper()
	urn := "urn:pulumi:dev::test::" + token(resource) + "::" + name
	checked, err := server.Check(t.Context(), &pulumirpc.CheckRequest{Urn: urn, News: properties(t, inputs)})
	if err != nil || len(checked.Failures) > 0 {
		t.Fatalf("check: %v, %v", err, checked.GetFailures())
	}
	return server.Create(t.Context(), &pulumirpc.CreateRequest{Urn: urn, Properties: checked.Inputs})
}

var clusterInputs = map[string]any{"name": "demo", "version": "1.36.3", "local": map[string]any{}}

func made(status string) *engine.Cluster {
	return &engine.Cluster{ID: "local/demo-1f2e3d4c", Status: status, KubernetesVersion: "1.36.3", EngineVersion: "0.1.0", Spec: engine.ClusterSpec{
		Name: "demo", Version: "1.36.3", API: engine.APISpec{Port: 2000}, Gateway: engine.GatewaySpec{Port: 2001},
		Network: engine.NetworkSpec{PodCIDRs: []string{"10.64.0.0/16"}, ServiceCIDRs: []string{"10.65.0.0/20"}, NodeMask: 24, DNSDomain: "cluster.local"},
	}}
}

func TestNestedNames(t *testing.T) {
	var got engine.UnitSpec
	server, settings := serve(t, &stub{createUnit: func(_ context.Context, s engine.UnitSpec) (*engine.Unit, error) {
		got = s
		return &engine.Unit{ID: s.ClusterID + "/default/web", ClusterID: s.ClusterID, Namespace: s.Namespace, Name: s.Name, Spec: s.Spec, Status: engine.StatusReady}, nil
	}})
	resp, err := create(t, server, "edge_unit_deployment", "web", map[string]any{
		"clusterId": "local/demo-1f2e3d4c",
		"name":      "web",
		"template": map[string]any{"containers": map[string]any{"web": map[string]any{
			"image": "example.test/web:1", "command": []any{"/web", "--verbose"}, "ports": map[string]any{"http": map[string]any{"port": 8080}},
		}}},
		"pools": map[string]any{"berlin": map[string]any{"containers": map[string]any{"web": map[string]any{"command": []any{"/web"}}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/web", "--verbose"}, got.Spec.Template.Containers[0].Command); diff != "" {
		t.Errorf("command of the template (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"/web"}, got.Spec.Pools[0].Containers[0].Command); diff != "" {
		t.Errorf("command of the pool (-want +got):\n%s", diff)
	}
	out := resp.Properties.AsMap()["template"].(map[string]any)["containers"].(map[string]any)["web"].(map[string]any)
	if diff := cmp.Diff([]any{"/web", "--verbose"}, out["command"]); diff != "" {
		t.Errorf("command in the outputs (-want +got):\n%s", diff)
	}
	if settings.FieldManager != "pulumi" {
		t.Errorf("objects are written as %q", settings.FieldManager)
	}
}

func TestCancelEndsACreateAndKeepsItsState(t *testing.T) {
	began := make(chan struct{})
	server, _ := serve(t, &stub{createCluster: func(ctx context.Context, _ engine.ClusterSpec) (*engine.Cluster, error) {
		close(began)
		<-ctx.Done()
		return made("incomplete: control-plane"), &engine.Error{Class: engine.Unfinished, Op: "create cluster", Object: "local/demo-1f2e3d4c", Err: ctx.Err()}
	}})
	go func() {
		<-began
		if _, err := server.Cancel(t.Context(), &emptypb.Empty{}); err != nil {
			t.Error(err)
		}
	}()
	resp, err := create(t, server, "edge_cluster", "demo", clusterInputs)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Id != "local/demo-1f2e3d4c" || resp.Properties.AsMap()["status"] != "incomplete: control-plane" {
		t.Errorf("the state is %s, %v", resp.Id, resp.Properties)
	}
}

func TestWhatExistsIsNotTaken(t *testing.T) {
	server, _ := serve(t, &stub{createCluster: func(context.Context, engine.ClusterSpec) (*engine.Cluster, error) {
		return nil, &engine.Error{Class: engine.AlreadyExists, Op: "create cluster", Object: "demo",
			Err: errors.New("cluster local/demo-1f2e3d4c exists"), ImportID: "local/demo-1f2e3d4c"}
	}})
	_, err := create(t, server, "edge_cluster", "demo", clusterInputs)
	const want = "`pulumi import edge:index/cluster:Cluster <name> local/demo-1f2e3d4c`"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("create: %v, want it to say %s", err, want)
	}
}

func TestWatchParent(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	parents := make(chan int, 3)
	for _, pid := range []int{17, 17, 1} {
		parents <- pid
	}
	tick, orphaned := make(chan time.Time), make(chan struct{})
	go watchParent(ctx, func() int { return <-parents }, tick, func() { close(orphaned) })
	tick <- time.Time{}
	select {
	case <-orphaned:
		t.Fatal("orphaned while its parent is there")
	default:
	}
	tick <- time.Time{}
	<-orphaned
}

// The version is not in the committed schema, and the CLI wants one.
func TestVersionedSchema(t *testing.T) {
	raw, err := versionedSchema()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(raw), `"version":"0.0.1-dev"`) {
		t.Error("the schema has no version")
	}
	if file, err := os.ReadFile("cmd/pulumi-resource-edge/schema.json"); err != nil || strings.Contains(string(file), `"version": "0.`) {
		t.Errorf("the committed schema has a version, or cannot be read: %v", err)
	}
}
