package nodepool

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

// model is edge_node_pool as it stands in configuration, plan and state.
type model struct {
	ID          types.String   `tfsdk:"id"`
	ClusterID   types.String   `tfsdk:"cluster_id"`
	Name        types.String   `tfsdk:"name"`
	Type        types.String   `tfsdk:"type"`
	Labels      types.Map      `tfsdk:"labels"`
	Annotations types.Map      `tfsdk:"annotations"`
	Taints      types.Set      `tfsdk:"taints"`
	Autonomy    types.Object   `tfsdk:"autonomy"`
	Network     types.Object   `tfsdk:"network"`
	Timeouts    timeouts.Value `tfsdk:"timeouts"`
	Status      types.String   `tfsdk:"status"`
}

func (m *model) spec(ctx context.Context) (v1alpha1.NodePoolSpec, error) {
	var diags diag.Diagnostics
	spec := v1alpha1.NodePoolSpec{
		Type:        v1alpha1.PoolType(m.Type.ValueString()),
		Labels:      entity.StringMap(ctx, m.Labels, &diags),
		Annotations: entity.StringMap(ctx, m.Annotations, &diags),
		Taints:      entity.Taints(ctx, m.Taints, &diags),
	}
	autonomy, err := autonomySpec(ctx, m.Autonomy, &diags)
	if err != nil {
		return spec, err
	}
	spec.Autonomy = autonomy
	spec.Network = networkSpec(ctx, m.Network, &diags)
	return spec, entity.AsError(diags)
}

// refresh writes what the engine knows of a pool over m.
func refresh(ctx context.Context, m *model, p *engine.Pool) diag.Diagnostics {
	var diags diag.Diagnostics
	m.ID = types.StringValue(p.ID)
	m.ClusterID = entity.SameCluster(m.ClusterID, p.ClusterID)
	m.Name = types.StringValue(p.Name)
	m.Type = types.StringValue(string(p.Spec.Type))
	if p.Spec.Type == "" {
		m.Type = types.StringValue(string(v1alpha1.PoolEdge)) // the API's own default
	}
	m.Labels = entity.MapValue(ctx, m.Labels, p.Spec.Labels, &diags)
	m.Annotations = entity.MapValue(ctx, m.Annotations, p.Spec.Annotations, &diags)
	m.Taints = entity.TaintsValue(ctx, m.Taints, p.Spec.Taints, &diags)
	m.Autonomy = autonomyValue(ctx, m.Autonomy, p.Spec.Autonomy, &diags)
	m.Network = networkValue(ctx, m.Network, p.Spec.Network, &diags)
	// A pool is an object in the cluster: it is there, or it is not.
	m.Status = types.StringValue(engine.StatusReady)
	return diags
}
