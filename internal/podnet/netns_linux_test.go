package podnet

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// isolate moves the test into a network namespace of its own. The goroutine
// stays locked to its thread, which ends with the test, and the namespace with
// it.
func isolate(t *testing.T) netns.NsHandle {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	runtime.LockOSThread()
	return newNamespace(t)
}

// newNamespace makes another namespace and enters it.
func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func enter(t *testing.T, ns netns.NsHandle) {
	t.Helper()
	if err := netns.Set(ns); err != nil {
		t.Fatal(err)
	}
}

func needNFT(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("the nft program is not installed")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// veth makes a pair of links here and moves its second end.
func veth(t *testing.T, here, there string, to netns.NsHandle) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = here
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: there}))
	peer, err := netlink.LinkByName(there)
	must(t, err)
	must(t, netlink.LinkSetNsFd(peer, int(to)))
}

// up gives a link addresses and brings it up.
func up(t *testing.T, name string, addresses ...string) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName(name)
	must(t, err)
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		must(t, err)
		must(t, netlink.AddrAdd(link, addr))
	}
	must(t, netlink.LinkSetUp(link))
	return link
}

func bridge(t *testing.T, name, address string, ports ...string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	master := up(t, name, address)
	for _, p := range ports {
		must(t, netlink.LinkSetMaster(up(t, p), master))
	}
}

func addRoute(t *testing.T, destination, gateway string, protocol netlink.RouteProtocol) {
	t.Helper()
	_, dst, err := net.ParseCIDR(destination)
	must(t, err)
	must(t, netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(gateway), Protocol: protocol}))
}

// ownRoutes lists the package's routes as "destination via gateway".
func ownRoutes(t *testing.T) []string {
	t.Helper()
	list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
	must(t, err)
	var out []string
	for _, r := range list {
		out = append(out, fmt.Sprintf("%s via %s", r.Dst, r.Gw))
	}
	slices.Sort(out)
	return out
}

func sysctlValue(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/" + name)
	must(t, err)
	return strings.TrimSpace(string(b))
}

func testHost() HostOptions {
	return HostOptions{PodCIDRs: prefixes("10.42.1.0/24"), ClusterPodCIDRs: prefixes("10.42.0.0/16"), ServiceCIDRs: prefixes("10.43.0.0/16")}
}

// TestSetupTwice: Setup of what stands changes nothing, Teardown takes it away
// and does not mind that there is nothing.
func TestSetupTwice(t *testing.T) {
	needNFT(t)
	isolate(t)
	state := func() string {
		lo, err := netlink.LinkByName("lo")
		must(t, err)
		addrs, err := netlink.AddrList(lo, netlink.FAMILY_V4)
		must(t, err)
		var out []string
		for _, a := range addrs {
			out = append(out, a.IPNet.String())
		}
		slices.Sort(out)
		table, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
		must(t, err)
		return fmt.Sprintf("%v %v\n%s", lo.Attrs().Flags&net.FlagUp != 0, out, table)
	}
	must(t, Setup(t.Context(), testHost()))
	first := state()
	for _, want := range []string{"true [127.0.0.1/8 169.254.20.10/32 169.254.20.11/32]", "table inet edge_podnet", "ip saddr 10.42.1.0/24 masquerade fully-random"} {
		if !strings.Contains(first, want) {
			t.Errorf("no %q in %s", want, first)
		}
	}
	if v := sysctlValue(t, "ipv4/ip_forward"); v != "1" {
		t.Errorf("ip_forward is %s", v)
	}
	if v := sysctlValue(t, "ipv4/conf/all/rp_filter"); v != "2" {
		t.Errorf("rp_filter is %s", v)
	}
	must(t, Setup(t.Context(), testHost()))
	if d := cmp.Diff(first, state()); d != "" {
		t.Errorf("the second Setup changed something: %s", d)
	}
	// Another node's options replace the table as a whole.
	other := testHost()
	other.PodCIDRs = prefixes("10.42.7.0/24")
	must(t, Setup(t.Context(), other))
	if s := state(); strings.Contains(s, "10.42.1.0/24") {
		t.Errorf("the former table is still there: %s", s)
	}
	for range 2 {
		must(t, Teardown(t.Context(), testHost()))
	}
	if s := state(); strings.Contains(s, "169.254") || strings.Contains(s, Table) {
		t.Errorf("left over: %s", s)
	}
}

// TestSetupIsAtomic: a table nft refuses leaves the former one standing.
func TestSetupIsAtomic(t *testing.T) {
	needNFT(t)
	isolate(t)
	must(t, Setup(t.Context(), testHost()))
	broken := rules{pods: prefixes("10.42.1.0/24")}.ruleset() + "nonsense\n"
	if err := nft(t.Context(), "nft", broken); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("nft says %v", err)
	}
	out, err := exec.Command("nft", "list", "table", "inet", Table).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "169.254.20.10") {
		t.Errorf("%v %s", err, out)
	}
}

