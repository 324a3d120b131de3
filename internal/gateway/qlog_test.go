package gateway_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// admin serves the gateway's admin socket until the test ends.
func (l *lab) admin() *http.Client {
	l.t.Helper()
	ln := tunneltest.NewListener()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	gw := l.gw
	go func() { served <- gw.ServeAdmin(ctx, ln) }()
	l.t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			l.t.Errorf("ServeAdmin: %v", err)
		}
	})
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return ln.Dial() },
	}}
}

// qlog asks for a recording.
func qlog(t *testing.T, ctx context.Context, c *http.Client, node, d string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://gateway/qlog?"+url.Values{"node": {node}, "for": {d}}.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// qlogRecord is what the tests read of one.
type qlogRecord struct {
	Schema string `json:"file_schema"`
	Time   float64
	Name   string
	Data   struct {
		Frames []struct {
			Type  string `json:"frame_type"`
			Token string `json:"stateless_reset_token"`
		}
	}
}

// readQlog reads a recording to its end.
func readQlog(t *testing.T, body []byte) []qlogRecord {
	t.Helper()
	var out []qlogRecord
	for i, part := range bytes.Split(body, []byte{0x1e}) {
		if i == 0 {
			if len(part) > 0 {
				t.Errorf("begins with %q", part)
			}
			continue
		}
		var r qlogRecord
		if err := json.Unmarshal(part, &r); err != nil {
			t.Fatalf("record %d: %q: %v", i, part, err)
		}
		out = append(out, r)
	}
	return out
}

func names(records []qlogRecord) map[string]int {
	n := map[string]int{}
	for _, r := range records {
		n[r.Name]++
	}
	return n
}

// A recording of a session that has been there for long, with what it carries
// while it is recorded, and nothing before or after.
func TestQlogOfASession(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.joined("berlin-1", nil, nil)
		l.joined("berlin-2", nil, nil)
		<-time.After(time.Minute) // idle
		admin := l.admin()
		resp := qlog(t, t.Context(), admin, "berlin-1", "20s")
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/qlog+json-seq" {
			t.Fatalf("%s %v", resp.Status, resp.Header)
		}
		if second := qlog(t, t.Context(), admin, "berlin-1", "20s"); second.StatusCode != http.StatusConflict {
			t.Errorf("a second recording beside the first: %s", second.Status)
		}
		c := l.connected("berlin-1:10250")
		secret := bytes.Repeat([]byte("a pod's password "), 20_000)
		roundTrip(t, c, secret)
		c.Close()
		start := time.Now()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < 15*time.Second || d > 20*time.Second {
			t.Errorf("ended after %s", d)
		}
		records := readQlog(t, body)
		if records[0].Schema != "urn:ietf:params:qlog:file:sequential" {
			t.Errorf("first record: %+v", records[0])
		}
		n := names(records)
		if n["transport:packet_sent"] < 200 || n["transport:packet_received"] < 200 || n["recovery:metrics_updated"] < 50 {
			t.Errorf("events: %v", n)
		}
		streams := 0
		for i, r := range records[1:] {
			if r.Time < records[i].Time || r.Time > 20_000 {
				t.Errorf("record %d at %v ms after %v", i+1, r.Time, records[i].Time)
			}
			for _, f := range r.Data.Frames {
				if f.Type == "stream" {
					streams++
				}
			}
		}
		if streams < 400 {
			t.Errorf("%d stream frames", streams)
		}
		if bytes.Contains(body, []byte("password")) || bytes.Contains(body, []byte(hex.EncodeToString([]byte("password")))) {
			t.Error("what was carried is in the recording")
		}
		// The next one, and then the session is as fast as before: it has no
		// recorder any more.
		c = l.connected("berlin-1:10250")
		roundTrip(t, c, secret)
		c.Close()
		again := qlog(t, t.Context(), admin, "berlin-1", "1s")
		if body, err = io.ReadAll(again.Body); err != nil || again.StatusCode != http.StatusOK {
			t.Fatalf("again: %s %v", again.Status, err)
		}
		if n := names(readQlog(t, body)); n["transport:packet_sent"] > 20 {
			t.Errorf("a second of nothing: %v", n)
		}
	})
}

