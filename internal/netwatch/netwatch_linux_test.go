package netwatch

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/edgewright/terraform-provider-edge/internal/netlab"
)

func TestWatch(t *testing.T) {
	lab := netlab.ForTest(t, 1)
	cloud, edge := lab.Host("cloud"), lab.Host("edge")
	cable := lab.Cable(
		netlab.Port{Host: cloud, Prefix: netip.MustParsePrefix("10.77.0.1/24")},
		netlab.Port{Host: edge, Prefix: netip.MustParsePrefix("10.77.0.2/24")}, 0)
	other := lab.Cable(
		netlab.Port{Host: cloud, Prefix: netip.MustParsePrefix("10.78.0.1/24")},
		netlab.Port{Host: edge, Prefix: netip.MustParsePrefix("10.78.0.2/24")}, 0)
	ns, err := netns.GetFromPath(edge.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	w := Watcher{Namespace: ns}
	if n, err := w.Current(); err != nil || n != (Network{}) {
		t.Errorf("without a way out: %+v, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	changes := make(chan struct{}, 100)
	go func() { done <- w.Run(ctx, func() { changes <- struct{}{} }) }()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()

	expect := func(what string, want bool, do func() error) {
		t.Helper()
		for len(changes) > 0 {
			<-changes
		}
		if err := do(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		wait := 10 * time.Second
		if !want {
			wait = 15 * quiet // long enough for a look, had there been one
		}
		select {
		case <-changes:
			if !want {
				t.Errorf("%s: told", what)
			}
		case <-time.After(wait):
			if want {
				t.Errorf("%s: not told", what)
			}
		}
	}
	// Told of nothing until it watches, so try until it does.
	gateway := func(dev *netlab.End, via string, metric int) *netlink.Route {
		link, err := h.LinkByName(dev.Device)
		if err != nil {
			t.Fatal(err)
		}
		return &netlink.Route{LinkIndex: link.Attrs().Index, Gw: netip.MustParseAddr(via).AsSlice(), Priority: metric}
	}
	first := gateway(cable.B, "10.77.0.1", 600)
	deadline := time.Now().Add(10 * time.Second)
	for told := false; !told; {
		if time.Now().After(deadline) {
			t.Fatal("told of nothing")
		}
		for _, do := range []func(*netlink.Route) error{h.RouteAdd, h.RouteDel} {
			if err := do(first); err != nil {
				t.Fatal(err)
			}
			select {
			case <-changes:
				told = true
			case <-time.After(15 * quiet):
			}
		}
	}
	expect("default route", true, func() error { return h.RouteAdd(first) })
	expect("another address", true, func() error { return cable.B.Readdress(netip.MustParsePrefix("10.77.0.9/24")) })
	expect("address elsewhere", false, func() error { return other.B.AddAddr(netip.MustParsePrefix("10.78.0.9/24")) })
	expect("route elsewhere", false, func() error { return other.B.AddRoute(netip.MustParsePrefix("10.99.0.0/16")) })
	second := gateway(other.B, "10.78.0.1", 100)
	expect("a better way out", true, func() error { return h.RouteAdd(second) })
	if n, err := w.Current(); err != nil || n.Interface != other.B.Device {
		t.Errorf("with a better way out: %+v, %v", n, err)
	}
	expect("its end", true, func() error { return h.RouteDel(second) })

	// Once something was sent, the gateway's link address is known.
	mac := "02:00:00:00:00:05"
	link, err := h.LinkByName(cable.B.Device)
	if err != nil {
		t.Fatal(err)
	}
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: first.Gw, HardwareAddr: hw}); err != nil {
		t.Fatal(err)
	}
	got, err := w.Current()
	if err != nil {
		t.Fatal(err)
	}
	want := Network{Gateway: "10.77.0.1", MAC: mac, Interface: cable.B.Device, Prefix: "10.77.0.0/24"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	expect("the link goes", true, func() error { return cable.B.SetUp(false) })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
