package tunnel

import "testing"

// step is what happens to a session's packets.
type step struct {
	do    string // send, ack, lose, timeout, grow
	bytes int64
	back  int64 // for ack and lose: how many packets before the last that was sent
}

func TestBlackHole(t *testing.T) {
	const full, medium, small = 1441, 1300, 60
	send := func(bytes int64) step { return step{do: "send", bytes: bytes} }
	ack := func(bytes, back int64) step { return step{"ack", bytes, back} }
	lose := func(bytes, back int64) step { return step{"lose", bytes, back} }
	timeout := step{do: "timeout"}
	repeat := func(n int, steps ...step) (all []step) {
		for range n {
			all = append(all, steps...)
		}
		return all
	}
	for _, tc := range []struct {
		name  string
		steps []step
		found bool
	}{
		{"nothing", nil, false},
		{"timeouts with large packets only", repeat(3, send(full), timeout), true},
		{"two timeouts are not enough", repeat(2, send(full), timeout), false},
		{"timeouts with small packets only", repeat(9, send(small), timeout), false},
		{"timeouts with packets that fit every path", repeat(9, send(packetSize), timeout), false},
		{"timeouts without anything large since", append([]step{send(full), timeout}, repeat(9, send(small), timeout)...), false},
		{"all large packets are lost, small ones arrive", repeat(3, send(full), send(small), ack(small, 0), lose(full, 1)), true},
		{"the window was lost at once", append(repeat(9, send(full)), send(small), ack(small, 0), lose(full, 9), lose(full, 8), lose(full, 7), lose(full, 6)), false},
		{"lost and by timeout", append(repeat(1, send(full), send(small), ack(small, 0), lose(full, 1)), repeat(2, send(full), timeout)...), true},
		{"a large one arrives in between", repeat(9, send(full), timeout, send(full), timeout, send(full), ack(full, 0)), false},
		{"one in three of a line that loses", repeat(9, send(full), send(full), send(full), ack(full, 0), lose(full, 2), lose(full, 1)), false},
		{"smaller than what is lost does arrive", repeat(3, send(full), send(medium), ack(medium, 0), lose(full, 1)), true},
		{"probes of a larger size", repeat(9, send(full+9), timeout), false},
		{"a probe of a larger size arrives", append(repeat(2, send(full), timeout), send(full+9), ack(full+9, 0), send(full), timeout), false},
		{"what was acknowledged late does not hide it", append([]step{send(full), send(full), ack(full, 1), timeout}, repeat(2, send(full), timeout)...), true},
		{"after packets were made small", append(append(repeat(2, send(full), timeout), step{do: "grow", bytes: packetSize}), repeat(3, send(packetSize), timeout)...), false},
		{"what was large before does not count when they have grown", append([]step{send(full), {do: "grow", bytes: packetSize}, {do: "grow", bytes: full}}, repeat(3, timeout)...), false},
		{"again once they have grown", append([]step{{do: "grow", bytes: packetSize}, send(small), {do: "grow", bytes: full}}, repeat(3, send(full), timeout)...), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := &blackHole{}
			b.resized(full)
			number := int64(0)
			for i, s := range tc.steps {
				if b.found() {
					t.Fatalf("found before step %d", i)
				}
				switch s.do {
				case "send":
					number++
					b.onSent(number, s.bytes)
				case "ack":
					b.onAcked(number-s.back, s.bytes)
				case "lose":
					b.onLost(number-s.back, s.bytes)
				case "timeout":
					b.onTimeout()
				case "grow":
					b.resized(s.bytes)
				}
			}
			if b.found() != tc.found {
				t.Errorf("found: %v (%+v)", b.found(), b)
			}
		})
	}
}
