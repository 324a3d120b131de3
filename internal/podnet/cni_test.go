package podnet

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write golden files anew")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s: %s", name, d)
	}
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestCNIConfig(t *testing.T) {
	for name, o := range map[string]CNIOptions{
		"ipv4.conflist":      {PodCIDRs: prefixes("10.42.1.0/24"), MTU: 1500},
		"dualstack.conflist": {PodCIDRs: prefixes("10.42.1.0/24", "fd00:42:1::/64"), DataDir: "/data/ipam", PortMapBackend: "iptables"},
	} {
		got, err := CNIConfig(o)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, got)
	}
}

func TestCNIConfigRefuses(t *testing.T) {
	for _, c := range []struct {
		o    CNIOptions
		says string
	}{
		{CNIOptions{}, "none"},
		{CNIOptions{PodCIDRs: prefixes("0.0.0.0/0")}, "every address"},
		{CNIOptions{PodCIDRs: prefixes("10.42.1.7/24")}, "beyond its mask"},
		{CNIOptions{PodCIDRs: prefixes("10.42.1.0/24", "10.42.2.0/24")}, "second of its family"},
		{CNIOptions{PodCIDRs: []netip.Prefix{{}}}, "invalid"},
		{CNIOptions{PodCIDRs: prefixes("10.42.1.0/24"), MTU: 100}, "MTU"},
		{CNIOptions{PodCIDRs: prefixes("10.42.1.0/24"), PortMapBackend: "magic"}, "magic"},
	} {
		if _, err := CNIConfig(c.o); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v, want %q", c.o, err, c.says)
		}
	}
}

func TestRuleset(t *testing.T) {
	golden(t, "ruleset.nft", []byte(rules{
		pods:      prefixes("10.42.1.0/24", "fd00:42:1::/64"),
		unmasked:  prefixes("10.42.0.0/16", "fd00:42::/48", "10.43.0.0/16"),
		addresses: []netip.Addr{DNSAddress, APIAddress},
	}.ruleset()))
	golden(t, "ruleset-hairpin.nft", []byte(rules{
		pods:      prefixes("10.42.1.0/24"),
		unmasked:  prefixes("10.42.0.0/16", "10.43.0.0/16"),
		addresses: []netip.Addr{DNSAddress, APIAddress},
		hairpin:   true,
	}.ruleset()))
}
