package signed

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

func authority(t testing.TB) *pki.Authority {
	t.Helper()
	store, err := pki.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := store.Authority("ca", "test")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

var list = Gateways{Version: 7, Gateways: []Gateway{
	{ID: "a", Addresses: []string{"10.0.0.1:443", "gw-a.example:443"}},
	{ID: "b", Addresses: []string{"[2001:db8::1]:443"}},
	{ID: "c", Addresses: []string{"10.0.0.3:443"}},
}}

func TestGateways(t *testing.T) {
	ca := authority(t)
	doc, err := list.Sign(ca)
	if err != nil {
		t.Fatal(err)
	}
	got, err := VerifyGateways(ca.Certificate, doc)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&list, got); d != "" {
		t.Error(d)
	}
	if _, err := VerifyGateways(authority(t).Certificate, doc); err == nil {
		t.Error("a list of another authority was believed")
	}
	if _, err := VerifyPolicy(ca.Certificate, "n", doc); err == nil {
		t.Error("a list was taken for a policy")
	}
	if gw, ok := got.Find("b"); !ok || gw.Addresses[0] != "[2001:db8::1]:443" {
		t.Error(gw, ok)
	}
	if _, ok := got.Find("d"); ok {
		t.Error("found d")
	}
}

func TestGatewaysRefused(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:            "no version",
		`{"version":1}`: "0 gateways",
		`{"version":1,"gateways":[{"id":"A","addresses":["h:1"]}]}`:                                     "not a DNS label",
		`{"version":1,"gateways":[{"id":"a"}]}`:                                                         "no address",
		`{"version":1,"gateways":[{"id":"a","addresses":["h"]}]}`:                                       "missing port",
		`{"version":1,"gateways":[{"id":"a","addresses":["h:0"]}]}`:                                     "not host:port",
		`{"version":1,"gateways":[{"id":"a","addresses":[":1"]}]}`:                                      "not host:port",
		`{"version":1,"gateways":[{"id":"a","addresses":["h:1"]},{"id":"a","addresses":["h:1"]}]}`:      "twice",
		`{"version":1,"gateways":[` + strings.TrimSuffix(strings.Repeat(`{"id":"a"},`, 65), ",") + `]}`: "65 gateways",
		`[`: "JSON",
	} {
		if _, err := parseGateways([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// Every node has one order, homes are spread evenly, and without a gateway the
// order of the others stays.
func TestRank(t *testing.T) {
	homes := map[string]int{}
	fewer := Gateways{Version: 8, Gateways: list.Gateways[:2]}
	for i := range 3000 {
		node := fmt.Sprintf("node-%d", i)
		rank := list.Rank(node)
		homes[rank[0].ID]++
		var kept []Gateway
		for _, gw := range rank {
			if gw.ID != "c" {
				kept = append(kept, gw)
			}
		}
		if d := cmp.Diff(kept, fewer.Rank(node)); d != "" {
			t.Fatalf("%s: %s", node, d)
		}
	}
	for id, n := range homes {
		if n < 900 || n > 1100 { // 1000 expected, standard deviation 26
			t.Errorf("%d of 3000 nodes at %s", n, id)
		}
	}
}

var policy = Policy{Node: "berlin-1", Version: 3, Allow: []Rule{
	{Network: TCP, Prefix: netip.MustParsePrefix("10.244.3.0/24")},
	{Network: UDP, Prefix: netip.MustParsePrefix("192.168.1.50/32"), FirstPort: 161, LastPort: 162},
	{Network: TCP, Prefix: netip.MustParsePrefix("2001:db8::/64")},
}}

func TestPolicy(t *testing.T) {
	ca := authority(t)
	doc, err := policy.Sign(ca)
	if err != nil {
		t.Fatal(err)
	}
	got, err := VerifyPolicy(ca.Certificate, "berlin-1", doc)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&policy, got, cmpopts.EquateComparable(netip.Prefix{})); d != "" {
		t.Error(d)
	}
	if _, err := VerifyPolicy(ca.Certificate, "berlin-2", doc); err == nil {
		t.Error("another node's policy was believed")
	}
	if _, err := VerifyPolicy(authority(t).Certificate, "berlin-1", doc); err == nil {
		t.Error("a policy of another authority was believed")
	}
}

func TestAllows(t *testing.T) {
	for _, tc := range []struct {
		network, addr string
		want          bool
	}{
		{TCP, "10.244.3.9:80", true},
		{TCP, "[::ffff:10.244.3.9]:80", true},
		{UDP, "10.244.3.9:80", false},
		{TCP, "10.244.4.9:80", false},
		{TCP, "127.0.0.1:10250", false},
		{UDP, "192.168.1.50:161", true},
		{UDP, "192.168.1.50:162", true},
		{UDP, "192.168.1.50:163", false},
		{UDP, "192.168.1.50:160", false},
		{TCP, "192.168.1.50:161", false},
		{TCP, "[2001:db8::5]:1", true},
		{TCP, "[2001:db8::5%eth0]:1", false},
		{TCP, "[2001:db8:1::5]:1", false},
	} {
		if got := policy.Allows(tc.network, netip.MustParseAddrPort(tc.addr)); got != tc.want {
			t.Errorf("%s %s: %v", tc.network, tc.addr, got)
		}
	}
	if (*Policy)(nil).Allows(TCP, netip.MustParseAddrPort("10.244.3.9:80")) {
		t.Error("without a policy")
	}
}

func TestPolicyRefused(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                        "no node",
		`{"node":"n"}`:              "no version",
		`{"node":"n","version":-1}`: "JSON",
		`{"node":"n","version":1,"allow":[{"network":"icmp","prefix":"10.0.0.0/8"}]}`:                               "neither tcp nor udp",
		`{"node":"n","version":1,"allow":[{"network":"tcp"}]}`:                                                      "without a range",
		`{"node":"n","version":1,"allow":[{"network":"tcp","prefix":"10.0.0.0/8","firstPort":5}]}`:                  "no range",
		`{"node":"n","version":1,"allow":[{"network":"tcp","prefix":"10.0.0.0/8","lastPort":5}]}`:                   "no range",
		`{"node":"n","version":1,"allow":[{"network":"tcp","prefix":"10.0.0.0/8","firstPort":6,"lastPort":5}]}`:     "no range",
		`{"node":"n","version":1,"allow":[{"network":"tcp","prefix":"::ffff:10.0.0.0/104"}]}`:                       "IPv4 in IPv6",
		`{"node":"n","version":1,"allow":[{"network":"tcp","prefix":"10.0.0.0/8","firstPort":1,"lastPort":70000}]}`: "json",
	} {
		if _, err := parsePolicy([]byte(text)); err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func FuzzGateways(f *testing.F) {
	f.Add([]byte(`{"version":1,"gateways":[{"id":"a","addresses":["h:1"]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := parseGateways(b)
		if err != nil {
			return
		}
		if n := len(g.Rank("node")); n != len(g.Gateways) || g.Version == 0 {
			t.Fatal(n, g)
		}
	})
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte(`{"node":"n","version":1,"allow":[{"network":"tcp","prefix":"10.0.0.0/8","firstPort":1,"lastPort":7}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePolicy(b)
		if err != nil {
			return
		}
		for _, r := range p.Allow {
			port := max(r.FirstPort, 1)
			if !r.Prefix.Addr().Is4In6() && r.Prefix.Addr().Zone() == "" && !p.Allows(r.Network, netip.AddrPortFrom(r.Prefix.Addr(), port)) {
				t.Fatal(r)
			}
		}
	})
}
