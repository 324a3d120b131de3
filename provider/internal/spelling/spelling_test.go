package spelling

import (
	"context"
	"testing"

	"github.com/hashicorp/terraform-plugin-go/tftypes"
)

func TestSame(t *testing.T) {
	for _, c := range []struct {
		t    Comparer
		a, b string
		want bool
	}{
		{Type[VersionKind]{}, "1.36.3", "v1.36.3", true},
		{Type[VersionKind]{}, "1.36.3", "1.36.4", false},
		{Type[VersionKind]{}, "1.36", "1.36.0", false},
		{Type[DurationKind]{}, "60s", "1m", true},
		{Type[DurationKind]{}, "60s", "61s", false},
		{Type[DurationKind]{}, "0s", "0m", false}, // neither is a duration here
		{Type[QuantityKind]{}, "500m", "0.5", true},
		{Type[QuantityKind]{}, "0.50", "500m", true},
		{Type[QuantityKind]{}, "64Mi", "65536Ki", true},
		{Type[QuantityKind]{}, "0.5Gi", "512Mi", true},
		{Type[QuantityKind]{}, "1e3", "1k", true},
		{Type[QuantityKind]{}, "100", "1000", false},
		{Type[QuantityKind]{}, "64M", "64Mi", false},
		{Type[QuantityKind]{}, "much", "more", false},
		{Type[QuantityKind]{}, "much", "much", true},
	} {
		if got := c.t.Same(c.a, c.b); got != c.want {
			t.Errorf("%T: %q and %q: %v", c.t, c.a, c.b, got)
		}
	}
}

func TestRefused(t *testing.T) {
	for kind, texts := range map[Kind][]string{
		VersionKind{}:  {"", "v", "1", "1.2", "1.2.3.4", "01.2.3", "1.2.3-rc.1", "V1.2.3", "1.2.3\n", "9999999.1.1"},
		DurationKind{}: {"", "1", "-1s", "0s", "1 s", "1d"},
		QuantityKind{}: {"", "-1", " 1", "1 ", "1x", "1MiB", string(make([]byte, 100))},
	} {
		for _, s := range texts {
			if c, err := kind.Canonical(s); err == nil {
				t.Errorf("%s: %q is taken for %q", kind.Name(), s, c)
			}
		}
	}
}

func TestValueKeepsItsSpelling(t *testing.T) {
	ctx := context.Background()
	typ := Type[VersionKind]{}
	v, err := typ.ValueFromTerraform(ctx, tftypes.NewValue(tftypes.String, "v1.36.3"))
	if err != nil {
		t.Fatal(err)
	}
	got, ok := v.(Version)
	if !ok || got.ValueString() != "v1.36.3" || got.Canonical() != "1.36.3" {
		t.Errorf("got %#v", v)
	}
	if got.Equal(Of[VersionKind]("1.36.3")) {
		t.Error("two spellings are one value")
	}
	if same, _ := got.StringSemanticEquals(ctx, Of[VersionKind]("1.36.3")); !same {
		t.Error("two spellings mean different things")
	}
	if !typ.Equal(Type[VersionKind]{}) || typ.Equal(Type[DurationKind]{}) {
		t.Error("kinds are mixed up")
	}
	if Null[VersionKind]().Canonical() != "" {
		t.Error("null has a spelling")
	}
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"1.36.3", "v1.36.3", "60s", "1h30m", "500m", "0.5", "64Mi", "1e3", "1E3", "1e-9", "-1", "", "9999999999999999999999Ei"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, k := range []Kind{VersionKind{}, DurationKind{}, QuantityKind{}} {
			c, err := k.Canonical(s)
			if err != nil {
				continue
			}
			again, err := k.Canonical(c)
			if err != nil && len(c) <= maxQuantity { // an amount may be longer written out
				t.Fatalf("%s %q: canonical %q is refused: %v", k.Name(), s, c, err)
			}
			if err == nil && again != c {
				t.Fatalf("%s %q: canonical %q has the canonical spelling %q", k.Name(), s, c, again)
			}
		}
	})
}
