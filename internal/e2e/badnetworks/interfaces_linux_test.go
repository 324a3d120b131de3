package badnetworks

import (
	"net/netip"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/netlab"
)

// A node has two interfaces, a wired one and a mobile one whose packets are smaller.
// Its way out changes from one to the other and back, whether the first says that it
// is down or not; an exec session that types and a copy each way go on.
func TestSecondInterface(t *testing.T) {
	w := newWorld(t, 1, netlab.WAN(50, 60*time.Millisecond))
	wired := w.link
	mobile := w.lab.Link(
		netlab.Port{Host: w.cloud, Prefix: netip.MustParsePrefix("10.78.0.1/24")},
		netlab.Port{Host: w.edge, Prefix: netip.MustParsePrefix("10.78.0.2/24")},
		netlab.WAN(20, 80*time.Millisecond).WithMTU(1400))
	// An address that is on neither link's network, as a gateway's is.
	home := netip.MustParsePrefix("10.99.0.1/32")
	w.must(wired.A.AddAddr(home))
	w.must(mobile.B.AddRouteMetric(anywhere, 700))
	w.start(func(c *agent.Config) {
		c.Gateways = []string{netip.AddrPortFrom(home.Addr(), gatewayAt.Port()).String()}
	})
	before := w.gw.Sessions()
	exec := startEcho(t, w)
	copies := startCopies(t, w)
	exec.mark()
	w.eventually("the exec session answers", exec.moved)
	for _, change := range []struct {
		what string
		do   func()
		over *netlab.Link // from then on
	}{
		{"the wired link goes down", func() { w.must(wired.B.SetUp(false)) }, mobile},
		{"the wired link comes back", func() {
			w.must(wired.B.SetUp(true))
			w.must(wired.B.AddRoute(anywhere)) // as a network manager does; the kernel has forgotten it
		}, wired},
		{"the wired link carries nothing, which is noticed later", func() {
			wired.Cut()
			time.Sleep(time.Second) // the outage itself, not a condition
			w.must(mobile.B.AddRoute(anywhere))
		}, mobile},
		{"the wired link carries again", func() {
			wired.Restore()
			w.must(wired.B.AddRoute(anywhere))
		}, wired},
	} {
		exec.mark()
		change.do()
		w.eventually(change.what+": the exec session answers", exec.moved)
		t.Logf("%s: stalled for %s", change.what, exec.stall().Round(time.Millisecond))
		there, back := change.over.AToB.Stats().Delivered, change.over.BToA.Stats().Delivered
		w.eventually(change.what+": it goes over the other one", func() bool {
			return change.over.AToB.Stats().Delivered > there+100 && change.over.BToA.Stats().Delivered > back+100
		})
	}
	copies.finish(t)
	exec.finish(t)
	after := w.gw.Sessions()
	if len(after) != 1 || len(before) != 1 || after[0].Epoch != before[0].Epoch {
		t.Errorf("the session was replaced: %+v, then %+v", before, after)
	}
}
