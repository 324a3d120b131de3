package node

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/booldefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/objectdefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringdefault"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/edgewright/terraform-provider-edge/provider/internal/spelling"
	"github.com/edgewright/terraform-provider-edge/provider/internal/validators"
)

const (
	// maxName is the length of a DNS label; the name is also the host's name.
	maxName = 63
	// maxPool is the longest name of a pool (edge_node_pool.name).
	maxPool     = 40
	defaultWait = true
	// defaultDrain and defaultDrainTimeout are what the API does where a node says
	// nothing (EdgeNodeSpec.Drain).
	defaultDrain        = true
	defaultDrainTimeout = "60s"
)

var onDestroyTypes = map[string]attr.Type{
	"drain":   types.BoolType,
	"timeout": spelling.Type[spelling.DurationKind]{},
}

func nodeSchema(ctx context.Context) schema.Schema {
	computed := func(text string) schema.StringAttribute {
		return schema.StringAttribute{Computed: true, MarkdownDescription: text}
	}
	return schema.Schema{
		Version: 0,
		MarkdownDescription: "A node: a machine of a pool that dials the cluster's gateway. It is an `EdgeNode` object in the cluster, from before it joins until after it left. A `local` node needs root for its daemon: a user who is not root is asked by `sudo` once.\n\n" +
			"Destroying a node cordons and drains it within a bound, revokes its identity and removes it, also when it cannot be reached.",
		Attributes: map[string]schema.Attribute{
			"id": computed("Identifier, `<cluster id>/<name>`."),
			"cluster_id": schema.StringAttribute{
				Required:            true,
				MarkdownDescription: "Id of the cluster. Changing it forces replacement.",
				Validators:          []validator.String{validators.ClusterID()},
			},
			"pool": schema.StringAttribute{
				Required:            true,
				MarkdownDescription: "Name of the pool. Changing it forces replacement: a node leaves one pool and joins another as a new node.",
				Validators:          []validator.String{validators.Label(maxPool)},
			},
			"name": schema.StringAttribute{
				Required:            true,
				MarkdownDescription: "Name of the node, a DNS label; `edge-gateway`, `kubernetes` and `localhost` are the cluster's own. Changing it forces replacement.",
				Validators:          []validator.String{validators.NodeName(maxName)},
			},
			"local": schema.SingleNestedAttribute{
				Required:            true,
				MarkdownDescription: "Runs the node on this machine, at the pool's own site: a network behind NAT that the cluster cannot dial. Write `local = {}`. Cannot be changed.",
				Attributes:          map[string]schema.Attribute{},
			},
			"labels": schema.MapAttribute{
				Optional: true, ElementType: types.StringType,
				MarkdownDescription: "Labels of the node; they win over the pool's. Keys under `edgewright.dev` are the cluster's own.",
				Validators:          []validator.Map{validators.Labels()},
			},
			"taints": schema.SetAttribute{
				Optional: true, ElementType: types.StringType,
				MarkdownDescription: "Taints of the node beside the pool's, as `key=value:Effect` or `key:Effect`.",
				Validators:          []validator.Set{validators.TaintSet()},
			},
			"wait": schema.BoolAttribute{
				Optional: true, Computed: true,
				Default:             booldefault.StaticBool(defaultWait),
				MarkdownDescription: "Whether create and update wait until the node is Ready. Default `true`.",
			},
			"on_destroy": schema.SingleNestedAttribute{
				Optional: true, Computed: true,
				MarkdownDescription: "What destroying the node does first.",
				Default: objectdefault.StaticValue(types.ObjectValueMust(onDestroyTypes, map[string]attr.Value{
					"drain":   types.BoolValue(defaultDrain),
					"timeout": spelling.Of[spelling.DurationKind](defaultDrainTimeout),
				})),
				Attributes: map[string]schema.Attribute{
					"drain": schema.BoolAttribute{
						Optional: true, Computed: true,
						Default:             booldefault.StaticBool(defaultDrain),
						MarkdownDescription: "Whether the node's pods are evicted first. Default `true`.",
					},
					"timeout": schema.StringAttribute{
						Optional: true, Computed: true,
						CustomType:          spelling.Type[spelling.DurationKind]{},
						Default:             stringdefault.StaticString(defaultDrainTimeout),
						MarkdownDescription: "After this time the node leaves although pods are left on it. Default `60s`.",
					},
				},
			},
			"timeouts":           DefaultTimeouts.Attribute(ctx),
			"architecture":       computed("Processor architecture, like `amd64`."),
			"kubernetes_version": computed("Kubernetes version that the node runs."),
			"engine_version":     computed("Version of this project's own programs on the node."),
			"status":             computed("Outcome of the last apply: `ready`, `stopped` (the machine was restarted; the next apply starts the node) or `incomplete: <phase>` (the next apply finishes it)."),
		},
	}
}
