package entity

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-go/tftypes"
	corev1 "k8s.io/api/core/v1"

	"github.com/edgewright/terraform-provider-edge/internal/engine"
)

var nested = types.ObjectType{AttrTypes: map[string]attr.Type{
	"name": types.StringType,
	"pools": types.MapType{ElemType: types.ObjectType{AttrTypes: map[string]attr.Type{
		"replicas": types.Int64Type,
		"words":    types.ListType{ElemType: types.StringType},
		"taints":   types.SetType{ElemType: types.StringType},
	}}},
}}

func TestAttributePath(t *testing.T) {
	for field, want := range map[string]string{
		"name":                   `name`,
		"pools.berlin":           `pools["berlin"]`,
		"pools.berlin.replicas":  `pools["berlin"].replicas`,
		"pools.berlin.words.1":   `pools["berlin"].words[1]`,
		"pools.berlin.taints.a":  `pools["berlin"].taints`,
		"nothing":                "",
		"name.more":              "",
		"":                       "",
		"pools..replicas":        `pools[""].replicas`,
		strings.Repeat("a", 2e3): "",
	} {
		p, ok := attributePath(t.Context(), nested, field)
		if ok != (want != "") || ok && p.String() != want {
			t.Errorf("%q: %s, %v", field, p, ok)
		}
	}
}

func TestDiagnose(t *testing.T) {
	err := fmt.Errorf("outer: %w", &engine.Error{
		Class: engine.Invalid, Op: "create cluster", Object: "demo", Field: "pools.berlin.replicas",
		Err: errors.New("it is too much"), Next: "Ask for less",
	})
	d := Diagnose(t.Context(), nested, err, "create", "x")
	if d.Summary() != "Cannot create cluster demo" || d.Detail() != "it is too much.\n\nAsk for less.\n\nThe attribute is pools.berlin.replicas." {
		t.Errorf("%s / %s", d.Summary(), d.Detail())
	}
	p, ok := d.(diag.DiagnosticWithPath)
	if !ok || p.Path().String() != `pools["berlin"].replicas` {
		t.Errorf("%#v", d)
	}
	if d := Diagnose(t.Context(), nil, errors.New("broken"), "read node", "x"); d.Summary() != "Cannot read node x" || d.Detail() != "broken" {
		t.Errorf("%s / %s", d.Summary(), d.Detail())
	}
}

var rawType = tftypes.Object{AttributeTypes: map[string]tftypes.Type{
	"a": tftypes.String,
	"m": tftypes.Map{ElementType: tftypes.Object{AttributeTypes: map[string]tftypes.Type{"x": tftypes.String, "y": tftypes.String}}},
	"s": tftypes.Set{ElementType: tftypes.String},
}}

// raw makes a value of rawType; "?" is unknown and "" null.
func raw(a string, m map[string][2]string, s ...string) tftypes.Value {
	str := func(v string) tftypes.Value {
		switch v {
		case "?":
			return tftypes.NewValue(tftypes.String, tftypes.UnknownValue)
		case "":
			return tftypes.NewValue(tftypes.String, nil)
		}
		return tftypes.NewValue(tftypes.String, v)
	}
	element := rawType.AttributeTypes["m"].(tftypes.Map).ElementType
	parts := map[string]tftypes.Value{}
	for k, v := range m {
		parts[k] = tftypes.NewValue(element, map[string]tftypes.Value{"x": str(v[0]), "y": str(v[1])})
	}
	var elements []tftypes.Value
	for _, v := range s {
		elements = append(elements, str(v))
	}
	return tftypes.NewValue(rawType, map[string]tftypes.Value{
		"a": str(a),
		"m": tftypes.NewValue(rawType.AttributeTypes["m"], parts),
		"s": tftypes.NewValue(rawType.AttributeTypes["s"], elements),
	})
}

func TestAsPlanned(t *testing.T) {
	plan := raw("?", map[string][2]string{"k": {"v1", "?"}, "l": {"?", ""}}, "t")
	got := raw("learned", map[string][2]string{"k": {"1", "filled"}, "other": {"1", "2"}}, "t", "u")
	want := raw("learned", map[string][2]string{"k": {"v1", "filled"}, "l": {"", ""}}, "t")
	if v := asPlanned(plan, got); !v.Equal(want) {
		t.Errorf("got %s", v)
	}
	unknown := tftypes.NewValue(rawType, tftypes.UnknownValue)
	if v := asPlanned(unknown, raw("?", map[string][2]string{"k": {"?", "y"}}, "?")); !v.IsFullyKnown() {
		t.Errorf("state has something unknown: %s", v)
	}
}

