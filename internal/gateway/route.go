package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
)

// kubeletPort is the port by which the apiserver names a node's kubelet
// (node.status.daemonEndpoints of every edge node). It only marks the target:
// where the kubelet listens is the agent's business.
const kubeletPort = "10250"

// errRoute marks every target that is refused for what it is.
var errRoute = errors.New("not reachable through the tunnel")

// route is where a CONNECT goes: to a node's target, or outside the tunnel.
type route struct {
	node   string // empty: outside
	target Target
}

func (r route) kind() string {
	if r.node == "" {
		return "local"
	}
	return r.target.kind.String()
}

// route decides where "host:port" goes. Names and addresses never mix: a node
// is found by its name alone, an address only as a pod's, because several sites
// use the same LAN range.
func (g *Gateway) route(hostport string) (route, error) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return route{}, fmt.Errorf("%q: %w: %w", hostport, errRoute, err)
	}
	if host == "" {
		// Elsewhere that means "this machine", which nobody may name.
		return route{}, fmt.Errorf("%q: %w: no host", hostport, errRoute)
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return g.routeName(host, port)
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil || p == 0 {
		return route{}, fmt.Errorf("%q: %w: port out of range", hostport, errRoute)
	}
	addr = addr.Unmap()
	node, err := g.cfg.Routes.PodOwner(addr)
	switch {
	case err == nil:
		return route{node: node, target: TCP(netip.AddrPortFrom(addr, uint16(p)))}, nil
	case errors.Is(err, ErrNoRoute) && g.cfg.DialLocal != nil:
		return route{}, nil
	case errors.Is(err, ErrNoRoute):
		return route{}, fmt.Errorf("%s: %w: it is no pod of an edge node (nodes are addressed by name)", hostport, errRoute)
	default:
		return route{}, fmt.Errorf("%s: %w: %w", hostport, errRoute, err)
	}
}

func (g *Gateway) routeName(name, port string) (route, error) {
	if g.Connected(name) || g.cfg.Routes.HasNode(name) {
		if port != kubeletPort {
			return route{}, fmt.Errorf("port %s of node %s: %w: only the kubelet's (%s) is", port, name, errRoute, kubeletPort)
		}
		return route{node: name, target: Kubelet()}, nil
	}
	if g.cfg.DialLocal != nil {
		return route{}, nil
	}
	return route{}, fmt.Errorf("%s:%s: %w: no edge node has this name", name, port, errRoute)
}
