package podnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nftTimeout bounds one transaction: milliseconds, but for a kernel that is
// loading its modules.
const nftTimeout = 20 * time.Second

// HostOptions is what Setup needs.
type HostOptions struct {
	// PodCIDRs are the node's own pod ranges, ClusterPodCIDRs and ServiceCIDRs
	// the cluster's.
	PodCIDRs, ClusterPodCIDRs, ServiceCIDRs []netip.Prefix
	// Addresses to put on lo; DNSAddress and APIAddress where nil.
	Addresses []netip.Addr
	// NFT is the path of the nft program; "nft" where empty.
	NFT string
}

func (o *HostOptions) complete() error {
	if err := onePerFamily(o.PodCIDRs); err != nil {
		return fmt.Errorf("pod ranges of the node: %w", err)
	}
	if err := onePerFamily(o.ClusterPodCIDRs); err != nil {
		return fmt.Errorf("pod ranges of the cluster: %w", err)
	}
	if err := onePerFamily(o.ServiceCIDRs); err != nil {
		return fmt.Errorf("service ranges of the cluster: %w", err)
	}
	if o.Addresses == nil {
		o.Addresses = []netip.Addr{DNSAddress, APIAddress}
	}
	for _, a := range o.Addresses {
		if !a.IsLinkLocalUnicast() {
			return fmt.Errorf("address %s is not link-local", a)
		}
	}
	if o.NFT == "" {
		o.NFT = "nft"
	}
	return nil
}

// Setup gives the calling thread's network namespace what pods need: the
// link-local addresses on lo, forwarding, and masquerading of what leaves the
// cluster. It is idempotent; what stands already is not disturbed, connections
// being translated included.
func Setup(ctx context.Context, o HostOptions) error {
	if err := o.complete(); err != nil {
		return fmt.Errorf("pod network: %w", err)
	}
	if err := ensureAddresses(o.Addresses); err != nil {
		return err
	}
	ipv6 := slices.ContainsFunc(o.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() })
	filtered, err := setSysctls("/proc/sys/net", ipv6)
	if err != nil {
		return err
	}
	r := rules{
		pods:      o.PodCIDRs,
		unmasked:  slices.Concat(o.ClusterPodCIDRs, o.ServiceCIDRs),
		addresses: o.Addresses,
		hairpin:   !filtered,
	}
	return nft(ctx, o.NFT, r.ruleset())
}

// Teardown removes the addresses and the table that Setup made, whether or not
// they are there. Forwarding stays on: it may be somebody else's wish. Routes
// are removed by Reconciler.Apply of no members.
func Teardown(ctx context.Context, o HostOptions) error {
	if err := o.complete(); err != nil {
		return fmt.Errorf("pod network: %w", err)
	}
	return errors.Join(
		removeAddresses(o.Addresses),
		nft(ctx, o.NFT, fmt.Sprintf("add table inet %[1]s\ndelete table inet %[1]s\n", Table)),
	)
}

// nft feeds a ruleset to the nft program: one transaction, all or nothing.
func nft(ctx context.Context, program, ruleset string) error {
	ctx, cancel := context.WithTimeout(ctx, nftTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, program, "-f", "-")
	command.Stdin = strings.NewReader(ruleset)
	var said bytes.Buffer
	command.Stdout, command.Stderr = &said, &said
	if err := command.Run(); err != nil {
		return fmt.Errorf("nftables table %s: %s: %w: %s", Table, program, err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

// ensureAddresses puts the addresses on lo and brings it up.
func ensureAddresses(addresses []netip.Addr) error {
	return onLoopback(func(kernel *netlink.Handle, lo netlink.Link) error {
		if err := kernel.LinkSetUp(lo); err != nil {
			return fmt.Errorf("bring lo up: %w", err)
		}
		for _, a := range addresses {
			// Replacing an address by itself changes nothing, and needs no look
			// beforehand that could be out of date.
			if err := kernel.AddrReplace(lo, hostAddress(a)); err != nil {
				return fmt.Errorf("put %s on lo: %w", a, err)
			}
		}
		return nil
	})
}

func removeAddresses(addresses []netip.Addr) error {
	return onLoopback(func(kernel *netlink.Handle, lo netlink.Link) error {
		var errs []error
		for _, a := range addresses {
			if err := kernel.AddrDel(lo, hostAddress(a)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				errs = append(errs, fmt.Errorf("take %s from lo: %w", a, err))
			}
		}
		return errors.Join(errs...)
	})
}

func onLoopback(do func(*netlink.Handle, netlink.Link) error) error {
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("pod network: open netlink: %w", err)
	}
	defer kernel.Close()
	lo, err := kernel.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("pod network: lo: %w", err)
	}
	if err := do(kernel, lo); err != nil {
		return fmt.Errorf("pod network: %w", err)
	}
	return nil
}

// hostAddress has the scope of 127.0.0.1: it is never chosen as the source of
// packets that leave the node.
func hostAddress(a netip.Addr) *netlink.Addr {
	return &netlink.Addr{IPNet: toIPNet(netip.PrefixFrom(a, a.BitLen())), Scope: unix.RT_SCOPE_HOST}
}

// sysctl is one setting below root.
type sysctl struct{ name, value string }

// setSysctls turns forwarding on. root is /proc/sys/net, which shows the calling
// thread's network namespace. filtered says whether packets between pods of the
// bridge pass netfilter: br_netfilter is there and told to.
func setSysctls(root string, ipv6 bool) (filtered bool, err error) {
	settings := []sysctl{
		// First: changing it resets others.
		{"ipv4/ip_forward", "1"},
		// Loose: a packet's source must be reachable, but by whatever link. The
		// highest of "all" and the link's own counts, so this also loosens what
		// a distribution made strict, which drops the answers of pods that are
		// reached over two links.
		{"ipv4/conf/all/rp_filter", "2"},
	}
	if ipv6 {
		settings = append(settings, sysctl{"ipv6/conf/all/forwarding", "1"})
	}
	for _, s := range settings {
		if err := writeSysctl(root, s); err != nil {
			return false, err
		}
	}
	bridge := []sysctl{{"bridge/bridge-nf-call-iptables", "1"}}
	if ipv6 {
		bridge = append(bridge, sysctl{"bridge/bridge-nf-call-ip6tables", "1"})
	}
	for _, s := range bridge {
		err := writeSysctl(root, s)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// writeSysctl writes a setting where it differs: some files are read-only to us
// and right already.
func writeSysctl(root string, s sysctl) error {
	path := filepath.Join(root, s.name)
	now, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("pod network: %w", err)
	}
	if strings.TrimSpace(string(now)) == s.value {
		return nil
	}
	// No O_CREATE: a setting that is not there must not become a file.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("pod network: %w", err)
	}
	_, err = f.WriteString(s.value)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("pod network: set %s to %s: %w", path, s.value, err)
	}
	return nil
}
