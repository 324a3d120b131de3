//go:build linux

package site

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// testUID marks what these tests make, so that what a killed run left behind is
// found by the next one and by nobody else.
const testUID = "7e57517e"

// sweepTest removes everything of the tests' own cluster.
func sweepTest(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(namespaceDir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "edge-"+testUID+"-") {
			if err := deleteNamespace(e.Name()); err != nil {
				t.Error(err)
			}
		}
	}
	h, err := netlink.NewHandle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, pool := range []string{"berlin", "tokyo"} {
		if err := deleteLink(h, wanLinkName(testUID, pool)); err != nil {
			t.Error(err)
		}
	}
}

func rootTest(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft")
	}
	sweepTest(t)
	t.Cleanup(func() { sweepTest(t) })
}

// echo answers TCP on an address until the test ends.
func echo(t *testing.T, namespace string, addr netip.Addr) string {
	t.Helper()
	var l net.Listener
	listen := func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	}
	var err error
	if namespace == "" {
		err = listen()
	} else {
		err = In(namespace, listen)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, c.RemoteAddr())
			c.Close()
		}
	}()
	return l.Addr().String()
}

const (
	// enough for a link that has just been plugged in: the kernel notices its
	// carrier within a second, and the next SYN goes out after one.
	enough = 10 * time.Second
	// little, for where nothing is to come: a cut link drops packets, and the
	// first SYN tells as much as the tenth.
	little = 700 * time.Millisecond
)

// reach dials from a namespace and returns whom the other side saw.
func reach(namespace, addr string, timeout time.Duration) (string, error) {
	var seen string
	dial := func() error {
		c, err := net.DialTimeout("tcp", addr, timeout)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = fmt.Fscanln(c, &seen)
		return err
	}
	if namespace == "" {
		return seen, dial()
	}
	err := In(namespace, dial)
	return seen, err
}

func unreachable(t *testing.T, namespace, addr string) {
	t.Helper()
	seen, err := reach(namespace, addr, little)
	if err == nil {
		t.Errorf("%q reaches %s as %s", namespace, addr, seen)
	} else if nerr, ok := errors.AsType[net.Error](err); !ok || !nerr.Timeout() {
		t.Errorf("%q to %s: %v, want a timeout", namespace, addr, err)
	}
}

func reachable(t *testing.T, namespace, addr string) string {
	t.Helper()
	seen, err := reach(namespace, addr, enough)
	if err != nil {
		t.Errorf("%q does not reach %s: %v", namespace, addr, err)
	}
	return seen
}

