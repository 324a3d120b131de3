package entity

import (
	"context"
	"fmt"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-go/tftypes"
)

func isList(ctx context.Context, t attr.Type) bool { return t.TerraformType(ctx).Is(tftypes.List{}) }
func isMap(ctx context.Context, t attr.Type) bool  { return t.TerraformType(ctx).Is(tftypes.Map{}) }

// children returns the parts of a known, non-null object or map, and whether v
// is one.
func children(v tftypes.Value) (map[string]tftypes.Value, bool) {
	if v.IsNull() || !v.IsKnown() {
		return nil, false
	}
	if !v.Type().Is(tftypes.Object{}) && !v.Type().Is(tftypes.Map{}) {
		return nil, false
	}
	m := map[string]tftypes.Value{}
	if err := v.As(&m); err != nil {
		return nil, false
	}
	return m, true
}

// rebuild makes a value of v's type from parts, which come from values of
// equal types, so that a mismatch is a bug here and not a user's mistake.
func rebuild(v tftypes.Value, parts map[string]tftypes.Value) tftypes.Value {
	if err := tftypes.ValidateValue(v.Type(), parts); err != nil {
		panic(fmt.Sprintf("entity: rebuild %s: %v", v.Type(), err))
	}
	return tftypes.NewValue(v.Type(), parts)
}

// asPlanned is planned with its unknown parts taken from got. Terraform holds a
// provider to its plan, so what was known there stays as it was written; what
// got does not know either becomes null, because state knows everything.
func asPlanned(planned, got tftypes.Value) tftypes.Value {
	if !planned.IsKnown() {
		return nothingUnknown(got)
	}
	parts, ok := children(planned)
	if !ok {
		return planned
	}
	gotParts, _ := children(got)
	for k, p := range parts {
		g, ok := gotParts[k]
		if !ok {
			g = tftypes.NewValue(p.Type(), nil)
		}
		parts[k] = asPlanned(p, g)
	}
	return rebuild(planned, parts)
}

// nothingUnknown is v with null for everything unknown.
func nothingUnknown(v tftypes.Value) tftypes.Value {
	if !v.IsKnown() {
		return tftypes.NewValue(v.Type(), nil)
	}
	parts, ok := children(v)
	if !ok {
		if !v.IsFullyKnown() {
			return tftypes.NewValue(v.Type(), nil)
		}
		return v
	}
	for k, p := range parts {
		parts[k] = nothingUnknown(p)
	}
	return rebuild(v, parts)
}

// keepKnown is planned with its unknown parts taken from prior, where prior
// knows them and holds something.
func keepKnown(planned, prior tftypes.Value) tftypes.Value {
	if !planned.IsKnown() {
		if prior.IsNull() {
			return planned
		}
		return nullsUnknown(prior)
	}
	parts, ok := children(planned)
	if !ok {
		return planned
	}
	priorParts, ok := children(prior)
	if !ok {
		return planned
	}
	for k, p := range parts {
		if q, ok := priorParts[k]; ok {
			parts[k] = keepKnown(p, q)
		}
	}
	return rebuild(planned, parts)
}

// nullsUnknown is an object with unknown for its null attributes: a computed
// object that was never filled in may be yet. Other values stay.
func nullsUnknown(v tftypes.Value) tftypes.Value {
	if !v.Type().Is(tftypes.Object{}) {
		return v
	}
	parts, ok := children(v)
	if !ok {
		return v
	}
	for k, p := range parts {
		if p.IsNull() {
			parts[k] = tftypes.NewValue(p.Type(), tftypes.UnknownValue)
		}
	}
	return rebuild(v, parts)
}
