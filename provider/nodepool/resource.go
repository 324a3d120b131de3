// Package nodepool is the resource edge_node_pool: the nodes of one site, and
// what they share. It declares; the cluster's controllers do.
package nodepool

import (
	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/resource"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

// DefaultTimeouts bound the verbs of edge_node_pool where the user sets none.
var DefaultTimeouts = entity.Timeouts{
	Create: engine.DefaultPoolTimeout,
	Read:   engine.DefaultReadTimeout,
	Update: engine.DefaultPoolTimeout,
	Delete: engine.DefaultPoolTimeout,
}

var (
	_ resource.ResourceWithConfigure   = &entity.Resource[model, engine.Pool]{}
	_ resource.ResourceWithModifyPlan  = &entity.Resource[model, engine.Pool]{}
	_ resource.ResourceWithImportState = &entity.Resource[model, engine.Pool]{}
)

// NewResource returns the resource edge_node_pool.
func NewResource() resource.Resource {
	return entity.New(entity.Kind[model, engine.Pool]{
		Type:     "node_pool",
		Noun:     "node pool",
		Schema:   poolSchema,
		Defaults: DefaultTimeouts,
		Plan: entity.PlanRules{
			Replace:   []string{"cluster_id", "name"},
			Immutable: []entity.Immutable{{Path: "type"}},
		},
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

func importID(id string) (map[string]any, error) {
	cluster, names, err := entity.ParseChildID(id, "pool")
	if err != nil {
		return nil, err
	}
	return map[string]any{"id": id, "cluster_id": cluster, "name": names[0]}, nil
}
