package tunnel

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel/congestion"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/quichook"
)

// Why it is done this way. quic-go has NewReno built in, which takes every loss
// for congestion. What else there is, on one line of 50 Mbit/s and 60 ms, a bare
// connection each, side by side, medians of three seeds, Mbit/s (on a machine
// that was busy besides; scripts/bench-tunnel.sh measures the product):
//
//	                            quic-go 0.65   fork of 0.61   quic-go 0.65
//	                            and the hook   (a setter)     as it is
//	                            our controller our controller NewReno
//	1 % loss each way             42.3           42.3            3.3
//	5 % loss each way             33.9           32.6            1.3
//	jitter 0-5 ms, 0.5 % loss     34.1            8.8            5.1
//	jitter 0-20 ms, 0.5 % loss    41.1            2.4            6.0
//
// The fork (apernet/quic-go v0.61.1-0.20260806010916) is the newest with a
// setter. It lacks what quic-go learnt since: how far packets overtake each
// other, so that late ones are not taken for lost and sent again and again; and
// priorities of streams and admission by credit, which the protocol uses. No
// controller can make up for the first. A second lane over TCP for bulk would
// have the kernel's BBR where the node's kernel has one (most have cubic only),
// and would hand a stream over in its middle; it is what the TCP transport is
// for where UDP does not pass.
//
// What it costs: package quichook depends on the shape of one version of
// quic-go. It checks that shape and says so when it does not fit, and the test
// that fails then is the reminder to look at an update of quic-go by hand.

// Congestion names a congestion control algorithm.
type Congestion string

const (
	// CongestionTolerant is package congestion's and the default.
	CongestionTolerant Congestion = "tolerant"
	// CongestionReno is quic-go's own NewReno: for networks whose owner wants
	// loss to be answered as RFC 9002 says.
	CongestionReno Congestion = "reno"
)

// Set makes connections of conf use the algorithm; empty: the default. Sessions
// are made of them by NewQUICSession.
func (c Congestion) Set(conf *quic.Config) error {
	switch c {
	case "", CongestionTolerant:
		conf.Tracer = quichook.Tracer
	case CongestionReno:
		conf.Tracer = nil
		// Nobody would notice that large packets stop arriving; see blackHole.
		conf.DisablePathMTUDiscovery = true
	default:
		return fmt.Errorf("congestion control %q: use %s or %s", string(c), CongestionTolerant, CongestionReno)
	}
	return nil
}

// algorithm is a congestion.Controller as quic-go calls it. It is the connection's
// from begin to end: quic-go makes one of its own anew after a migration, and what
// was known of the path before is worth more, see Controller.Moved.
type algorithm struct {
	// From outside, by any goroutine:
	nudges atomic.Int32           // packets that may be sent beside the controller; see Nudge
	moved  atomic.Bool            // see Moved; not acted upon yet
	keeper atomic.Pointer[keeper] // nil: nobody keeps what happens; see Keep

	// By the goroutine that runs the connection:
	c    *congestion.Controller // nil: not begun
	n    quichook.Counters
	conn quichook.Connection
	hole blackHole
}

// promptEvery is within which only one packet is acknowledged at once: a sign of life
// that comes alone is, at both ends without a second wake-up; of what comes in numbers
// every second one is acknowledged, as quic-go does it.
const promptEvery = time.Second

// begin is for quichook.Install.
func (a *algorithm) begin(n quichook.Counters, conn quichook.Connection) quichook.Algorithm {
	a.n, a.conn = n, conn
	if a.c == nil {
		a.c = congestion.New(packetSize)
	} else {
		// After a migration, with which quic-go has taken all for lost.
		a.keeper.Load().tell(EventMoved, "to another socket or address")
		a.c.Moved(0)
		a.c.SetDatagramSize(packetSize)
	}
	a.hole.resized(packetSize)
	a.publish()
	return a
}

func (a *algorithm) publish() {
	if w := uint64(a.c.Window()); w != a.n.Window.Load() {
		a.n.Window.Store(w)
	}
}

func (a *algorithm) CanSend(inFlight int64) bool {
	// Looked at first: this is asked for each packet, and to swap waits for the bytes of
	// the one before to leave the processor.
	if a.moved.Load() && a.moved.CompareAndSwap(true, false) || a.hole.found() {
		// As on a migration, but that what is on the way may still arrive.
		a.shrink()
		a.c.Moved(inFlight)
		a.publish()
	}
	a.conn.Acknowledge(promptEvery)
	return a.c.CanSend(inFlight) || a.nudges.Load() > 0
}

// shrink makes packets so small that they fit every path, until larger ones are found
// to arrive.
func (a *algorithm) shrink() {
	if a.hole.found() {
		a.keeper.Load().tell(EventBlackHole, "packets of %d bytes are lost", a.hole.least)
	}
	a.conn.Restart(packetSize)
	a.SetMaxDatagramSize(packetSize)
}

func (a *algorithm) GetCongestionWindow() int64 { return a.c.Window() }