// TestNoBridgeFilter: where packets between a bridge's pods pass no netfilter,
// Setup masquerades answers to translated ones.
func TestNoBridgeFilter(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"ipv4/conf/all", "ipv6/conf/all"} {
		must(t, os.MkdirAll(root+"/"+dir, 0o755))
	}
	for _, name := range []string{"ipv4/ip_forward", "ipv4/conf/all/rp_filter", "ipv6/conf/all/forwarding"} {
		must(t, os.WriteFile(root+"/"+name, []byte("0\n"), 0o644))
	}
	filtered, err := setSysctls(root, false)
	if err != nil || filtered {
		t.Errorf("without br_netfilter: %v %v", filtered, err)
	}
	if b, _ := os.ReadFile(root + "/ipv6/conf/all/forwarding"); strings.TrimSpace(string(b)) != "0" {
		t.Error("IPv6 forwarding was turned on without IPv6 pods")
	}
	must(t, os.MkdirAll(root+"/bridge", 0o755))
	must(t, os.WriteFile(root+"/bridge/bridge-nf-call-iptables", []byte("0\n"), 0o644))
	if filtered, err = setSysctls(root, false); err != nil || !filtered {
		t.Errorf("with br_netfilter: %v %v", filtered, err)
	}
	if filtered, err = setSysctls(root, true); err != nil || filtered {
		t.Errorf("with br_netfilter for IPv4 alone: %v %v", filtered, err)
	}
	if _, err := setSysctls(t.TempDir(), false); err == nil {
		t.Error("a missing ip_forward is accepted")
	}
}

// TestReconciler: routes come, change and go with the members; those of others
// stay.
func TestReconciler(t *testing.T) {
	home := isolate(t)
	far := newNamespace(t)
	enter(t, home)
	veth(t, "lan0", "far", far)
	enter(t, far)
	up(t, "far")
	enter(t, home)
	link := up(t, "lan0", "192.168.1.11/24")
	addRoute(t, "10.42.9.0/24", "192.168.1.99", unix.RTPROT_STATIC)
	addRoute(t, "172.16.0.0/16", "192.168.1.99", RouteProtocol) // ours, of an earlier life

	r, err := NewReconciler(ReconcilerOptions{Node: testNode(), Link: "lan0", Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	defer r.Close()
	step := func(name string, want []string, says string, members ...v1alpha1.PoolMember) {
		t.Helper()
		err := r.Apply(members)
		if (says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", name, err, says)
		}
		if d := cmp.Diff(want, ownRoutes(t)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	n2, n3 := member("n2", "192.168.1.12", "10.42.2.0/24"), member("n3", "192.168.1.13", "10.42.3.0/24")
	both := []string{"10.42.2.0/24 via 192.168.1.12", "10.42.3.0/24 via 192.168.1.13"}
	step("first", both, "", n2, n3)
	step("again", both, "", n2, n3)
	step("a peer moves", []string{"10.42.2.0/24 via 192.168.1.22", both[1]}, "", member("n2", "192.168.1.22", "10.42.2.0/24"), n3)
	step("a peer leaves", both[1:], "", n3)
	step("bad ones beside good ones", both, "every address", n2, n3, member("n4", "192.168.1.14", "0.0.0.0/0"))
	step("somebody else's route", both, "somebody else (protocol 4)", n2, n3, member("n5", "192.168.1.15", "10.42.9.0/24"))

	// A link that flaps takes its routes along.
	must(t, netlink.LinkSetDown(link))
	if got := ownRoutes(t); len(got) != 0 {
		t.Errorf("with the link down: %v", got)
	}
	step("the link is down", nil, "set the route to 10.42.2.0/24", n2, n3)
	must(t, netlink.LinkSetUp(link))
	step("the link is up", both, "", n2, n3)
	step("no members", nil, "")

	others, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: unix.RTPROT_STATIC}, netlink.RT_FILTER_PROTOCOL)
	must(t, err)
	// The flap took it: the kernel did, not the reconciler, so it is set again.
	if len(others) == 0 {
		addRoute(t, "10.42.9.0/24", "192.168.1.99", unix.RTPROT_STATIC)
		step("no members, another's route", nil, "")
		others, err = netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: unix.RTPROT_STATIC}, netlink.RT_FILTER_PROTOCOL)
		must(t, err)
	}
	if len(others) != 1 || others[0].Dst.String() != "10.42.9.0/24" {
		t.Errorf("another's routes: %v", others)
	}
	if _, err := NewReconciler(ReconcilerOptions{Node: testNode()}); err == nil {
		t.Error("a reconciler without a link")
	}
	missing, err := NewReconciler(ReconcilerOptions{Node: testNode(), Link: "lan7"})
	must(t, err)
	defer missing.Close()
	if err := missing.Apply(nil); err == nil || !strings.Contains(err.Error(), "lan7") {
		t.Errorf("a link that is not there: %v", err)
	}
}

