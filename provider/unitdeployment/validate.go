package unitdeployment

import (
	"context"
	"fmt"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/tfsdk"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/edgewright/terraform-provider-edge/provider/internal/spelling"
)

// validate checks what no attribute can check alone: that overrides and target
// ports name what the template has, and that no container asks for more than its
// limit. It judges only what is known.
func validate(ctx context.Context, config tfsdk.Config, diags *diag.Diagnostics) {
	var template, service types.Object
	var pools types.Map
	diags.Append(config.GetAttribute(ctx, path.Root("template"), &template)...)
	diags.Append(config.GetAttribute(ctx, path.Root("service"), &service)...)
	diags.Append(config.GetAttribute(ctx, path.Root("pools"), &pools)...)
	if diags.HasError() {
		return
	}
	containers, known := part(template, "containers")
	if known {
		checkOverrides(containers, pools, diags)
		checkTargets(containers, service, diags)
	}
	at := path.Root("template").AtName("containers")
	for name, c := range elements(containers) {
		checkResources(at.AtMapKey(name).AtName("resources"), c, diags)
	}
	for pool, p := range elements(pools) {
		overrides, _ := part(p, "containers")
		at := path.Root("pools").AtMapKey(pool).AtName("containers")
		for name, c := range elements(overrides) {
			checkResources(at.AtMapKey(name).AtName("resources"), c, diags)
		}
	}
}

// part is the map under a name of an object, and whether it is known.
func part(v attr.Value, name string) (types.Map, bool) {
	o, ok := v.(types.Object)
	if !ok || o.IsUnknown() {
		return types.MapNull(types.StringType), false
	}
	m, ok := o.Attributes()[name].(types.Map)
	if !ok {
		return types.MapNull(types.StringType), true // the object is null
	}
	return m, !m.IsUnknown()
}

// elements are the known elements of a map; none of one that is null or unknown.
func elements(m types.Map) map[string]attr.Value { return m.Elements() }

func checkOverrides(containers, pools types.Map, diags *diag.Diagnostics) {
	for pool, p := range elements(pools) {
		overrides, _ := part(p, "containers")
		for name := range elements(overrides) {
			if _, ok := containers.Elements()[name]; !ok {
				diags.AddAttributeError(path.Root("pools").AtMapKey(pool).AtName("containers").AtMapKey(name),
					"No such container", fmt.Sprintf("The template has no container %q to override; it has %s.", name, strings.Join(names(containers.Elements()), ", ")))
			}
		}
	}
}

func checkTargets(containers types.Map, service types.Object, diags *diag.Diagnostics) {
	have := map[string]bool{}
	for _, c := range elements(containers) {
		ports, known := part(c, "ports")
		if !known {
			return
		}
		for name := range elements(ports) {
			have[name] = true
		}
	}
	servicePorts, _ := part(service, "ports")
	for name, p := range elements(servicePorts) {
		o, ok := p.(types.Object)
		if !ok {
			continue
		}
		target, ok := o.Attributes()["target_port"].(types.String)
		if !ok || target.IsNull() || target.IsUnknown() {
			continue
		}
		t := target.ValueString()
		if strings.Trim(t, "0123456789") != "" && !have[t] {
			diags.AddAttributeError(path.Root("service").AtName("ports").AtMapKey(name).AtName("target_port"),
				"No such port", fmt.Sprintf("No container of the template has a port %q. Name one of the containers' ports, or give a number.", t))
		}
	}
}

func checkResources(at path.Path, container attr.Value, diags *diag.Diagnostics) {
	o, ok := container.(types.Object)
	if !ok {
		return
	}
	resources := o.Attributes()["resources"]
	requests, _ := part(resources, "requests")
	limits, _ := part(resources, "limits")
	for name, r := range elements(requests) {
		request, ok := quantity(r)
		limit, okLimit := quantity(limits.Elements()[name])
		if ok && okLimit && request.Cmp(limit) > 0 {
			diags.AddAttributeError(at.AtName("requests").AtMapKey(name),
				"Asks for more than its limit", fmt.Sprintf("The request of %s %s is above the limit of %s.", request.String(), name, limit.String()))
		}
	}
}

func quantity(v attr.Value) (resource.Quantity, bool) {
	q, ok := v.(spelling.Quantity)
	if !ok || q.IsNull() || q.IsUnknown() || q.Canonical() == "" {
		return resource.Quantity{}, false
	}
	parsed, err := resource.ParseQuantity(q.ValueString())
	return parsed, err == nil
}
