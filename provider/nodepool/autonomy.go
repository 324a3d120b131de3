package nodepool

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/terraform-plugin-framework-validators/stringvalidator"
	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringdefault"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-framework/types/basetypes"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/provider/internal/spelling"
)

type autonomyModel struct {
	Duration        spelling.Duration `tfsdk:"duration"`
	ImagePullPolicy types.String      `tfsdk:"image_pull_policy"`
}

var autonomyTypes = map[string]attr.Type{
	"duration":          spelling.Type[spelling.DurationKind]{},
	"image_pull_policy": types.StringType,
}

func autonomySchema() schema.Attribute {
	return schema.SingleNestedAttribute{
		Optional:            true,
		MarkdownDescription: "What becomes of the pods of nodes that are cut off, for pools of type `edge`. Pods that can only land on edge nodes (by the label `edgewright.dev/pool` in their node selector or required affinity, as those of unit deployments) are not evicted while their node is cut off, and stay Ready while the whole pool is.",
		Validators:          []validator.Object{edgeOnly{}},
		Attributes: map[string]schema.Attribute{
			"duration": schema.StringAttribute{
				Optional:            true,
				CustomType:          spelling.Type[spelling.DurationKind]{},
				MarkdownDescription: "How long a node may be cut off before its pods are deleted, so that others can take their place, like `72h`. They are deleted gracefully: until the node is back they are Terminating, and a StatefulSet's pod is not replaced. Pods of DaemonSets stay. Without it pods stay for a cut of any length.",
			},
			"image_pull_policy": schema.StringAttribute{
				Optional: true, Computed: true,
				Default:             stringdefault.StaticString(string(v1alpha1.PullIfNotPresent)),
				MarkdownDescription: "What becomes of the pull policy `Always` of such pods when they are created: `IfNotPresent`, so that their containers can be started again without a registry, or `AsDeclared`. Default `IfNotPresent`.",
				Validators:          []validator.String{stringvalidator.OneOf(string(v1alpha1.PullIfNotPresent), string(v1alpha1.PullAsDeclared))},
			},
		},
	}
}

// edgeOnly refuses an autonomy where it would do nothing.
type edgeOnly struct{}

func (edgeOnly) Description(context.Context) string { return "is for pools of type edge" }

func (v edgeOnly) MarkdownDescription(ctx context.Context) string { return v.Description(ctx) }

func (edgeOnly) ValidateObject(ctx context.Context, req validator.ObjectRequest, resp *validator.ObjectResponse) {
	if req.ConfigValue.IsNull() {
		return
	}
	var kind types.String
	resp.Diagnostics.Append(req.Config.GetAttribute(ctx, path.Root("type"), &kind)...)
	if kind.ValueString() == string(v1alpha1.PoolCloud) {
		resp.Diagnostics.AddAttributeError(req.Path, "Autonomy of a cloud pool",
			"Nodes of a pool of type cloud are beside the control plane and are not cut off: leave autonomy out, or make the pool one of type edge.")
	}
}

func autonomySpec(ctx context.Context, v types.Object, diags *diag.Diagnostics) (*v1alpha1.AutonomySpec, error) {
	if v.IsNull() || v.IsUnknown() {
		return nil, nil
	}
	var m autonomyModel
	if diags.Append(v.As(ctx, &m, basetypes.ObjectAsOptions{})...); diags.HasError() {
		return nil, nil
	}
	spec := &v1alpha1.AutonomySpec{ImagePullPolicy: v1alpha1.PullPolicy(m.ImagePullPolicy.ValueString())}
	if !m.Duration.IsNull() {
		d, err := time.ParseDuration(m.Duration.ValueString())
		if err != nil {
			return nil, fmt.Errorf("autonomy.duration: %w", err)
		}
		spec.Duration = &metav1.Duration{Duration: d}
	}
	return spec, nil
}

// autonomyValue returns spec as an attribute. What has no effect and nothing mean
// the same, so that stays as prior has it.
func autonomyValue(ctx context.Context, prior types.Object, spec *v1alpha1.AutonomySpec, diags *diag.Diagnostics) types.Object {
	m := autonomyModel{Duration: spelling.Null[spelling.DurationKind](), ImagePullPolicy: types.StringValue(string(v1alpha1.PullIfNotPresent))}
	plain := true
	if spec != nil && spec.Duration != nil {
		m.Duration, plain = spelling.Of[spelling.DurationKind](spec.Duration.Duration.String()), false
	}
	if spec != nil && spec.ImagePullPolicy == v1alpha1.PullAsDeclared {
		m.ImagePullPolicy, plain = types.StringValue(string(v1alpha1.PullAsDeclared)), false
	}
	if plain && (prior.IsNull() || prior.IsUnknown()) {
		return types.ObjectNull(autonomyTypes)
	}
	v, d := types.ObjectValueFrom(ctx, autonomyTypes, m)
	diags.Append(d...)
	return v
}
