package site

import (
	"net/netip"
	"strings"
	"testing"
)

func TestChooseWANIsStableAndAvoidsWhatIsUsed(t *testing.T) {
	first, err := chooseWAN("0a1b2c3d", "berlin", nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := chooseWAN("0a1b2c3d", "berlin", nil)
	if err != nil || again != first {
		t.Fatalf("the same site got %s, then %s (%v)", first, again, err)
	}
	if !wanRange.Contains(first.Addr()) || first.Bits() != wanBits || first != first.Masked() {
		t.Fatalf("%s is not a /%d of %s", first, wanBits, wanRange)
	}
	for _, used := range []netip.Prefix{first, netip.PrefixFrom(first.Addr(), 24).Masked(), netip.PrefixFrom(hostAddr(first), 32)} {
		next, err := chooseWAN("0a1b2c3d", "berlin", []netip.Prefix{used})
		if err != nil {
			t.Fatal(err)
		}
		if next.Overlaps(used) {
			t.Errorf("%s overlaps %s, which is used", next, used)
		}
	}
}

func TestChooseWANInsideOfAWiderRoute(t *testing.T) {
	// A VPN that takes the whole range: a /30 is more specific, and wins.
	vpn := netip.MustParsePrefix("198.18.0.0/15")
	first, err := chooseWAN("0a1b2c3d", "berlin", []netip.Prefix{vpn})
	if err != nil {
		t.Fatal(err)
	}
	next, err := chooseWAN("0a1b2c3d", "berlin", []netip.Prefix{vpn, first})
	if err != nil || next == first {
		t.Fatalf("got %s (%v) although it is used", next, err)
	}
	if _, err := chooseWAN("0a1b2c3d", "berlin", []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}); err != nil {
		t.Errorf("a default route is in the way: %v", err)
	}
}

func TestWANLinks(t *testing.T) {
	if got := wanLink(0).String(); got != "198.18.0.0/30" {
		t.Errorf("first link %s", got)
	}
	if got := wanLink(wanLinks - 1).String(); got != "198.19.255.252/30" {
		t.Errorf("last link %s", got)
	}
	link := wanLink(3)
	if got := hostAddr(link).String() + " " + routerAddr(link).String(); got != "198.18.0.13 198.18.0.14" {
		t.Errorf("addresses of %s: %s", link, got)
	}
}

func TestChooseLAN(t *testing.T) {
	taken := map[netip.Addr]bool{}
	for i := lanFirst; i <= lanLast; i++ {
		a, err := chooseLAN(taken)
		if err != nil {
			t.Fatal(err)
		}
		if want := netip.AddrFrom4([4]byte{192, 168, 1, byte(i)}); a != want {
			t.Fatalf("got %s, want %s", a, want)
		}
		taken[a] = true
	}
	if a, err := chooseLAN(taken); err == nil {
		t.Errorf("got %s from a full LAN", a)
	}
	delete(taken, netip.MustParseAddr("192.168.1.20"))
	if a, err := chooseLAN(taken); err != nil || a.String() != "192.168.1.20" {
		t.Errorf("got %s (%v), want the one that was released", a, err)
	}
}

func TestNames(t *testing.T) {
	for _, n := range []string{wanLinkName("0a1b2c3d", "berlin"), lanPortName("0a1b2c3d", "berlin-1")} {
		if len(n) > 15 {
			t.Errorf("interface name %q is longer than 15 characters", n)
		}
	}
	long := strings.Repeat("x", 63)
	if err := checkNames("0a1b2c3d", "berlin", long); err != nil {
		t.Error(err)
	}
	for _, bad := range [][]string{{"0A1b2c3d", "berlin"}, {"0a1b2c3", "berlin"}, {"0a1b2c3d", "../x"}, {"0a1b2c3d", ""}, {"0a1b2c3d", long + "x"}, {"0a1b2c3d", "-a"}} {
		if err := checkNames(bad[0], bad[1:]...); err == nil {
			t.Errorf("names %q pass", bad)
		}
	}
}
