package tunnel

import (
	"fmt"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel/congestion"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/quichook"
)

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
	default:
		return fmt.Errorf("congestion control %q: use %s or %s", string(c), CongestionTolerant, CongestionReno)
	}
	return nil
}

// algorithm is a congestion.Controller as quic-go calls it.
type algorithm struct {
	c *congestion.Controller
	n quichook.Counters
}

func newAlgorithm(n quichook.Counters) quichook.Algorithm {
	a := &algorithm{c: congestion.New(packetSize), n: n}
	a.publish()
	return a
}

func (a *algorithm) publish() { a.n.Window.Store(uint64(a.c.Window())) }

func (a *algorithm) CanSend(inFlight int64) bool { return a.c.CanSend(inFlight) }
func (a *algorithm) GetCongestionWindow() int64  { return a.c.Window() }
func (a *algorithm) HasPacingBudget(now int64) bool {
	return a.c.HasBudget(time.Duration(now))
}
func (a *algorithm) TimeUntilSend(int64) int64 { return int64(a.c.Next()) }
func (a *algorithm) InRecovery() bool          { return false }
func (a *algorithm) InSlowStart() bool         { return a.c.InStartup() }

// MaybeExitSlowStart is a hint for algorithms that have no eyes of their own.
func (a *algorithm) MaybeExitSlowStart() {}

func (a *algorithm) OnPacketSent(sent, inFlight, number, bytes int64, tracked bool) {
	a.c.OnSent(time.Duration(sent), inFlight, number, bytes, tracked)
}

func (a *algorithm) OnPacketAcked(number, bytes, inFlight, now int64) {
	a.c.OnAcked(time.Duration(now), number, bytes, inFlight)
	a.publish()
}

func (a *algorithm) OnCongestionEvent(number, bytes, _ int64) {
	if bytes == 0 { // an ECN mark
		a.c.OnMarked()
		return
	}
	a.c.OnLost(number)
	a.n.LostPackets.Add(1)
	a.n.LostBytes.Add(uint64(bytes))
}

func (a *algorithm) OnSpuriousLoss(int64)          { a.c.OnSpuriousLoss() }
func (a *algorithm) OnRetransmissionTimeout(bool)  {} // quic-go v0.65 does not call it
func (a *algorithm) SetMaxDatagramSize(size int64) { a.c.SetDatagramSize(size) }

// installCongestion gives c the algorithm that its configuration names. The
// channel is closed when priorities may be set; see quichook.Install.
func installCongestion(c *quic.Conn) (ready <-chan struct{}, in Congestion) {
	ready, err := quichook.Install(c, newAlgorithm)
	if err != nil {
		// Made for Reno, or by a quic-go in which the hook does not find its way
		// (a test fails then). Reno is slow on bad lines and otherwise right.
		always := make(chan struct{})
		close(always)
		return always, CongestionReno
	}
	return ready, CongestionTolerant
}

// setPriority sets the priority of a stream, when that is possible.
func (s *quicSession) setPriority(st *quic.Stream, urgency int8) {
	select {
	case <-s.ready:
		st.SetPriority(urgency, true)
		return
	default:
	}
	// The first round trip of the session: soon.
	go func() {
		select {
		case <-s.ready:
			st.SetPriority(urgency, true)
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
