//go:build linux

package site

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Interface names inside of the namespaces.
const (
	routerWAN = "wan0"
	routerLAN = "lan0"
	nodeLAN   = "eth0"
)

// Options say which site is meant.
type Options struct {
	// ClusterDir is the cluster's state directory: the record lives in its
	// sites/.
	ClusterDir string
	// ClusterUID is the cluster's 8 hex characters.
	ClusterUID string
	Pool       string
	Logger     *slog.Logger
}

// Site is one pool's network on this machine. Its methods need root; each is
// safe to repeat and safe beside other processes.
type Site struct {
	o      Options
	bootID string
}

// New names a site; it makes nothing.
func New(o Options) (*Site, error) {
	if err := checkNames(o.ClusterUID, o.Pool); err != nil {
		return nil, fmt.Errorf("site: %w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("site %s: %w", o.Pool, err)
	}
	return &Site{o: o, bootID: strings.TrimSpace(string(boot))}, nil
}

// Attachment is a node's place at its site.
type Attachment struct {
	// Namespace is the name of the node's network namespace.
	Namespace string
	// Address is the node's address on the LAN with the LAN's prefix length.
	Address netip.Prefix
	// Router is the LAN's default route.
	Router netip.Addr
	// Cloud is this machine's address on the site's link: where the node's
	// gateway is.
	Cloud netip.Addr
}

// Attach makes the site as far as it is missing, and the node's namespace on
// its LAN. A node that was here before gets its address again.
func (s *Site) Attach(ctx context.Context, node string) (Attachment, error) {
	if err := checkNames(s.o.ClusterUID, node); err != nil {
		return Attachment{}, err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return Attachment{}, err
	}
	defer unlock()
	r, err := s.load()
	if err != nil {
		return Attachment{}, err
	}
	n := r.Nodes[node]
	if n == nil {
		taken := map[netip.Addr]bool{}
		for _, other := range r.Nodes {
			taken[other.Address] = true
		}
		addr, err := chooseLAN(taken)
		if err != nil {
			return Attachment{}, fmt.Errorf("site %s: %w", s.o.Pool, err)
		}
		n = &nodeRecord{Address: addr}
		r.Nodes[node] = n
	}
	n.Attached = true
	if err := s.ensureRouter(ctx, r); err != nil {
		return Attachment{}, fmt.Errorf("router of site %s: %w", s.o.Pool, err)
	}
	if err := s.ensureNode(node, n.Address); err != nil {
		return Attachment{}, fmt.Errorf("node %s at site %s: %w", node, s.o.Pool, err)
	}
	return Attachment{
		Namespace: NodeNamespace(s.o.ClusterUID, node),
		Address:   netip.PrefixFrom(n.Address, lanRange.Bits()),
		Router:    lanRouter,
		Cloud:     hostAddr(r.WAN),
	}, nil
}

// ensureRouter makes the router. The record is saved before anything is made,
// so that whatever is made can be found and removed.
func (s *Site) ensureRouter(ctx context.Context, r *record) error {
	unlock, err := lockMachine(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	host, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer host.Close()
	link := wanLinkName(s.o.ClusterUID, s.o.Pool)
	if err := s.settleWAN(host, link, r); err != nil {
		return err
	}
	if err := s.save(r); err != nil {
		return err
	}
	router := RouterNamespace(s.o.ClusterUID, s.o.Pool)
	if err := createNamespace(router); err != nil {
		return err
	}
	inside, closeInside, err := handleIn(router)
	if err != nil {
		return err
	}
	defer closeInside()
	if err := ensureVeth(vethEnds{outer: host, name: link, inner: inside, peer: routerWAN, namespace: router}); err != nil {
		return err
	}
	if err := ensureAddress(host, link, netip.PrefixFrom(hostAddr(r.WAN), wanBits)); err != nil {
		return err
	}
	if err := ensureAddress(inside, routerWAN, netip.PrefixFrom(routerAddr(r.WAN), wanBits)); err != nil {
		return err
	}
	if err := ensureDefaultRoute(inside, routerWAN, hostAddr(r.WAN)); err != nil {
		return err
	}
	if err := ensureBridge(inside, routerLAN, router); err != nil {
		return err
	}
	if err := ensureAddress(inside, routerLAN, netip.PrefixFrom(lanRouter, lanRange.Bits())); err != nil {
		return err
	}
	err = setSysctls(router, map[string]string{
		"net/ipv4/ip_forward": "1",
		// What passes the LAN's bridge is not the router's business; with these
		// at 1, its rules would see neighbours' traffic.
		"?net/bridge/bridge-nf-call-iptables":  "0",
		"?net/bridge/bridge-nf-call-ip6tables": "0",
		"?net/bridge/bridge-nf-call-arptables": "0",
	})
	if err != nil {
		return err
	}
	return applyRules(ctx, router, rules(r))
}

// settleWAN keeps the remembered link where it is ours or free, else chooses.
func (s *Site) settleWAN(host *netlink.Handle, link string, r *record) error {
	used, err := hostNetworks(host, link)
	if err != nil {
		return fmt.Errorf("list this machine's networks: %w", err)
	}
	if r.WAN.IsValid() && free(r.WAN, used, specificBits) {
		return nil
	}
	others, err := s.remembered()
	if err != nil {
		return err
	}
	wan, err := chooseWAN(s.o.ClusterUID, s.o.Pool, append(used, others...))
	if err != nil {
		return err
	}
	if r.WAN.IsValid() {
		s.o.Logger.Info("the site's link moved, because its range is in use by something else now", "pool", s.o.Pool, "from", r.WAN, "to", wan)
	}
	r.WAN = wan
	return nil
}

// ensureNode makes a node's namespace and its port on the LAN.
func (s *Site) ensureNode(node string, addr netip.Addr) error {
	router := RouterNamespace(s.o.ClusterUID, s.o.Pool)
	name := NodeNamespace(s.o.ClusterUID, node)
	if err := createNamespace(name); err != nil {
		return err
	}
	outer, closeOuter, err := handleIn(router)
	if err != nil {
		return err
	}
	defer closeOuter()
	inner, closeInner, err := handleIn(name)
	if err != nil {
		return err
	}
	defer closeInner()
	port := lanPortName(s.o.ClusterUID, node)
	if err := ensureVeth(vethEnds{outer: outer, name: port, inner: inner, peer: nodeLAN, namespace: name}); err != nil {
		return err
	}
	if err := joinBridge(outer, port, routerLAN); err != nil {
		return err
	}
	if err := ensureUp(inner, "lo"); err != nil {
		return err
	}
	if err := ensureAddress(inner, nodeLAN, netip.PrefixFrom(addr, lanRange.Bits())); err != nil {
		return err
	}
	return ensureDefaultRoute(inner, nodeLAN, lanRouter)
}

// Detach removes a node's namespace and port, and the router with the last
// attached node. With release the node's address is free again. What is gone
// already is no error.
func (s *Site) Detach(ctx context.Context, node string, release bool) error {
	if err := checkNames(s.o.ClusterUID, node); err != nil {
		return err
	}
	if _, err := os.Stat(s.o.ClusterDir); errors.Is(err, fs.ErrNotExist) {
		return errors.Join(s.removeNode(node), s.removeRouter()) // a lost state directory: names are enough
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := s.load()
	if err != nil {
		return err
	}
	var errs []error
	errs = append(errs, s.removeNode(node))
	if n := r.Nodes[node]; n != nil {
		n.Attached, n.Cut = false, false
		if release {
			delete(r.Nodes, node)
		}
	}
	if r.attached() == 0 {
		r.Cut = false
		errs = append(errs, s.removeRouter())
	}
	return errors.Join(append(errs, s.save(r))...)
}

func (s *Site) removeNode(node string) error {
	router := RouterNamespace(s.o.ClusterUID, s.o.Pool)
	var errs []error
	if there, err := namespaceExists(router); err != nil {
		errs = append(errs, err)
	} else if there {
		h, closeH, err := handleIn(router)
		if err == nil {
			err = deleteLink(h, lanPortName(s.o.ClusterUID, node))
			closeH()
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, deleteNamespace(NodeNamespace(s.o.ClusterUID, node)))...)
}

func (s *Site) removeRouter() error {
	host, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer host.Close()
	return errors.Join(
		deleteLink(host, wanLinkName(s.o.ClusterUID, s.o.Pool)),
		deleteNamespace(RouterNamespace(s.o.ClusterUID, s.o.Pool)),
	)
}

// SetCut cuts (or restores) the link of a node, or with node empty that of the
// whole site. A cut holds until it is restored or the machine reboots.
func (s *Site) SetCut(ctx context.Context, node string, cut bool) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := s.load()
	if err != nil {
		return err
	}
	switch n := r.Nodes[node]; {
	case node == "":
		r.Cut = cut
	case n == nil:
		return fmt.Errorf("site %s has no node %q", s.o.Pool, node)
	default:
		n.Cut = cut
	}
	router := RouterNamespace(s.o.ClusterUID, s.o.Pool)
	there, err := namespaceExists(router)
	if err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("site %s is not running on this machine: start its nodes first", s.o.Pool)
	}
	if err := s.save(r); err != nil {
		return err
	}
	return applyRules(ctx, router, rules(r))
}

// Status is a site as List shows it.
type Status struct {
	Pool    string       `json:"pool"`
	Running bool         `json:"running"`
	Link    netip.Prefix `json:"link"`
	Cut     bool         `json:"cut"`
	Nodes   []NodeStatus `json:"nodes"`
}

// NodeStatus is a node of a Status.
type NodeStatus struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	// Attached says that the node has a place on the LAN now.
	Attached bool `json:"attached"`
	// Cut says that the node's own link is cut; the site's may be beside it.
	Cut bool `json:"cut"`
}

