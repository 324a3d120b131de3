// Package provider is the Terraform face of the engine: the provider "edge", its
// resources, data sources and ephemeral resources. It decodes what Terraform sends, calls
// one use case of the engine, and writes back what the engine says; it holds no
// logic about clusters, and puts no secret into state.
//
//	provider/                  New, the provider block, how the engine is opened
//	provider/<entity>/         one resource: schema, model, one verb a file
//	provider/internal/entity   the envelope around every verb, and how changes are planned
//
// Answering for the schema constructs nothing: the engine is opened when the first
// resource needs it.
package provider

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/ephemeral"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	"github.com/hashicorp/terraform-plugin-framework/resource"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/cluster"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
	"github.com/edgewright/terraform-provider-edge/provider/node"
	"github.com/edgewright/terraform-provider-edge/provider/nodepool"
	"github.com/edgewright/terraform-provider-edge/provider/unitdeployment"
)

// Engine is everything the provider asks of the engine.
type Engine = entity.Engine

// Settings are what a configured provider block says, with environment variables
// in place of what it leaves out.
type Settings struct {
	StateDir        string // empty: the engine's default
	Clusters        map[string]engine.ClusterAccess
	ComponentSource string // empty: the engine's default, as for the next two
	ComponentMirror string
	ComponentCache  string
	Version         string // of the provider
	FieldManager    string // under which objects in a cluster are written
}

// EngineFactory opens an engine. It is called at most once for a configured
// provider, and never for a schema, for validation or where no resource is.
type EngineFactory func(Settings) (Engine, error)

// Option changes how a provider is made.
type Option func(*edgeProvider)

// WithEngine makes the provider use another engine than the real one.
func WithEngine(factory EngineFactory) Option {
	return func(p *edgeProvider) { p.open = factory }
}

// WithEnvironment makes the provider read its environment variables with getenv
// rather than os.Getenv.
func WithEnvironment(getenv func(string) string) Option {
	return func(p *edgeProvider) { p.getenv = getenv }
}

// ForPulumi makes the provider speak of pulumi's commands, and write to clusters
// under pulumi's name. token turns the name of a resource ("edge_node_pool") into
// the type that `pulumi import` is given.
func ForPulumi(token func(resource string) string) Option {
	return func(p *edgeProvider) {
		p.fieldManager = "pulumi"
		p.words = entity.Pulumi(func(kind string) string { return token(typeName + "_" + kind) })
	}
}

// New returns what makes a provider of that version (semantic, without a leading v).
func New(version string, opts ...Option) func() provider.Provider {
	return func() provider.Provider {
		p := &edgeProvider{version: version, open: openEngine, getenv: environment, fieldManager: "terraform", words: entity.Terraform()}
		for _, o := range opts {
			o(p)
		}
		return p
	}
}

type edgeProvider struct {
	version string
	open    EngineFactory
	getenv  func(string) string

	fieldManager string
	words        entity.Words
}

// typeName is the prefix of every resource's name.
const typeName = "edge"

var (
	_ provider.ProviderWithEphemeralResources = &edgeProvider{}
	_ provider.ProviderWithValidateConfig     = &edgeProvider{}
)

// Metadata implements provider.Provider.
func (p *edgeProvider) Metadata(_ context.Context, _ provider.MetadataRequest, resp *provider.MetadataResponse) {
	resp.TypeName = typeName
	resp.Version = p.version
}

// Resources implements provider.Provider.
func (p *edgeProvider) Resources(context.Context) []func() resource.Resource {
	return []func() resource.Resource{
		cluster.NewResource,
		nodepool.NewResource,
		node.NewResource,
		unitdeployment.NewResource,
	}
}

// EphemeralResources implements provider.ProviderWithEphemeralResources.
func (p *edgeProvider) EphemeralResources(context.Context) []func() ephemeral.EphemeralResource {
	return []func() ephemeral.EphemeralResource{cluster.NewCredentials}
}

// DataSources implements provider.Provider.
func (p *edgeProvider) DataSources(context.Context) []func() datasource.DataSource {
	return []func() datasource.DataSource{node.NewDataSource}
}
