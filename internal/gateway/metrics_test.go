package gateway_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/signed"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// scrape reads a page of the gateway's admin socket: values by series, as they are
// written there.
func scrape(t *testing.T, gw *gateway.Gateway, path string) map[string]float64 {
	t.Helper()
	ln := tunneltest.NewListener()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- gw.ServeAdmin(ctx, ln) }()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return ln.Dial() },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://gateway"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]float64{}
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		line := sc.Text()
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := cutLast(line)
		if !ok {
			t.Fatalf("line %q", line)
		}
		if series[name], err = strconv.ParseFloat(value, 64); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
	}
	resp.Body.Close()
	cancel()
	if err := <-served; err != nil {
		t.Errorf("ServeAdmin: %v", err)
	}
	return series
}

func cutLast(line string) (name, value string, ok bool) {
	i := strings.LastIndexByte(line, ' ')
	if i < 0 {
		return "", "", false
	}
	return line[:i], line[i+1:], true
}

// want fails unless the series have the values.
func want(t *testing.T, got, want map[string]float64) {
	t.Helper()
	for name, v := range want {
		if g, ok := got["edge_gateway_"+name]; !ok || g != v {
			t.Errorf("%s is %v (there: %v), want %v", name, g, ok, v)
		}
	}
	if t.Failed() {
		for name, v := range got {
			t.Logf("%s %v", name, v)
		}
	}
}

func TestMetricsOfSessions(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		first := l.joined("berlin-1", nil, nil)
		kept := l.connected("berlin-1:10250")
		roundTrip(t, kept, []byte("keeps the first session"))
		l.joined("berlin-1", nil, nil)
		l.joined("berlin-2", nil, func(c *agent.Config) { c.Transport = agent.TCP })
		settle()
		want(t, scrape(t, l.gw, "/metrics"), map[string]float64{
			`handshakes_total{outcome="begun",transport="quic"}`: 2, `handshakes_total{outcome="done",transport="quic"}`: 2,
			`handshakes_total{outcome="begun",transport="tcp"}`: 1, `handshakes_total{outcome="done",transport="tcp"}`: 1,
			`sessions{state="current",transport="quic"}`: 1, `sessions{state="superseded",transport="quic"}`: 1,
			`sessions{state="current",transport="tcp"}`: 1, `sessions{state="superseded",transport="tcp"}`: 0,
			`sessions_begun_total{how="new",transport="quic"}`: 1, `sessions_begun_total{how="superseding",transport="quic"}`: 1,
			`sessions_begun_total{how="new",transport="tcp"}`: 1, `sessions_superseded_total`: 1,
		})
		kept.Close()
		<-time.After(10 * time.Second) // what is superseded lingers
		l.deny("berlin-2", errors.New("revoked"))
		l.gw.Kick("berlin-2", "key revoked")
		l.net.Cut(edgeAddr, true) // silence ends what is left
		<-time.After(tunnel.IdleTimeout + 10*time.Second)
		synctest.Wait()
		want(t, scrape(t, l.gw, "/metrics"), map[string]float64{
			`sessions{state="current",transport="quic"}`: 0, `sessions{state="current",transport="tcp"}`: 0,
			`sessions_ended_total{transport="quic",why="superseded"}`: 1, `sessions_ended_total{transport="tcp",why="revoked"}`: 1,
			`sessions_ended_total{transport="quic",why="lost"}`: 1,
		})
		first.stop()
	})
}

func TestMetricsOfHandshakesRefused(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		dial := l.dialStream(netip.MustParseAddr("10.0.9.9"))
		for range 70 { // 64 of one source may be silent at once
			c, err := dial(t.Context(), "tcp", gatewayAddr.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		synctest.Wait()
		want(t, scrape(t, l.gw, "/metrics"), map[string]float64{
			`handshakes_total{outcome="begun",transport="tcp"}`: 64, `handshakes_total{outcome="refused",transport="tcp"}`: 6,
		})
	})
}

