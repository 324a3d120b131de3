package cluster

import (
	"context"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/ephemeral"
	"github.com/hashicorp/terraform-plugin-framework/ephemeral/schema"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
	"github.com/edgewright/terraform-provider-edge/provider/internal/spelling"
	"github.com/edgewright/terraform-provider-edge/provider/internal/validators"
)

// DefaultTTL is how long credentials are valid where the user does not say. It is
// longer than most applies and shorter than a working day.
const DefaultTTL = engine.DefaultCredentialTTL

// openTimeout bounds minting credentials: one request to a cluster that is
// reachable.
const openTimeout = 2 * time.Minute

// credentials is the ephemeral resource edge_cluster_credentials. Terraform opens
// it in plan and in apply and never stores what it returns.
type credentials struct{ conn *entity.Connection }

var _ ephemeral.EphemeralResourceWithConfigure = &credentials{}

// NewCredentials returns the ephemeral resource edge_cluster_credentials.
func NewCredentials() ephemeral.EphemeralResource { return &credentials{} }

type credentialsModel struct {
	ClusterID         types.String      `tfsdk:"cluster_id"`
	TTL               spelling.Duration `tfsdk:"ttl"`
	Host              types.String      `tfsdk:"host"`
	CACertificate     types.String      `tfsdk:"ca_certificate"`
	ClientCertificate types.String      `tfsdk:"client_certificate"`
	ClientKey         types.String      `tfsdk:"client_key"`
	ExpiresAt         types.String      `tfsdk:"expires_at"`
}

// Metadata implements ephemeral.EphemeralResource.
func (c *credentials) Metadata(_ context.Context, req ephemeral.MetadataRequest, resp *ephemeral.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_cluster_credentials"
}

// Schema implements ephemeral.EphemeralResource.
func (c *credentials) Schema(_ context.Context, _ ephemeral.SchemaRequest, resp *ephemeral.SchemaResponse) {
	resp.Schema = schema.Schema{
		MarkdownDescription: "Short-lived administrator's credentials of a cluster, for the configuration of another provider. They are minted when Terraform opens the resource, and are never in state or in a plan file.",
		Attributes: map[string]schema.Attribute{
			"cluster_id": schema.StringAttribute{
				Required:            true,
				MarkdownDescription: "Id of the cluster (`edge_cluster.….id`). While it is unknown, Terraform opens the resource in apply.",
				Validators:          []validator.String{validators.ClusterID()},
			},
			"ttl": schema.StringAttribute{
				Optional:            true,
				CustomType:          spelling.Type[spelling.DurationKind]{},
				MarkdownDescription: "How long the credentials are valid, from `5m` to `24h`. Choose it longer than the apply that uses them: they are not renewed. Default `1h`.",
				Validators:          []validator.String{validators.DurationBetween(engine.MinCredentialTTL, engine.MaxCredentialTTL)},
			},
			"host": schema.StringAttribute{
				Computed:            true,
				MarkdownDescription: "URL of the Kubernetes API.",
			},
			"ca_certificate": schema.StringAttribute{
				Computed:            true,
				MarkdownDescription: "Certificate of the authority that the API's certificate is checked against, PEM.",
			},
			"client_certificate": schema.StringAttribute{
				Computed: true, Sensitive: true,
				MarkdownDescription: "Client certificate, PEM.",
			},
			"client_key": schema.StringAttribute{
				Computed: true, Sensitive: true,
				MarkdownDescription: "Private key of the client certificate, PEM.",
			},
			"expires_at": schema.StringAttribute{
				Computed:            true,
				MarkdownDescription: "When the credentials end, RFC 3339 in UTC.",
			},
		},
	}
}

// Configure implements ephemeral.EphemeralResourceWithConfigure.
func (c *credentials) Configure(_ context.Context, req ephemeral.ConfigureRequest, resp *ephemeral.ConfigureResponse) {
	c.conn = entity.FromProviderData(req.ProviderData, &resp.Diagnostics)
}

// Open implements ephemeral.EphemeralResource.
func (c *credentials) Open(ctx context.Context, req ephemeral.OpenRequest, resp *ephemeral.OpenResponse) {
	var m credentialsModel
	if resp.Diagnostics.Append(req.Config.Get(ctx, &m)...); resp.Diagnostics.HasError() {
		return
	}
	ttl := DefaultTTL
	if !m.TTL.IsNull() {
		d, err := time.ParseDuration(m.TTL.Canonical())
		if err != nil {
			resp.Diagnostics.AddError("Not a duration", err.Error())
			return
		}
		ttl = d
	}
	id := m.ClusterID.ValueString()
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	got, err := c.mint(ctx, id, ttl)
	if err != nil {
		resp.Diagnostics.Append(entity.Diagnose(ctx, req.Config.Schema.Type(), err, "get credentials of cluster", id))
		return
	}
	m.Host = types.StringValue(got.Host)
	m.CACertificate = types.StringValue(got.CACertificate)
	m.ClientCertificate = types.StringValue(got.ClientCertificate)
	m.ClientKey = types.StringValue(got.ClientKey)
	m.ExpiresAt = types.StringValue(got.ExpiresAt.UTC().Format(time.RFC3339))
	resp.Diagnostics.Append(resp.Result.Set(ctx, &m)...)
}

func (c *credentials) mint(ctx context.Context, id string, ttl time.Duration) (*engine.Credentials, error) {
	eng, err := c.conn.Engine()
	if err != nil {
		return nil, err
	}
	return entity.Credentials(eng).ClusterCredentials(ctx, id, ttl)
}
