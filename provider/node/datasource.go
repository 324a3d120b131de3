package node

import (
	"context"
	"strings"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/datasource/schema"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
	"github.com/edgewright/terraform-provider-edge/provider/internal/validators"
)

// dataSource is the data source edge_node. What it tells changes by itself, so it
// is no part of the resource, whose plans stay quiet.
type dataSource struct{ conn *entity.Connection }

var _ datasource.DataSourceWithConfigure = &dataSource{}

// NewDataSource returns the data source edge_node.
func NewDataSource() datasource.DataSource { return &dataSource{} }

type dataModel struct {
	ID                types.String `tfsdk:"id"`
	ClusterID         types.String `tfsdk:"cluster_id"`
	Name              types.String `tfsdk:"name"`
	Pool              types.String `tfsdk:"pool"`
	Phase             types.String `tfsdk:"phase"`
	Connected         types.Bool   `tfsdk:"connected"`
	CutSince          types.String `tfsdk:"cut_since"`
	Autonomy          types.Object `tfsdk:"autonomy"`
	Architecture      types.String `tfsdk:"architecture"`
	KubernetesVersion types.String `tfsdk:"kubernetes_version"`
}

type autonomyModel struct {
	Ready   types.Bool   `tfsdk:"ready"`
	Reason  types.String `tfsdk:"reason"`
	Message types.String `tfsdk:"message"`
}

var autonomyTypes = map[string]attr.Type{"ready": types.BoolType, "reason": types.StringType, "message": types.StringType}

// Metadata implements datasource.DataSource.
func (d *dataSource) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_node"
}

// Schema implements datasource.DataSource.
func (d *dataSource) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	computed := func(text string) schema.StringAttribute {
		return schema.StringAttribute{Computed: true, MarkdownDescription: text}
	}
	resp.Schema = schema.Schema{
		MarkdownDescription: "How a node does now, as its cluster knows: whether its link is there, since when it is cut off, and whether it would go on through a cut.",
		Attributes: map[string]schema.Attribute{
			"id": computed("Identifier, `<cluster id>/<name>`."),
			"cluster_id": schema.StringAttribute{
				Required:            true,
				MarkdownDescription: "Id of the cluster.",
				Validators:          []validator.String{validators.ClusterID()},
			},
			"name": schema.StringAttribute{
				Required:            true,
				MarkdownDescription: "Name of the node.",
				Validators:          []validator.String{validators.NodeName(maxName)},
			},
			"pool":      computed("Name of its pool."),
			"phase":     computed("Where the node is in its life: `Declared`, `Enrolled`, `Ready`, `NotReady`, `Leaving`."),
			"connected": schema.BoolAttribute{Computed: true, MarkdownDescription: "Whether a gateway holds a connection of the node."},
			"cut_since": computed("Since when the node is cut off, RFC 3339 in UTC; null while it is not. A cut node may well be alive."),
			"autonomy": schema.SingleNestedAttribute{
				Computed:            true,
				MarkdownDescription: "Whether the node would go on through a cut and a reboot in it: the condition `NodeAutonomy` of the `EdgeNode`.",
				Attributes: map[string]schema.Attribute{
					"ready":   schema.BoolAttribute{Computed: true, MarkdownDescription: "Whether it would, by what it last said itself."},
					"reason":  computed("`Autonomous`, or why not: `CacheIncomplete`, `DiskError`, `ClockUnset`, `CertExpiring`, or `NotReported` where it has not said."),
					"message": computed("More of it; null where there is no more to say."),
				},
			},
			"architecture":       computed("Processor architecture, like `amd64`; null until it has joined."),
			"kubernetes_version": computed("Kubernetes version that the node runs; null until it has joined."),
		},
	}
}

// Configure implements datasource.DataSourceWithConfigure.
func (d *dataSource) Configure(_ context.Context, req datasource.ConfigureRequest, resp *datasource.ConfigureResponse) {
	d.conn = entity.FromProviderData(req.ProviderData, &resp.Diagnostics)
}

// Read implements datasource.DataSource.
func (d *dataSource) Read(ctx context.Context, req datasource.ReadRequest, resp *datasource.ReadResponse) {
	var m dataModel
	if resp.Diagnostics.Append(req.Config.Get(ctx, &m)...); resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, engine.DefaultReadTimeout)
	defer cancel()
	cluster, name := m.ClusterID.ValueString(), m.Name.ValueString()
	got, err := d.lookUp(ctx, cluster, name)
	if err != nil {
		resp.Diagnostics.Append(entity.Diagnose(ctx, req.Config.Schema.Type(), err, "look up node", cluster+"/"+name))
		return
	}
	m.ID = types.StringValue(cluster + "/" + name)
	m.Pool = types.StringValue(got.Pool)
	m.Phase = entity.Text(got.Phase)
	m.Connected = types.BoolValue(got.Connected)
	m.CutSince = types.StringNull()
	if got.CutSince != nil {
		m.CutSince = types.StringValue(got.CutSince.UTC().Format(time.RFC3339))
	}
	autonomy, diags := types.ObjectValueFrom(ctx, autonomyTypes, autonomyModel{
		Ready:  types.BoolValue(got.Autonomy == v1alpha1.ReasonAutonomous),
		Reason: types.StringValue(got.Autonomy), Message: entity.Text(got.AutonomyMessage),
	})
	resp.Diagnostics.Append(diags...)
	m.Autonomy = autonomy
	m.Architecture = entity.Text(got.Architecture)
	m.KubernetesVersion = entity.Text(strings.TrimPrefix(got.Kubelet, "v"))
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

func (d *dataSource) lookUp(ctx context.Context, cluster, name string) (*engine.NodeSummary, error) {
	eng, err := d.conn.Engine()
	if err != nil {
		return nil, err
	}
	return entity.Nodes(eng).LookUpNode(ctx, cluster, name)
}