func TestMetricsOfDials(t *testing.T) {
	inLab(t, func(_ *lab, c *gateway.Config) {
		c.DialLocal = func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	}, func(t *testing.T, l *lab) {
		l.routes.nodes["berlin-9"] = true
		quic := l.joined("berlin-1", nil, nil)
		tcp := l.joined("berlin-2", nil, func(c *agent.Config) { c.Transport = agent.TCP })
		for _, node := range []string{"berlin-1", "berlin-2"} {
			c := l.connected(node + ":10250")
			roundTrip(t, c, []byte("some bytes"))
			c.CloseWrite()
			io.Copy(io.Discard, c)
			c.Close()
		}
		for target, code := range map[string]int{"berlin-9:10250": 503, "10.99.0.1:443": 502} {
			if got, text := l.refused(target); got != code {
				t.Errorf("%s: %d %s", target, got, text)
			}
		}
		settle()
		want(t, scrape(t, l.gw, "/metrics"), map[string]float64{
			`dials_total{kind="kubelet",result="ok",transport="quic"}`:        1,
			`dials_total{kind="kubelet",result="ok",transport="tcp"}`:         1,
			`dials_total{kind="kubelet",result="not connected",transport=""}`: 1,
			`dials_total{kind="local",result="refused",transport="none"}`:     1,
			`dial_seconds_count{kind="kubelet"}`:                              2,
			`carried_bytes_total{direction="sent",kind="kubelet"}`:            20,
			`carried_bytes_total{direction="received",kind="kubelet"}`:        20,
			`dials_in_flight{kind="kubelet"}`:                                 0, `dials_in_flight{kind="apiserver"}`: 0, `dials_in_flight{kind="local"}`: 0,
		})
		for _, n := range []*node{quic, tcp} {
			f := n.Figures()
			if got := f.Dials[agent.DialResult{Kind: "kubelet", Result: "ok"}]; got != 1 || f.Sessions[f.Transport] != 1 || f.Fallback || f.Streams != 0 {
				t.Errorf("the agent's figures: %+v", f)
			}
		}
	})
}

// What is shown of each node is on a page of its own.
func TestMetricsOfNodes(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.serveAPI()
		n := l.joined("berlin-1", nil, nil)
		l.joined("berlin-2", nil, func(c *agent.Config) { c.Transport = agent.TCP })
		settle()
		for range 2 {
			exec := l.connected("berlin-1:10250")
			defer exec.Close()
			roundTrip(t, exec, []byte("x"))
		}
		watch, err := n.DialAPIServer(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer watch.Close()
		want(t, scrape(t, l.gw, "/metrics"), map[string]float64{
			`dials_in_flight{kind="kubelet"}`: 2, `dials_in_flight{kind="apiserver"}`: 1, `dials_in_flight{kind="tcp"}`: 0,
		})
		nodes := scrape(t, l.gw, "/metrics/nodes")
		for series, v := range map[string]float64{
			`edge_node_streams{kind="kubelet",node="berlin-1"}`: 2, `edge_node_streams{kind="apiserver",node="berlin-1"}`: 1,
			`edge_node_streams{kind="tcp",node="berlin-1"}`: 0, `edge_node_streams{kind="kubelet",node="berlin-2"}`: 0,
			`edge_node_lost_packets{node="berlin-1"}`: 0,
		} {
			if got, ok := nodes[series]; !ok || got != v {
				t.Errorf("%s is %v (there: %v), want %v", series, got, ok, v)
			}
		}
		// What the kernel knows is not zero, but not shown.
		for _, name := range []string{"min_rtt_seconds", "congestion_window_bytes", "sent_packets", "lost_packets"} {
			_, quic := nodes[`edge_node_`+name+`{node="berlin-1"}`]
			if _, tcp := nodes[`edge_node_`+name+`{node="berlin-2"}`]; !quic || tcp {
				t.Errorf("%s: over QUIC %v, over TCP %v", name, quic, tcp)
			}
		}
		shown := map[string]bool{}
		for series := range scrape(t, l.gw, "/metrics/nodes") {
			for _, part := range []string{`edge_node_session{congestion="tolerant",`, `edge_node_session{congestion="",`, `edge_node_rtt_seconds{node="berlin-1"}`} {
				if strings.HasPrefix(series, part) {
					shown[part] = true
				}
			}
		}
		if len(shown) != 3 {
			t.Errorf("shown: %v of\n%v", shown, scrape(t, l.gw, "/metrics/nodes"))
		}
		for series := range scrape(t, l.gw, "/metrics") {
			if strings.Contains(series, "berlin") {
				t.Errorf("a node is named: %s", series)
			}
		}
	})
}

