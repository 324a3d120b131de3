package unitdeployment

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework-validators/int64validator"
	"github.com/hashicorp/terraform-plugin-framework-validators/mapvalidator"
	"github.com/hashicorp/terraform-plugin-framework-validators/stringvalidator"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/booldefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/int64default"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringdefault"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"
	corev1 "k8s.io/api/core/v1"

	"github.com/edgewright/terraform-provider-edge/provider/internal/spelling"
	"github.com/edgewright/terraform-provider-edge/provider/internal/validators"
)

const (
	maxName          = 63 // a DNS label; the name is also the value of a label
	maxReplicas      = 10000
	defaultNamespace = "default"
	defaultReplicas  = 1
	defaultProtocol  = string(corev1.ProtocolTCP)
	defaultType      = string(corev1.ServiceTypeClusterIP)
	defaultRollout   = true
)

func unitSchema(ctx context.Context) schema.Schema {
	return schema.Schema{
		Version:             0,
		MarkdownDescription: "A workload that runs as one unit in each of several pools: the same template everywhere, with the number of replicas, the environment and whatever else differs set for each pool. It is a `UnitDeployment` object in the cluster, from which the cluster makes a Deployment for each pool and, where asked, one Service.",
		Attributes: map[string]schema.Attribute{
			"id": schema.StringAttribute{Computed: true, MarkdownDescription: "Identifier, `<cluster id>/<namespace>/<name>`."},
			"cluster_id": schema.StringAttribute{
				Required:            true,
				MarkdownDescription: "Id of the cluster. Changing it forces replacement.",
				Validators:          []validator.String{validators.ClusterID()},
			},
			"name": schema.StringAttribute{
				Required:            true,
				MarkdownDescription: "Name, a DNS label. Changing it forces replacement.",
				Validators:          []validator.String{validators.Label(maxName)},
			},
			"namespace": schema.StringAttribute{
				Optional: true, Computed: true,
				Default:             stringdefault.StaticString(defaultNamespace),
				MarkdownDescription: "Namespace, which must exist. Default `default`. Changing it forces replacement.",
				Validators:          []validator.String{validators.Label(maxName)},
			},
			"template": schema.SingleNestedAttribute{
				Required:            true,
				MarkdownDescription: "What every unit is made from.",
				Attributes: map[string]schema.Attribute{
					"labels": schema.MapAttribute{
						Optional: true, ElementType: types.StringType,
						MarkdownDescription: "Labels of the pods, beside the cluster's own.",
						Validators:          []validator.Map{validators.Labels()},
					},
					"containers": schema.MapNestedAttribute{
						Required:            true,
						MarkdownDescription: "Containers of the pods by name.",
						NestedObject:        schema.NestedAttributeObject{Attributes: containerAttributes()},
						Validators: []validator.Map{
							mapvalidator.SizeAtLeast(1),
							mapvalidator.KeysAre(validators.Label(maxName)),
						},
					},
				},
			},
			"pools": schema.MapNestedAttribute{
				Required:            true,
				MarkdownDescription: "The pools that get a unit, by name, with what differs there. `{}` runs nothing.",
				NestedObject:        schema.NestedAttributeObject{Attributes: poolAttributes()},
				Validators:          []validator.Map{mapvalidator.KeysAre(validators.Label(maxName))},
			},
			"service": serviceAttribute(),
			"wait": schema.SingleNestedAttribute{
				Optional:            true,
				MarkdownDescription: "What create and update wait for.",
				Attributes: map[string]schema.Attribute{
					"rollout": schema.BoolAttribute{
						Optional: true, Computed: true,
						Default:             booldefault.StaticBool(defaultRollout),
						MarkdownDescription: "Whether to wait until every unit that is not cut off has rolled out, and to fail as soon as one cannot. Default `true`.",
					},
				},
			},
			"timeouts": DefaultTimeouts.Attribute(ctx),
			"status":   schema.StringAttribute{Computed: true, MarkdownDescription: "Outcome of the last apply: `ready` or `incomplete: <phase>` (the next apply waits on)."},
		},
	}
}

func envAttribute(text string) schema.Attribute {
	return schema.MapAttribute{
		Optional: true, ElementType: types.StringType,
		MarkdownDescription: text,
		Validators: []validator.Map{
			mapvalidator.KeysAre(validators.EnvName()),
			mapvalidator.NoNullValues(),
		},
	}
}

func wordsAttribute(text string) schema.Attribute {
	return schema.ListAttribute{Optional: true, ElementType: types.StringType, MarkdownDescription: text}
}