func TestKeepKnown(t *testing.T) {
	plan := raw("?", map[string][2]string{"k": {"?", "new"}, "l": {"?", "?"}})
	prior := raw("old", map[string][2]string{"k": {"old", "old"}})
	want := raw("old", map[string][2]string{"k": {"old", "new"}, "l": {"?", "?"}})
	if v := keepKnown(plan, prior); !v.Equal(want) {
		t.Errorf("got %s", v)
	}
	// A computed object that is known in part is unknown in its other parts.
	object := tftypes.Object{AttributeTypes: map[string]tftypes.Type{"x": tftypes.String, "y": tftypes.String}}
	half := tftypes.NewValue(object, map[string]tftypes.Value{"x": tftypes.NewValue(tftypes.String, "1"), "y": tftypes.NewValue(tftypes.String, nil)})
	v := keepKnown(tftypes.NewValue(object, tftypes.UnknownValue), half)
	parts, ok := children(v)
	if !ok || !parts["x"].IsKnown() || parts["y"].IsKnown() {
		t.Errorf("got %s", v)
	}
	if v := keepKnown(tftypes.NewValue(object, tftypes.UnknownValue), tftypes.NewValue(object, nil)); v.IsKnown() {
		t.Errorf("got %s", v)
	}
}

func TestShortDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{45 * time.Minute: "45m", 2 * time.Hour: "2h", 90 * time.Second: "90s", 50 * time.Millisecond: "50ms"} {
		if got := shortDuration(d); got != want {
			t.Errorf("%s: %s", d, got)
		}
	}
}

func TestConnectionOpensOnce(t *testing.T) {
	opened := 0
	c := NewConnection(Terraform(), func() (Engine, error) { opened++; return nil, errors.New("no") })
	for range 3 {
		if _, err := c.Engine(); err == nil {
			t.Error("no error")
		}
	}
	if opened != 1 {
		t.Errorf("opened %d times", opened)
	}
	var diags diag.Diagnostics
	if FromProviderData("nonsense", &diags) != nil || !diags.HasError() {
		t.Error("nonsense is taken for a connection")
	}
}

func TestEmptyStaysAsItWas(t *testing.T) {
	ctx := context.Background()
	var diags diag.Diagnostics
	emptyMap := types.MapValueMust(types.StringType, map[string]attr.Value{})
	if v := MapValue(ctx, emptyMap, nil, &diags); !v.Equal(emptyMap) {
		t.Errorf("got %s", v)
	}
	if v := MapValue(ctx, types.MapUnknown(types.StringType), map[string]string{}, &diags); !v.IsNull() {
		t.Errorf("got %s", v)
	}
	emptyList := types.ListValueMust(types.StringType, []attr.Value{})
	if v := ListValue(ctx, emptyList, nil, &diags); !v.Equal(emptyList) {
		t.Errorf("got %s", v)
	}
	emptySet := types.SetValueMust(types.StringType, []attr.Value{})
	if v := TaintsValue(ctx, emptySet, nil, &diags); !v.Equal(emptySet) {
		t.Errorf("got %s", v)
	}
	taints := []corev1.Taint{{Key: "b", Effect: corev1.TaintEffectNoSchedule}, {Key: "a", Value: "x", Effect: corev1.TaintEffectNoExecute}}
	set := TaintsValue(ctx, emptySet, taints, &diags)
	if got := Taints(ctx, set, &diags); len(got) != 2 || got[0].Key != "a" || got[1].Key != "b" {
		t.Errorf("got %v", got)
	}
	if got := SameCluster(types.StringValue("ssh/a-00000001@h1"), "ssh/a-00000001@h2").ValueString(); got != "ssh/a-00000001@h1" {
		t.Errorf("got %s", got)
	}
	if diags.HasError() {
		t.Error(diags)
	}
}

func FuzzParseChildID(f *testing.F) {
	for _, s := range []string{"local/quickstart-1f2e3d4c/berlin", "local/a-00000001/default/web", "a/b/c", "//", "", "ssh/a-00000001@h/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, id string) {
		for _, names := range [][]string{{"name"}, {"namespace", "name"}} {
			cluster, values, err := ParseChildID(id, names...)
			if err != nil {
				if len(err.Error()) > 3000 {
					t.Fatalf("the error is %d characters long", len(err.Error()))
				}
				continue
			}
			if strings.Join(append([]string{cluster}, values...), "/") != id {
				t.Fatalf("%q is read as %q and %q", id, cluster, values)
			}
		}
	})
}

func FuzzAttributePath(f *testing.F) {
	for _, s := range []string{"name", "pools.berlin.words.1", "pools.x.taints.y", "...", "pools.a.words.-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, field string) {
		attributePath(context.Background(), nested, field) // must not panic
	})
}
