package cluster

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-framework/types/basetypes"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
	"github.com/edgewright/terraform-provider-edge/provider/internal/spelling"
)

// model is edge_cluster as it stands in configuration, plan and state. The
// nested objects are computed where they are not set, so they may be unknown and
// are kept as framework objects.
type model struct {
	ID       types.String     `tfsdk:"id"`
	Name     types.String     `tfsdk:"name"`
	Version  spelling.Version `tfsdk:"version"`
	Local    types.Object     `tfsdk:"local"`
	Network  types.Object     `tfsdk:"network"`
	API      types.Object     `tfsdk:"api"`
	Gateway  types.Object     `tfsdk:"gateway"`
	Timeouts timeouts.Value   `tfsdk:"timeouts"`

	Status            types.String `tfsdk:"status"`
	KubernetesVersion types.String `tfsdk:"kubernetes_version"`
	EngineVersion     types.String `tfsdk:"engine_version"`
	Endpoint          types.String `tfsdk:"endpoint"`
	CACertificate     types.String `tfsdk:"ca_certificate"`
	Kubeconfig        types.String `tfsdk:"kubeconfig"`
}

type networkModel struct {
	PodCIDRs     types.List   `tfsdk:"pod_cidrs"`
	ServiceCIDRs types.List   `tfsdk:"service_cidrs"`
	NodeMask     types.Int64  `tfsdk:"node_mask"`
	DNSDomain    types.String `tfsdk:"dns_domain"`
}

type apiModel struct {
	Port types.Int64 `tfsdk:"port"`
}

type gatewayModel struct {
	Port types.Int64 `tfsdk:"port"`
}

var (
	stringList   = types.ListType{ElemType: types.StringType}
	networkTypes = map[string]attr.Type{
		"pod_cidrs": stringList, "service_cidrs": stringList,
		"node_mask": types.Int64Type, "dns_domain": types.StringType,
	}
	apiTypes     = map[string]attr.Type{"port": types.Int64Type}
	gatewayTypes = map[string]attr.Type{"port": types.Int64Type}
)

// spec is what the engine is asked for; what is not known is left to it.
func (m *model) spec(ctx context.Context) (engine.ClusterSpec, error) {
	var network networkModel
	var api apiModel
	var gateway gatewayModel
	var diags diag.Diagnostics
	get := func(o types.Object, target any) {
		if !o.IsNull() && !o.IsUnknown() {
			diags.Append(o.As(ctx, target, basetypes.ObjectAsOptions{})...)
		}
	}
	get(m.Network, &network)
	get(m.API, &api)
	get(m.Gateway, &gateway)
	spec := engine.ClusterSpec{
		Name:    m.Name.ValueString(),
		Version: m.Version.Canonical(),
		Network: engine.NetworkSpec{
			PodCIDRs:     entity.StringList(ctx, network.PodCIDRs, &diags),
			ServiceCIDRs: entity.StringList(ctx, network.ServiceCIDRs, &diags),
			NodeMask:     int(network.NodeMask.ValueInt64()),
			DNSDomain:    network.DNSDomain.ValueString(),
		},
		API:     engine.APISpec{Port: int(api.Port.ValueInt64())},
		Gateway: engine.GatewaySpec{Port: int(gateway.Port.ValueInt64())},
	}
	return spec, entity.AsError(diags)
}

// refresh writes what the engine knows of a cluster over m.
func refresh(ctx context.Context, m *model, c *engine.Cluster) diag.Diagnostics {
	var diags diag.Diagnostics
	m.ID = entity.SameCluster(m.ID, c.ID)
	m.Name = types.StringValue(c.Spec.Name)
	m.Version = spelling.Version{StringValue: entity.Text(c.Spec.Version)}
	m.Local = types.ObjectValueMust(map[string]attr.Type{}, map[string]attr.Value{})
	object := func(t map[string]attr.Type, v any) types.Object {
		o, d := types.ObjectValueFrom(ctx, t, v)
		diags.Append(d...)
		return o
	}
	m.Network = object(networkTypes, networkModel{
		PodCIDRs:     filledList(ctx, c.Spec.Network.PodCIDRs, &diags),
		ServiceCIDRs: filledList(ctx, c.Spec.Network.ServiceCIDRs, &diags),
		NodeMask:     number(c.Spec.Network.NodeMask),
		DNSDomain:    entity.Text(c.Spec.Network.DNSDomain),
	})
	m.API = object(apiTypes, apiModel{Port: number(c.Spec.API.Port)})
	m.Gateway = object(gatewayTypes, gatewayModel{Port: number(c.Spec.Gateway.Port)})

	m.Status = entity.Text(c.Status)
	m.KubernetesVersion = entity.Text(c.KubernetesVersion)
	m.EngineVersion = entity.Text(c.EngineVersion)
	m.Endpoint = entity.Text(c.Endpoint)
	m.CACertificate = entity.Text(c.CACertificate)
	m.Kubeconfig = entity.Text(c.Kubeconfig)
	return diags
}

// number and filledList are null for what the engine has not chosen yet.
func number(n int) types.Int64 {
	if n == 0 {
		return types.Int64Null()
	}
	return types.Int64Value(int64(n))
}

func filledList(ctx context.Context, l []string, diags *diag.Diagnostics) types.List {
	return entity.ListValue(ctx, types.ListNull(types.StringType), l, diags)
}
