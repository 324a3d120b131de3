package validators

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

func TestChecks(t *testing.T) {
	label := func(s string) error { return CheckLabel(s, 63) }
	cidr := func(s string) error { _, err := ParseCIDR(s); return err }
	taint := func(s string) error { _, err := ParseTaint(s); return err }
	with := func(v validator.String) func(string) error {
		return func(s string) error { return v.(stringCheck).check(s) }
	}
	for name, c := range map[string]struct {
		check     func(string) error
		good, bad []string
	}{
		"label":      {label, []string{"a", "a-1", "1a", strings.Repeat("a", 63)}, []string{"", "A", "-a", "a-", "a.b", "a_b", "ä", strings.Repeat("a", 64), "a\n"}},
		"port name":  {CheckPortName, []string{"http", "h2-c", "1a"}, []string{"", "80", "a--b", "-a", "HTTP", strings.Repeat("a", 16)}},
		"CIDR":       {cidr, []string{"10.0.0.0/8", "10.64.0.0/16"}, []string{"", "10.0.0.0", "10.0.0.1/8", "fd00::/8", "10.0.0.0/33", "10.00.0.0/8", "::ffff:10.0.0.0/104"}},
		"domain":     {CheckDomain, []string{"cluster.local", "a"}, []string{"", ".", "a.", ".a", "A.b", "a..b", strings.Repeat("a.", 61) + "a"}},
		"image":      {with(ImageReference()), []string{"nginx", "registry.example.com:5000/a/b:1@sha256:ab"}, []string{"", "a b", " a", "a\n"}},
		"target":     {with(TargetPort()), []string{"1", "65535", "http"}, []string{"", "0", "65536", "080", "99999999999999999999", "HTTP"}},
		"environ":    {with(EnvName()), []string{"A", "_a", "a.b-c"}, []string{"", "1A", "A=B", "a b"}},
		"cluster id": {CheckClusterID, []string{"local/a-00000001", "local/quick-start-1f2e3d4c", "ssh/a-00000001@10.0.0.1"}, []string{"", "a", "local/a", "local/a-0000001", "local/A-00000001", "local/a-00000001/x", "local/-00000001", "local/a-0000000G", strings.Repeat("a", 600)}},
		"taint":      {taint, []string{"a:NoSchedule", "a=b:NoExecute", "example.com/a=b:PreferNoSchedule"}, []string{"", "a", "a:", "a:Never", "a=:NoSchedule", "=b:NoSchedule", ":NoSchedule", "a=b c:NoSchedule", "a=b=c:NoSchedule", strings.Repeat("a", 1000) + ":NoSchedule"}},
		"own key":    {CheckOwnKey, []string{"a", "example.com/a", "kubernetes.io/a", "notedgewright.dev/a"}, []string{"", "edgewright.dev/pool", "x.edgewright.dev/a", "a/b/c", "-"}},
		"value":      {CheckLabelValue, []string{"", "a", "A.b_c-d"}, []string{"a b", "-a", strings.Repeat("a", 64)}},
		"ttl":        {with(DurationBetween(time.Minute, time.Hour)), []string{"1m", "60m", "nonsense, which the type refuses"}, []string{"59s", "61m"}},
	} {
		for _, s := range c.good {
			if err := c.check(s); err != nil {
				t.Errorf("%s: %q is refused: %v", name, s, err)
			}
		}
		for _, s := range c.bad {
			err := c.check(s)
			if err == nil {
				t.Errorf("%s: %q is taken", name, s)
			} else if len(err.Error()) > 1000 {
				t.Errorf("%s: the error is %d characters long", name, len(err.Error()))
			}
		}
	}
}

func TestUnknownIsNotJudged(t *testing.T) {
	for _, v := range []types.String{types.StringUnknown(), types.StringNull()} {
		resp := &validator.StringResponse{}
		Label(10).ValidateString(t.Context(), validator.StringRequest{ConfigValue: v}, resp)
		if resp.Diagnostics.HasError() {
			t.Errorf("%s is refused", v)
		}
	}
}

func FuzzParseTaint(f *testing.F) {
	for _, s := range []string{"a:NoSchedule", "a=b:NoExecute", "x/y=z:PreferNoSchedule", "=", ":", "a=:NoSchedule"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		taint, err := ParseTaint(s)
		if err != nil {
			return
		}
		if taint.ToString() != s {
			t.Fatalf("%q is read as %q", s, taint.ToString())
		}
	})
}

func FuzzChecks(f *testing.F) {
	for _, s := range []string{"10.0.0.0/8", "example.com", "::1", "local/a-00000001", "http", "a/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParseCIDR(s); err == nil && (p != p.Masked() || !p.Addr().Is4() || p.Addr().Is4In6()) {
			t.Fatalf("%q is read as %s", s, p)
		}
		for _, check := range []func(string) error{CheckDomain, CheckClusterID, CheckPortName, CheckOwnKey, CheckLabelValue} {
			if err := check(s); err == nil && strings.ContainsAny(s, " \n\t\"'$;`") {
				t.Fatalf("%q is taken", s)
			}
		}
	})
}
