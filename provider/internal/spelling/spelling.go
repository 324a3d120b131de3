// Package spelling holds string types of which several spellings mean the same:
// "1.36.3" and "v1.36.3", "60s" and "1m", "500m" and "0.5". State keeps the
// spelling it has while the meaning stays, so that neither another spelling in
// the configuration nor the canonical one that a cluster returns is a change.
//
// The package never changes what a user wrote; it only compares.
package spelling

import (
	"context"
	"fmt"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/attr/xattr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types/basetypes"
	"github.com/hashicorp/terraform-plugin-go/tftypes"

	"github.com/edgewright/terraform-provider-edge/provider/internal/validators"
)

// Kind is one such family of strings. Its zero value is used.
type Kind interface {
	// Name of the kind in error messages, like "version".
	Name() string
	// Canonical returns the one spelling all equal ones share, and an error for
	// what is not of this kind.
	Canonical(s string) (string, error)
}

// Type is the attribute type of kind K.
type Type[K Kind] struct{ basetypes.StringType }

// Value is a value of kind K.
type Value[K Kind] struct{ basetypes.StringValue }

// Comparer is what every Type offers whatever its kind.
type Comparer interface {
	// Same says whether two strings are spellings of one value.
	Same(a, b string) bool
}

// Of returns the value spelled s.
func Of[K Kind](s string) Value[K] { return Value[K]{basetypes.NewStringValue(s)} }

// Null returns the null value.
func Null[K Kind]() Value[K] { return Value[K]{basetypes.NewStringNull()} }

// Canonical returns the canonical spelling of a known value and "" for others,
// and for what is no value of the kind (which validation has refused before).
func (v Value[K]) Canonical() string {
	if v.IsNull() || v.IsUnknown() {
		return ""
	}
	var k K
	c, err := k.Canonical(v.ValueString())
	if err != nil {
		return ""
	}
	return c
}

// Same implements Comparer.
func (t Type[K]) Same(a, b string) bool {
	if a == b {
		return true
	}
	var k K
	ca, err := k.Canonical(a)
	if err != nil {
		return false
	}
	cb, err := k.Canonical(b)
	return err == nil && ca == cb
}

// Equal implements attr.Type.
func (t Type[K]) Equal(o attr.Type) bool {
	_, ok := o.(Type[K])
	return ok
}

// String implements attr.Type.
func (t Type[K]) String() string {
	return "spelling." + name[K]()
}

// ValueFromString implements basetypes.StringTypable.
func (t Type[K]) ValueFromString(_ context.Context, v basetypes.StringValue) (basetypes.StringValuable, diag.Diagnostics) {
	return Value[K]{v}, nil
}

// ValueFromTerraform implements attr.Type.
func (t Type[K]) ValueFromTerraform(ctx context.Context, in tftypes.Value) (attr.Value, error) {
	v, err := t.StringType.ValueFromTerraform(ctx, in)
	if err != nil {
		return nil, err
	}
	s, ok := v.(basetypes.StringValue)
	if !ok {
		return nil, fmt.Errorf("a string was decoded as %T", v)
	}
	return Value[K]{s}, nil
}

// ValueType implements attr.Type.
func (t Type[K]) ValueType(context.Context) attr.Value { return Value[K]{} }

// Type implements attr.Value.
func (v Value[K]) Type(context.Context) attr.Type { return Type[K]{} }

// Equal implements attr.Value: the spelling counts.
func (v Value[K]) Equal(o attr.Value) bool {
	w, ok := o.(Value[K])
	return ok && v.StringValue.Equal(w.StringValue)
}

// StringSemanticEquals implements basetypes.StringValuableWithSemanticEquals:
// the spelling does not count.
func (v Value[K]) StringSemanticEquals(_ context.Context, o basetypes.StringValuable) (bool, diag.Diagnostics) {
	w, ok := o.(Value[K])
	return ok && Type[K]{}.Same(v.ValueString(), w.ValueString()), nil
}

// ValidateAttribute implements xattr.ValidateableAttribute.
func (v Value[K]) ValidateAttribute(_ context.Context, req xattr.ValidateAttributeRequest, resp *xattr.ValidateAttributeResponse) {
	if v.IsNull() || v.IsUnknown() {
		return
	}
	if err := check[K](v.ValueString()); err != nil {
		resp.Diagnostics.AddAttributeError(req.Path, "Not a "+name[K](), err.Error())
	}
}

// Valid is the validator for elements of a collection, which the framework does
// not validate by their type.
func Valid[K Kind]() validator.String { return validators.String("a "+name[K](), check[K]) }

func check[K Kind](s string) error {
	var k K
	_, err := k.Canonical(s)
	return err
}

func name[K Kind]() string {
	var k K
	return k.Name()
}