func (a *algorithm) HasPacingBudget(now int64) bool {
	return a.c.HasBudget(time.Duration(now)) || a.nudges.Load() > 0
}

func (a *algorithm) TimeUntilSend(int64) int64 { return int64(a.c.Next()) }
func (a *algorithm) InRecovery() bool          { return false }
func (a *algorithm) InSlowStart() bool         { return a.c.InStartup() }

// MaybeExitSlowStart is a hint for algorithms that have no eyes of their own.
func (a *algorithm) MaybeExitSlowStart() {}

func (a *algorithm) OnPacketSent(sent, inFlight, number, bytes int64, tracked bool) {
	if tracked {
		inFlight -= bytes // quic-go has counted it already
	}
	a.hole.onSent(number, bytes)
	a.c.OnSent(time.Duration(sent), inFlight, number, bytes, tracked)
	if n := a.nudges.Load(); tracked && n > 0 {
		a.nudges.CompareAndSwap(n, n-1) // or it was given anew, which is as well
	}
}

// nudgePackets is what one Nudge lets through: a probe of a path, and a message
// of the control stream.
const nudgePackets = 2

// Nudge lets the next packets of a session go out even if the window is full.
// After an outage all that it is full of is lost, and a sender that waits for the
// acknowledgement of that has only its own probes, which come ever later. Call it
// before sending what should find out whether the path works. Without effect on
// a session whose congestion control is not ours.
func Nudge(s Session) {
	if q, ok := s.(*quicSession); ok {
		q.algorithm.nudges.Store(nudgePackets)
	}
}

// Moved tells a session that what it sends takes another path from here on: this
// machine's way out has changed. What was on the way does not keep it from sending
// on the new one, nor is what becomes of that taken for a sign of congestion; and
// packets are small again until larger ones are found to arrive there too. It shows
// with the next packet. Without effect on a session whose congestion control is not
// ours. At the other end quic-go notices by itself.
func Moved(s Session) {
	if q, ok := s.(*quicSession); ok {
		q.algorithm.moved.Store(true)
	}
}

func (a *algorithm) OnPacketAcked(number, bytes, inFlight, now int64) {
	a.hole.onAcked(number, bytes)
	a.c.OnAcked(time.Duration(now), number, bytes, inFlight)
	a.publish()
	if k := a.keeper.Load(); k != nil {
		if silent := a.c.Outage(time.Duration(now)); silent > 0 {
			k.tell(EventSilence, "for %s", silent.Round(time.Millisecond))
		}
		k.sample(time.Duration(now))
	}
}

func (a *algorithm) OnCongestionEvent(number, bytes, _ int64) {
	if bytes == 0 { // an ECN mark
		a.c.OnMarked()
		return
	}
	a.hole.onLost(number, bytes)
	a.c.OnLost(number, bytes)
	a.n.LostPackets.Add(1)
	a.n.LostBytes.Add(uint64(bytes))
	a.keeper.Load().tell(EventLost, "")
}

func (a *algorithm) OnSpuriousLoss(number int64) {
	a.c.OnSpuriousLoss(number)
	a.keeper.Load().tell(EventLate, "")
}

func (a *algorithm) OnRetransmissionTimeout(bool) {
	a.keeper.Load().tell(EventTimeout, "")
	a.hole.onTimeout()
	if a.hole.found() {
		a.shrink() // the probes that are sent next, for which nobody asks CanSend
		a.moved.Store(true)
	}
}

func (a *algorithm) SetMaxDatagramSize(size int64) {
	if size != a.hole.size {
		a.keeper.Load().tell(EventSize, "%d bytes", size)
	}
	a.hole.resized(size)
	a.c.SetDatagramSize(size)
}

// installCongestion gives c the algorithm that its configuration names. Without a
// hook priorities may be set at any time.
func installCongestion(c *quic.Conn, a *algorithm) (*quichook.Hook, Congestion) {
	hook, err := quichook.Install(c, a.begin)
	if err != nil {
		// Made for Reno, or by a quic-go in which the hook does not find its way
		// (a test fails then). Reno is slow on bad lines and otherwise right.
		return nil, CongestionReno
	}
	return hook, CongestionTolerant
}

// setPriority sets the priority of a stream, when that is possible, to what it is
// then.
func (s *quicSession) setPriority(st *quic.Stream, p *priority) {
	if s.hook == nil {
		st.SetPriority(p.get(), true)
		return
	}
	select {
	case <-s.hook.Installed():
		s.hook.SetPriority(st, p.get(), true)
		return
	default:
	}
	// The first round trip of the session: soon.
	go func() {
		select {
		case <-s.hook.Installed():
			s.hook.SetPriority(st, p.get(), true)
		case <-s.c.Context().Done():
		}
	}()
}

// CongestionOf says which algorithm a session sends by; empty where the kernel
// decides (TCP).
func CongestionOf(s Session) Congestion {
	if q, ok := s.(*quicSession); ok {
		return q.congestion
	}
	return ""
}
