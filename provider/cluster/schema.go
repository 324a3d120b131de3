package cluster

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework-validators/int64validator"
	"github.com/hashicorp/terraform-plugin-framework-validators/listvalidator"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/edgewright/terraform-provider-edge/provider/internal/spelling"
	"github.com/edgewright/terraform-provider-edge/provider/internal/validators"
)

const (
	// maxName is short because the name becomes part of directory and member names.
	maxName = 40
	// minPort: the control plane runs without root.
	minPort, maxPort = 1024, 65535
	fixed            = " Cannot be changed."
)

func clusterSchema(ctx context.Context) schema.Schema {
	computed := func(text string) schema.StringAttribute {
		return schema.StringAttribute{Computed: true, MarkdownDescription: text}
	}
	return schema.Schema{
		Version: 0,
		MarkdownDescription: "A Kubernetes cluster whose nodes may be anywhere, also behind NAT: they dial its gateway, and everything between a node and the cluster goes through that one connection.\n\n" +
			"Nothing but `timeouts` can be changed in place yet: changing any other attribute fails the plan, and never replaces the cluster. A create or update that is interrupted, or whose timeout ends, leaves the cluster in state with `status = \"incomplete: …\"`, and the next apply finishes it in place.",
		Attributes: map[string]schema.Attribute{
			"id": computed("Identifier of the cluster, `<placement>/<name>-<8 hexadecimal digits>`. Not a secret. Resources inside the cluster name it as `cluster_id`."),
			"name": schema.StringAttribute{
				Required:            true,
				MarkdownDescription: "Name of the cluster, a DNS label of at most 40 characters." + fixed,
				Validators:          []validator.String{validators.Label(maxName)},
			},
			"version": schema.StringAttribute{
				Required:            true,
				CustomType:          spelling.Type[spelling.VersionKind]{},
				MarkdownDescription: "Kubernetes version, like `1.36.3`; `v1.36.3` means the same. Cannot be changed yet.",
			},
			"local": schema.SingleNestedAttribute{
				Required:            true,
				MarkdownDescription: "Runs the control plane on this machine, as the user that runs Terraform; root is not needed. Write `local = {}`." + fixed,
				Attributes:          map[string]schema.Attribute{},
			},
			"network":            networkAttribute(),
			"api":                apiAttribute(),
			"gateway":            gatewayAttribute(),
			"timeouts":           DefaultTimeouts.Attribute(ctx),
			"status":             computed("Outcome of the last apply: `ready`, `stopped` (the machine was restarted; the next apply starts the cluster) or `incomplete: <phase>` (the next apply finishes it)."),
			"kubernetes_version": computed("Kubernetes version that runs."),
			"engine_version":     computed("Version of this project's own programs that run the cluster."),
			"endpoint":           computed("URL of the Kubernetes API. It is on loopback: the API is never open to a network."),
			"ca_certificate":     computed("Certificate of the cluster's certificate authority, PEM. Public."),
			"kubeconfig":         computed("A kubeconfig that asks `edge credentials` for short-lived credentials when it is used. It holds no secret, and needs the `edge` program on the PATH and `EDGE_STATE_DIR` where the state directory is not `~/.edge`. `edge kubeconfig <cluster>` prints one that needs neither."),
		},
	}
}

func networkAttribute() schema.Attribute {
	cidrs := func(what string) schema.ListAttribute {
		return schema.ListAttribute{
			Optional: true, Computed: true, ElementType: types.StringType,
			MarkdownDescription: "Range of " + what + " addresses, one IPv4 CIDR without host bits. Default: a private range that this machine does not use." + fixed,
			Validators: []validator.List{
				listvalidator.SizeBetween(1, 1),
				listvalidator.ValueStringsAre(validators.CIDR()),
			},
		}
	}
	return schema.SingleNestedAttribute{
		Optional: true, Computed: true,
		MarkdownDescription: "Address ranges and names inside the cluster. What is not set is chosen when the cluster is created, and kept.",
		Attributes: map[string]schema.Attribute{
			"pod_cidrs":     cidrs("pod"),
			"service_cidrs": cidrs("Service"),
			"node_mask": schema.Int64Attribute{
				Optional: true, Computed: true,
				MarkdownDescription: "Prefix length of the part of the pod range that each node gets, from 16 to 28. Default `24`." + fixed,
				Validators:          []validator.Int64{int64validator.Between(16, 28)},
			},
			"dns_domain": schema.StringAttribute{
				Optional: true, Computed: true,
				MarkdownDescription: "DNS domain of Services and pods. Default `cluster.local`." + fixed,
				Validators:          []validator.String{validators.Domain()},
			},
		},
	}
}

func apiAttribute() schema.Attribute {
	return schema.SingleNestedAttribute{
		Optional: true, Computed: true,
		MarkdownDescription: "The Kubernetes API of the cluster.",
		Attributes: map[string]schema.Attribute{
			"port": schema.Int64Attribute{
				Optional: true, Computed: true,
				MarkdownDescription: "TCP port on loopback, from 1024 to 65535. Default: a free port, chosen when the cluster is created and kept. Cannot be changed yet.",
				Validators:          []validator.Int64{int64validator.Between(minPort, maxPort)},
			},
		},
	}
}

func gatewayAttribute() schema.Attribute {
	return schema.SingleNestedAttribute{
		Optional: true, Computed: true,
		MarkdownDescription: "The gateway that nodes dial.",
		Attributes: map[string]schema.Attribute{
			"port": schema.Int64Attribute{
				Optional: true, Computed: true,
				MarkdownDescription: "Port, from 1024 to 65535, for UDP (QUIC) and, where a site's network lets no UDP through, TCP. Both have to be free. Default: a free port, chosen when the cluster is created and kept. Cannot be changed yet.",
				Validators:          []validator.Int64{int64validator.Between(minPort, maxPort)},
			},
		},
	}
}
