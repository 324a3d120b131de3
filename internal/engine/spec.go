package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/edgewright/terraform-provider-edge/internal/component"
)

// Limits of names. A cluster's name becomes part of directory, certificate and
// etcd member names, a node's becomes a host name (RFC 1123 label).
const (
	maxClusterName = 40
	maxNodeName    = 63
)

var labelPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

func checkLabel(what, name string, limit int) error {
	if len(name) > limit || !labelPattern.MatchString(name) {
		return fmt.Errorf("%s name %q: use lower-case letters, digits and '-', beginning and ending with a letter or digit, %d characters at most", what, name, limit)
	}
	return nil
}

// CheckClusterSpec says what is wrong with a spec as a user wrote it: an *Error
// of class Invalid with the attribute's path, or nil. It asks nothing of the
// machine.
func CheckClusterSpec(s ClusterSpec) error {
	invalid := func(field string, err error) error {
		return &Error{Class: Invalid, Op: "check cluster", Object: s.Name, Field: field, Err: err}
	}
	if err := checkLabel("cluster", s.Name, maxClusterName); err != nil {
		return invalid("name", err)
	}
	if _, err := component.Lookup(normalVersion(s.Version)); err != nil {
		return invalid("version", err)
	}
	pods, err := parsePrefixes(s.Network.PodCIDRs)
	if err != nil {
		return invalid("network.pod_cidrs", err)
	}
	services, err := parsePrefixes(s.Network.ServiceCIDRs)
	if err != nil {
		return invalid("network.service_cidrs", err)
	}
	for _, a := range pods {
		for _, b := range services {
			if a.Overlaps(b) {
				return invalid("network.service_cidrs", fmt.Errorf("service range %s overlaps pod range %s", b, a))
			}
		}
	}
	if len(services) == 1 && services[0].Bits() < 12 {
		return invalid("network.service_cidrs", fmt.Errorf("service range %s is larger than kube-apiserver takes: /12 at most", services[0]))
	}
	if len(services) == 1 && services[0].Bits() > 28 {
		return invalid("network.service_cidrs", fmt.Errorf("service range %s is too small: /28 at least", services[0]))
	}
	if m := s.Network.NodeMask; m != 0 {
		if m < 16 || m > 28 {
			return invalid("network.node_mask", fmt.Errorf("node mask %d: from 16 to 28", m))
		}
	}
	if len(pods) == 1 && pods[0].Bits() > nodeMask(s.Network.NodeMask) {
		return invalid("network.pod_cidrs", fmt.Errorf("pod range %s does not hold a single node's range of /%d", pods[0], nodeMask(s.Network.NodeMask)))
	}
	if d := s.Network.DNSDomain; d != "" {
		for label := range strings.SplitSeq(d, ".") {
			if len(d) > 200 || checkLabel("DNS", label, 63) != nil {
				return invalid("network.dns_domain", fmt.Errorf("%q is not a DNS domain", d))
			}
		}
	}
	for field, port := range map[string]int{"api.port": s.API.Port, "gateway.port": s.Gateway.Port} {
		if port != 0 && (port < 1024 || port > 65535) {
			return invalid(field, fmt.Errorf("port %d: from 1024 to 65535 (the control plane runs without root)", port))
		}
	}
	return nil
}

func nodeMask(m int) int {
	if m == 0 {
		return 24
	}
	return m
}

func normalVersion(v string) string { return strings.TrimPrefix(v, "v") }

// parsePrefixes reads CIDRs. One IPv4 range is what the network does today;
// more, or IPv6, is refused rather than ignored.
func parsePrefixes(cidrs []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, c := range cidrs {
		p, err := netip.ParsePrefix(c)
		if err != nil {
			return nil, fmt.Errorf("%q is not a CIDR: %w", c, err)
		}
		if !p.Addr().Is4() {
			return nil, fmt.Errorf("%s: IPv6 cannot be used yet", c)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%s has host bits set; did you mean %s?", c, p.Masked())
		}
		out = append(out, p)
	}
	if len(out) > 1 {
		return nil, errors.New("more than one range cannot be used yet")
	}
	return out, nil
}

