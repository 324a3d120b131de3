package provider_test

import (
	"context"
	"strings"
	"testing"

	"github.com/hashicorp/terraform-plugin-go/tfprotov6"
	"github.com/hashicorp/terraform-plugin-go/tftypes"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider"
	"github.com/edgewright/terraform-provider-edge/provider/internal/fakeengine"
)

// blocking tells when a create has begun.
type blocking struct {
	*fakeengine.Engine
	began chan struct{}
}

func (b *blocking) CreateCluster(ctx context.Context, spec engine.ClusterSpec) (*engine.Cluster, error) {
	close(b.began)
	return b.Engine.CreateCluster(ctx, spec)
}

// Ctrl-C while a cluster is made: Terraform stops the provider, and what exists
// comes back as state, with a warning and not as a failure.
func TestInterruptedCreate(t *testing.T) {
	eng := &blocking{Engine: fakeengine.New(), began: make(chan struct{})}
	eng.Fail("CreateCluster", fakeengine.Fault{Block: true, Recorded: true, Status: "incomplete: control-plane"})
	server, err := serve(func(provider.Settings) (provider.Engine, error) { return eng, nil }, nil)()
	if err != nil {
		t.Fatal(err)
	}
	schema := configured(t, server).ResourceSchemas["edge_cluster"]
	object := schema.ValueType().(tftypes.Object)
	config := clusterConfig(t, object)
	null, err := tfprotov6.NewDynamicValue(object, tftypes.NewValue(object, nil))
	if err != nil {
		t.Fatal(err)
	}
	plan, err := server.PlanResourceChange(t.Context(), &tfprotov6.PlanResourceChangeRequest{
		TypeName: "edge_cluster", PriorState: &null, ProposedNewState: config, Config: config,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range plan.Diagnostics {
		t.Fatalf("%s: %s", d.Summary, d.Detail)
	}

	stopped := make(chan error, 1)
	go func() {
		<-eng.began
		_, err := server.StopProvider(t.Context(), &tfprotov6.StopProviderRequest{})
		stopped <- err
	}()
	resp, err := server.ApplyResourceChange(t.Context(), &tfprotov6.ApplyResourceChangeRequest{
		TypeName: "edge_cluster", PriorState: &null, PlannedState: plan.PlannedState, Config: config,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if len(resp.Diagnostics) != 1 || resp.Diagnostics[0].Severity != tfprotov6.DiagnosticSeverityWarning ||
		!strings.Contains(resp.Diagnostics[0].Detail, "next terraform apply finishes it") {
		t.Fatalf("got %+v", resp.Diagnostics)
	}
	state, err := resp.NewState.Unmarshal(object)
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]tftypes.Value{}
	if err := state.As(&parts); err != nil {
		t.Fatal(err)
	}
	var status, id string
	if err := parts["status"].As(&status); err != nil {
		t.Fatal(err)
	}
	if err := parts["id"].As(&id); err != nil {
		t.Fatal(err)
	}
	if status != "incomplete: control-plane" || id != "local/demo-00000001" || !state.IsFullyKnown() {
		t.Errorf("status %q, id %q, state %s", status, id, state)
	}
}

func clusterConfig(t *testing.T, object tftypes.Object) *tfprotov6.DynamicValue {
	t.Helper()
	values := map[string]tftypes.Value{}
	for name, typ := range object.AttributeTypes {
		values[name] = tftypes.NewValue(typ, nil)
	}
	values["name"] = tftypes.NewValue(tftypes.String, "demo")
	values["version"] = tftypes.NewValue(tftypes.String, "1.36.3")
	values["local"] = tftypes.NewValue(object.AttributeTypes["local"], map[string]tftypes.Value{})
	v, err := tfprotov6.NewDynamicValue(object, tftypes.NewValue(object, values))
	if err != nil {
		t.Fatal(err)
	}
	return &v
}
