package gateway_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

func TestWhoMayHoldASession(t *testing.T) {
	for _, tc := range []struct {
		name string
		cert func(t *testing.T, l *lab) *tls.Certificate
		node string
		log  string // what the agent's log must say
	}{
		{"certificate of another CA", func(t *testing.T, l *lab) *tls.Certificate {
			return tunneltest.NewCA(t).Node(t, "berlin-1")
		}, "berlin-1", "CRYPTO_ERROR"},
		{"expired", func(t *testing.T, l *lab) *tls.Certificate {
			return l.ca.Client(t, "system:node:berlin-1", "system:nodes", time.Now().Add(-time.Minute))
		}, "berlin-1", "CRYPTO_ERROR"},
		{"a server's certificate", func(t *testing.T, l *lab) *tls.Certificate {
			return l.ca.Gateway(t, tunnel.ServerName)
		}, "berlin-1", "CRYPTO_ERROR"},
		{"not a node", func(t *testing.T, l *lab) *tls.Certificate {
			return l.ca.Client(t, "edge:hub:berlin-1", "system:nodes", time.Now().Add(time.Hour))
		}, "berlin-1", "is not a node's"},
		{"no name", func(t *testing.T, l *lab) *tls.Certificate {
			return l.ca.Client(t, "system:node:", "system:nodes", time.Now().Add(time.Hour))
		}, "berlin-1", "is not a node's"},
		{"other organization", func(t *testing.T, l *lab) *tls.Certificate {
			return l.ca.Client(t, "system:node:berlin-1", "system:masters", time.Now().Add(time.Hour))
		}, "berlin-1", "has organizations"},
		{"not allowed", func(t *testing.T, l *lab) *tls.Certificate {
			l.deny("berlin-1", errors.New("key of node berlin-1 is not the enrolled one"))
			return l.ca.Node(t, "berlin-1")
		}, "berlin-1", "is not the enrolled one"},
		{"claims another name", func(t *testing.T, l *lab) *tls.Certificate {
			return l.ca.Node(t, "berlin-1")
		}, "berlin-2", `HELLO names node \"berlin-2\" but the certificate is for \"berlin-1\"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inLab(t, nil, func(t *testing.T, l *lab) {
				n := l.join(tc.node, nil, func(c *agent.Config) { c.Certificate = tunneltest.Source(tc.cert(t, l)) })
				<-time.After(time.Minute) // many attempts of the bubble's time
				synctest.Wait()
				if _, up := n.Connected(); up || len(l.gw.Sessions()) != 0 || len(n.states) != 0 || len(l.events) != 0 {
					t.Errorf("a session: %+v", l.gw.Sessions())
				}
				if logs := l.logs.String(); !strings.Contains(logs, tc.log) {
					t.Errorf("no %q in the log:\n%s", tc.log, logs)
				}
				if _, err := n.DialAPIServer(t.Context()); !errors.Is(err, agent.ErrNotConnected) {
					t.Errorf("error: %v", err)
				}
			})
		})
	}
}

// No client certificate at all, and none of the protocols.
func TestHandshakesThatMustFail(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		for name, conf := range map[string]*tls.Config{
			"no certificate": {NextProtos: []string{tunnel.ALPN}, ServerName: tunnel.ServerName, RootCAs: l.ca.Pool},
			"other protocol": {NextProtos: []string{"h3"}, ServerName: tunnel.ServerName, RootCAs: l.ca.Pool},
		} {
			pc := l.net.Listen(netipAddr("10.0.9.9:1234"))
			tr := &quic.Transport{Conn: pc}
			qc, err := tr.Dial(t.Context(), net.UDPAddrFromAddrPort(gatewayAddr), conf, tunnel.AgentConfig())
			if err == nil {
				// TLS 1.3: the client is done before the server has judged it.
				_, err = qc.AcceptStream(t.Context())
				qc.CloseWithError(0, "")
			}
			var te *quic.TransportError
			if !errors.As(err, &te) || !te.ErrorCode.IsCryptoError() {
				t.Errorf("%s: %v", name, err)
			}
			tr.Close()
			pc.Close()
		}
	})
}

// A node verifies the gateway.
func TestFalseGateway(t *testing.T) {
	for name, cert := range map[string]func(t *testing.T, l *tunneltest.CA) *tls.Certificate{
		"other CA": func(t *testing.T, _ *tunneltest.CA) *tls.Certificate {
			return tunneltest.NewCA(t).Gateway(t, tunnel.ServerName)
		},
		"other name": func(t *testing.T, ca *tunneltest.CA) *tls.Certificate { return ca.Gateway(t, "edge-node") },
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, func(l *lab, c *gateway.Config) {
				c.Certificate = tunneltest.Source(cert(t, l.ca))
			}, func(t *testing.T, l *lab) {
				n := l.join("berlin-1", nil, nil)
				<-time.After(time.Minute)
				if _, up := n.Connected(); up {
					t.Error("the agent trusted it")
				}
			})
		})
	}
}

func TestNewestSessionWins(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		first := l.joined("berlin-1", nil, nil)
		kept := l.connected("berlin-1:10250")
		roundTrip(t, kept, []byte("through the first"))
		cut := l.connected("berlin-1:10250")
		roundTrip(t, cut, []byte("also"))

		second := l.joined("berlin-1", func(c net.Conn) { io.WriteString(c, "second"); echo(c) }, nil)
		s := l.gw.Sessions()
		if len(s) != 2 || s[0].Superseded || !s[1].Superseded || s[0].Epoch <= s[1].Epoch || s[1].Streams != 2 {
			t.Fatalf("sessions: %+v", s)
		}
		// New dials go to the new one, the old one's streams go on.
		c := l.connected("berlin-1:10250")
		io.WriteString(c, "x")
		if b, _ := io.ReadAll(io.LimitReader(c, 7)); string(b) != "secondx" {
			t.Errorf("%q", b)
		}
		c.Close()
		roundTrip(t, kept, []byte("still there"))
		kept.Close()

		// What does not end is cut after the grace. The first agent does not
		// fight for the place: it waits long before it tries again.
		start := time.Now()
		if _, err := io.ReadAll(cut); err == nil {
			t.Error("cut stream ended cleanly")
		}
		if d := time.Since(start); d < 14*time.Minute || d > 15*time.Minute {
			t.Errorf("cut after %s", d)
		}
		cut.Close()
		<-time.After(100 * time.Millisecond) // until the close has arrived
		if _, up := first.Connected(); up {
			t.Error("the first agent still has its session")
		}
		if _, up := second.Connected(); !up {
			t.Error("the second agent lost its session")
		}
		if !strings.Contains(l.logs.String(), "superseded: a newer session") {
			t.Error("the first agent was not told why")
		}
		first.stop()
		if got := len(l.gw.Sessions()); got != 1 {
			t.Errorf("%d sessions", got)
		}
	})
}

func TestKickCutsAtOnce(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.joined("berlin-1", nil, nil)
		other := l.joined("berlin-2", nil, nil)
		c := l.connected("berlin-1:10250")
		roundTrip(t, c, []byte("before"))
		in, err := l.gw.Dial(t.Context(), "berlin-1", gateway.Kubelet())
		if err != nil {
			t.Fatal(err)
		}
		l.deny("berlin-1", errors.New("revoked"))
		start := time.Now()
		if n := l.gw.Kick("berlin-1", "key revoked"); n != 1 {
			t.Errorf("%d sessions kicked", n)
		}
		if l.gw.Connected("berlin-1") {
			t.Error("still connected")
		}
		for name, c := range map[string]net.Conn{"connect": c, "in process": in} {
			if _, err := io.ReadAll(c); err == nil {
				t.Errorf("%s: ended cleanly", name)
			}
			c.Close()
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("cut after %s", d)
		}
		l.await("berlin-1 false")
		<-time.After(2 * time.Minute)
		synctest.Wait()
		if s := l.gw.Sessions(); len(s) != 1 || s[0].Node != "berlin-2" {
			t.Errorf("sessions: %+v", s)
		}
		if logs := l.logs.String(); !strings.Contains(logs, "revoked: key revoked") {
			t.Error("the node was not told why")
		}
		// Allowed again, it comes back by itself.
		l.deny("berlin-1", nil)
		l.await("berlin-1 true")
		other.stop()
	})
}

func TestGatewayRestart(t *testing.T) {
	t.Run("orderly", func(t *testing.T) {
		inLab(t, nil, func(t *testing.T, l *lab) {
			n := l.joined("berlin-1", nil, nil)
			l.stop()
			if _, err := l.egress.Dial(); err == nil {
				t.Error("egress still open")
			}
			l.start()
			start := time.Now()
			l.await("berlin-1 true")
			if d := time.Since(start); d > time.Second {
				t.Errorf("back after %s", d)
			}
			c := l.connected("berlin-1:10250")
			roundTrip(t, c, []byte("again"))
			c.Close()
			if down, up := <-n.states, <-n.states; down || !up {
				t.Errorf("states %v, %v", down, up)
			}
		})
	})
	// Killed: nothing is said to the node. The new process answers the first
	// packet of the old session with a stateless reset, so that the node is back
	// after a keep-alive at the latest, and at once if it has something to send.
	t.Run("killed", func(t *testing.T) {
		inLab(t, nil, func(t *testing.T, l *lab) {
			n := l.joined("berlin-1", nil, nil)
			l.net.Cut(edgeAddr, true)
			l.stop()
			l.net.Cut(edgeAddr, false)
			l.start()
			start := time.Now()
			n.Poke()
			l.await("berlin-1 true")
			if d := time.Since(start); d > time.Second {
				t.Errorf("back after %s", d)
			}
		})
	})
}

// A cut shorter than the idle timeout costs no session and no stream.
func TestShortCut(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		n := l.joined("berlin-1", nil, nil)
		c := l.connected("berlin-1:10250")
		roundTrip(t, c, []byte("before"))
		l.net.Cut(edgeAddr, true)
		<-time.After(tunnel.IdleTimeout - tunnel.KeepAlive - 2*time.Second)
		l.net.Cut(edgeAddr, false)
		start := time.Now()
		n.Poke()
		roundTrip(t, c, []byte("after"))
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("carried again after %s", d)
		}
		if len(n.states) != 0 {
			t.Errorf("%d state changes", len(n.states))
		}
		c.Close()
	})
}

// A long cut ends the session; Poke ends the waiting when the network is back.
func TestLongCut(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		n := l.joined("berlin-1", nil, nil)
		l.routes.nodes["berlin-1"] = true
		l.net.Cut(edgeAddr, true)
		start := time.Now()
		l.await("berlin-1 false")
		if d := time.Since(start); d > tunnel.IdleTimeout+time.Second {
			t.Errorf("noticed after %s", d)
		}
		if code, text := l.refused("berlin-1:10250"); code != 503 || !strings.Contains(text, "not connected") {
			t.Errorf("%d %q", code, text)
		}
		<-time.After(10 * time.Minute)
		start = time.Now()
		if _, err := n.DialAPIServer(t.Context()); !errors.Is(err, agent.ErrNotConnected) || time.Since(start) != 0 {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		l.net.Cut(edgeAddr, false)
		n.Poke()
		l.await("berlin-1 true")
		if d := time.Since(start); d > 6*time.Second { // a handshake may be under way
			t.Errorf("back after %s", d)
		}
	})
}

// A caller waits for the session that is just being made, and no longer.
func TestDialAPIServerWaitsForSession(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		n := l.join("berlin-1", nil, nil)
		go func() {
			if c, err := l.api.Accept(); err == nil {
				echo(c)
				c.Close()
			}
		}()
		synctest.Wait()
		c, err := n.DialAPIServer(t.Context()) // not connected yet
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, c, []byte("hello"))
		c.Close()
	})
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.net.Cut(edgeAddr, true)
		n := l.join("berlin-1", nil, nil)
		synctest.Wait()
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.DialAPIServer(ctx); !errors.Is(err, agent.ErrNotConnected) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error: %v", err)
		}
		if _, err := n.DialAPIServer(t.Context()); !errors.Is(err, agent.ErrNotConnected) || time.Since(start) != 5*time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

func TestDrain(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		n := l.joined("berlin-1", nil, nil)
		c := l.connected("berlin-1:10250")
		roundTrip(t, c, []byte("before"))
		closed := make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		go func() { closed <- l.gw.Close(ctx) }()
		synctest.Wait()
		if code, text := l.refused("berlin-1:10250"); code != 503 || !strings.Contains(text, "draining") {
			t.Errorf("%d %q", code, text)
		}
		if _, err := n.DialAPIServer(t.Context()); err == nil || !strings.Contains(err.Error(), "draining") {
			t.Errorf("error: %v", err)
		}
		<-time.After(30 * time.Second)
		roundTrip(t, c, []byte("still carried"))
		c.Close()
		if err := <-closed; err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := l.gw.ServeEgress(t.Context(), tunneltest.NewListener()); !errors.Is(err, gateway.ErrClosed) {
			t.Errorf("serve after close: %v", err)
		}
		if !strings.Contains(l.logs.String(), `msg="gateway stops" node=berlin-1`) {
			t.Error("the node was not told")
		}
	})
	// What does not end is cut at the deadline.
	inLab(t, nil, func(t *testing.T, l *lab) {
		l.joined("berlin-1", nil, nil)
		c := l.connected("berlin-1:10250")
		roundTrip(t, c, []byte("before"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		if err := l.gw.Close(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 carried connections cut") {
			t.Errorf("Close: %v", err)
		}
		if d := time.Since(start); d != time.Minute {
			t.Errorf("closed after %s", d)
		}
		if _, err := io.ReadAll(c); err == nil {
			t.Error("cut connection ended cleanly")
		}
		c.Close()
	})
}

// The next connection uses the certificate of the moment.
func TestRenewedCertificate(t *testing.T) {
	inLab(t, nil, func(t *testing.T, l *lab) {
		cert := l.ca.Node(t, "berlin-1")
		asked := 0
		n := l.joined("berlin-1", nil, func(c *agent.Config) {
			c.Certificate = func() (*tls.Certificate, error) { asked++; return cert, nil }
		})
		cert = l.ca.Node(t, "berlin-1")
		l.gw.Kick("berlin-1", "test")
		l.await("berlin-1 true")
		if asked != 2 {
			t.Errorf("asked %d times", asked)
		}
		n.stop()
	})
}
