package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/providerserver"
	"github.com/hashicorp/terraform-plugin-go/tfprotov6"

	"github.com/edgewright/terraform-provider-edge/provider"
)

// object is a JSON object of `terraform providers schema -json`, whose format is
// described at developer.hashicorp.com/terraform/cli/commands/providers/schema.
type object = map[string]any

// providerSchema is what that command would say of the provider. The key is the
// one the documentation generator looks for.
func providerSchema(ctx context.Context) ([]byte, error) {
	server, err := providerserver.NewProtocol6WithError(provider.New("0.0.0-docs")())()
	if err != nil {
		return nil, fmt.Errorf("serve the provider: %w", err)
	}
	resp, err := server.GetProviderSchema(ctx, &tfprotov6.GetProviderSchemaRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask the provider for its schema: %w", err)
	}
	for _, d := range resp.Diagnostics {
		return nil, fmt.Errorf("the provider's schema: %s: %s", d.Summary, d.Detail)
	}
	out := object{
		"format_version": "1.0",
		"provider_schemas": object{"edge": object{
			"provider":                   schemaJSON(resp.Provider),
			"resource_schemas":           schemas(resp.ResourceSchemas),
			"data_source_schemas":        schemas(resp.DataSourceSchemas),
			"ephemeral_resource_schemas": schemas(resp.EphemeralResourceSchemas),
		}},
	}
	return json.MarshalIndent(out, "", "  ")
}

func schemas(in map[string]*tfprotov6.Schema) object {
	out := object{}
	for name, s := range in {
		out[name] = schemaJSON(s)
	}
	return out
}

func schemaJSON(s *tfprotov6.Schema) object {
	return object{"version": s.Version, "block": blockJSON(s.Block)}
}

func blockJSON(b *tfprotov6.SchemaBlock) object {
	out := object{"attributes": attributesJSON(b.Attributes)}
	describe(out, b.Description, b.DescriptionKind)
	if len(b.BlockTypes) > 0 {
		// The provider has attributes only: protocol 6 nests those.
		panic("the provider's schema has blocks; teach schema.go to write them")
	}
	return out
}

func attributesJSON(in []*tfprotov6.SchemaAttribute) object {
	out := object{}
	for _, a := range in {
		attribute := object{}
		describe(attribute, a.Description, a.DescriptionKind)
		for name, set := range map[string]bool{
			"required": a.Required, "optional": a.Optional, "computed": a.Computed,
			"sensitive": a.Sensitive, "deprecated": a.Deprecated, "write_only": a.WriteOnly,
		} {
			if set {
				attribute[name] = true
			}
		}
		if n := a.NestedType; n != nil {
			attribute["nested_type"] = object{
				"attributes":   attributesJSON(n.Attributes),
				"nesting_mode": strings.ToLower(n.Nesting.String()),
			}
		} else {
			attribute["type"] = a.Type
		}
		out[a.Name] = attribute
	}
	return out
}

func describe(out object, text string, kind tfprotov6.StringKind) {
	if text == "" {
		return
	}
	out["description"], out["description_kind"] = text, "plain"
	if kind == tfprotov6.StringKindMarkdown {
		out["description_kind"] = "markdown"
	}
}
