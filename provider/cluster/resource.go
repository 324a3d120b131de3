// Package cluster is the resource edge_cluster and the ephemeral
// edge_cluster_credentials. It puts no secret into state: the engine keeps keys in
// the state directory, and what state holds only refers to them.
package cluster

import (
	"context"
	"fmt"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/resource"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
	"github.com/edgewright/terraform-provider-edge/provider/internal/validators"
)

// DefaultTimeouts bound the verbs of edge_cluster where the user sets none.
var DefaultTimeouts = entity.Timeouts{
	Create: engine.DefaultClusterCreateTimeout,
	Read:   engine.DefaultReadTimeout,
	Update: engine.DefaultClusterCreateTimeout, // an update may have to finish a create
	Delete: engine.DefaultClusterDeleteTimeout,
}

type clusterResource struct {
	*entity.Resource[model, engine.Cluster]
}

var (
	_ resource.Resource                = clusterResource{}
	_ resource.ResourceWithConfigure   = clusterResource{}
	_ resource.ResourceWithModifyPlan  = clusterResource{}
	_ resource.ResourceWithImportState = clusterResource{}
)

// NewResource returns the resource edge_cluster.
func NewResource() resource.Resource {
	return clusterResource{entity.New(entity.Kind[model, engine.Cluster]{
		Type:     "cluster",
		Noun:     "cluster",
		Schema:   clusterSchema,
		Defaults: DefaultTimeouts,
		Plan: entity.PlanRules{
			Immutable: []entity.Immutable{
				{Path: "name"},
				{Path: "version", Yet: true},
				{Path: "network.pod_cidrs"},
				{Path: "network.service_cidrs"},
				{Path: "network.node_mask"},
				{Path: "network.dns_domain"},
				{Path: "api.port", Yet: true},
				{Path: "gateway.port", Yet: true},
			},
			Volatile: []string{"engine_version", "kubeconfig"},
		},
		Timeouts:  func(m *model) timeouts.Value { return m.Timeouts },
		ClusterID: func(m *model) string { return m.ID.ValueString() },
		Name:      name,
		Create:    create,
		Read:      read,
		Update:    update,
		Delete:    remove,
		Refresh:   refresh,
		Import:    importID,
	})}
}

func name(m *model) string {
	if id := m.ID.ValueString(); id != "" {
		return id
	}
	return m.Name.ValueString()
}

func importID(id string) (map[string]any, error) {
	if validators.CheckClusterID(id) != nil {
		return nil, fmt.Errorf("a cluster is imported by its id, like local/quickstart-1f2e3d4c; `edge status` lists them")
	}
	return map[string]any{"id": id}, nil
}

// ModifyPlan implements resource.ResourceWithModifyPlan: a cluster to be created
// is also held against the engine's own rules, which see attributes together
// (ranges that overlap) and know which versions there are. What is unknown yet is
// judged when it is known. An existing cluster is not: it may have a version that
// this provider no longer makes.
func (r clusterResource) ModifyPlan(ctx context.Context, req resource.ModifyPlanRequest, resp *resource.ModifyPlanResponse) {
	r.Resource.ModifyPlan(ctx, req, resp)
	if resp.Diagnostics.HasError() || req.Plan.Raw.IsNull() || !req.State.Raw.IsNull() {
		return
	}
	var m model
	if resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...); resp.Diagnostics.HasError() || m.Name.IsUnknown() || m.Version.IsUnknown() {
		return
	}
	spec, err := m.spec(ctx)
	if err != nil {
		return // an element of a list is unknown yet
	}
	if err := engine.CheckClusterSpec(spec); err != nil {
		resp.Diagnostics.Append(entity.Diagnose(ctx, req.Plan.Schema.Type(), err, "create cluster", spec.Name))
	}
}
