package engine

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func prefixes(t *testing.T, cidrs ...string) []netip.Prefix {
	t.Helper()
	var out []netip.Prefix
	for _, c := range cidrs {
		out = append(out, netip.MustParsePrefix(c))
	}
	return out
}

// field is the attribute that an Invalid error names.
func field(t *testing.T, err error) string {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is not an *Error", err)
	}
	if e.Class != Invalid {
		t.Errorf("class %q, want %q: %v", e.Class, Invalid, err)
	}
	return e.Field
}

func TestCheckClusterSpec(t *testing.T) {
	valid := func() ClusterSpec { return ClusterSpec{Name: "c", Version: "1.36.3"} }
	if err := CheckClusterSpec(valid()); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		change func(*ClusterSpec)
		field  string
		says   string
	}{
		{"empty name", func(s *ClusterSpec) { s.Name = "" }, "name", "lower-case"},
		{"upper case", func(s *ClusterSpec) { s.Name = "Berlin" }, "name", "lower-case"},
		{"long name", func(s *ClusterSpec) { s.Name = strings.Repeat("a", 41) }, "name", "40"},
		{"path in a name", func(s *ClusterSpec) { s.Name = "../x" }, "name", "lower-case"},
		{"unknown version", func(s *ClusterSpec) { s.Version = "1.2.3" }, "version", "1.36.3"},
		{"no version", func(s *ClusterSpec) { s.Version = "" }, "version", "1.36.3"},
		{"no CIDR", func(s *ClusterSpec) { s.Network.PodCIDRs = []string{"10.0.0.0"} }, "network.pod_cidrs", "not a CIDR"},
		{"host bits", func(s *ClusterSpec) { s.Network.PodCIDRs = []string{"10.1.2.3/16"} }, "network.pod_cidrs", "10.1.0.0/16"},
		{"IPv6", func(s *ClusterSpec) { s.Network.PodCIDRs = []string{"fd00::/48"} }, "network.pod_cidrs", "IPv6"},
		{"two ranges", func(s *ClusterSpec) { s.Network.PodCIDRs = []string{"10.1.0.0/16", "10.2.0.0/16"} }, "network.pod_cidrs", "more than one"},
		{"overlap", func(s *ClusterSpec) {
			s.Network.PodCIDRs, s.Network.ServiceCIDRs = []string{"10.1.0.0/16"}, []string{"10.1.128.0/20"}
		}, "network.service_cidrs", "overlaps"},
		{"large services", func(s *ClusterSpec) { s.Network.ServiceCIDRs = []string{"10.0.0.0/8"} }, "network.service_cidrs", "/12"},
		{"small services", func(s *ClusterSpec) { s.Network.ServiceCIDRs = []string{"10.0.0.0/30"} }, "network.service_cidrs", "/28"},
		{"node mask", func(s *ClusterSpec) { s.Network.NodeMask = 30 }, "network.node_mask", "28"},
		{"no node fits", func(s *ClusterSpec) { s.Network.PodCIDRs = []string{"10.1.0.0/26"} }, "network.pod_cidrs", "/24"},
		{"domain", func(s *ClusterSpec) { s.Network.DNSDomain = "a..b" }, "network.dns_domain", "DNS"},
		{"low port", func(s *ClusterSpec) { s.API.Port = 443 }, "api.port", "1024"},
		{"high port", func(s *ClusterSpec) { s.Gateway.Port = 65536 }, "gateway.port", "65535"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := valid()
			tc.change(&s)
			err := CheckClusterSpec(s)
			if err == nil {
				t.Fatal("accepted")
			}
			if got := field(t, err); got != tc.field {
				t.Errorf("field %q, want %q", got, tc.field)
			}
			if !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%q does not say %q", err, tc.says)
			}
		})
	}
}

func TestChooseRanges(t *testing.T) {
	t.Run("chosen ranges avoid routes, sites, other clusters and each other", func(t *testing.T) {
		used := prefixes(t, "10.64.0.0/16", "10.66.0.0/20")
		routes := prefixes(t, "10.65.3.0/24", "0.0.0.0/0")
		n := NetworkSpec{}
		if err := chooseRanges(&n, routes, used); err != nil {
			t.Fatal(err)
		}
		if n.NodeMask != 24 || n.DNSDomain != "cluster.local" {
			t.Errorf("defaults: %+v", n)
		}
		all := append(prefixes(t, n.PodCIDRs...), prefixes(t, n.ServiceCIDRs...)...)
		for i, p := range all {
			for _, taken := range append(append(routes[:1:1], used...), all[:i]...) {
				if p.Overlaps(taken) {
					t.Errorf("%s overlaps %s", p, taken)
				}
			}
		}
	})
	t.Run("set ranges are kept, also where another cluster has them", func(t *testing.T) {
		n := NetworkSpec{PodCIDRs: []string{"10.64.0.0/16"}, ServiceCIDRs: []string{"10.200.0.0/20"}, NodeMask: 26, DNSDomain: "edge.test"}
		want := n
		if err := chooseRanges(&n, nil, prefixes(t, "10.64.0.0/16")); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, n); diff != "" {
			t.Error(diff)
		}
	})
	for _, tc := range []struct {
		name, route, field string
		net                NetworkSpec
	}{
		{"pods on a route", "172.20.5.0/24", "network.pod_cidrs", NetworkSpec{PodCIDRs: []string{"172.20.0.0/16"}}},
		{"services on a route", "10.96.0.0/12", "network.service_cidrs", NetworkSpec{ServiceCIDRs: []string{"10.100.0.0/20"}}},
		{"pods on the sites' LAN", "10.9.9.0/24", "network.pod_cidrs", NetworkSpec{PodCIDRs: []string{"192.168.0.0/16"}}},
		{"services on link-local", "10.9.9.0/24", "network.service_cidrs", NetworkSpec{ServiceCIDRs: []string{"169.254.0.0/20"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := chooseRanges(&tc.net, prefixes(t, tc.route), nil)
			if err == nil {
				t.Fatal("accepted")
			}
			if got := field(t, err); got != tc.field {
				t.Errorf("field %q, want %q", got, tc.field)
			}
		})
	}
	t.Run("no private range is left", func(t *testing.T) {
		n := NetworkSpec{}
		err := chooseRanges(&n, prefixes(t, "10.0.0.0/8", "172.16.0.0/12"), nil)
		if err == nil {
			t.Fatal("found one")
		}
		if got := field(t, err); got != "network.pod_cidrs" {
			t.Errorf("field %q", got)
		}
	})
}

