package provider

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-framework/types/basetypes"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/entity"
)

// environment is the real one; tests pass their own.
func environment(name string) string { return os.Getenv(name) }

// Configure implements provider.Provider. It reads the block and promises an
// engine; nothing is opened before a resource needs it.
func (p *edgeProvider) Configure(ctx context.Context, req provider.ConfigureRequest, resp *provider.ConfigureResponse) {
	var m settingsModel
	if resp.Diagnostics.Append(req.Config.Get(ctx, &m)...); resp.Diagnostics.HasError() {
		return
	}
	settings, unknown := p.settings(ctx, &m, &resp.Diagnostics)
	if resp.Diagnostics.HasError() {
		return
	}
	conn := entity.NewConnection(p.words, func() (Engine, error) {
		if len(unknown) > 0 {
			return nil, notKnownYet(unknown)
		}
		return p.open(settings)
	})
	resp.ResourceData = conn
	resp.DataSourceData = conn
	resp.EphemeralResourceData = conn
}

// notKnownYet is what resources are told in a plan whose provider block waits for
// another resource. It is not "not found": with a state directory or an access
// that is not known yet, nobody can say that a cluster is gone.
func notKnownYet(attributes []string) error {
	return &engine.Error{
		Class: engine.Unreachable, Op: "open", Object: "the state directory",
		Err: fmt.Errorf("%s of the provider block is not known before apply", strings.Join(attributes, " and ")),
	}
}

// settings turns the block into settings, with environment variables in place of
// what is not set, and names what is unknown and needed to reach a cluster.
func (p *edgeProvider) settings(ctx context.Context, m *settingsModel, diags *diag.Diagnostics) (Settings, []string) {
	var unknown []string
	or := func(v types.String, env string) string {
		if v.IsNull() {
			return p.getenv(env)
		}
		return v.ValueString()
	}
	s := Settings{Version: p.version, FieldManager: p.fieldManager, StateDir: or(m.StateDir, envStateDir)}
	if m.StateDir.IsUnknown() {
		unknown = append(unknown, "state_dir")
	}

	var components componentsModel
	if !m.Components.IsNull() && !m.Components.IsUnknown() {
		diags.Append(m.Components.As(ctx, &components, basetypes.ObjectAsOptions{})...)
	}
	// Components are only needed in apply, when they are known.
	s.ComponentSource = or(components.Source, envComponentSource)
	s.ComponentMirror = or(components.Mirror, envComponentMirror)
	s.ComponentCache = or(components.Cache, envComponentCache)

	known, accesses := accessMap(ctx, m.Clusters, diags)
	if !known {
		unknown = append(unknown, "clusters")
	}
	s.Clusters = make(map[string]engine.ClusterAccess, len(accesses))
	for id, a := range accesses {
		s.Clusters[id] = engine.ClusterAccess{
			KubeconfigPath: a.KubeconfigPath.ValueString(),
			Context:        a.Context.ValueString(),
			Host:           a.Host.ValueString(),
			CACertificate:  a.CACertificate.ValueString(),
			Token:          a.Token.ValueString(),
			Gone:           a.Gone.ValueBool(),
		}
	}
	return s, unknown
}

// accessMap decodes the known part of `clusters` and says whether all of it is known.
func accessMap(ctx context.Context, clusters types.Map, diags *diag.Diagnostics) (known bool, accesses map[string]accessModel) {
	accesses = map[string]accessModel{}
	if clusters.IsUnknown() {
		return false, accesses
	}
	known = true
	for id, v := range clusters.Elements() {
		o, ok := v.(types.Object)
		if !ok || o.IsUnknown() {
			known = false
			continue
		}
		for _, part := range o.Attributes() {
			known = known && !part.IsUnknown()
		}
		var a accessModel
		diags.Append(o.As(ctx, &a, basetypes.ObjectAsOptions{})...)
		accesses[id] = a
	}
	return known, accesses
}

// ValidateConfig implements provider.ProviderWithValidateConfig: each cluster is
// reached in exactly one way.
func (p *edgeProvider) ValidateConfig(ctx context.Context, req provider.ValidateConfigRequest, resp *provider.ValidateConfigResponse) {
	var m settingsModel
	if resp.Diagnostics.Append(req.Config.Get(ctx, &m)...); resp.Diagnostics.HasError() {
		return
	}
	_, accesses := accessMap(ctx, m.Clusters, &resp.Diagnostics)
	for id, a := range accesses {
		if err := a.check(); err != nil {
			resp.Diagnostics.AddAttributeError(path.Root("clusters").AtMapKey(id), "Not a way to reach a cluster", err.Error())
		}
	}
}

// check says what is wrong with an access. An attribute that is unknown counts as
// set, and excuses whatever could be set with it.
func (a accessModel) check() error {
	set := func(v types.String) bool { return !v.IsNull() }
	gone := a.Gone.IsUnknown() || a.Gone.ValueBool()
	ways := 0
	for _, way := range []bool{set(a.KubeconfigPath), set(a.Host), gone} {
		if way {
			ways++
		}
	}
	if ways != 1 && !a.Gone.IsUnknown() {
		return errors.New("set exactly one of kubeconfig_path, host and gone = true")
	}
	if set(a.Context) && !set(a.KubeconfigPath) {
		return errors.New("context goes with kubeconfig_path")
	}
	if set(a.Host) && (!set(a.CACertificate) || !set(a.Token)) {
		return errors.New("host needs ca_certificate and token")
	}
	if !set(a.Host) && (set(a.CACertificate) || set(a.Token)) {
		return errors.New("ca_certificate and token go with host")
	}
	if set(a.Host) && !a.Host.IsUnknown() && !strings.HasPrefix(a.Host.ValueString(), "https://") {
		return errors.New("host is a URL that begins with https://")
	}
	return nil
}