// List returns the sites of a cluster on this machine, in order of their names.
func List(clusterDir, clusterUID string) ([]Status, error) {
	names, err := pools(clusterDir)
	if err != nil {
		return nil, err
	}
	out := []Status{}
	for _, p := range names {
		s, err := New(Options{ClusterDir: clusterDir, ClusterUID: clusterUID, Pool: p})
		if err != nil {
			return nil, err
		}
		r, err := s.load()
		if err != nil {
			return nil, err
		}
		running, err := namespaceExists(RouterNamespace(clusterUID, p))
		if err != nil {
			return nil, err
		}
		st := Status{Pool: p, Running: running, Link: r.WAN, Cut: r.Cut, Nodes: []NodeStatus{}}
		for name, n := range r.Nodes {
			st.Nodes = append(st.Nodes, NodeStatus{Name: name, Address: n.Address, Attached: n.Attached, Cut: n.Cut})
		}
		slices.SortFunc(st.Nodes, func(a, b NodeStatus) int { return strings.Compare(a.Name, b.Name) })
		out = append(out, st)
	}
	return out, nil
}

// Leftovers names what is still there of a node, and of its site where no node
// is attached to it any more. It looks at the machine, not at the record.
func (s *Site) Leftovers(node string) ([]string, error) {
	var left []string
	note := func(name string) error {
		there, err := namespaceExists(name)
		if there {
			left = append(left, "network namespace "+name)
		}
		return err
	}
	if err := note(NodeNamespace(s.o.ClusterUID, node)); err != nil {
		return left, err
	}
	r, err := s.load()
	if err != nil {
		return left, err
	}
	if r.attached() > 0 {
		return left, nil
	}
	if err := note(RouterNamespace(s.o.ClusterUID, s.o.Pool)); err != nil {
		return left, err
	}
	link := wanLinkName(s.o.ClusterUID, s.o.Pool)
	host, err := netlink.NewHandle()
	if err != nil {
		return left, err
	}
	defer host.Close()
	if l, err := findLink(host, link); err != nil {
		return left, err
	} else if l != nil {
		left = append(left, "link "+link)
	}
	return left, nil
}
