package tunnel

import (
	"bufio"
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/quic-go/quic-go/quicvarint"
)

var messages = []Message{
	Hello{Version: 1, Node: "berlin-1", BootID: "b", EngineVersion: "1.0", Architecture: "arm64", Capabilities: CapOptimistic},
	Welcome{Version: 1, Gateway: "g", Epoch: 1 << 62, Capabilities: 5},
	Ping{[8]byte{1, 2, 3}}, Pong{[8]byte{8}},
	Drain{DeadlineMS: 1000, Reason: "roll"},
	Heartbeat{},
	Heartbeat{Autonomy: &Autonomy{}}.WithKubeletAge(3 * time.Second),
	Heartbeat{Autonomy: &Autonomy{Faults: []Fault{{Reason: "CacheIncomplete", Message: "pods have not been read"}, {Reason: "ClockUnset"}}}},
	Drain{DeadlineMS: 1000, Alternates: []string{"b", "c"}, SpreadMS: 500},
	Spread{Milliseconds: 20_000},
	SignedGateways{[]byte("gateways")}, SignedPolicy{[]byte("policy")},
	MeshHello{Version: 1, Process: "p", Draining: true}, Kick{Node: "berlin-1", Reason: "revoked"},
	Owned{Snapshot: true}, Owned{Sessions: []OwnedSession{{"berlin-1", 1 << 60}, {"berlin-2", 0}}},
}

func TestMessages(t *testing.T) {
	var b []byte
	for _, m := range messages {
		var err error
		if b, err = AppendMessage(b, m); err != nil {
			t.Fatal(err)
		}
		// What nobody knows and need not.
		b = append(b, 0x40, 0x64, 0x03, 'x', 'y', 'z') // type 100
	}
	r := bufio.NewReader(bytes.NewReader(b))
	for _, want := range messages {
		got, err := ReadMessage(r)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
}

func TestMessagesRefused(t *testing.T) {
	for name, tc := range map[string]struct{ bytes, err string }{
		"beat: empty":    {"\x08\x00", "age"},
		"beat: an age":   {"\x08\x01\x00", "faults"},
		"beat: a fault":  {"\x08\x02\x00\x02", "reason"},
		"beat: silent":   {"\x08\x04\x00\x02\x01A", "message of fault A"},
		"beat: no UTF-8": {"\x08\x06\x00\x02\x01A\x01\xff", "UTF-8"},
		"odd reason":     {"\x08\x07\x00\x02\x03a b\x00", "CamelCase"},
		"unknown odd":    {"\x3f\x00", ErrCriticalMessage.Error()},
		"too long":       {"\x01\x80\x01\x00\x01", "allowed"},
		"spread of none": {"\x10\x00", "no varint"},
		"spread of two":  {"\x10\x02\x01\x01", "no varint"},
		"ping of 7":      {"\x02\x071234567", "want 8"},
		"hello no JSON":  {"\x01\x01{", "message 1"},
		"cut short":      {"\x01\x05{}", "body"},
		"end":            {"", "EOF"},
		"owned: flags":   {"\x07\x02\x02\x00", "flags"},
		"owned: count":   {"\x07\x02\x00\x05", "5 entries"},
		"owned: short":   {"\x07\x05\x00\x01\x04ab", "node"},
		"owned: unnamed": {"\x07\x05\x00\x01\x00\x01\x01", "no node name"},
		"owned: more":    {"\x07\x06\x00\x01\x01a\x01x", "after the last"},
	} {
		m, err := ReadMessage(bufio.NewReader(strings.NewReader(tc.bytes)))
		if err == nil || !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	_, err := ReadMessage(bufio.NewReader(strings.NewReader("\x3f\x00")))
	if !errors.Is(err, ErrCriticalMessage) {
		t.Error(err)
	}
	for name, faults := range map[string][]Fault{
		"faults":  make([]Fault, MaxFaults+1),
		"message": {{Reason: "DiskError", Message: strings.Repeat("m", maxFaultMessage+1)}},
		"reason":  {{Reason: strings.Repeat("R", maxFaultReason+1)}},
	} {
		b, err := AppendMessage(nil, Heartbeat{Autonomy: &Autonomy{Faults: faults}})
		if err != nil {
			t.Fatal(err)
		}
		if m, err := ReadMessage(bufio.NewReader(bytes.NewReader(b))); err == nil {
			t.Errorf("too long %s: %+v", name, m)
		}
	}
	if _, err := AppendMessage(nil, Hello{Node: strings.Repeat("n", MaxControlMessage)}); err == nil {
		t.Error("too long a message was written")
	}
}

func FuzzReadMessage(f *testing.F) {
	for _, m := range messages {
		b, err := AppendMessage(nil, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add(quicvarint.Append([]byte{0x40, 0x64}, quicvarint.Max))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			m, err := ReadMessage(r)
			if err != nil {
				return
			}
			again, err := AppendMessage(nil, m)
			if err != nil {
				// JSON may grow by escaping; only that may not be written.
				if len(b) < MaxControlMessage/6 {
					t.Fatal(err)
				}
				return
			}
			m2, err := ReadMessage(bufio.NewReader(bytes.NewReader(again)))
			if d := cmp.Diff(m, m2); err != nil || d != "" {
				t.Fatal(d, err)
			}
		}
	})
}

// A heartbeat of a later version, which says more, is understood, and no age of a
// kubelet's overflows.
func TestHeartbeatOfLaterVersions(t *testing.T) {
	m, err := ReadMessage(bufio.NewReader(strings.NewReader("\x08\x0b\xff\xff\xff\xff\xff\xff\xff\xff\x01new")))
	h, ok := m.(Heartbeat)
	if err != nil || !ok || h.Autonomy == nil || len(h.Autonomy.Faults) > 0 {
		t.Fatalf("%+v, %v", m, err)
	}
	if age, ok := h.KubeletAge(); !ok || age != 24*time.Hour {
		t.Errorf("age %v, %v", age, ok)
	}
}

// A heartbeat that says nothing is as good a sign of life as a Pad.
func TestHeartbeatIsAsLargeAsAPad(t *testing.T) {
	pad, err := AppendMessage(nil, Pad{})
	if err != nil {
		t.Fatal(err)
	}
	beat, err := AppendMessage(nil, Heartbeat{})
	if err != nil {
		t.Fatal(err)
	}
	if len(beat) < len(pad) {
		t.Errorf("%d bytes, a Pad has %d", len(beat), len(pad))
	}
}
