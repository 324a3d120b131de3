package gateway

import (
	"net/netip"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

func TestUnderWay(t *testing.T) {
	site, other, third := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1")
	now := time.Unix(1000, 0)
	var u underWay
	port := uint16(0)
	var last netip.AddrPort // that has begun
	begin := func(addr netip.Addr, tries int) (begun int) {
		for range tries {
			port++
			if peer := netip.AddrPortFrom(addr, port); u.begin(now, peer) {
				last = peer
				begun++
			}
		}
		return begun
	}
	want := func(what string, got, want int) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %d begun, want %d", what, got, want)
		}
	}
	want("few", begin(site, manyUnderWay-1), manyUnderWay-1)
	if u.many(now) {
		t.Error("they are many already")
	}
	want("of one source", begin(site, maxUnderWay), maxUnderWayFrom-manyUnderWay+1)
	if !u.many(now) {
		t.Error("they are not many")
	}
	now = now.Add(time.Second)
	want("of another", begin(other, maxUnderWay), maxUnderWay-maxUnderWayFrom)
	want("of a third", begin(third, 1), 0)
	u.done(last)
	u.done(netip.AddrPortFrom(third, 1)) // not known
	want("after one was done", begin(third, 2), 1)
	now = now.Add(tunnel.HandshakeTimeout - time.Second)
	want("after those of the first had their time", begin(site, maxUnderWay), maxUnderWayFrom)
	now = now.Add(tunnel.HandshakeTimeout)
	if u.many(now) || len(u.begun) > 0 || len(u.from) > 0 {
		t.Errorf("remembered: %d, of %d sources", len(u.begun), len(u.from))
	}
}

// Those that are never finished count until their time is over, however many others
// are finished meanwhile.
func TestUnfinishedAreForgotten(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.1")
	now := time.Unix(1000, 0)
	var u underWay
	for i := range maxUnderWayFrom - 1 {
		u.begin(now, netip.AddrPortFrom(addr, uint16(1+i)))
	}
	for i := range 10 * int(tunnel.HandshakeTimeout/time.Second) {
		now = now.Add(time.Second / 10)
		peer := netip.AddrPortFrom(addr, uint16(1000+i))
		if !u.begin(now, peer) {
			t.Fatalf("after %d that were finished there is no place", i)
		}
		u.done(peer)
	}
	if len(u.begun) > 0 {
		t.Errorf("%d are remembered", len(u.begun))
	}
}

// Who was turned away with a first packet is so with the second, also when a place
// has become free between; for some seconds and for a bounded number of them.
func TestTurnedAway(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.1")
	now := time.Unix(1000, 0)
	var u underWay
	first := netip.AddrPortFrom(addr, 1)
	for i := range maxUnderWayFrom {
		u.begin(now, netip.AddrPortFrom(addr, uint16(1+i)))
	}
	late := netip.AddrPortFrom(addr, 1000)
	if u.begin(now, late) {
		t.Fatal("there is room for more")
	}
	u.done(first)
	if u.begin(now.Add(turnedFor-1), late) {
		t.Error("its second packet was taken")
	}
	if !u.begin(now.Add(turnedFor), netip.AddrPortFrom(addr, 1001)) {
		t.Error("nobody takes the place")
	}
	u.done(netip.AddrPortFrom(addr, 1001))
	if !u.begin(now.Add(3*turnedFor), late) {
		t.Error("it is turned away for ever")
	}
	for i := range 2 * maxTurned {
		u.begin(now.Add(3*turnedFor), netip.AddrPortFrom(addr, uint16(2000+i)))
	}
	if n := len(u.turned[0]); n != maxTurned {
		t.Errorf("%d are remembered", n)
	}
}
