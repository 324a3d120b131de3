package badnetworks

import (
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/netlab"
)

// A firewall that lets no UDP through: the node is usable over TCP, and back on
// QUIC once it may, without losing what began over TCP.
func TestBlockedUDP(t *testing.T) {
	w := newWorld(t, 1, netlab.WAN(50, 60*time.Millisecond))
	w.link.SetUDPBlocked(true)
	start := time.Now()
	w.start(nil)
	t.Logf("usable over %s after %s", w.agent.Carrier(), time.Since(start).Round(time.Millisecond))
	if w.agent.Carrier() != agent.TCP {
		t.Fatalf("carried by %q", w.agent.Carrier())
	}
	exec := startEcho(t, w)
	copies := startCopies(t, w)
	exec.mark()
	w.eventually("the exec session answers over TCP", exec.moved)

	w.link.SetUDPBlocked(false)
	start = time.Now()
	w.agent.Poke() // a change of the network; the wait of a minute is tested elsewhere
	w.eventually("back on QUIC", func() bool { return w.agent.Carrier() == agent.QUIC })
	t.Logf("back on QUIC %s after it was told of a change", time.Since(start).Round(time.Millisecond))
	exec.mark()
	w.eventually("the exec session answers on", exec.moved)
	copies.finish(t)
	exec.finish(t)
	w.eventually("the session over TCP ends with what it carried", func() bool { return len(w.gw.Sessions()) == 1 })
	if n := w.gw.Sessions()[0]; n.Stats.Transport != "quic" {
		t.Errorf("%+v", n)
	}
}

// Over TCP, an outage of seconds and an address that stays end nothing.
func TestOutageOverTCP(t *testing.T) {
	w := newWorld(t, 1, netlab.WAN(50, 60*time.Millisecond))
	w.link.SetUDPBlocked(true)
	w.start(nil)
	exec := startEcho(t, w)
	for range 3 {
		exec.mark()
		w.link.AToB.SetCut(true)
		w.link.BToA.SetCut(true)
		time.Sleep(2 * time.Second) // the outage itself, not a condition
		w.link.AToB.SetCut(false)
		w.link.BToA.SetCut(false)
		w.eventually("the exec session answers", exec.moved)
		t.Logf("an outage of 2 s stalled for %s", exec.stall().Round(time.Millisecond))
	}
	exec.finish(t)
}
