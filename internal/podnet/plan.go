package podnet

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// Route is one route to a peer's pods.
type Route struct {
	// Destination is a pod range of the peer.
	Destination netip.Prefix
	// Gateway is the peer's address on the LAN.
	Gateway netip.Addr
}

// Node is what decides which routes a node may have.
type Node struct {
	// Name of the node; its own membership makes no route.
	Name string
	// PodCIDRs are the node's own pod ranges.
	PodCIDRs []netip.Prefix
	// ClusterPodCIDRs hold the pod ranges of every node.
	ClusterPodCIDRs []netip.Prefix
}

func (n *Node) validate() error {
	if n.Name == "" {
		return errors.New("the node's name is empty")
	}
	if err := onePerFamily(n.PodCIDRs); err != nil {
		return fmt.Errorf("pod ranges of node %s: %w", n.Name, err)
	}
	if err := onePerFamily(n.ClusterPodCIDRs); err != nil {
		return fmt.Errorf("pod ranges of the cluster: %w", err)
	}
	for _, p := range n.PodCIDRs {
		if !contained(p, n.ClusterPodCIDRs) {
			return fmt.Errorf("pod range %s of node %s lies in none of the cluster's", p, n.Name)
		}
	}
	return nil
}

// Plan returns the routes to a pool's members, ordered by destination, and one
// error for every member or range that gets none. lan are the addresses of the
// node's LAN link with their subnets.
//
// Members are data from outside and trusted with nothing: a range must lie
// inside the cluster's pod ranges and outside the node's own, a gateway must be
// on the LAN and be neither the node itself nor an address of pods, and of two
// members that claim one address neither gets it.
func Plan(node Node, lan []netip.Prefix, members []v1alpha1.PoolMember) ([]Route, []error) {
	type claim struct {
		member string
		route  Route
		bad    bool
	}
	var claims []claim
	var problems []error
	for i := range members {
		m := &members[i]
		if m.Name == node.Name {
			continue
		}
		for _, text := range m.PodCIDRs {
			destination, err := node.destination(text)
			if err == nil {
				var gateway netip.Addr
				if gateway, err = node.gateway(lan, m.Addresses, destination.Addr().Is4()); err == nil {
					claims = append(claims, claim{member: m.Name, route: Route{destination, gateway}})
					continue
				}
			}
			problems = append(problems, fmt.Errorf("pool member %q, pod range %q: %w", m.Name, text, err))
		}
	}
	// Sorted so, a range that overlaps one before it lies inside of it.
	slices.SortStableFunc(claims, func(a, b claim) int {
		return cmp.Or(a.route.Destination.Addr().Compare(b.route.Destination.Addr()),
			cmp.Compare(a.route.Destination.Bits(), b.route.Destination.Bits()))
	})
	widest := 0
	for i := 1; i < len(claims); i++ {
		a, b := &claims[widest], &claims[i]
		if !a.route.Destination.Overlaps(b.route.Destination) {
			widest = i
			continue
		}
		if a.member == b.member && a.route == b.route {
			b.bad = true // the same said twice
			continue
		}
		a.bad, b.bad = true, true
		problems = append(problems, fmt.Errorf("pod ranges %s of pool member %q and %s of %q overlap: neither gets a route",
			a.route.Destination, a.member, b.route.Destination, b.member))
	}
	var routes []Route
	for _, c := range claims {
		if !c.bad {
			routes = append(routes, c.route)
		}
	}
	return routes, problems
}

// destination parses and judges a peer's pod range.
func (n *Node) destination(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, errors.New("it is not a range")
	}
	if err := checkPrefix(p); err != nil {
		return p, err
	}
	if !contained(p, n.ClusterPodCIDRs) {
		return p, errors.New("it lies in none of the cluster's pod ranges")
	}
	for _, own := range n.PodCIDRs {
		if own.Overlaps(p) {
			return p, fmt.Errorf("it overlaps this node's own %s", own)
		}
	}
	return p, nil
}

// gateway chooses the first of a peer's addresses that this node can reach
// directly.
func (n *Node) gateway(lan []netip.Prefix, addresses []string, ipv4 bool) (netip.Addr, error) {
	for _, text := range addresses {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" || a.Is4() != ipv4 || !n.reaches(lan, a) {
			continue
		}
		return a, nil
	}
	return netip.Addr{}, fmt.Errorf("none of its addresses %q is another node's on this LAN", addresses)
}

func (n *Node) reaches(lan []netip.Prefix, a netip.Addr) bool {
	if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
		return false
	}
	for _, pods := range n.ClusterPodCIDRs {
		if pods.Contains(a) {
			return false
		}
	}
	on := false
	for _, p := range lan {
		if p.Addr() == a {
			return false
		}
		if p.Bits() < a.BitLen() && p.Contains(a) {
			on = true
		}
	}
	return on
}

// contained says whether p lies in one of the ranges.
func contained(p netip.Prefix, in []netip.Prefix) bool {
	return slices.ContainsFunc(in, func(r netip.Prefix) bool { return r.Bits() <= p.Bits() && r.Overlaps(p) })
}
