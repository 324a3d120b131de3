package gateway_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// UDP blocked: usable within 3 s. Unblocked: back on QUIC, and what was carried
// over TCP goes on there.
func TestBlockedUDP(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		mem := memory{}
		l.net.BlockUDP(true)
		start := time.Now()
		n := l.joined("berlin-1", nil, func(c *agent.Config) { c.Documents = mem })
		if d := time.Since(start); d > 3*time.Second || n.Carrier() != agent.TCP {
			t.Fatalf("connected over %q after %s", n.Carrier(), d)
		}
		exec := l.connected("berlin-1:10250")
		roundTrip(t, exec, []byte("over TCP"))
		l.serveAPI()
		watch, err := n.DialAPIServer(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, watch, []byte("over TCP"))

		// Still blocked: it stays where it is, for as long as it takes.
		<-time.After(time.Hour)
		if s := l.gw.Sessions(); len(s) != 1 || n.Carrier() != agent.TCP {
			t.Fatalf("after an hour: %q, %+v", n.Carrier(), s)
		}
		roundTrip(t, exec, []byte("an hour later"))

		l.net.BlockUDP(false)
		<-time.After(10*time.Minute + time.Second)
		l.await("berlin-1 true")
		if n.Carrier() != agent.QUIC {
			t.Fatalf("carried by %q", n.Carrier())
		}
		s := l.gw.Sessions()
		if len(s) != 2 || s[0].Superseded || !s[1].Superseded || s[1].Streams != 2 {
			t.Fatalf("sessions: %+v", s)
		}
		<-time.After(10 * time.Minute)
		roundTrip(t, exec, pattern(1<<20))
		roundTrip(t, watch, pattern(1<<20))
		next := l.connected("berlin-1:10250")
		roundTrip(t, next, []byte("over QUIC"))
		next.Close()
		exec.Close()
		watch.Close()
		<-time.After(20 * time.Second) // what is closed is read out for a while
		if s := l.gw.Sessions(); len(s) != 1 {
			t.Errorf("sessions: %+v", s)
		}
		if !strings.Contains(string(mem["networks"]), `"quic"`) {
			t.Errorf("remembered: %s", mem["networks"])
		}
		n.stop()
	})
}

// Only an HTTP proxy leads to the gateway: the node is connected through it, and
// over QUIC once that gets through. It looks for its proxy each time.
func TestOnlyThroughAProxy(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.net.BlockUDP(true)
		at := netip.MustParseAddrPort("10.0.2.2:3128")
		tunnels := l.serveProxy(at, "user", secret)
		dial := l.dialStream(edgeAddr)
		var proxy atomic.Pointer[url.URL] // nil: none yet
		n := l.join("berlin-1", nil, func(c *agent.Config) {
			c.DialStream = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if addr != at.String() {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return dial(ctx, network, addr)
			}
			c.Proxy = func(string) (*url.URL, error) { return proxy.Load(), nil }
		})
		<-time.After(5 * time.Minute)
		if _, up := n.Connected(); up || tunnels.Load() != 0 {
			t.Fatal("connected although nothing gets through")
		}
		proxy.Store(&url.URL{Scheme: "http", Host: at.String(), User: url.UserPassword("user", secret)})
		l.await("berlin-1 true")
		<-n.states // WELCOME takes its time to arrive
		if n.Carrier() != agent.TCP || tunnels.Load() == 0 {
			t.Fatalf("carried by %q, %d tunnels", n.Carrier(), tunnels.Load())
		}
		exec := l.connected("berlin-1:10250")
		roundTrip(t, exec, pattern(1<<20))
		<-time.After(time.Hour)
		roundTrip(t, exec, []byte("an hour later"))

		l.net.BlockUDP(false)
		<-time.After(10*time.Minute + time.Second)
		l.await("berlin-1 true")
		if n.Carrier() != agent.QUIC {
			t.Fatalf("carried by %q", n.Carrier())
		}
		roundTrip(t, exec, []byte("still there"))
		exec.Close()
		if strings.Contains(l.logs.String(), secret) {
			t.Error("the proxy's password is in the log")
		}
		n.stop()
	})
}

