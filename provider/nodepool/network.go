package nodepool

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework-validators/stringvalidator"
	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringdefault"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-framework/types/basetypes"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

type networkModel struct {
	Transport types.String `tfsdk:"transport"`
}

var networkTypes = map[string]attr.Type{"transport": types.StringType}

func networkSchema() schema.Attribute {
	return schema.SingleNestedAttribute{
		Optional:            true,
		MarkdownDescription: "How the nodes of the pool reach others.",
		Attributes: map[string]schema.Attribute{
			"transport": schema.StringAttribute{
				Optional: true, Computed: true,
				Default: stringdefault.StaticString(string(v1alpha1.TransportAuto)),
				MarkdownDescription: "What carries the connection of each node with its cluster. `auto`: QUIC, over UDP, where that gets through, and TCP where it does not; a node that had to take TCP goes back to QUIC when it can. " +
					"`tcp`: TCP and never UDP, for instance for sites on a LAN whose firewalls let UDP begin and then lose it, or whose devices have TCP in their network cards and too little processor for QUIC. `quic`: QUIC and never TCP, for instance where nodes often change their address, which a connection over QUIC survives. " +
					"Default `auto`. It can be changed at any time: nodes go over to the other transport without a gap, and what is open meanwhile (logs, exec) goes on. " +
					"A node that joins does not know its pool's yet and takes what gets through, as with `auto`. A node obeys once it has had one connection over the new transport; until then it keeps one over the other, and `edge node status` at the node says why. From then on it uses no other: with `tcp` or `quic`, a node whose network stops letting that one through is cut off until it does.",
				Validators: []validator.String{stringvalidator.OneOf(
					string(v1alpha1.TransportAuto), string(v1alpha1.TransportQUIC), string(v1alpha1.TransportTCP))},
			},
		},
	}
}

func networkSpec(ctx context.Context, v types.Object, diags *diag.Diagnostics) *v1alpha1.NetworkSpec {
	if v.IsNull() || v.IsUnknown() {
		return nil
	}
	var m networkModel
	diags.Append(v.As(ctx, &m, basetypes.ObjectAsOptions{})...)
	return &v1alpha1.NetworkSpec{Transport: v1alpha1.Transport(m.Transport.ValueString())}
}

// networkValue returns spec as an attribute. What has no effect and nothing mean
// the same, so that stays as prior has it.
func networkValue(ctx context.Context, prior types.Object, spec *v1alpha1.NetworkSpec, diags *diag.Diagnostics) types.Object {
	m := networkModel{Transport: types.StringValue(string(v1alpha1.TransportAuto))}
	plain := true
	if spec != nil && spec.Transport != "" && spec.Transport != v1alpha1.TransportAuto {
		m.Transport, plain = types.StringValue(string(spec.Transport)), false
	}
	if plain && (prior.IsNull() || prior.IsUnknown()) {
		return types.ObjectNull(networkTypes)
	}
	v, d := types.ObjectValueFrom(ctx, networkTypes, m)
	diags.Append(d...)
	return v
}
