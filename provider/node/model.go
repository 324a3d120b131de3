package node

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-framework/types/basetypes"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
	"github.com/edgewright/terraform-provider-edge/provider/internal/spelling"
)

// model is edge_node as it stands in configuration, plan and state.
type model struct {
	ID                types.String   `tfsdk:"id"`
	ClusterID         types.String   `tfsdk:"cluster_id"`
	Pool              types.String   `tfsdk:"pool"`
	Name              types.String   `tfsdk:"name"`
	Local             types.Object   `tfsdk:"local"`
	Labels            types.Map      `tfsdk:"labels"`
	Taints            types.Set      `tfsdk:"taints"`
	Wait              types.Bool     `tfsdk:"wait"`
	OnDestroy         types.Object   `tfsdk:"on_destroy"`
	Timeouts          timeouts.Value `tfsdk:"timeouts"`
	Architecture      types.String   `tfsdk:"architecture"`
	KubernetesVersion types.String   `tfsdk:"kubernetes_version"`
	EngineVersion     types.String   `tfsdk:"engine_version"`
	Status            types.String   `tfsdk:"status"`
}

type onDestroyModel struct {
	Drain   types.Bool        `tfsdk:"drain"`
	Timeout spelling.Duration `tfsdk:"timeout"`
}

func (m *model) spec(ctx context.Context) (engine.NodeSpec, error) {
	var diags diag.Diagnostics
	var on onDestroyModel
	diags.Append(m.OnDestroy.As(ctx, &on, basetypes.ObjectAsOptions{})...)
	spec := engine.NodeSpec{
		ClusterID: m.ClusterID.ValueString(),
		Name:      m.Name.ValueString(),
		Spec: v1alpha1.EdgeNodeSpec{
			Pool:   m.Pool.ValueString(),
			Labels: entity.StringMap(ctx, m.Labels, &diags),
			Taints: entity.Taints(ctx, m.Taints, &diags),
		},
		Local:     !m.Local.IsNull(),
		WaitReady: m.Wait.ValueBool(),
	}
	if err := entity.AsError(diags); err != nil {
		return spec, err
	}
	limit, err := time.ParseDuration(on.Timeout.ValueString())
	if err != nil {
		return spec, fmt.Errorf("on_destroy.timeout: %w", err)
	}
	spec.Spec.Drain = &v1alpha1.DrainSpec{
		Disabled: !on.Drain.ValueBool(),
		Timeout:  &metav1.Duration{Duration: limit},
	}
	return spec, nil
}

// refresh writes what the engine knows of a node over m.
func refresh(ctx context.Context, m *model, n *engine.Node) diag.Diagnostics {
	var diags diag.Diagnostics
	m.ID = types.StringValue(n.ID)
	m.ClusterID = entity.SameCluster(m.ClusterID, n.ClusterID)
	m.Pool = types.StringValue(n.Spec.Pool)
	m.Name = types.StringValue(n.Name)
	if m.Local.IsNull() && n.Local { // where a node runs never changes: only an import has to learn it
		m.Local = types.ObjectValueMust(map[string]attr.Type{}, map[string]attr.Value{})
	}
	m.Labels = entity.MapValue(ctx, m.Labels, n.Spec.Labels, &diags)
	m.Taints = entity.TaintsValue(ctx, m.Taints, n.Spec.Taints, &diags)

	on := onDestroyModel{Drain: types.BoolValue(defaultDrain), Timeout: spelling.Of[spelling.DurationKind](defaultDrainTimeout)}
	if d := n.Spec.Drain; d != nil {
		on.Drain = types.BoolValue(!d.Disabled)
		if d.Timeout != nil {
			on.Timeout = spelling.Of[spelling.DurationKind](d.Timeout.Duration.String())
		}
	}
	object, d := types.ObjectValueFrom(ctx, onDestroyTypes, on)
	diags.Append(d...)
	m.OnDestroy = object

	m.Architecture = entity.Text(n.Architecture)
	m.KubernetesVersion = entity.Text(n.KubernetesVersion)
	m.EngineVersion = entity.Text(n.EngineVersion)
	m.Status = entity.Text(n.Status)
	return diags
}