// A proxy that does not lead to the gateway keeps no node away from it.
func TestUselessProxy(t *testing.T) {
	none := netip.MustParseAddrPort("10.0.2.2:3128")
	for name, prepare := range map[string]func(l *lab){
		"nobody there":    func(*lab) {},
		"no way to it":    func(l *lab) { l.net.Cut(none.Addr(), true) },
		"it says nothing": func(l *lab) { l.serveAt(none, func(c net.Conn) { io.Copy(io.Discard, c) }) },
		"it refuses":      func(l *lab) { l.serveProxy(none, "another", secret) },
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, nil, func(t *testing.T, l *lab) {
				prepare(l)
				l.net.BlockUDP(true)
				for _, carrier := range []agent.Transport{agent.Auto, agent.TCP} {
					start := time.Now()
					n := l.joined("berlin-1", nil, func(c *agent.Config) {
						c.Transport = carrier
						c.Proxy = func(string) (*url.URL, error) { return &url.URL{Scheme: "http", Host: none.String()}, nil }
					})
					if d := time.Since(start); d > 3*time.Second || n.Carrier() != agent.TCP {
						t.Errorf("%s: connected over %q after %s", carrier, n.Carrier(), d)
					}
					n.stop()
					l.await("berlin-1 false")
				}
			})
		})
	}
}

// serveProxy is an HTTP proxy that lets a user through to the gateway. It counts
// the tunnels.
func (l *lab) serveProxy(at netip.AddrPort, user, password string) *atomic.Int32 {
	tunnels := new(atomic.Int32)
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	l.serveAt(at, func(c net.Conn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if req.Method != http.MethodConnect || req.Host != gatewayAddr.String() || req.Header.Get("Proxy-Authorization") != want {
			io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
			return
		}
		up, err := l.dialStream(at.Addr())(context.Background(), "tcp", req.Host)
		if err != nil {
			return
		}
		defer up.Close()
		tunnels.Add(1)
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { io.Copy(up, r); up.Close() }()
		io.Copy(c, up)
	})
	return tunnels
}

// serveAt listens at an address of the network until the test ends.
func (l *lab) serveAt(at netip.AddrPort, serve func(net.Conn)) {
	ln := l.net.ListenStream(at)
	l.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c) }()
		}
	}()
}

// serveAPI makes the apiserver an echo.
func (l *lab) serveAPI() {
	go func() {
		for {
			c, err := l.api.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); echo(c) }()
		}
	}()
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 / 3)
	}
	return b
}

// The next process of the node knows what got through.
func TestBlockedUDPIsRemembered(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		mem := memory{}
		l.net.BlockUDP(true)
		took := func(at agent.Network) time.Duration {
			start := time.Now()
			n := l.joined("berlin-1", nil, func(c *agent.Config) {
				c.Documents = mem
				c.Network = func() agent.Network { return at }
				c.Jitter = func(time.Duration) time.Duration { return 0 }
			})
			d := time.Since(start)
			n.stop()
			l.await("berlin-1 false")
			return d
		}
		home := agent.Network{Gateway: "192.168.1.1", MAC: "02:00:00:00:00:01", Interface: "eth0", Prefix: "192.168.1.0/24"}
		if d := took(home); d < 900*time.Millisecond || d > 1200*time.Millisecond {
			t.Errorf("the first time: %s", d)
		}
		if d := took(home); d > 100*time.Millisecond {
			t.Errorf("the second time: %s", d)
		}
		// Before anything was sent, the link address is not known.
		unresolved := home
		unresolved.MAC = ""
		if d := took(unresolved); d > 100*time.Millisecond {
			t.Errorf("unresolved: %s", d)
		}
		// Another site with the same range is another network.
		other := home
		other.MAC = "02:00:00:00:00:02"
		if d := took(other); d < 900*time.Millisecond {
			t.Errorf("elsewhere: %s", d)
		}
	})
}

