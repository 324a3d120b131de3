//go:build linux

package site

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// handleIn opens netlink inside a named namespace.
func handleIn(name string) (*netlink.Handle, func(), error) {
	ns, err := netns.GetFromPath(NamespacePath(name))
	if err != nil {
		return nil, nil, fmt.Errorf("open network namespace %s: %w", name, err)
	}
	h, err := netlink.NewHandleAt(ns)
	ns.Close()
	if err != nil {
		return nil, nil, fmt.Errorf("open netlink in %s: %w", name, err)
	}
	return h, h.Close, nil
}

// findLink returns a link, nil if there is none of that name.
func findLink(h *netlink.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for link %s: %w", name, err)
	}
	return l, nil
}

func deleteLink(h *netlink.Handle, name string) error {
	l, err := findLink(h, name)
	if err != nil || l == nil {
		return err
	}
	if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// vethEnds names both ends of a cable: name where outer looks, peer inside of
// namespace, where inner looks.
type vethEnds struct {
	outer, inner *netlink.Handle
	name, peer   string
	namespace    string
}

// ensureVeth plugs a cable in. A cable of which one end is missing (its
// namespace was removed and made again) is replaced.
func ensureVeth(e vethEnds) error {
	outer, err := findLink(e.outer, e.name)
	if err != nil {
		return err
	}
	inner, err := findLink(e.inner, e.peer)
	if err != nil {
		return err
	}
	if outer != nil && inner != nil && outer.Attrs().ParentIndex == inner.Attrs().Index {
		if err := ensureUp(e.outer, e.name); err != nil {
			return err
		}
		return ensureUp(e.inner, e.peer)
	}
	if err := deleteLink(e.outer, e.name); err != nil {
		return err
	}
	if err := deleteLink(e.inner, e.peer); err != nil {
		return err
	}
	ns, err := netns.GetFromPath(NamespacePath(e.namespace))
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", e.namespace, err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = e.name
	// Hardware addresses stay the same over a reboot, as a real card's do: who
	// remembers the old one (ARP) would otherwise send into the void for seconds.
	attrs.HardwareAddr = hardwareAddr(e.name + " outer")
	// For people: which cluster the hash in the name stands for.
	attrs.Alias = e.namespace
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: e.peer, PeerNamespace: netlink.NsFd(ns), PeerHardwareAddr: hardwareAddr(e.name + " inner")}
	if err := e.outer.LinkAdd(veth); err != nil {
		return fmt.Errorf("make link %s to %s in %s: %w", e.name, e.peer, e.namespace, err)
	}
	if err := ensureUp(e.outer, e.name); err != nil {
		return err
	}
	return ensureUp(e.inner, e.peer)
}

// hardwareAddr is a locally administered unicast address made from a name.
func hardwareAddr(name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(name))
	sum[0] = sum[0]&^1 | 2
	return net.HardwareAddr(sum[:6])
}

func ensureUp(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look for link %s: %w", name, err)
	}
	if l.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

// ensureBridge makes a bridge whose hardware address is made from seed: left to
// itself a bridge takes that of a port, and changes it when ports come and go.
func ensureBridge(h *netlink.Handle, name, seed string) error {
	l, err := findLink(h, name)
	if err != nil {
		return err
	}
	if l == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = name, hardwareAddr(seed)
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("make bridge %s: %w", name, err)
		}
	}
	return ensureUp(h, name)
}

func joinBridge(h *netlink.Handle, port, bridge string) error {
	p, err := h.LinkByName(port)
	if err != nil {
		return fmt.Errorf("look for link %s: %w", port, err)
	}
	b, err := h.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("look for bridge %s: %w", bridge, err)
	}
	if p.Attrs().MasterIndex == b.Attrs().Index {
		return nil
	}
	if err := h.LinkSetMaster(p, b); err != nil {
		return fmt.Errorf("plug %s into %s: %w", port, bridge, err)
	}
	return nil
}

// ensureAddress gives a link one IPv4 address and takes others of the plan's
// ranges from it.
func ensureAddress(h *netlink.Handle, link string, want netip.Prefix) error {
	l, err := h.LinkByName(link)
	if err != nil {
		return fmt.Errorf("look for link %s: %w", link, err)
	}
	addrs, err := h.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", link, err)
	}
	have := false
	for _, a := range addrs {
		p, ok := prefixOf(a.IPNet)
		switch {
		case !ok:
		case p == want:
			have = true
		case wanRange.Contains(p.Addr()) || lanRange.Contains(p.Addr()):
			if err := h.AddrDel(l, &a); err != nil {
				return fmt.Errorf("take address %s from %s: %w", p, link, err)
			}
		}
	}
	if have {
		return nil
	}
	addr := &netlink.Addr{IPNet: ipNet(want)}
	if err := h.AddrAdd(l, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("give address %s to %s: %w", want, link, err)
	}
	return nil
}

func ensureDefaultRoute(h *netlink.Handle, link string, via netip.Addr) error {
	l, err := h.LinkByName(link)
	if err != nil {
		return fmt.Errorf("look for link %s: %w", link, err)
	}
	route := &netlink.Route{
		LinkIndex: l.Attrs().Index,
		Dst:       &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		Gw:        net.IP(via.AsSlice()),
	}
	if err := h.RouteReplace(route); err != nil {
		return fmt.Errorf("default route via %s: %w", via, err)
	}
	return nil
}

// hostNetworks lists what this machine routes or has an address in, in every
// routing table, except for what belongs to the link named own.
func hostNetworks(h *netlink.Handle, own string) ([]netip.Prefix, error) {
	ownIndex := -1
	if l, err := findLink(h, own); err != nil {
		return nil, err
	} else if l != nil {
		ownIndex = l.Attrs().Index
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, r := range routes {
		if r.LinkIndex == ownIndex {
			continue
		}
		if p, ok := prefixOf(r.Dst); ok {
			out = append(out, p)
		}
	}
	addrs, err := h.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if a.LinkIndex == ownIndex {
			continue
		}
		if p, ok := prefixOf(a.IPNet); ok {
			out = append(out, p.Masked())
		}
	}
	return out, nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// setSysctls writes network settings of a namespace. A name that begins with a
// question mark may be absent from this kernel.
func setSysctls(namespace string, values map[string]string) error {
	return In(namespace, func() error {
		for name, value := range values {
			name, optional := strings.CutPrefix(name, "?")
			err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
			if optional && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("set %s in %s: %w", name, namespace, err)
			}
		}
		return nil
	})
}
