// Package unitdeployment is the resource edge_unit_deployment: one workload, put
// into pools with what differs there. It declares; the cluster's controllers do.
package unitdeployment

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/resource"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

// DefaultTimeouts bound the verbs of edge_unit_deployment where the user sets none.
var DefaultTimeouts = entity.Timeouts{
	Create: engine.DefaultUnitTimeout,
	Read:   engine.DefaultReadTimeout,
	Update: engine.DefaultUnitTimeout,
	Delete: engine.DefaultUnitTimeout,
}

type unitResource struct {
	*entity.Resource[model, engine.Unit]
}

var (
	_ resource.ResourceWithConfigure      = unitResource{}
	_ resource.ResourceWithModifyPlan     = unitResource{}
	_ resource.ResourceWithImportState    = unitResource{}
	_ resource.ResourceWithValidateConfig = unitResource{}
)

// NewResource returns the resource edge_unit_deployment.
func NewResource() resource.Resource {
	return unitResource{entity.New(entity.Kind[model, engine.Unit]{
		Type:     "unit_deployment",
		Noun:     "unit deployment",
		Schema:   unitSchema,
		Defaults: DefaultTimeouts,
		Plan: entity.PlanRules{
			Replace: []string{"cluster_id", "namespace", "name"},
		},
		Timeouts:  func(m *model) timeouts.Value { return m.Timeouts },
		ClusterID: func(m *model) string { return m.ClusterID.ValueString() },
		Name: func(m *model) string {
			return m.ClusterID.ValueString() + "/" + m.Namespace.ValueString() + "/" + m.Name.ValueString()
		},
		Create:  create,
		Read:    read,
		Update:  update,
		Delete:  remove,
		Refresh: refresh,
		Import:  importID,
	})}
}

// ValidateConfig implements resource.ResourceWithValidateConfig.
func (unitResource) ValidateConfig(ctx context.Context, req resource.ValidateConfigRequest, resp *resource.ValidateConfigResponse) {
	validate(ctx, req.Config, &resp.Diagnostics)
}

func importID(id string) (map[string]any, error) {
	cluster, names, err := entity.ParseChildID(id, "namespace", "name")
	if err != nil {
		return nil, err
	}
	return map[string]any{"id": id, "cluster_id": cluster, "namespace": names[0], "name": names[1]}, nil
}