// A device whose network lets no UDP through joins.
func TestJoinWithoutUDP(t *testing.T) {
	inLab(t, func(l *lab, c *gateway.Config) {
		c.Enroller = enrollFunc(func(_ context.Context, r enroll.Request, remote netip.AddrPort) enroll.Response {
			if r.Token != secret || remote.Addr().String() != "10.0.7.7" {
				t.Errorf("%q from %s", r.Name, remote)
			}
			return enroll.Response{NodeCertificate: strings.Repeat("c", 30<<10), CACertificate: l.ca.PEM(), Pool: "berlin"}
		})
	}, func(t *testing.T, l *lab) {
		l.net.BlockUDP(true)
		resp, err := agent.Enroll(t.Context(), l.enrollConfig(), enroll.Request{Token: secret, Name: "berlin-1", NodeCSR: strings.Repeat("r", 20<<10)})
		if err != nil || resp.Pool != "berlin" || len(resp.NodeCertificate) != 30<<10 {
			t.Errorf("%+v, %v", resp.Pool, err)
		}
		// The pin is checked as over QUIC.
		cfg := l.enrollConfig()
		cfg.CAPin = tunneltest.NewCA(t).Pin()
		if _, err := agent.Enroll(t.Context(), cfg, enroll.Request{Token: secret}); !errors.Is(err, agent.ErrPin) {
			t.Errorf("error: %v", err)
		}
		if strings.Contains(l.logs.String(), secret) {
			t.Error("the token is in the log")
		}
	})
}

// The same certificates are refused as over QUIC.
func TestWhoMayHoldASessionOverTCP(t *testing.T) {
	for name, tc := range map[string]struct {
		cert func(t *testing.T, l *lab) *tls.Certificate
		log  string
	}{
		"certificate of another CA": {func(t *testing.T, l *lab) *tls.Certificate { return tunneltest.NewCA(t).Node(t, "berlin-1") }, "remote error: tls"},
		"expired": {func(t *testing.T, l *lab) *tls.Certificate {
			return l.ca.Client(t, "system:node:berlin-1", "system:nodes", time.Now().Add(-time.Minute))
		}, "remote error: tls"},
		"not a node": {func(t *testing.T, l *lab) *tls.Certificate {
			return l.ca.Client(t, "edge:hub:berlin-1", "system:nodes", time.Now().Add(time.Hour))
		}, "is not a node's"},
		"not allowed": {func(t *testing.T, l *lab) *tls.Certificate {
			l.deny("berlin-1", errors.New("key of node berlin-1 is not the enrolled one"))
			return l.ca.Node(t, "berlin-1")
		}, "is not the enrolled one"},
		"other name": {func(t *testing.T, l *lab) *tls.Certificate { return l.ca.Node(t, "berlin-2") }, "HELLO names node"},
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, nil, func(t *testing.T, l *lab) {
				n := l.join("berlin-1", nil, func(c *agent.Config) {
					c.Transport = agent.TCP
					c.Certificate = tunneltest.Source(tc.cert(t, l))
				})
				<-time.After(time.Minute)
				synctest.Wait()
				if _, up := n.Connected(); up || len(l.gw.Sessions()) != 0 || len(l.events) != 0 {
					t.Errorf("a session: %+v", l.gw.Sessions())
				}
				if logs := l.logs.String(); !strings.Contains(logs, tc.log) {
					t.Errorf("no %q in the log:\n%s", tc.log, logs)
				}
			})
		})
	}
}

func TestKickOverTCP(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		n := l.joined("berlin-1", nil, func(c *agent.Config) { c.Transport = agent.TCP })
		c := l.connected("berlin-1:10250")
		roundTrip(t, c, []byte("before"))
		l.deny("berlin-1", errors.New("revoked"))
		if got := l.gw.Kick("berlin-1", "node was removed"); got != 1 {
			t.Errorf("%d sessions", got)
		}
		if _, err := io.ReadAll(c); err == nil {
			t.Error("cut stream ended cleanly")
		}
		c.Close()
		<-time.After(time.Second)
		if !strings.Contains(l.logs.String(), "node was removed") || n.Carrier() != "" {
			t.Errorf("carried by %q; the agent was not told why", n.Carrier())
		}
	})
}

