package provider

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework-validators/mapvalidator"
	"github.com/hashicorp/terraform-plugin-framework-validators/stringvalidator"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	"github.com/hashicorp/terraform-plugin-framework/provider/schema"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/edgewright/terraform-provider-edge/internal/component"
	"github.com/edgewright/terraform-provider-edge/provider/internal/validators"
)

// The environment variables that stand in for attributes.
const (
	envStateDir        = "EDGE_STATE_DIR"
	envComponentSource = "EDGE_COMPONENT_SOURCE"
	envComponentMirror = "EDGE_COMPONENT_MIRROR"
	envComponentCache  = "EDGE_COMPONENT_CACHE"
)

// settingsModel is the provider block. All of it may be unknown in a plan.
type settingsModel struct {
	StateDir   types.String `tfsdk:"state_dir"`
	Clusters   types.Map    `tfsdk:"clusters"`
	Components types.Object `tfsdk:"components"`
}

type accessModel struct {
	KubeconfigPath types.String `tfsdk:"kubeconfig_path"`
	Context        types.String `tfsdk:"context"`
	Host           types.String `tfsdk:"host"`
	CACertificate  types.String `tfsdk:"ca_certificate"`
	Token          types.String `tfsdk:"token"`
	Gone           types.Bool   `tfsdk:"gone"`
}

type componentsModel struct {
	Source types.String `tfsdk:"source"`
	Mirror types.String `tfsdk:"mirror"`
	Cache  types.String `tfsdk:"cache"`
}

// Schema implements provider.Provider.
func (p *edgeProvider) Schema(_ context.Context, _ provider.SchemaRequest, resp *provider.SchemaResponse) {
	filled := []validator.String{stringvalidator.LengthAtLeast(1)}
	text := func(description string) schema.StringAttribute {
		return schema.StringAttribute{Optional: true, MarkdownDescription: description, Validators: filled}
	}
	token := text("Bearer token, with `host`.")
	token.Sensitive = true
	source := text("Where to look: `cache` takes only what is in the cache; `mirror` tries the cache and then the mirror; `module` tries the cache and then builds the program from its Go module; `auto` tries all three. Default: `EDGE_COMPONENT_SOURCE`, or `auto`.")
	source.Validators = []validator.String{stringvalidator.OneOf(component.SourceAuto, component.SourceCache, component.SourceMirror, component.SourceModule)}
	resp.Schema = schema.Schema{
		MarkdownDescription: "Kubernetes clusters whose nodes are at the edge: behind NAT, on links that fail, on any hardware. An empty block is enough for clusters on this machine. The block never depends on a cluster that the same configuration makes, and a KUBECONFIG of the environment is never read.",
		Attributes: map[string]schema.Attribute{
			"state_dir": text("Directory that holds the keys of clusters made from here, readable for its owner alone. Default: `EDGE_STATE_DIR`, or `~/.edge`."),
			"clusters": schema.MapNestedAttribute{
				Optional:            true,
				MarkdownDescription: "How clusters are reached that are not in the state directory, by cluster id: a kubeconfig file, or a host with a token. With `gone`, the cluster no longer exists.",
				Validators:          []validator.Map{mapvalidator.KeysAre(validators.ClusterID())},
				NestedObject: schema.NestedAttributeObject{Attributes: map[string]schema.Attribute{
					"kubeconfig_path": text("Path of a kubeconfig file."),
					"context":         text("Context of that file. Default: its current one."),
					"host":            text("URL of the Kubernetes API, `https://…`."),
					"ca_certificate":  text("Certificate of the authority that the API's certificate is checked against, PEM, with `host`."),
					"token":           token,
					"gone": schema.BoolAttribute{
						Optional:            true,
						MarkdownDescription: "Declares that the cluster no longer exists: destroying what was in it then succeeds without it. Default `false`.",
					},
				}},
			},
			"components": schema.SingleNestedAttribute{
				Optional:            true,
				MarkdownDescription: "Where the upstream programs (Kubernetes, etcd, containerd and others) come from.",
				Attributes: map[string]schema.Attribute{
					"source": source,
					"mirror": text("Directory or URL of a mirror. Default: `EDGE_COMPONENT_MIRROR`."),
					"cache":  text("Directory of the cache, an absolute path. Default: `EDGE_COMPONENT_CACHE`, or one in the user's cache directory."),
				},
			},
		},
	}
}