// Ranges that a local node sees and a cluster must not use: the sites' LAN and
// wan links, and the link-local addresses of hub and DNS.
var siteRanges = []netip.Prefix{
	netip.MustParsePrefix("192.168.1.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("169.254.0.0/16"),
}

// chooseRanges fills unset address ranges with free ones and refuses set ones
// that overlap the host's routes. used are the ranges of this user's other
// clusters: they may be equal (clusters do not meet), so they are not avoided
// where set, but are where chosen.
func chooseRanges(n *NetworkSpec, hostRoutes, used []netip.Prefix) error {
	set := func(field string, cidrs []string) ([]netip.Prefix, error) {
		ps, err := parsePrefixes(cidrs)
		if err != nil {
			return nil, &Error{Class: Invalid, Op: "choose", Object: "addresses", Field: field, Err: err}
		}
		for _, p := range ps {
			for _, r := range slices.Concat(hostRoutes, siteRanges) {
				if r.Bits() > 0 && p.Overlaps(r) {
					return nil, &Error{Class: Invalid, Op: "use", Object: p.String(), Field: field,
						Err:  fmt.Errorf("it overlaps %s, which this machine or its local sites already reach", r),
						Next: "Choose another range, or leave the attribute out to have a free one picked"}
				}
			}
		}
		return ps, nil
	}
	pods, err := set("network.pod_cidrs", n.PodCIDRs)
	if err != nil {
		return err
	}
	services, err := set("network.service_cidrs", n.ServiceCIDRs)
	if err != nil {
		return err
	}
	n.NodeMask = nodeMask(n.NodeMask)
	if n.DNSDomain == "" {
		n.DNSDomain = "cluster.local"
	}
	taken := slices.Concat(hostRoutes, siteRanges, used, pods, services)
	if len(pods) == 0 {
		p, err := freePrefix(16, taken)
		if err != nil {
			return &Error{Class: Invalid, Op: "choose", Object: "a pod range", Field: "network.pod_cidrs", Err: err, Next: "Set network.pod_cidrs"}
		}
		n.PodCIDRs = []string{p.String()}
		taken = append(taken, p)
	}
	if len(services) == 0 {
		p, err := freePrefix(20, taken)
		if err != nil {
			return &Error{Class: Invalid, Op: "choose", Object: "a service range", Field: "network.service_cidrs", Err: err, Next: "Set network.service_cidrs"}
		}
		n.ServiceCIDRs = []string{p.String()}
	}
	return nil
}

// freePrefix finds an IPv4 prefix of that length that overlaps none taken, in
// 10.64.0.0/10 and then the rest of 10.0.0.0/8 and 172.16.0.0/12 (RFC 1918). It
// begins in 10.64 because home and cloud networks crowd 10.0 and 10.96.
func freePrefix(bits int, taken []netip.Prefix) (netip.Prefix, error) {
	for _, space := range []netip.Prefix{
		netip.MustParsePrefix("10.64.0.0/10"),
		netip.MustParsePrefix("10.128.0.0/9"),
		netip.MustParsePrefix("10.0.0.0/10"),
		netip.MustParsePrefix("172.16.0.0/12"),
	} {
		for addr := space.Addr(); space.Contains(addr); {
			p := netip.PrefixFrom(addr, bits)
			if !slices.ContainsFunc(taken, func(t netip.Prefix) bool { return t.Bits() > 0 && t.Overlaps(p) }) {
				return p, nil
			}
			next, ok := nextPrefix(p)
			if !ok {
				break
			}
			addr = next
		}
	}
	return netip.Prefix{}, errors.New("no free private range is left beside this machine's routes")
}

func nextPrefix(p netip.Prefix) (netip.Addr, bool) {
	a := p.Addr().As4()
	v := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	n := v + 1<<(32-p.Bits())
	if n < v {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), true
}

// portRange is where ports are looked for: below the ephemeral range of Linux
// (32768 and up), so that no outgoing connection sits on one after a reboot.
const (
	portRangeFirst = 20000
	portRangeLast  = 31999
)

// portUse is where a port has to be free.
type portUse []portAt

type portAt struct{ network, host string }

var (
	// usedByAPI is what the control plane's own programs listen on.
	usedByAPI = portUse{{"tcp", "127.0.0.1"}}
	// usedByGateway: nodes come over UDP, and over TCP where that is blocked.
	usedByGateway = portUse{{"udp", ""}, {"tcp", ""}}
)

// choosePort finds a port that is free now and that no cluster of the state
// directory remembers. seed spreads clusters of different users.
func choosePort(use portUse, seed uint32, taken map[int]bool) (int, error) {
	const n = portRangeLast - portRangeFirst + 1
	for i := range uint32(n) {
		port := portRangeFirst + int((seed+i)%n)
		if taken[port] {
			continue
		}
		if portFree(use, port) == nil {
			taken[port] = true
			return port, nil
		}
	}
	return 0, fmt.Errorf("no free port between %d and %d", portRangeFirst, portRangeLast)
}

// portFree says why a port cannot be bound now, or nil.
func portFree(use portUse, port int) error {
	for _, at := range use {
		if err := bindable(at.network, net.JoinHostPort(at.host, fmt.Sprint(port))); err != nil {
			return err
		}
	}
	return nil
}

func bindable(network, addr string) error {
	ctx := context.Background() // a bind never waits
	var probe net.ListenConfig
	if network == "udp" {
		c, err := probe.ListenPacket(ctx, network, addr)
		if err != nil {
			return err
		}
		return c.Close()
	}
	l, err := probe.Listen(ctx, network, addr)
	if err != nil {
		return err
	}
	return l.Close()
}