// The transport of a pool is changed under a running node.
func TestTransportIsChanged(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		n := l.joined("berlin-1", nil, nil)
		var open []*tunneltest.PipeConn
		for _, to := range []agent.Transport{agent.TCP, agent.QUIC, agent.TCP, agent.Auto} {
			c := l.connected("berlin-1:10250")
			roundTrip(t, c, []byte("before"))
			open = append(open, c)
			n.SetTransport(to)
			l.await("berlin-1 true")
			<-time.After(time.Minute + time.Second) // auto takes its time
			if want := to; n.Carrier() != want && want != agent.Auto || want == agent.Auto && n.Carrier() != agent.QUIC {
				t.Errorf("%s: carried by %q", to, n.Carrier())
			}
			for i, c := range open {
				roundTrip(t, c, fmt.Append(nil, "still there ", i))
			}
		}
		for _, c := range open {
			c.Close()
		}
		// Where the one that was chosen does not get through, the node keeps what
		// it has.
		l.net.BlockUDP(true)
		n.SetTransport(agent.TCP)
		l.await("berlin-1 true")
		n.SetTransport(agent.QUIC)
		<-time.After(5 * time.Minute)
		if n.Carrier() != agent.TCP {
			t.Errorf("carried by %q", n.Carrier())
		}
		l.net.BlockUDP(false)
		l.await("berlin-1 true")
		var told []string
		for _, e := range n.History() {
			switch e.Event {
			case tunnel.EventConnected, tunnel.EventTransport, tunnel.EventEnded:
				told = append(told, fmt.Sprint(e.Session, " ", e.Event))
			}
		}
		want := []string{
			"1 connected", "0 transport", "2 connected", "0 transport", "3 connected",
			"0 transport", "4 connected", "0 transport", "5 connected",
		}
		left := slices.DeleteFunc(slices.Clone(told), func(s string) bool { return strings.HasSuffix(s, "ended") })
		if len(left) < len(want) || !slices.Equal(left[:len(want)], want) {
			t.Errorf("the node's history is %q, want it to begin with %q but for the ends of sessions", told, want)
		}
		// What was open all the time kept the sessions before; they end with it.
		for _, s := range []string{"1 ended", "2 ended", "3 ended", "4 ended"} {
			if !slices.Contains(told, s) {
				t.Errorf("the node's history is %q, without %q", told, s)
			}
		}
	})
}

// The address that a connection was made from leaves the node.
func TestAddressLeavesUnderTCP(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		var mu sync.Mutex
		here := []net.Addr{&net.IPNet{IP: edgeAddr.AsSlice(), Mask: net.CIDRMask(24, 32)}}
		have := here
		set := func(to []net.Addr) {
			mu.Lock()
			defer mu.Unlock()
			have = to
		}
		n := l.joined("berlin-1", nil, func(c *agent.Config) {
			c.Transport = agent.TCP
			c.Addresses = func() ([]net.Addr, error) {
				mu.Lock()
				defer mu.Unlock()
				return have, nil
			}
		})
		n.Poke()
		<-time.After(time.Second)
		if n.Carrier() != agent.TCP {
			t.Fatal("cut although the address is there")
		}
		set(nil) // and anew, as with another lease
		n.Poke()
		<-time.After(30 * time.Millisecond)
		set(here)
		<-time.After(time.Second)
		if n.Carrier() != agent.TCP {
			t.Fatal("cut although the address was set anew at once")
		}
		l.net.Cut(edgeAddr, true)
		set(nil)
		n.Poke()
		<-time.After(60 * time.Millisecond)
		if n.Carrier() != "" {
			t.Error("the session lives on")
		}
		l.net.Cut(edgeAddr, false)
		l.await("berlin-1 true")
	})
}

// Strangers who say nothing take places of their own source only, and not for
// long.
func TestSilentConnections(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		dial := l.dialStream(netip.MustParseAddr("10.0.9.9"))
		var closed []time.Duration
		var mu sync.Mutex
		var wg sync.WaitGroup
		start := time.Now()
		for range 100 {
			c, err := dial(t.Context(), "tcp", gatewayAddr.String())
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				io.ReadAll(c)
				mu.Lock()
				closed = append(closed, time.Since(start))
				mu.Unlock()
				c.Close()
			})
		}
		synctest.Wait()
		mu.Lock()
		if len(closed) != 100-64 {
			t.Errorf("%d closed at once", len(closed))
		}
		mu.Unlock()
		n := l.joined("berlin-1", nil, func(c *agent.Config) { c.Transport = agent.TCP })
		wg.Wait()
		if d := closed[len(closed)-1]; d != tunnel.TLSTimeout {
			t.Errorf("closed after %s", d)
		}
		n.stop()
	})
}

