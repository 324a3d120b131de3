package tunnel

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel/quichook"
)

// fakeConnection notes what its algorithm asks.
type fakeConnection struct {
	sizes []int64 // that packets were set back to
}

func (c *fakeConnection) Restart(size int64)        { c.sizes = append(c.sizes, size) }
func (c *fakeConnection) Acknowledge(time.Duration) {}

// What is known of a path outlives a migration, with which quic-go asks for an
// algorithm anew, and a change of this machine's own way out, of which it knows
// nothing.
func TestAlgorithmAcrossPaths(t *testing.T) {
	var window, packets, bytes atomic.Uint64
	s := &quicSession{}
	a := &s.algorithm
	conn := &fakeConnection{}
	a.begin(quichook.Counters{Window: &window, LostPackets: &packets, LostBytes: &bytes}, conn)
	if window.Load() != uint64(a.c.Window()) {
		t.Fatalf("statistics have a window of %d, the algorithm %d", window.Load(), a.c.Window())
	}
	now, number, inFlight := int64(time.Hour), int64(0), int64(0)
	const size = packetSize
	send := func() {
		for a.CanSend(inFlight) {
			for !a.HasPacingBudget(now) {
				now = a.TimeUntilSend(inFlight)
			}
			inFlight += size // first, as quic-go does it
			a.OnPacketSent(now, inFlight, number, size, true)
			number++
		}
	}
	acknowledge := func() {
		now += int64(50 * time.Millisecond)
		for first := number - inFlight/size; first < number; first++ {
			a.OnPacketAcked(first, size, inFlight, now)
			inFlight -= size
		}
	}
	for range 20 {
		send()
		acknowledge()
	}
	known := a.c.Stats()
	if known.Rate == 0 || known.Window < 100*size {
		t.Fatalf("the path is not known: %+v", known)
	}

	send()
	// quic-go takes all for lost without a word, and asks anew.
	inFlight = 0
	if got := a.begin(a.n, conn); got != a {
		t.Fatal("another algorithm")
	}
	if got := a.c.Stats(); got.Rate != known.Rate {
		t.Errorf("rate %.0f after a migration, want %.0f", got.Rate, known.Rate)
	}
	first := number
	send()
	if number-first > 40 {
		t.Errorf("%d packets at once on a new path", number-first)
	}
	acknowledge()
	for range 3 { // the trial of the path
		send()
		acknowledge()
	}
	if window.Load() < uint64(known.Window)*9/10 {
		t.Errorf("a window of %d once the path is known, want some %d", window.Load(), known.Window)
	}

	send()
	full := inFlight
	Moved(s)
	first = number
	send()
	if n := number - first; n == 0 || n > 40 {
		t.Errorf("%d packets on a new path with %d bytes under way on the old one", n, full)
	}
	if !slices.Equal(conn.sizes, []int64{packetSize}) {
		t.Errorf("packets were set back to %d, want once to %d, with the machine's own move", conn.sizes, packetSize)
	}
	a.OnCongestionEvent(first-1, size, inFlight)
	if packets.Load() != 1 || bytes.Load() != size {
		t.Errorf("statistics have %d packets lost and %d bytes", packets.Load(), bytes.Load())
	}
}

// Where large packets stop arriving the next ones are small, and those on the way are
// no sign of congestion.
func TestAlgorithmInBlackHole(t *testing.T) {
	for _, tc := range []struct {
		name string
		hole func(a *algorithm, number int64) // of the next packet
	}{
		{"nothing is acknowledged", func(a *algorithm, number int64) {
			for i := range int64(holeStrikes) {
				a.OnPacketSent(int64(time.Minute), 20*1400, number+i, 1400, true)
				a.OnRetransmissionTimeout(true)
			}
		}},
		{"small packets are", func(a *algorithm, number int64) {
			for i := range int64(holeStrikes) {
				a.OnPacketSent(int64(time.Minute), 20*1400, number+2*i, 1400, true)
				a.OnPacketSent(int64(time.Minute), 20*1400, number+2*i+1, 60, true)
				a.OnCongestionEvent(number+2*i, 1400, 20*1400)
				a.OnPacketAcked(number+2*i+1, 60, 20*1400, int64(time.Minute))
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var n [3]atomic.Uint64
			conn := &fakeConnection{}
			a := &algorithm{}
			a.begin(quichook.Counters{Window: &n[0], LostPackets: &n[1], LostBytes: &n[2]}, conn)
			a.SetMaxDatagramSize(1400)
			for number := range int64(10) {
				a.OnPacketSent(int64(time.Minute), (number+1)*1400, number, 1400, true)
			}
			if a.CanSend(10 * 1400); len(conn.sizes) > 0 {
				t.Fatal("a hole before there is one")
			}
			tc.hole(a, 10)
			can := a.CanSend(1 << 30)
			if len(conn.sizes) == 0 || conn.sizes[0] != packetSize || a.hole.size != packetSize {
				t.Errorf("packets were set back to %d, want %d", conn.sizes, packetSize)
			}
			if !can {
				t.Error("what is in the hole keeps from sending")
			}
			told := len(conn.sizes)
			if a.CanSend(1 << 30); len(conn.sizes) != told {
				t.Error("packets are set back again and again")
			}
		})
	}
}
