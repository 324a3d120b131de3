package nodepool

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework-validators/stringvalidator"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringdefault"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/provider/internal/validators"
)

// maxName leaves room for the pool's name in the names of what is made for it:
// its site, and each unit deployment's workload there.
const maxName = 40

func poolSchema(ctx context.Context) schema.Schema {
	return schema.Schema{
		Version:             0,
		MarkdownDescription: "A pool: the nodes of one site, and what they share. Nodes of a pool reach each other directly; nodes and pods of different pools do not reach each other. It is a `NodePool` object in the cluster. Destroying a pool waits for nodes that leave in the same apply, and is refused while others stay.",
		Attributes: map[string]schema.Attribute{
			"id": schema.StringAttribute{Computed: true, MarkdownDescription: "Identifier, `<cluster id>/<name>`."},
			"cluster_id": schema.StringAttribute{
				Required:            true,
				MarkdownDescription: "Id of the cluster. Changing it forces replacement.",
				Validators:          []validator.String{validators.ClusterID()},
			},
			"name": schema.StringAttribute{
				Required:            true,
				MarkdownDescription: "Name of the pool, a DNS label of at most 40 characters. Changing it forces replacement.",
				Validators:          []validator.String{validators.Label(maxName)},
			},
			"type": schema.StringAttribute{
				Optional: true, Computed: true,
				Default:             stringdefault.StaticString(string(v1alpha1.PoolEdge)),
				MarkdownDescription: "`edge` for nodes behind a link that may be cut, or `cloud` for nodes beside the control plane. Default `edge`. Cannot be changed.",
				Validators:          []validator.String{stringvalidator.OneOf(string(v1alpha1.PoolEdge), string(v1alpha1.PoolCloud))},
			},
			"labels": schema.MapAttribute{
				Optional: true, ElementType: types.StringType,
				MarkdownDescription: "Labels of every node of the pool. Keys under `edgewright.dev` are the cluster's own.",
				Validators:          []validator.Map{validators.Labels()},
			},
			"annotations": schema.MapAttribute{
				Optional: true, ElementType: types.StringType,
				MarkdownDescription: "Annotations of every node of the pool.",
				Validators:          []validator.Map{validators.Annotations()},
			},
			"taints": schema.SetAttribute{
				Optional: true, ElementType: types.StringType,
				MarkdownDescription: "Taints of every node of the pool, as `key=value:Effect` or `key:Effect`.",
				Validators:          []validator.Set{validators.TaintSet()},
			},
			"autonomy": autonomySchema(),
			"network":  networkSchema(),
			"timeouts": DefaultTimeouts.Attribute(ctx),
			"status":   schema.StringAttribute{Computed: true, MarkdownDescription: "Outcome of the last apply: `ready` or `incomplete: <phase>`."},
		},
	}
}
