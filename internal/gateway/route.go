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

// errNoEndpoint marks a service with nothing behind it at the moment.
var errNoEndpoint = errors.New("service unavailable")

// route is where a CONNECT goes: to a node's target, or outside the tunnel.
type route struct {
	node   string // empty: outside
	target Target
	local  string // what to dial outside, "host:port"
}

// Kinds of dials that are none of the tunnel's: outside of it, and to nowhere.
const (
	localKind = "local"
	noKind    = "none"
)

func (r route) kind() string {
	if r.node == "" {
		return localKind
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
	return g.routeAddr(netip.AddrPortFrom(addr.Unmap(), uint16(p)))
}

// routeAddr decides for an address: a service's is first replaced by one of its
// endpoints', a pod's leads to its node.
func (g *Gateway) routeAddr(addr netip.AddrPort) (route, error) {
	asked := addr
	if g.cfg.Service != nil {
		switch endpoint, err := g.cfg.Service(addr); {
		case err == nil:
			addr = endpoint
		case !errors.Is(err, ErrNoRoute):
			return route{}, fmt.Errorf("%s: %w: %w", asked, errNoEndpoint, err)
		}
	}
	node, err := g.cfg.Routes.PodOwner(addr.Addr())
	switch {
	case err == nil:
		return route{node: node, target: TCP(addr)}, nil
	case errors.Is(err, ErrNoRoute) && g.cfg.DialLocal != nil:
		return route{local: addr.String()}, nil
	case errors.Is(err, ErrNoRoute) && addr != asked:
		return route{}, fmt.Errorf("%s: %w: the service's endpoint %s is no pod of an edge node", asked, errRoute, addr)
	case errors.Is(err, ErrNoRoute):
		return route{}, fmt.Errorf("%s: %w: it is no pod of an edge node (nodes are addressed by name)", asked, errRoute)
	default:
		return route{}, fmt.Errorf("%s: %w: %w", asked, errRoute, err)
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
		return route{local: net.JoinHostPort(name, port)}, nil
	}
	return route{}, fmt.Errorf("%s:%s: %w: no edge node has this name", name, port, errRoute)
}