// A recording ends with its session, of whose end it tells, and with its caller.
func TestQlogEnds(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.joined("berlin-1", nil, nil)
		l.joined("berlin-2", nil, nil)
		admin := l.admin()
		ctx, cancel := context.WithCancel(t.Context())
		gone := qlog(t, ctx, admin, "berlin-2", "1h")
		resp := qlog(t, t.Context(), admin, "berlin-1", "1h")
		settle()
		cancel()
		gone.Body.Close()
		settle()
		if again := qlog(t, t.Context(), admin, "berlin-2", "1s"); again.StatusCode != http.StatusOK {
			t.Errorf("after the caller had gone: %s", again.Status)
		}
		l.deny("berlin-1", net.ErrClosed)
		l.gw.Kick("berlin-1", "key revoked")
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if n := names(readQlog(t, body)); n["transport:connection_closed"] != 1 {
			t.Errorf("events: %v", n)
		}
	})
}

// What lets its reader end a connection is not in a recording: reset tokens, which
// a node's new path makes the two exchange.
func TestQlogHoldsNoToken(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		sockets := 0
		n := l.joined("berlin-1", nil, func(c *agent.Config) {
			c.ListenPacket = func() (net.PacketConn, error) {
				sockets++
				return l.net.Listen(netipAddr("10.0.1." + string(rune('0'+sockets)) + ":0")), nil
			}
		})
		resp := qlog(t, t.Context(), l.admin(), "berlin-1", "30s")
		settle() // what is on its way would look like a path that works
		l.net.Cut(edgeAddr, true)
		n.Poke()
		<-time.After(10 * time.Second)
		synctest.Wait()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		ids := 0
		for _, r := range readQlog(t, body) {
			for _, f := range r.Data.Frames {
				if f.Type == "new_connection_id" {
					ids++
					if strings.Trim(f.Token, "0") != "" {
						t.Errorf("a reset token: %s", f.Token)
					}
				}
			}
		}
		if ids == 0 {
			t.Errorf("no connection ids were exchanged: %v", names(readQlog(t, body)))
		}
	})
}

func TestQlogRefused(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.joined("berlin-1", nil, func(c *agent.Config) { c.Transport = agent.TCP })
		l.joined("berlin-2", nil, nil)
		admin := l.admin()
		for _, tc := range []struct {
			node, d string
			code    int
			text    string
		}{
			{"berlin-1", "1s", http.StatusConflict, tunnel.ErrNoQlog.Error()},
			{"berlin-9", "1s", http.StatusNotFound, "not connected"},
			{"", "1s", http.StatusNotFound, "not connected"},
			{"berlin-2", "", http.StatusBadRequest, "at most 1h"},
			{"berlin-2", "61m", http.StatusBadRequest, "at most 1h"},
			{"berlin-2", "-1s", http.StatusBadRequest, "more than 0s"},
		} {
			resp := qlog(t, t.Context(), admin, tc.node, tc.d)
			text, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != tc.code || !strings.Contains(string(text), tc.text) {
				t.Errorf("node %q for %q: %s %q %v", tc.node, tc.d, resp.Status, text, err)
			}
		}
	})
	inLab(t, func(_ *lab, c *gateway.Config) { c.Congestion = tunnel.CongestionReno }, func(t *testing.T, l *lab) {
		l.joined("berlin-1", nil, nil)
		if resp := qlog(t, t.Context(), l.admin(), "berlin-1", "1s"); resp.StatusCode != http.StatusConflict {
			t.Errorf("with quic-go's congestion control: %s", resp.Status)
		}
	})
}

// At another gateway of the mesh one is told which.
func TestQlogAtAnotherGateway(t *testing.T) {
	inFleet(t, []string{"a", "b"}, func(t *testing.T, fl *fleet) {
		fl.node("berlin-1", nil)
		settle()
		at := fl.holders("berlin-1")
		for id, m := range fl.members {
			resp := qlog(t, t.Context(), m.admin(), "berlin-1", "1s")
			text, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(at, id) != (resp.StatusCode == http.StatusOK) {
				t.Errorf("gateway %s of %v: %s %q", id, at, resp.Status, text)
			}
			if !slices.Contains(at, id) && !strings.Contains(string(text), "gateway "+at[0]) {
				t.Errorf("gateway %s: %q", id, text)
			}
		}
	})
}
