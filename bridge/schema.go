package bridge

import (
	"maps"
	"regexp"
	"strings"

	"github.com/pulumi/pulumi/pkg/v3/codegen/schema"
)

// importIDs are the forms of the ids that resources are imported with.
var importIDs = map[string]string{
	"edge_cluster":         "<placement>/<cluster>-<8 digits>",
	"edge_node_pool":       "<cluster id>/<pool>",
	"edge_node":            "<cluster id>/<node>",
	"edge_unit_deployment": "<cluster id>/<namespace>/<name>",
}

// nameInLanguages is how the bridge writes a property's name: once for each
// language, for a web page that shows one of them.
var nameInLanguages = regexp.MustCompile(`<span pulumi-lang-nodejs="([^"]*)"[^>]*>[^<]*</span>`)

// amend mends the descriptions: the names of properties as the SDKs have them, no
// examples in HCL, and how objects are imported. (The bridge takes that from the
// Terraform example, with an address that Pulumi does not have.)
func amend(spec *schema.PackageSpec) {
	text := func(s string) string {
		s, _, _ = strings.Cut(s, "\n## Example Usage")
		s, _, _ = strings.Cut(s, "\n## Import")
		s = strings.ReplaceAll(s, "Write `local = {}`", "Write an empty object")
		return strings.TrimRight(nameInLanguages.ReplaceAllString(s, "$1"), "\n")
	}
	properties := func(m map[string]schema.PropertySpec) {
		for name, p := range maps.All(m) {
			p.Description = text(p.Description)
			m[name] = p
		}
	}
	object := func(o *schema.ObjectTypeSpec) {
		o.Description = text(o.Description)
		properties(o.Properties)
	}
	resource := func(r *schema.ResourceSpec) {
		object(&r.ObjectTypeSpec)
		properties(r.InputProperties)
		if r.StateInputs != nil {
			object(r.StateInputs)
		}
	}
	spec.Config.Variables = maps.Clone(spec.Config.Variables)
	properties(spec.Config.Variables)
	for name, t := range spec.Types {
		object(&t.ObjectTypeSpec)
		spec.Types[name] = t
	}
	resource(&spec.Provider)
	for name, id := range importIDs {
		r, ok := spec.Resources[token(name)]
		if !ok {
			continue // the schema's test says so
		}
		resource(&r)
		r.Description += "\n\nWhole programs: " + repository + "/tree/main/examples/pulumi\n\n## Import\n\n```sh\npulumi import " + token(name) + " <name> '" + id + "'\n```"
		spec.Resources[token(name)] = r
	}
}
