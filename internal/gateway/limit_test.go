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
	begin := func(addr netip.Addr, tries int) (begun int) {
		for range tries {
			if u.begin(now, addr) {
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
	u.done(site)
	u.done(third) // not known any more
	want("after one was done", begin(third, 2), 1)
	now = now.Add(tunnel.HandshakeTimeout - time.Second)
	want("after those of the first had their time", begin(site, maxUnderWay), maxUnderWayFrom-1)
	now = now.Add(tunnel.HandshakeTimeout)
	if u.many(now) || len(u.begun) > 0 || len(u.from) > 0 {
		t.Errorf("remembered: %d, of %d sources", len(u.begun), len(u.from))
	}
}
