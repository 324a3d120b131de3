package podnet

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

func testNode() Node {
	return Node{Name: "n1", PodCIDRs: prefixes("10.42.1.0/24"), ClusterPodCIDRs: prefixes("10.42.0.0/16")}
}

var testLAN = prefixes("192.168.1.11/24")

func member(name, address string, ranges ...string) v1alpha1.PoolMember {
	return v1alpha1.PoolMember{Name: name, Addresses: []string{address}, PodCIDRs: ranges}
}

func route(destination, gateway string) Route {
	return Route{netip.MustParsePrefix(destination), netip.MustParseAddr(gateway)}
}

func TestPlan(t *testing.T) {
	for _, c := range []struct {
		name     string
		members  []v1alpha1.PoolMember
		want     []Route
		problems []string
	}{
		{"no members", nil, nil, nil},
		{"itself only", []v1alpha1.PoolMember{member("n1", "192.168.1.11", "10.42.1.0/24")}, nil, nil},
		{"two peers", []v1alpha1.PoolMember{
			member("n1", "192.168.1.11", "10.42.1.0/24"), member("n3", "192.168.1.13", "10.42.3.0/24"), member("n2", "192.168.1.12", "10.42.2.0/24"),
		}, []Route{route("10.42.2.0/24", "192.168.1.12"), route("10.42.3.0/24", "192.168.1.13")}, nil},
		{"a peer not placed yet", []v1alpha1.PoolMember{{Name: "n2"}}, nil, nil},
		{"the address on this LAN", []v1alpha1.PoolMember{{Name: "n2", Addresses: []string{"junk", "10.9.9.9", "fd00::1", "192.168.1.12", "192.168.1.13"}, PodCIDRs: []string{"10.42.2.0/24"}}},
			[]Route{route("10.42.2.0/24", "192.168.1.12")}, nil},
		{"said twice", []v1alpha1.PoolMember{member("n2", "192.168.1.12", "10.42.2.0/24", "10.42.2.0/24")}, []Route{route("10.42.2.0/24", "192.168.1.12")}, nil},
		{"a default route", []v1alpha1.PoolMember{member("n2", "192.168.1.12", "0.0.0.0/0")}, nil, []string{"every address"}},
		{"outside the cluster", []v1alpha1.PoolMember{member("n2", "192.168.1.12", "192.168.0.0/16")}, nil, []string{"none of the cluster's"}},
		{"wider than the cluster", []v1alpha1.PoolMember{member("n2", "192.168.1.12", "10.0.0.0/8")}, nil, []string{"none of the cluster's"}},
		{"the whole cluster", []v1alpha1.PoolMember{member("n2", "192.168.1.12", "10.42.0.0/16")}, nil, []string{"this node's own"}},
		{"this node's range", []v1alpha1.PoolMember{member("n2", "192.168.1.12", "10.42.1.128/25")}, nil, []string{"this node's own"}},
		{"not canonical", []v1alpha1.PoolMember{member("n2", "192.168.1.12", "10.42.2.9/24")}, nil, []string{"beyond its mask"}},
		{"not a range", []v1alpha1.PoolMember{member("n2", "192.168.1.12", "junk", "10.42.2.0", "10.42.3.0/24")},
			[]Route{route("10.42.3.0/24", "192.168.1.12")}, []string{"not a range", "not a range"}},
		{"this node's address", []v1alpha1.PoolMember{member("n2", "192.168.1.11", "10.42.2.0/24")}, nil, []string{"another node's on this LAN"}},
		{"another LAN", []v1alpha1.PoolMember{member("n2", "192.168.2.12", "10.42.2.0/24")}, nil, []string{"another node's on this LAN"}},
		{"a pod's address", []v1alpha1.PoolMember{member("n2", "10.42.2.2", "10.42.2.0/24")}, nil, []string{"another node's on this LAN"}},
		{"the same range twice", []v1alpha1.PoolMember{
			member("n2", "192.168.1.12", "10.42.2.0/24"), member("n3", "192.168.1.13", "10.42.2.0/24"), member("n4", "192.168.1.14", "10.42.4.0/24"),
		}, []Route{route("10.42.4.0/24", "192.168.1.14")}, []string{"overlap"}},
		{"a range inside another's", []v1alpha1.PoolMember{
			member("n2", "192.168.1.12", "10.42.2.0/23"), member("n3", "192.168.1.13", "10.42.2.0/25"), member("n4", "192.168.1.14", "10.42.3.0/24"),
		}, nil, []string{"overlap", "overlap"}},
	} {
		routes, problems := Plan(testNode(), testLAN, c.members)
		if d := cmp.Diff(c.want, routes, cmp.Comparer(func(a, b Route) bool { return a == b })); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
		if len(problems) != len(c.problems) {
			t.Errorf("%s: problems %v, want %q", c.name, problems, c.problems)
			continue
		}
		for i, p := range problems {
			if !strings.Contains(p.Error(), c.problems[i]) {
				t.Errorf("%s: problem %q, want %q", c.name, p, c.problems[i])
			}
		}
	}
}