func TestNextPrefixEndsAtTheLastAddress(t *testing.T) {
	if a, ok := nextPrefix(netip.MustParsePrefix("255.255.0.0/16")); ok {
		t.Errorf("after the last range comes %s", a)
	}
	if a, ok := nextPrefix(netip.MustParsePrefix("10.1.0.0/16")); !ok || a.String() != "10.2.0.0" {
		t.Errorf("after 10.1.0.0/16 comes %s", a)
	}
}

func TestChoosePort(t *testing.T) {
	taken := map[int]bool{}
	first, err := choosePort(usedByAPI, 7, taken)
	if err != nil {
		t.Fatal(err)
	}
	second, err := choosePort(usedByAPI, 7, taken)
	if err != nil {
		t.Fatal(err)
	}
	if first == second || !taken[first] || !taken[second] {
		t.Errorf("%d, then %d; remembered %v", first, second, taken)
	}
	for _, p := range []int{first, second} {
		if p < portRangeFirst || p > portRangeLast {
			t.Errorf("port %d is out of range", p)
		}
	}
	// A port that somebody listens on is passed over.
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", second))
	if err != nil {
		t.Skip(err)
	}
	defer l.Close()
	delete(taken, second)
	got, err := choosePort(usedByAPI, uint32(second-portRangeFirst), taken)
	if err != nil || got == second {
		t.Errorf("port %d was chosen although it is in use (%v)", got, err)
	}
	all := map[int]bool{}
	for p := portRangeFirst; p <= portRangeLast; p++ {
		all[p] = true
	}
	if p, err := choosePort(usedByGateway, 1, all); err == nil {
		t.Errorf("port %d chosen although all are taken", p)
	}
}

// A gateway needs its port for both, an API for one.
func TestPortFree(t *testing.T) {
	u, err := net.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	udp, tcp := u.LocalAddr().(*net.UDPAddr).Port, l.Addr().(*net.TCPAddr).Port
	for _, tc := range []struct {
		name string
		err  error
		free bool
	}{
		{"UDP in use, for an API", portFree(usedByAPI, udp), true},
		{"UDP in use, for a gateway", portFree(usedByGateway, udp), false},
		{"TCP in use, for an API", portFree(usedByAPI, tcp), false},
		{"TCP in use, for a gateway", portFree(usedByGateway, tcp), false},
	} {
		if (tc.err == nil) != tc.free {
			t.Errorf("%s: %v", tc.name, tc.err)
		}
	}
}

func TestConflict(t *testing.T) {
	fixed := ClusterSpec{Name: "c", Version: "1.36.3",
		Network: NetworkSpec{PodCIDRs: []string{"10.64.0.0/16"}, ServiceCIDRs: []string{"10.65.0.0/20"}, NodeMask: 24, DNSDomain: "cluster.local"},
		API:     APISpec{Port: 20001}, Gateway: GatewaySpec{Port: 20002}}
	for _, tc := range []struct {
		name, field string
		asked       ClusterSpec
	}{
		{"all left open", "", ClusterSpec{Name: "c", Version: "1.36.3"}},
		{"all the same", "", fixed},
		{"version", "version", ClusterSpec{Version: "1.36.4"}},
		{"pods", "network.pod_cidrs", ClusterSpec{Version: "1.36.3", Network: NetworkSpec{PodCIDRs: []string{"10.70.0.0/16"}}}},
		{"services", "network.service_cidrs", ClusterSpec{Version: "1.36.3", Network: NetworkSpec{ServiceCIDRs: []string{"10.70.0.0/20"}}}},
		{"mask", "network.node_mask", ClusterSpec{Version: "1.36.3", Network: NetworkSpec{NodeMask: 26}}},
		{"domain", "network.dns_domain", ClusterSpec{Version: "1.36.3", Network: NetworkSpec{DNSDomain: "x"}}},
		{"api", "api.port", ClusterSpec{Version: "1.36.3", API: APISpec{Port: 1}}},
		{"gateway", "gateway.port", ClusterSpec{Version: "1.36.3", Gateway: GatewaySpec{Port: 1}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := conflict(fixed, tc.asked)
			if got != tc.field || (err == nil) != (tc.field == "") {
				t.Errorf("%q, %v; want %q", got, err, tc.field)
			}
		})
	}
}
