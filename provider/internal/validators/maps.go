package validators

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

// Labels is a map of labels a user puts on nodes or pods.
func Labels() validator.Map { return keyValues{"labels", CheckOwnKey, CheckLabelValue} }

// Annotations is a map of annotations a user puts on nodes: their values are free.
func Annotations() validator.Map {
	return keyValues{"annotations", CheckOwnKey, func(string) error { return nil }}
}

type keyValues struct {
	what       string
	key, value func(string) error
}

func (k keyValues) Description(context.Context) string         { return "Kubernetes " + k.what }
func (k keyValues) MarkdownDescription(context.Context) string { return "Kubernetes " + k.what }

func (k keyValues) ValidateMap(_ context.Context, req validator.MapRequest, resp *validator.MapResponse) {
	if req.ConfigValue.IsNull() || req.ConfigValue.IsUnknown() {
		return
	}
	for key, v := range req.ConfigValue.Elements() {
		at := req.Path.AtMapKey(key)
		if err := k.key(key); err != nil {
			resp.Diagnostics.AddAttributeError(at, "Must be Kubernetes "+k.what, err.Error())
		}
		s, ok := v.(types.String)
		if !ok || s.IsUnknown() {
			continue
		}
		if s.IsNull() {
			resp.Diagnostics.AddAttributeError(at, "Must be Kubernetes "+k.what, "The value is null: leave the key out, or write \"\".")
			continue
		}
		if err := k.value(s.ValueString()); err != nil {
			resp.Diagnostics.AddAttributeError(at, "Must be Kubernetes "+k.what, err.Error())
		}
	}
}

// TaintSet is a set of taints, one for each key and effect.
func TaintSet() validator.Set { return taintSet{} }

type taintSet struct{}

func (taintSet) Description(context.Context) string { return "taints, one for each key and effect" }
func (t taintSet) MarkdownDescription(ctx context.Context) string {
	return t.Description(ctx)
}

func (t taintSet) ValidateSet(ctx context.Context, req validator.SetRequest, resp *validator.SetResponse) {
	if req.ConfigValue.IsNull() || req.ConfigValue.IsUnknown() {
		return
	}
	seen := map[string]string{}
	for _, v := range req.ConfigValue.Elements() {
		s, ok := v.(types.String)
		if !ok || s.IsUnknown() {
			continue
		}
		taint, err := ParseTaint(s.ValueString())
		if err != nil {
			resp.Diagnostics.AddAttributeError(req.Path, "Must be "+t.Description(ctx), err.Error())
			continue
		}
		id := taint.Key + ":" + string(taint.Effect)
		if other, ok := seen[id]; ok {
			resp.Diagnostics.AddAttributeError(req.Path, "Must be "+t.Description(ctx),
				"Both "+other+" and "+s.ValueString()+" are given: a node has one taint of a key and effect.")
			continue
		}
		seen[id] = s.ValueString()
	}
}
