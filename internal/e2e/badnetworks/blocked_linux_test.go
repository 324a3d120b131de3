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
	usable := time.Since(start)
	t.Logf("usable over %s after %s", w.agent.Carrier(), usable.Round(time.Millisecond))
	// The promise is 3 s. The time to start an agent on a busy machine comes on top;
	// what must not be is one timeout of a handshake (5 s) after the other.
	if usable > 10*time.Second {
		t.Errorf("usable after %s where UDP is blocked", usable)
	}
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
	back := time.Since(start)
	t.Logf("back on QUIC %s after it was told of a change", back.Round(time.Millisecond))
	// The promise is that it looks a second after a change, and then takes a
	// handshake. A session that waits for the next attempt by itself takes a minute,
	// which is also how long eventually waits.
	if back > 15*time.Second {
		t.Errorf("back on QUIC %s after it was told of a change", back)
	}
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
		stall := exec.stall()
		t.Logf("an outage of 2 s stalled for %s", stall.Round(time.Millisecond))
		// The promise is that the session goes on with the kernel's next
		// retransmission, which comes at most as long after an outage as that was. A
		// busy machine adds to it; 20 s would have ended the session.
		if stall > 10*time.Second {
			t.Errorf("an outage of 2 s stalled for %s", stall)
		}
	}
	exec.finish(t)
}