// TestTraffic: two nodes on a LAN with a pod each, and a router.
//
//	pod1 10.42.1.2 ─ n1 192.168.1.11 ─┬─ n2 192.168.1.12 ─ pod2 10.42.2.2
//	                                  └─ router 192.168.1.1
func TestTraffic(t *testing.T) {
	needNFT(t)
	router := isolate(t)
	n1, n2, pod1, pod2 := newNamespace(t), newNamespace(t), newNamespace(t), newNamespace(t)
	enter(t, router)
	veth(t, "to1", "lan0", n1)
	veth(t, "to2", "lan0", n2)
	bridge(t, "br0", "192.168.1.1/24", "to1", "to2")
	for i, n := range []struct{ node, pod netns.NsHandle }{{n1, pod1}, {n2, pod2}} {
		i++
		enter(t, n.node)
		up(t, "lan0", fmt.Sprintf("192.168.1.1%d/24", i))
		addRoute(t, "0.0.0.0/0", "192.168.1.1", unix.RTPROT_STATIC)
		veth(t, "veth0", "eth0", n.pod)
		bridge(t, Bridge, fmt.Sprintf("10.42.%d.1/24", i), "veth0")
		host := testHost()
		host.PodCIDRs = prefixes(fmt.Sprintf("10.42.%d.0/24", i))
		must(t, Setup(t.Context(), host))
		r, err := NewReconciler(ReconcilerOptions{Link: "lan0", Logger: slog.New(slog.DiscardHandler), Node: Node{Name: fmt.Sprint("n", i), PodCIDRs: host.PodCIDRs, ClusterPodCIDRs: host.ClusterPodCIDRs}})
		must(t, err)
		must(t, r.Apply([]v1alpha1.PoolMember{member("n1", "192.168.1.11", "10.42.1.0/24"), member("n2", "192.168.1.12", "10.42.2.0/24")}))
		r.Close()
		enter(t, n.pod)
		up(t, "eth0", fmt.Sprintf("10.42.%d.2/24", i))
		addRoute(t, "0.0.0.0/0", fmt.Sprintf("10.42.%d.1", i), unix.RTPROT_STATIC)
	}
	// listen answers every connection with the address it comes from.
	listen := func(ns netns.NsHandle, address string) {
		t.Helper()
		enter(t, ns)
		l, err := net.Listen("tcp", address)
		must(t, err)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, netip.MustParseAddrPort(c.RemoteAddr().String()).Addr())
				c.Close()
			}
		}()
	}
	ask := func(ns netns.NsHandle, address string, patience time.Duration) (string, error) {
		t.Helper()
		enter(t, ns)
		// One family, so that the socket is made here, on the locked thread.
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := new(net.Dialer).DialContext(ctx, "tcp4", address)
		if err != nil {
			return "", err
		}
		defer c.Close()
		b := make([]byte, 64)
		n, err := c.Read(b)
		return string(b[:n]), err
	}
	listen(pod2, "10.42.2.2:80")
	listen(router, "192.168.1.1:80")
	listen(n1, "169.254.20.10:53")
	listen(n2, "192.168.1.12:80")
	for _, c := range []struct {
		name    string
		from    netns.NsHandle
		to      string
		appears string
	}{
		{"pod to a peer's pod", pod1, "10.42.2.2:80", "10.42.1.2"},
		{"pod to outside", pod1, "192.168.1.1:80", "192.168.1.11"},
		{"pod to a peer node", pod1, "192.168.1.12:80", "192.168.1.11"},
		{"pod to DNS of its node", pod1, "169.254.20.10:53", "10.42.1.2"},
		{"node to a peer's pod", n1, "10.42.2.2:80", "192.168.1.11"},
		{"node to DNS", n1, "169.254.20.10:53", "169.254.20.10"},
	} {
		got, err := ask(c.from, c.to, 10*time.Second)
		if err != nil || got != c.appears {
			t.Errorf("%s: appears as %q (%v), want %q", c.name, got, err, c.appears)
		}
	}
	// A neighbour that routes the link-local address here is not heard.
	enter(t, router)
	addRoute(t, "169.254.20.10/32", "192.168.1.11", unix.RTPROT_STATIC)
	if got, err := ask(router, "169.254.20.10:53", 300*time.Millisecond); err == nil {
		t.Errorf("a neighbour reaches the node's DNS address as %q", got)
	}
}