func attach(t *testing.T, s *Site, node string) Attachment {
	t.Helper()
	at, err := s.Attach(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestSite(t *testing.T) {
	rootTest(t)
	forwarding, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		t.Fatal(err)
	}
	s := testSite(t, testUID, "berlin")
	one, two := attach(t, s, "b-1"), attach(t, s, "b-2")
	if one.Address.String() != "192.168.1.11/24" || two.Address.String() != "192.168.1.12/24" {
		t.Errorf("addresses %s, %s", one.Address, two.Address)
	}
	cloud := echo(t, "", one.Cloud)
	lan := echo(t, two.Namespace, two.Address.Addr())

	if seen := reachable(t, one.Namespace, cloud); seen != "" && !strings.HasPrefix(seen, routerAddr(netip.PrefixFrom(one.Cloud, wanBits).Masked()).String()+":") {
		t.Errorf("the cloud side sees %s, want the router", seen)
	}
	reachable(t, one.Namespace, lan)

	t.Run("no way in", func(t *testing.T) {
		// Even for who knows the way: a route to the LAN through the router.
		h, err := netlink.NewHandle()
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		route := &netlink.Route{Dst: ipNet(netip.PrefixFrom(two.Address.Addr(), 32)), Gw: routerAddr(netip.PrefixFrom(one.Cloud, wanBits).Masked()).AsSlice()}
		if err := h.RouteAdd(route); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := h.RouteDel(route); err != nil {
				t.Error(err)
			}
		}()
		unreachable(t, "", lan)
	})

	t.Run("cut a node", func(t *testing.T) {
		cutAndBack(t, s, "b-1", one.Namespace, cloud)
		if err := s.SetCut(t.Context(), "b-1", true); err != nil {
			t.Fatal(err)
		}
		reachable(t, two.Namespace, cloud)
		reachable(t, one.Namespace, lan)
		attach(t, s, "b-1") // converging keeps the cut
		unreachable(t, one.Namespace, cloud)
		if err := s.SetCut(t.Context(), "b-1", false); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("cut a site", func(t *testing.T) {
		cutAndBack(t, s, "", one.Namespace, cloud)
	})
	t.Run("cut an established connection", func(t *testing.T) {
		established(t, s, one, "b-1")
	})

	t.Run("unplug", func(t *testing.T) {
		if err := s.Unplug(t.Context(), "b-1"); err != nil {
			t.Fatal(err)
		}
		if again := attach(t, s, "b-1"); again != one {
			t.Errorf("got %+v, had %+v", again, one)
		}
		reachable(t, one.Namespace, cloud)
	})

	if left, err := s.Leftovers("b-1"); err != nil || len(left) == 0 {
		t.Errorf("of a running node %v is left (%v)", left, err)
	}
	for range 2 { // the second time finds nothing, and does not mind
		if err := s.Detach(t.Context(), "b-1", true); err != nil {
			t.Error(err)
		}
	}
	reachable(t, two.Namespace, cloud)
	if err := s.Detach(t.Context(), "b-2", false); err != nil {
		t.Error(err)
	}
	for _, n := range []string{"b-1", "b-2"} {
		if left, err := s.Leftovers(n); err != nil || len(left) > 0 {
			t.Errorf("of %s %v is left (%v)", n, left, err)
		}
	}
	if again := attach(t, s, "b-2"); again.Address != two.Address || again.Cloud != two.Cloud {
		t.Errorf("b-2 was %s behind %s, now %s behind %s", two.Address, two.Cloud, again.Address, again.Cloud)
	}
	if err := s.Detach(t.Context(), "b-2", true); err != nil {
		t.Error(err)
	}
	after, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil || string(after) != string(forwarding) {
		t.Errorf("this machine's forwarding went from %q to %q", forwarding, after)
	}
}

func cutAndBack(t *testing.T, s *Site, node, namespace, cloud string) {
	t.Helper()
	if err := s.SetCut(t.Context(), node, true); err != nil {
		t.Fatal(err)
	}
	unreachable(t, namespace, cloud)
	if err := s.SetCut(t.Context(), node, false); err != nil {
		t.Fatal(err)
	}
	reachable(t, namespace, cloud)
}

// established checks that a cut stops a connection that is already there, and
// that restoring lets it go on.
func established(t *testing.T, s *Site, at Attachment, node string) {
	t.Helper()
	server, err := net.ListenPacket("udp", netip.AddrPortFrom(at.Cloud, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	var client net.Conn
	err = In(at.Namespace, func() (err error) {
		client, err = net.Dial("udp", server.LocalAddr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	send := func() error {
		if _, err := client.Write([]byte("x")); err != nil {
			return err
		}
		if err := server.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			return err
		}
		buf := make([]byte, 10)
		_, from, err := server.ReadFrom(buf)
		if err == nil {
			_, err = server.WriteTo(buf[:1], from)
		}
		return err
	}
	if err := send(); err != nil {
		t.Fatal(err)
	}
	for _, cut := range []bool{true, false} {
		if err := s.SetCut(t.Context(), node, cut); err != nil {
			t.Fatal(err)
		}
		if err := send(); (err != nil) != cut {
			t.Errorf("cut %v: %v", cut, err)
		}
	}
}

func TestSitesDoNotSeeEachOther(t *testing.T) {
	rootTest(t)
	dir := t.TempDir()
	var at []Attachment
	for _, pool := range []string{"berlin", "tokyo"} {
		s, err := New(Options{ClusterDir: dir, ClusterUID: testUID, Pool: pool})
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, attach(t, s, pool+"-1"))
		defer func() {
			if err := s.Detach(context.WithoutCancel(t.Context()), pool+"-1", true); err != nil {
				t.Error(err)
			}
		}()
	}
	if at[0].Address != at[1].Address {
		t.Errorf("sites have LANs of their own: %s, %s", at[0].Address, at[1].Address)
	}
	if at[0].Cloud == at[1].Cloud {
		t.Errorf("both links are %s", at[0].Cloud)
	}
	sites, err := List(dir, testUID)
	if err != nil || len(sites) != 2 || !sites[0].Running || sites[1].Nodes[0].Name != "tokyo-1" {
		t.Errorf("list %+v (%v)", sites, err)
	}
	cloud := echo(t, "", at[0].Cloud)
	reachable(t, at[0].Namespace, cloud)
}

func TestAttachRepairs(t *testing.T) {
	rootTest(t)
	s := testSite(t, testUID, "berlin")
	at := attach(t, s, "b-1")
	cloud := echo(t, "", at.Cloud)
	damage := map[string]func() error{
		"the node's namespace is gone": func() error { return deleteNamespace(at.Namespace) },
		"the router is gone":           func() error { return deleteNamespace(RouterNamespace(testUID, "berlin")) },
		"the router's rules are gone": func() error {
			return applyRules(t.Context(), RouterNamespace(testUID, "berlin"), "flush ruleset\n")
		},
		"the LAN's bridge is gone": func() error {
			h, done, err := handleIn(RouterNamespace(testUID, "berlin"))
			if err != nil {
				return err
			}
			defer done()
			return deleteLink(h, routerLAN)
		},
	}
	for name, break_ := range damage {
		t.Run(name, func(t *testing.T) {
			if err := break_(); err != nil {
				t.Fatal(err)
			}
			if again := attach(t, s, "b-1"); again.Address != at.Address {
				t.Errorf("address was %s, now %s", at.Address, again.Address)
			}
			reachable(t, at.Namespace, cloud)
		})
	}
	if err := s.Detach(t.Context(), "b-1", true); err != nil {
		t.Error(err)
	}
}

func TestSweep(t *testing.T) {
	rootTest(t)
	s := testSite(t, testUID, "berlin")
	attach(t, s, "b-1")
	attach(t, s, "b-2")
	if err := Sweep(testUID, "b-1"); err != nil {
		t.Fatal(err)
	}
	if there, err := namespaceExists(RouterNamespace(testUID, "berlin")); err != nil || !there {
		t.Errorf("the router went while a node is left (%v)", err)
	}
	if err := Sweep(testUID, "b-2"); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"b-1", "b-2"} {
		if left, err := Swept(testUID, n); err != nil || len(left) > 0 {
			t.Errorf("%v is left (%v)", left, err)
		}
	}
	h, err := netlink.NewHandle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if l, err := findLink(h, wanLinkName(testUID, "berlin")); err != nil || l != nil {
		t.Errorf("link %v is left (%v)", l, err)
	}
}