// A node that falls back to TCP, and returns.
func TestFiguresOfFallback(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.net.BlockUDP(true)
		n := l.joined("berlin-1", nil, nil)
		if f := n.Figures(); f.Transport != agent.TCP || !f.Fallback || f.Sessions[agent.TCP] != 1 {
			t.Errorf("blocked: %+v", f)
		}
		want(t, scrape(t, l.gw, "/metrics"), map[string]float64{`sessions{state="current",transport="tcp"}`: 1})
		l.net.BlockUDP(false)
		<-time.After(5 * time.Minute)
		synctest.Wait()
		if f := n.Figures(); f.Transport != agent.QUIC || f.Fallback || f.Sessions[agent.QUIC] != 1 || f.Takeovers != 1 {
			t.Errorf("unblocked: %+v", f)
		}
		want(t, scrape(t, l.gw, "/metrics"), map[string]float64{
			`sessions{state="current",transport="tcp"}`: 0, `sessions{state="current",transport="quic"}`: 1,
			`sessions_begun_total{how="superseding",transport="quic"}`: 1, `sessions_superseded_total`: 1,
		})
	})
}

// A node whose address stops working has another one.
func TestMetricsOfMigrations(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		sockets := 0
		n := l.joined("berlin-1", nil, func(c *agent.Config) {
			c.ListenPacket = func() (net.PacketConn, error) {
				sockets++
				return l.net.Listen(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(sockets)}), 0)), nil
			}
		})
		c := l.connected("berlin-1:10250")
		roundTrip(t, c, []byte("before"))
		settle()                  // what is on its way would look like a path that works
		l.net.Cut(edgeAddr, true) // 10.0.1.1, the first socket's
		n.Poke()
		<-time.After(5 * time.Second)
		roundTrip(t, c, []byte("after"))
		c.Close()
		<-time.After(tunnel.KeepAlive) // a control message from the new address
		synctest.Wait()
		if f := n.Figures(); f.Migrations != 1 || f.Sessions[agent.QUIC] != 1 {
			t.Errorf("the agent's figures: %+v", f)
		}
		want(t, scrape(t, l.gw, "/metrics"), map[string]float64{`migrations_total`: 1})
	})
}

// Enough connections that nobody reads to be in the way of others.
func TestMetricsOfStalls(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		n := l.joined("berlin-1", func(c net.Conn) {
			chunk := make([]byte, 32<<10)
			for {
				if _, err := c.Write(chunk); err != nil {
					return
				}
			}
		}, nil)
		before := scrape(t, l.gw, "/metrics")
		want(t, before, map[string]float64{`stalled_bytes`: 0, `stall_aborts_total`: 0, `stalled_limit_bytes`: 512 << 20, `window_growth_limit_bytes`: 512 << 20})
		var stalled []net.Conn
		for range 120 { // of 128 KiB at least; three quarters of 16 MiB are the limit
			c := l.connected("berlin-1:10250")
			io.WriteString(c, "flood")
			stalled = append(stalled, c)
		}
		<-time.After(22 * time.Second) // they count by now, and none is cut before 30 s
		during := scrape(t, l.gw, "/metrics")
		if held := during["edge_gateway_stalled_bytes"]; held < 12<<20 || during["edge_gateway_stall_aborts_total"] != 0 {
			t.Errorf("%v bytes stalled, %v aborts", held, during["edge_gateway_stall_aborts_total"])
		}
		<-time.After(time.Minute)
		synctest.Wait()
		after := scrape(t, l.gw, "/metrics")
		aborts := after["edge_gateway_stall_aborts_total"]
		if aborts == 0 || after["edge_gateway_stalled_bytes"] > 12<<20 || after[`edge_gateway_dials_total{kind="kubelet",result="stalled",transport="quic"}`] != aborts {
			t.Errorf("%v aborts, %v bytes stalled", aborts, after["edge_gateway_stalled_bytes"])
		}
		for _, c := range stalled {
			c.Close()
		}
		n.stop()
	})
}

