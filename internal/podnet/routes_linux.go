package podnet

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// dumpAttempts: the kernel says when routes changed while they were listed; a
// busy node calms down within a few.
const dumpAttempts = 5

// ReconcilerOptions is what a Reconciler needs.
type ReconcilerOptions struct {
	Node
	// Link is the node's LAN link, such as "eth0".
	Link string
	// Logger tells of routes added and removed; slog.Default where nil.
	Logger *slog.Logger
}

// Reconciler keeps the routes to the pods of a pool's other nodes, in the
// network namespace NewReconciler was called in. Routes of any other protocol
// number than RouteProtocol are left alone, also where they are in the way.
type Reconciler struct {
	options ReconcilerOptions
	log     *slog.Logger

	mu     sync.Mutex // guards what follows
	kernel *netlink.Handle
}

// NewReconciler opens a netlink socket in the calling thread's network
// namespace. Close releases it.
func NewReconciler(o ReconcilerOptions) (*Reconciler, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("pod routes: %w", err)
	}
	if o.Link == "" {
		return nil, fmt.Errorf("pod routes of node %s: no LAN link is named", o.Name)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("pod routes of node %s: open netlink: %w", o.Name, err)
	}
	return &Reconciler{options: o, log: o.Logger, kernel: kernel}, nil
}

// Close releases the netlink socket. Routes stay.
func (r *Reconciler) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kernel.Close()
}

// Apply makes the kernel's routes those of Plan for these members: none for
// none. It goes on past what fails; the error joins every member that gets no
// route and every route that could not be set.
func (r *Reconciler) Apply(members []v1alpha1.PoolMember) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	link, err := r.kernel.LinkByName(r.options.Link)
	if err != nil {
		return fmt.Errorf("pod routes: LAN link %s: %w", r.options.Link, err)
	}
	lan, err := r.addresses(link)
	if err != nil {
		return err
	}
	routes, problems := Plan(r.options.Node, lan, members)
	present, err := r.routes()
	if err != nil {
		return errors.Join(append(problems, err)...)
	}
	wanted := map[netip.Prefix]bool{}
	for _, route := range routes {
		wanted[route.Destination] = true
		if err := r.ensure(link, route, present[route.Destination]); err != nil {
			problems = append(problems, err)
		}
	}
	for destination, there := range present {
		if wanted[destination] {
			continue
		}
		for _, k := range there {
			if k.Protocol != RouteProtocol {
				continue
			}
			if err := r.kernel.RouteDel(&k); err != nil && !errors.Is(err, unix.ESRCH) {
				problems = append(problems, fmt.Errorf("remove the route to %s: %w", destination, err))
				continue
			}
			r.log.Info("removed a route to pods", "destination", destination.String())
		}
	}
	return errors.Join(problems...)
}

// ensure adds the route, or replaces our own that leads elsewhere.
func (r *Reconciler) ensure(link netlink.Link, route Route, there []netlink.Route) error {
	index := link.Attrs().Index
	ours := false
	for _, k := range there {
		if k.Protocol != RouteProtocol {
			return fmt.Errorf("route to %s: somebody else (protocol %d) has set one", route.Destination, k.Protocol)
		}
		ours = true
		if gateway, ok := netip.AddrFromSlice(k.Gw); ok && gateway.Unmap() == route.Gateway && k.LinkIndex == index {
			return nil
		}
	}
	k := &netlink.Route{
		LinkIndex: index,
		Dst:       toIPNet(route.Destination),
		Gw:        net.IP(route.Gateway.AsSlice()),
		Protocol:  RouteProtocol,
		Table:     unix.RT_TABLE_MAIN,
	}
	set := r.kernel.RouteAdd
	if ours {
		set = r.kernel.RouteReplace
	}
	if err := set(k); err != nil {
		return fmt.Errorf("set the route to %s via %s on %s: %w", route.Destination, route.Gateway, r.options.Link, err)
	}
	r.log.Info("set a route to pods", "destination", route.Destination.String(), "gateway", route.Gateway.String())
	return nil
}

// addresses returns the LAN link's addresses with their subnets.
func (r *Reconciler) addresses(link netlink.Link) ([]netip.Prefix, error) {
	list, err := retryDump(func() ([]netlink.Addr, error) { return r.kernel.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("pod routes: addresses of %s: %w", r.options.Link, err)
	}
	var out []netip.Prefix
	for _, a := range list {
		if p, ok := toPrefix(a.IPNet); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

// routes returns the unicast routes of the main table by destination, our own
// and those of others.
func (r *Reconciler) routes() (map[netip.Prefix][]netlink.Route, error) {
	list, err := retryDump(func() ([]netlink.Route, error) {
		return r.kernel.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("pod routes: list routes: %w", err)
	}
	out := map[netip.Prefix][]netlink.Route{}
	for _, k := range list {
		if p, ok := toPrefix(k.Dst); ok {
			out[p] = append(out[p], k)
		}
	}
	return out, nil
}

// retryDump repeats a listing that the kernel says was not consistent.
func retryDump[T any](dump func() ([]T, error)) ([]T, error) {
	var list []T
	var err error
	for range dumpAttempts {
		if list, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return list, err
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// toPrefix converts, keeping host bits; false for nil and for a mask with holes.
func toPrefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	if a = a.Unmap(); a.BitLen() != bits {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, ones), true
}
