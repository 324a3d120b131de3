package tunnel_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// What repeats is counted, however long it goes on if nothing else happens, and for
// a moment if something does; a day of failures does not push out what was before it.
func TestHistoryCounts(t *testing.T) {
	start := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	now := start
	h := tunnel.NewHistory(func() time.Time { return now })
	h.Add(1, tunnel.EventConnected, "to a")
	for range 3 {
		h.Add(1, tunnel.EventLost, "")
		h.Add(1, tunnel.EventTimeout, "")
		now = now.Add(time.Second)
	}
	now = now.Add(time.Second)
	h.Add(1, tunnel.EventLost, "")
	h.Add(1, tunnel.EventEnded, "silent")
	for range 5000 {
		now = now.Add(20 * time.Second)
		h.Add(0, tunnel.EventFailed, "no route to host")
	}
	h.Add(0, tunnel.EventFailed, "connection refused")
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	want := []tunnel.Happened{
		{At: at(0), Count: 1, Event: tunnel.EventConnected, Session: 1, Detail: "to a"},
		{At: at(0), Last: at(2), Count: 3, Event: tunnel.EventLost, Session: 1},
		{At: at(0), Last: at(2), Count: 3, Event: tunnel.EventTimeout, Session: 1},
		{At: at(4), Count: 1, Event: tunnel.EventLost, Session: 1},
		{At: at(4), Count: 1, Event: tunnel.EventEnded, Session: 1, Detail: "silent"},
		{At: at(24), Last: at(4 + 20*5000), Count: 5000, Event: tunnel.EventFailed, Detail: "no route to host"},
		{At: at(4 + 20*5000), Count: 1, Event: tunnel.EventFailed, Detail: "connection refused"},
	}
	if d := cmp.Diff(want, h.Events()); d != "" {
		t.Error(d)
	}
}

// The last thousand are kept, and what is long is cut.
func TestHistoryIsBounded(t *testing.T) {
	h := tunnel.NewHistory(time.Now)
	for i := range 2500 {
		h.Add(1, tunnel.EventEnded, fmt.Sprint(i, strings.Repeat(" x", 1000)))
	}
	got := h.Events()
	if len(got) != 1000 {
		t.Fatalf("%d events", len(got))
	}
	for i, e := range got {
		if !strings.HasPrefix(e.Detail, fmt.Sprint(1500+i, " ")) || len(e.Detail) > 256 {
			t.Fatalf("event %d is %q", i, e.Detail)
		}
	}
}

// A session tells what became of its path: that it was silent, for how long, and what
// it took for lost meanwhile. A quiet one says how it is once a minute.
func TestSessionKeepsHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := tunneltest.NewNetwork(t, 30*time.Millisecond)
		cc, sc := newNarrow(t, n.Listen(clientAddr)), newNarrow(t, n.Listen(serverAddr))
		client, server, end := quicPairOn(t, tunneltest.NewCA(t), cc, sc)
		defer end()
		h := tunnel.NewHistory(time.Now)
		tunnel.Keep(client, h, 7)
		go echoAll(t, server)
		st, err := client.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		roundTrip(t, st, 64<<10)
		time.Sleep(10 * time.Minute)
		quiet := h.Events()
		if got := count(quiet, tunnel.EventPath); got < 8 || got > 12 {
			t.Errorf("%d samples in ten quiet minutes", got)
		}
		if got := count(quiet, tunnel.EventSilence) + count(quiet, tunnel.EventTimeout) + count(quiet, tunnel.EventLost); got > 0 {
			t.Errorf("a quiet path: %+v", quiet)
		}

		cc.limit.Store(1) // nothing gets through
		time.AfterFunc(3*time.Second, func() { cc.limit.Store(0) })
		roundTrip(t, st, 64<<10)
		events := h.Events()
		if count(events, tunnel.EventTimeout) == 0 {
			t.Errorf("no timeout: %+v", events)
		}
		i := slices.IndexFunc(events, func(e tunnel.Happened) bool { return e.Event == tunnel.EventSilence })
		if i < 0 {
			t.Fatalf("no silence: %+v", events)
		}
		silence := events[i]
		lasted, err := time.ParseDuration(strings.TrimPrefix(silence.Detail, "for "))
		if err != nil || lasted < 3*time.Second || lasted > 7*time.Second {
			t.Errorf("silence %q, %v", silence.Detail, err)
		}
		if p := silence.Path; silence.Session != 7 || p == nil || p.RTT < 50*time.Millisecond || p.RTT > time.Second || p.Window < 1 || p.Sent < 50 {
			t.Errorf("%+v, path %+v", silence, p)
		}
	})
}

// count is how often an event is in a history.
func count(events []tunnel.Happened, e tunnel.Event) (n int) {
	for _, h := range events {
		if h.Event == e {
			n += h.Count
		}
	}
	return n
}
