package entity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/types"
	corev1 "k8s.io/api/core/v1"

	"github.com/edgewright/terraform-provider-edge/provider/internal/validators"
)

// StringMap returns what a map attribute holds; nil where it is null.
func StringMap(ctx context.Context, v types.Map, diags *diag.Diagnostics) map[string]string {
	if v.IsNull() || v.IsUnknown() {
		return nil
	}
	out := map[string]string{}
	diags.Append(v.ElementsAs(ctx, &out, false)...)
	return out
}

// MapValue returns m as an attribute. An empty map and none mean the same to a
// cluster, so an empty one stays as prior has it.
func MapValue(ctx context.Context, prior types.Map, m map[string]string, diags *diag.Diagnostics) types.Map {
	if len(m) == 0 {
		if !prior.IsNull() && !prior.IsUnknown() && len(prior.Elements()) == 0 {
			return prior
		}
		return types.MapNull(types.StringType)
	}
	v, d := types.MapValueFrom(ctx, types.StringType, m)
	diags.Append(d...)
	return v
}

// StringList returns what a list attribute holds; nil where it is null.
func StringList(ctx context.Context, v types.List, diags *diag.Diagnostics) []string {
	if v.IsNull() || v.IsUnknown() {
		return nil
	}
	out := []string{}
	diags.Append(v.ElementsAs(ctx, &out, false)...)
	return out
}

// ListValue returns l as an attribute; an empty list stays as prior has it.
func ListValue(ctx context.Context, prior types.List, l []string, diags *diag.Diagnostics) types.List {
	if len(l) == 0 {
		if !prior.IsNull() && !prior.IsUnknown() && len(prior.Elements()) == 0 {
			return prior
		}
		return types.ListNull(types.StringType)
	}
	v, d := types.ListValueFrom(ctx, types.StringType, l)
	diags.Append(d...)
	return v
}

// Taints returns what a set of taints holds, sorted so that one set is always
// one list.
func Taints(ctx context.Context, v types.Set, diags *diag.Diagnostics) []corev1.Taint {
	if v.IsNull() || v.IsUnknown() {
		return nil
	}
	var texts []string
	if diags.Append(v.ElementsAs(ctx, &texts, false)...); diags.HasError() {
		return nil
	}
	slices.Sort(texts)
	taints := make([]corev1.Taint, 0, len(texts))
	for _, s := range texts {
		t, err := validators.ParseTaint(s)
		if err != nil {
			diags.AddError("Not a taint", err.Error())
			continue
		}
		taints = append(taints, t)
	}
	return taints
}

// TaintsValue returns taints as an attribute; an empty set stays as prior has it.
func TaintsValue(ctx context.Context, prior types.Set, taints []corev1.Taint, diags *diag.Diagnostics) types.Set {
	if len(taints) == 0 {
		if !prior.IsNull() && !prior.IsUnknown() && len(prior.Elements()) == 0 {
			return prior
		}
		return types.SetNull(types.StringType)
	}
	texts := make([]string, len(taints))
	for i, t := range taints {
		texts[i] = t.ToString()
	}
	v, d := types.SetValueFrom(ctx, types.StringType, texts)
	diags.Append(d...)
	return v
}

// Text is s as an attribute, null where the engine does not know it yet.
func Text(s string) types.String {
	if s == "" {
		return types.StringNull()
	}
	return types.StringValue(s)
}

// SameCluster keeps prior where both name one cluster: the seed after an "@" is
// only a hint where to look, and a cluster returned with another one is not
// another cluster.
func SameCluster(prior types.String, got string) types.String {
	bare := func(s string) string { id, _, _ := strings.Cut(s, "@"); return id }
	if !prior.IsNull() && !prior.IsUnknown() && bare(prior.ValueString()) == bare(got) {
		return prior
	}
	return types.StringValue(got)
}

// AsError is for values that the framework has already held to their schema, so
// that an error in them is a bug.
func AsError(diags diag.Diagnostics) error {
	var errs []error
	for _, d := range diags.Errors() {
		errs = append(errs, fmt.Errorf("%s: %s", d.Summary(), d.Detail()))
	}
	return errors.Join(errs...)
}