func resourcesAttribute(text string) schema.Attribute {
	quantities := func(text string) schema.MapAttribute {
		return schema.MapAttribute{
			Optional: true, ElementType: spelling.Type[spelling.QuantityKind]{},
			MarkdownDescription: text,
			Validators: []validator.Map{
				mapvalidator.KeysAre(validators.String("the name of a resource", validators.CheckLabelKey)),
				mapvalidator.NoNullValues(),
				mapvalidator.ValueStringsAre(spelling.Valid[spelling.QuantityKind]()),
			},
		}
	}
	return schema.SingleNestedAttribute{
		Optional:            true,
		MarkdownDescription: text,
		Attributes: map[string]schema.Attribute{
			"requests": quantities("What is set aside for the container, like `{ cpu = \"100m\", memory = \"64Mi\" }`."),
			"limits":   quantities("What the container is held to."),
		},
	}
}

func protocolAttribute() schema.Attribute {
	return schema.StringAttribute{
		Optional: true, Computed: true,
		Default:             stringdefault.StaticString(defaultProtocol),
		MarkdownDescription: "`TCP` or `UDP`. Default `TCP`.",
		Validators:          []validator.String{stringvalidator.OneOf(string(corev1.ProtocolTCP), string(corev1.ProtocolUDP))},
	}
}

func portAttribute(text string) schema.Attribute {
	return schema.Int64Attribute{
		Required:            true,
		MarkdownDescription: text,
		Validators:          []validator.Int64{int64validator.Between(1, 65535)},
	}
}

func containerAttributes() map[string]schema.Attribute {
	return map[string]schema.Attribute{
		"image": schema.StringAttribute{
			Required:            true,
			MarkdownDescription: "Image to run.",
			Validators:          []validator.String{validators.ImageReference()},
		},
		"command": wordsAttribute("Replaces the image's entry point."),
		"args":    wordsAttribute("Replaces the image's arguments."),
		"env":     envAttribute("Environment of the container. It is kept in state and in the cluster as written: put no secrets here."),
		"ports": schema.MapNestedAttribute{
			Optional:            true,
			MarkdownDescription: "Ports the container listens on, by name.",
			Validators:          []validator.Map{mapvalidator.KeysAre(validators.PortName())},
			NestedObject: schema.NestedAttributeObject{Attributes: map[string]schema.Attribute{
				"port":     portAttribute("Port number."),
				"protocol": protocolAttribute(),
			}},
		},
		"resources": resourcesAttribute("What the container asks for and is held to."),
	}
}

func poolAttributes() map[string]schema.Attribute {
	return map[string]schema.Attribute{
		"replicas": schema.Int64Attribute{
			Optional: true, Computed: true,
			Default:             int64default.StaticInt64(defaultReplicas),
			MarkdownDescription: "Number of pods in this pool. Default `1`.",
			Validators:          []validator.Int64{int64validator.Between(0, maxReplicas)},
		},
		"env": envAttribute("Set in every container of this pool's pods; it wins over the template's."),
		"containers": schema.MapNestedAttribute{
			Optional:            true,
			MarkdownDescription: "What differs for single containers of the template, by name.",
			NestedObject: schema.NestedAttributeObject{Attributes: map[string]schema.Attribute{
				"image": schema.StringAttribute{
					Optional:            true,
					MarkdownDescription: "Replaces the template's image.",
					Validators:          []validator.String{validators.ImageReference()},
				},
				"command":   wordsAttribute("Replaces the template's command."),
				"args":      wordsAttribute("Replaces the template's arguments."),
				"env":       envAttribute("Wins over the pool's and the template's environment."),
				"resources": resourcesAttribute("Replaces the template's resources."),
			}},
		},
	}
}

func serviceAttribute() schema.Attribute {
	return schema.SingleNestedAttribute{
		Optional:            true,
		MarkdownDescription: "Gives the pods of all units one Service of the deployment's name.",
		Attributes: map[string]schema.Attribute{
			"type": schema.StringAttribute{
				Optional: true, Computed: true,
				Default:             stringdefault.StaticString(defaultType),
				MarkdownDescription: "`ClusterIP` or `NodePort`. Default `ClusterIP`.",
				Validators:          []validator.String{stringvalidator.OneOf(defaultType, string(corev1.ServiceTypeNodePort))},
			},
			"ports": schema.MapNestedAttribute{
				Required:            true,
				MarkdownDescription: "Ports of the Service by name.",
				Validators: []validator.Map{
					mapvalidator.SizeAtLeast(1),
					mapvalidator.KeysAre(validators.PortName()),
				},
				NestedObject: schema.NestedAttributeObject{Attributes: map[string]schema.Attribute{
					"port": portAttribute("Port the Service listens on."),
					"target_port": schema.StringAttribute{
						Optional:            true,
						MarkdownDescription: "Port of the pods: a number, or the name of a container's port. Default: the same number as `port`.",
						Validators:          []validator.String{validators.TargetPort()},
					},
					"protocol": protocolAttribute(),
				}},
			},
		},
	}
}