// A joining stranger cannot make the gateway hold more than one stream's window.
func TestJoinOverTCPHasOneStream(t *testing.T) {
	inLab(t, func(_ *lab, c *gateway.Config) {
		c.Enroller = enrollFunc(func(context.Context, enroll.Request, netip.AddrPort) enroll.Response { return enroll.Response{} })
	}, func(t *testing.T, l *lab) {
		c, err := l.dialStream(netip.MustParseAddr("10.0.9.9"))(t.Context(), "tcp", gatewayAddr.String())
		if err != nil {
			t.Fatal(err)
		}
		sess, err := tunnel.NewMuxSession(tls.Client(c, &tls.Config{
			NextProtos: []string{tunnel.JoinALPN}, ServerName: tunnel.ServerName, RootCAs: l.ca.Pool,
		}), tunnel.MuxOptions{Client: true})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			st, err := sess.Open()
			if err != nil {
				t.Fatal(err)
			}
			st.Write([]byte{0}) // of a length
			synctest.Wait()
			if _, err := st.Write([]byte{0}); (err == nil) != (i == 0) {
				t.Errorf("stream %d: %v", i, err)
			}
		}
		sess.Close(tunnel.CloseNormal, "")
		<-sess.Gone()
	})
}

// After a cut that was long a node is back soon after its link, at whatever point
// of its attempts and waits that is: an attempt that was under way (5 s), a knock
// (4 s), the spread (3 s) and a handshake at most. Without knocks it is up to 35 s.
func TestBackSoonAfterALongCut(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		n := l.joined("berlin-1", nil, nil)
		for i := range 12 {
			l.net.Cut(edgeAddr, true)
			l.await("berlin-1 false")
			if up := <-n.states; up {
				t.Fatal("connected in a cut")
			}
			<-time.After(20*time.Minute + time.Duration(i)*3*time.Second)
			start := time.Now()
			l.net.Cut(edgeAddr, false)
			l.await("berlin-1 true")
			if up := <-n.states; !up {
				t.Fatal("not connected")
			}
			if d := time.Since(start); d > 13*time.Second {
				t.Errorf("cut %d: back after %s", i, d)
			}
		}
	})
}

// A gateway that takes its time to say WELCOME is moved to all the same: only the
// handshake shows whether UDP gets through.
func TestSlowWelcomeOverQUIC(t *testing.T) {
	var slow atomic.Bool
	inLab(t, func(l *lab, c *gateway.Config) {
		c.Authorize = func(string, *x509.Certificate) error {
			if slow.Load() {
				<-time.After(4 * time.Second)
			}
			return nil
		}
	}, func(t *testing.T, l *lab) {
		l.net.BlockUDP(true)
		n := l.joined("berlin-1", nil, nil)
		slow.Store(true)
		l.net.BlockUDP(false)
		<-time.After(90 * time.Second) // one attempt
		if n.Carrier() != agent.QUIC {
			t.Errorf("carried by %q", n.Carrier())
		}
	})
}

// A dial over a connection that stands still ends with its caller's patience,
// wherever it is by then, and within GatewayDialTimeout where the caller has none.
func TestDialAPIServerOverAConnectionThatStandsStill(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.serveAPI()
		l.net.BlockUDP(true)
		n := l.joined("berlin-1", nil, nil)
		bulk, err := n.DialAPIServer(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer bulk.Close()
		l.net.Cut(edgeAddr, true)
		go bulk.Write(make([]byte, 8<<20)) // what the connection takes, and more
		<-time.After(time.Second)
		var dials sync.WaitGroup
		for i := range 200 { // some cannot open a stream, others not send their header
			patience, want := context.Background(), tunnel.GatewayDialTimeout
			if i%2 == 0 {
				want = time.Second
				ctx, cancel := context.WithTimeout(patience, want)
				defer cancel()
				patience = ctx
			}
			dials.Go(func() {
				start := time.Now()
				c, err := n.DialAPIServer(patience)
				if err == nil {
					c.Close()
					t.Error("a dial worked")
				}
				if d := time.Since(start); d > want {
					t.Errorf("%s instead of %s at most: %v", d, want, err)
				}
			})
		}
		dials.Wait()
	})
}
