package tunnel

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel/quichook"
)

// What is known of a path outlives a migration, with which quic-go asks for an
// algorithm anew, and a change of this machine's own way out, of which it knows
// nothing.
func TestAlgorithmAcrossPaths(t *testing.T) {
	var window, packets, bytes atomic.Uint64
	s := &quicSession{}
	a := &s.algorithm
	a.begin(quichook.Counters{Window: &window, LostPackets: &packets, LostBytes: &bytes})
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
	if got := a.begin(a.n); got != a {
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
	a.OnCongestionEvent(first-1, size, inFlight)
	if packets.Load() != 1 || bytes.Load() != size {
		t.Errorf("statistics have %d packets lost and %d bytes", packets.Load(), bytes.Load())
	}
}