func TestPlanDualStack(t *testing.T) {
	node := Node{Name: "n1", PodCIDRs: prefixes("10.42.1.0/24", "fd00:42:1::/64"), ClusterPodCIDRs: prefixes("10.42.0.0/16", "fd00:42::/32")}
	lan := prefixes("192.168.1.11/24", "fd01::11/64", "fe80::1/64")
	routes, problems := Plan(node, lan, []v1alpha1.PoolMember{{
		Name: "n2", Addresses: []string{"fe80::2%eth0", "192.168.1.12", "fd01::12"}, PodCIDRs: []string{"10.42.2.0/24", "fd00:42:2::/64", "::ffff:10.42.9.0/120"},
	}})
	want := []Route{route("10.42.2.0/24", "192.168.1.12"), route("fd00:42:2::/64", "fd01::12")}
	if d := cmp.Diff(want, routes, cmp.Comparer(func(a, b Route) bool { return a == b })); d != "" || len(problems) != 1 {
		t.Errorf("%s %v", d, problems)
	}
}

func TestNodeValidates(t *testing.T) {
	for _, n := range []Node{
		{}, {Name: "n1"},
		{Name: "n1", PodCIDRs: prefixes("10.42.1.0/24")},
		{Name: "n1", PodCIDRs: prefixes("10.9.1.0/24"), ClusterPodCIDRs: prefixes("10.42.0.0/16")},
	} {
		if err := n.validate(); err == nil {
			t.Errorf("%+v is accepted", n)
		}
	}
	n := testNode()
	if err := n.validate(); err != nil {
		t.Error(err)
	}
}

// FuzzPlan: whatever members say, routes stay inside the cluster's pod ranges,
// outside the node's own, do not overlap, and lead to others on the LAN.
func FuzzPlan(f *testing.F) {
	f.Add("n2", "192.168.1.12", "10.42.2.0/24", "n3", "192.168.1.13", "10.42.3.0/24")
	f.Add("n2", "192.168.1.12", "10.42.2.0/23", "n3", "192.168.1.13", "10.42.2.128/25")
	f.Add("n2", "192.168.1.11", "0.0.0.0/0", "n1", "10.42.1.1", "::/0")
	f.Add("n2", "192.168.1.255", "10.42.0.0/16", "n3", "fe80::1%x", "::ffff:10.42.3.0/120")
	f.Fuzz(func(t *testing.T, n2, a2, r2, n3, a3, r3 string) {
		node := testNode()
		routes, problems := Plan(node, testLAN, []v1alpha1.PoolMember{member(n2, a2, r2, r3), member(n3, a3, r3)})
		if err := errors.Join(problems...); err != nil {
			_ = err.Error()
		}
		for i, r := range routes {
			if r.Destination.Bits() < 16 || !node.ClusterPodCIDRs[0].Contains(r.Destination.Addr()) || r.Destination.Overlaps(node.PodCIDRs[0]) {
				t.Fatalf("route to %s", r.Destination)
			}
			if !testLAN[0].Contains(r.Gateway) || r.Gateway == testLAN[0].Addr() {
				t.Fatalf("gateway %s", r.Gateway)
			}
			for _, other := range routes[:i] {
				if other.Destination.Overlaps(r.Destination) {
					t.Fatalf("%s overlaps %s", r.Destination, other.Destination)
				}
			}
		}
	})
}
