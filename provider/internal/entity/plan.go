package entity

import (
	"context"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/tfsdk"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-go/tftypes"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/provider/internal/spelling"
)

const statusAttribute = "status"

// PlanRules say how the changes of an entity are planned. They are kept in one
// place rather than as plan modifiers on attributes, because whether a computed
// value is known depends on all attributes at once: on whether anything changes,
// and on whether the last apply finished.
type PlanRules struct {
	// Replace names the attributes whose change replaces the object.
	Replace []string
	// Immutable lists the attributes whose change fails the plan.
	Immutable []Immutable
	// Volatile names the computed attributes, beside status, that any update may
	// change. The others keep their values.
	Volatile []string
}

// Immutable is an attribute that fails the plan when it changes.
type Immutable struct {
	// Path is dotted: "network.pod_cidrs".
	Path string
	// Yet says that changing it is meant to work one day.
	Yet bool
}

// apply plans:
//
//	create, delete              as the framework did
//	replace                     likewise; everything computed will be known after
//	another spelling            is no change
//	an immutable attribute      is an error
//	no change, status ready     no action
//	no change, any other status an update in place that finishes or starts it
//	a change                    an update in place
func (rules PlanRules) apply(ctx context.Context, noun string, words Words, req resource.ModifyPlanRequest, resp *resource.ModifyPlanResponse) {
	if req.Plan.Raw.IsNull() || req.State.Raw.IsNull() {
		return
	}
	planned, err := rules.sameSpelling(ctx, req)
	if err != nil {
		resp.Diagnostics.AddError("Cannot compare the plan with the state", err.Error()+". This is a bug in the provider: please report it.")
		return
	}
	resp.Plan.Raw = planned
	attrs, _ := children(planned)
	prior, _ := children(req.State.Raw)

	for _, name := range rules.Replace {
		if !attrs[name].Equal(prior[name]) {
			resp.RequiresReplace = append(resp.RequiresReplace, path.Root(name))
		}
	}
	if len(resp.RequiresReplace) > 0 {
		return
	}
	if rules.refuse(ctx, noun, words.Replace, resp.Plan, req.State, &resp.Diagnostics); resp.Diagnostics.HasError() {
		return
	}

	status, diags := statusOf(ctx, req.State)
	if resp.Diagnostics.Append(diags...); diags.HasError() {
		return
	}
	finished := status == engine.StatusReady
	computed := computedOnly(req.State.Schema.(schema.Schema))

	// First suppose that nothing computed changes; what is left is what the user changes.
	changed := false
	for name, v := range attrs {
		attrs[name] = keepKnown(v, prior[name])
		if !slices.Contains(computed, name) && !attrs[name].Equal(prior[name]) {
			changed = true
		}
	}
	if !changed && finished {
		resp.Plan.Raw = req.State.Raw
		return
	}
	for _, name := range computed {
		// What is null was not learned yet, and may be now.
		if name == statusAttribute || slices.Contains(rules.Volatile, name) || attrs[name].IsNull() {
			attrs[name] = tftypes.NewValue(attrs[name].Type(), tftypes.UnknownValue)
		}
	}
	resp.Plan.Raw = rebuild(planned, attrs)
}

// sameSpelling is the plan with the prior spelling of every value that only
// changes its spelling.
func (rules PlanRules) sameSpelling(ctx context.Context, req resource.ModifyPlanRequest) (tftypes.Value, error) {
	return tftypes.Transform(req.Plan.Raw, func(p *tftypes.AttributePath, v tftypes.Value) (tftypes.Value, error) {
		if !v.Type().Is(tftypes.String) || v.IsNull() || !v.IsKnown() {
			return v, nil
		}
		t, err := req.Plan.Schema.TypeAtTerraformPath(ctx, p)
		if err != nil {
			return v, nil // below a set: such elements have no path, and no spellings
		}
		cmp, ok := t.(spelling.Comparer)
		if !ok {
			return v, nil
		}
		found, _, err := tftypes.WalkAttributePath(req.State.Raw, p)
		if err != nil {
			return v, nil // it was not there before
		}
		old, ok := found.(tftypes.Value)
		if !ok || old.IsNull() || !old.IsKnown() || !old.Type().Is(tftypes.String) {
			return v, nil
		}
		var a, b string
		if err := v.As(&a); err != nil {
			return v, err
		}
		if err := old.As(&b); err != nil {
			return v, err
		}
		if cmp.Same(a, b) {
			return old, nil
		}
		return v, nil
	})
}

// refuse reports every immutable attribute that changes. What is unknown yet is
// judged when it is known: there is one more plan before it is applied.
func (rules PlanRules) refuse(ctx context.Context, noun, replaceAdvice string, plan tfsdk.Plan, state tfsdk.State, diags *diag.Diagnostics) {
	for _, im := range rules.Immutable {
		p, ok := attributePath(ctx, plan.Schema.Type(), im.Path)
		if !ok {
			diags.AddError("No attribute "+im.Path, "This is a bug in the provider: please report it.")
			continue
		}
		tp := tftypes.NewAttributePath()
		for step := range strings.SplitSeq(im.Path, ".") {
			tp = tp.WithAttributeName(step)
		}
		now, known := valueAt(plan.Raw, tp)
		was, existed := valueAt(state.Raw, tp)
		if !known || !existed || !now.IsFullyKnown() || was.IsNull() || now.Equal(was) {
			continue
		}
		when := "cannot be changed"
		if im.Yet {
			when = "cannot be changed yet"
		}
		diags.AddAttributeError(p,
			fmt.Sprintf("%s of a %s %s", im.Path, noun, when),
			fmt.Sprintf("It is %s, and the configuration says %s. Set it back. Or, to make a new %s in place of this one and lose what is in it, %s",
				show(was), show(now), noun, replaceAdvice))
	}
}

func valueAt(v tftypes.Value, p *tftypes.AttributePath) (tftypes.Value, bool) {
	found, _, err := tftypes.WalkAttributePath(v, p)
	if err != nil {
		return tftypes.Value{}, false
	}
	out, ok := found.(tftypes.Value)
	return out, ok
}

// show writes a value of an immutable attribute: a string, a number or a list.
func show(v tftypes.Value) string {
	var s string
	if v.Type().Is(tftypes.String) && v.As(&s) == nil {
		return fmt.Sprintf("%q", s)
	}
	var list []tftypes.Value
	if v.Type().Is(tftypes.List{}) && v.As(&list) == nil {
		parts := make([]string, len(list))
		for i, e := range list {
			parts[i] = show(e)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	var n big.Float
	if v.Type().Is(tftypes.Number) && v.As(&n) == nil {
		return n.Text('f', -1)
	}
	return "something else"
}

// computedOnly names the attributes that only the provider sets.
func computedOnly(s schema.Schema) []string {
	var names []string
	for name, a := range s.Attributes {
		if a.IsComputed() && !a.IsOptional() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// statusOf returns the status in a state; "" where there is none yet.
func statusOf(ctx context.Context, state tfsdk.State) (string, diag.Diagnostics) {
	var status types.String
	diags := state.GetAttribute(ctx, path.Root(statusAttribute), &status)
	return status.ValueString(), diags
}