// Over TCP the window of a reader that is fast grows, and shrinks to nothing when
// its stream has ended.
func TestMetricsOfWindows(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		n := l.joined("berlin-1", func(c net.Conn) {
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				return
			}
			if _, err := c.Write(make([]byte, 16<<20)); err == nil {
				io.Copy(io.Discard, c)
			}
		}, func(c *agent.Config) {
			c.Transport = agent.TCP
			dial := c.DialStream
			c.DialStream = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dial(ctx, network, addr)
				return &farConn{conn}, err
			}
		})
		c := l.connected("berlin-1:10250")
		io.WriteString(c, "x")
		if _, err := io.CopyN(io.Discard, c, 16<<20); err != nil {
			t.Fatal(err)
		}
		if used := scrape(t, l.gw, "/metrics")["edge_gateway_window_growth_bytes"]; used <= 0 || used > 4<<20 {
			t.Errorf("grown by %v bytes", used)
		}
		c.Close()
		settle()
		want(t, scrape(t, l.gw, "/metrics"), map[string]float64{`window_growth_bytes`: 0})
		n.stop()
	})
}

// farConn is a connection with a round trip time: what is read is late.
type farConn struct{ net.Conn }

func (c *farConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	time.Sleep(5 * time.Millisecond)
	return n, err
}

// Real sockets, since an errno is the kernel's: nothing can be sent from loopback
// to elsewhere, nor to port 0. Which errno it is depends on the routes there are.
func TestMetricsOfSendErrors(t *testing.T) {
	ca := tunneltest.NewCA(t)
	list := signed.Gateways{Version: 1, Gateways: []signed.Gateway{
		{ID: "a", Addresses: []string{"127.0.0.1:1"}}, {ID: "b", Addresses: []string{"192.0.2.1:1"}},
	}}
	doc, err := list.Sign(ca)
	if err != nil {
		t.Fatal(err)
	}
	gw, err := gateway.New(gateway.Config{
		ID: "a", CA: ca.Cert, ClientCAs: ca.Pool, Routes: &routes{}, Authorize: (&lab{}).authorize,
		Certificate:   tunneltest.Source(ca.Member(t, tunnel.ServerName, tunnel.GatewayName("a"))),
		DialAPIServer: func(context.Context) (net.Conn, error) { return nil, net.ErrClosed },
		ListenPeer:    func() (net.PacketConn, error) { return net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}) },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close(t.Context())
	if err := gw.SetGateways(doc); err != nil {
		t.Fatal(err)
	}
	a, err := agent.New(agent.Config{
		Gateways: []string{"127.0.0.1:0"}, RootCAs: ca.Pool, NodeName: "berlin-1", Transport: agent.QUIC,
		Certificate: tunneltest.Source(ca.Node(t, "berlin-1")),
		DialKubelet: func(context.Context) (net.Conn, error) { return nil, net.ErrClosed },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	counted := func() bool {
		for name, v := range scrape(t, gw, "/metrics") {
			if strings.HasPrefix(name, `edge_gateway_send_errors_total{errno="E`) && v > 0 {
				return a.Figures().SendErrors[syscall.EINVAL] > 0
			}
		}
		return false
	}
	for limit := time.Now().Add(20 * time.Second); !counted(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("no send error counted: %v, %+v", scrape(t, gw, "/metrics"), a.Figures())
		}
	}
}
