// Package node is the resource edge_node, one machine that joins a pool, and the
// data source edge_node, how such a machine does now.
package node

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/resource"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

// DefaultTimeouts bound the verbs of edge_node where the user sets none.
var DefaultTimeouts = entity.Timeouts{
	Create: engine.DefaultNodeCreateTimeout,
	Read:   engine.DefaultReadTimeout,
	Update: engine.DefaultNodeCreateTimeout, // an update may have to finish a join
	Delete: engine.DefaultNodeDeleteTimeout,
}

var (
	_ resource.ResourceWithConfigure   = &entity.Resource[model, engine.Node]{}
	_ resource.ResourceWithModifyPlan  = &entity.Resource[model, engine.Node]{}
	_ resource.ResourceWithImportState = &entity.Resource[model, engine.Node]{}
)

// NewResource returns the resource edge_node.
func NewResource() resource.Resource {
	return entity.New(entity.Kind[model, engine.Node]{
		Type:     "node",
		Noun:     "node",
		Schema:   nodeSchema,
		Defaults: DefaultTimeouts,
		Plan: entity.PlanRules{
			Replace:  []string{"cluster_id", "pool", "name"},
			Volatile: []string{"kubernetes_version", "engine_version"},
		},
		Check:     check,
		Timeouts:  func(m *model) timeouts.Value { return m.Timeouts },
		ClusterID: func(m *model) string { return m.ClusterID.ValueString() },
		Name:      func(m *model) string { return m.ClusterID.ValueString() + "/" + m.Name.ValueString() },
		Create:    create,
		Read:      read,
		Update:    update,
		Delete:    remove,
		Refresh:   refresh,
		Import:    importID,
	})
}

// check tells a user who may not have local nodes before anything is made.
func check(ctx context.Context, eng entity.Engine, plan *model) error {
	if plan.Local.IsNull() {
		return nil
	}
	return entity.Nodes(eng).CheckLocalNode(ctx)
}

// importID also sets what only the configuration knows to its default, so that
// the plan after an import is empty for who did not set it.
func importID(id string) (map[string]any, error) {
	cluster, names, err := entity.ParseChildID(id, "node")
	if err != nil {
		return nil, err
	}
	return map[string]any{"id": id, "cluster_id": cluster, "name": names[0], "wait": defaultWait}, nil
}
