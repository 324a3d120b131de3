package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

func config(t *testing.T) Config {
	ca := tunneltest.NewCA(t)
	return Config{
		Gateways: []string{"10.0.0.1:443", "10.0.0.2:443"}, RootCAs: ca.Pool, NodeName: "berlin-1",
		Certificate: tunneltest.Source(ca.Node(t, "berlin-1")),
		DialKubelet: func(context.Context) (net.Conn, error) { return nil, net.ErrClosed },
		Logger:      slog.New(slog.DiscardHandler),
	}
}

func TestNew(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"Gateways":    func(c *Config) { c.Gateways = nil },
		"gateway":     func(c *Config) { c.Gateways = []string{"10.0.0.1"} },
		"RootCAs":     func(c *Config) { c.RootCAs = nil },
		"Certificate": func(c *Config) { c.Certificate = nil },
		"NodeName":    func(c *Config) { c.NodeName = "" },
		"DialKubelet": func(c *Config) { c.DialKubelet = nil },
	} {
		cfg := config(t)
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Nobody answers: every gateway is tried in each round, the waits grow under
// full jitter, and Poke ends one.
func TestWaitsBetweenRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := tunneltest.NewNetwork(t, time.Millisecond)
		cfg := config(t)
		var mu sync.Mutex
		var bounds []time.Duration
		var sockets int
		seen := func() (int, int) {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return len(bounds), sockets
		}
		cfg.Jitter = func(max time.Duration) time.Duration {
			mu.Lock()
			defer mu.Unlock()
			bounds = append(bounds, max)
			return max
		}
		cfg.ListenPacket = func() (net.PacketConn, error) {
			mu.Lock()
			defer mu.Unlock()
			sockets++
			return n.Listen(netip.MustParseAddrPort("10.0.1.1:0")), nil
		}
		cfg.DialStream = func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
		a, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- a.Run(ctx) }()
		<-time.After(150 * time.Second)
		rounds, opened := seen()
		want := []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second}
		mu.Lock()
		if d := cmp.Diff(want, bounds[:7]); d != "" {
			t.Error(d)
		}
		mu.Unlock()
		if opened < 2*(rounds-1) || opened > 2*rounds {
			t.Errorf("%d sockets in %d rounds of two gateways", opened, rounds)
		}
		// At the beginning of a wait of 30 s.
		for now := rounds; now == rounds; now, opened = seen() {
			<-time.After(time.Second)
		}
		a.Poke()
		if _, now := seen(); now != opened+1 {
			t.Errorf("Poke did not end the wait: %d sockets, then %d", opened, now)
		}
		if err := a.Run(ctx); err == nil {
			t.Error("Run twice")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestDialDecisions(t *testing.T) {
	cfg := config(t)
	cfg.AllowTCP = func(a netip.AddrPort) error {
		if a.Addr() != netip.MustParseAddr("10.244.1.5") {
			return net.ErrClosed
		}
		return nil
	}
	var dialled netip.AddrPort
	cfg.DialTCP = func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
		dialled = a
		c, _ := tunneltest.Pipe()
		return c, nil
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]tunnel.Status{
		"10.244.1.5:80":           tunnel.StatusOK,
		"[::ffff:10.244.1.5]:80":  tunnel.StatusOK, // the same address: one spelling reaches the decision
		"10.244.1.6:80":           tunnel.StatusDenied,
		"[fe80::1%lo]:80":         tunnel.StatusDenied,
		"127.0.0.1:10250":         tunnel.StatusDenied,
		"[::ffff:127.0.0.1]:2379": tunnel.StatusDenied,
	} {
		c, err := a.dial(t.Context(), tunnel.Header{Kind: tunnel.KindTCP, Target: target})
		got := tunnel.StatusOK
		if err != nil {
			got = tunnel.DialFailure(err).Status
		} else {
			c.Close()
			if dialled != netip.MustParseAddrPort("10.244.1.5:80") {
				t.Errorf("%s: dialled %s", target, dialled)
			}
		}
		if got != want {
			t.Errorf("%s: %s (%v), want %s", target, got, err, want)
		}
	}
	if _, err := a.dial(t.Context(), tunnel.Header{Kind: tunnel.KindAPIServer}); tunnel.DialFailure(err).Status != tunnel.StatusDenied {
		t.Errorf("apiserver: %v", err)
	}
	// Nothing is allowed unless the node says so.
	cfg.AllowTCP = nil
	if a, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := a.dial(t.Context(), tunnel.Header{Kind: tunnel.KindTCP, Target: "10.244.1.5:80"}); tunnel.DialFailure(err).Status != tunnel.StatusDenied {
		t.Errorf("no AllowTCP: %v", err)
	}
}

// pipeStream is a stream over a pipe.
type pipeStream struct{ *tunneltest.PipeConn }

func (s pipeStream) Reset(tunnel.ResetCode) { s.Close() }
func (pipeStream) SetUrgency(int8)          {}
func (pipeStream) SetBulk(bool)             {}

// oneStream is a session that opens one stream.
type oneStream struct {
	nullSession
	stream tunnel.Stream
}

func (s oneStream) Open() (tunnel.Stream, error) { return s.stream, nil }

// TestDialledStreamIsWatched: whoever carries a connection over a dialled stream can
// have it watched with all that the gateway has opened on the session.
func TestDialledStreamIsWatched(t *testing.T) {
	near, far := tunneltest.Pipe()
	go func() {
		gateway := pipeStream{far}
		_, err := tunnel.AcceptDial(gateway)
		if err == nil {
			err = tunnel.Respond(gateway, tunnel.Response{Status: tunnel.StatusOK})
		}
		if err != nil {
			t.Error(err)
		}
	}()
	a, err := New(config(t))
	if err != nil {
		t.Fatal(err)
	}
	s := &session{sess: &link{Session: oneStream{stream: pipeStream{near}}}, stalls: tunnel.NewStalls(tunnel.AgentStallLimit, nil)}
	a.session = s
	c, err := a.DialAPIServer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	watched, ok := c.(interface {
		tunnel.Stream
		Stalls() *tunnel.Stalls
	})
	if !ok || watched.Stalls() != s.stalls {
		t.Errorf("%T is not watched with its session's streams", c)
	}
}

func TestEnrollConfig(t *testing.T) {
	for name, cfg := range map[string]EnrollConfig{
		"no gateways": {CAPin: "x"},
		"no trust":    {Gateways: []string{"10.0.0.1:1"}},
		"both":        {Gateways: []string{"10.0.0.1:1"}, CAPin: "x", RootCAs: x509.NewCertPool()},
	} {
		if _, err := Enroll(t.Context(), cfg, enroll.Request{}); err == nil {
			t.Error(name)
		}
	}
}

// A CA certificate that carries the pinned key but was signed by another is an
// altered one: its dates and constraints are the attacker's.
func TestPinnedKeyInForeignCertificate(t *testing.T) {
	ca := tunneltest.NewCA(t)
	cert := ca.Gateway(t, tunnel.ServerName)
	chain := func(c *tls.Certificate) (out []*x509.Certificate) {
		for _, der := range c.Certificate {
			x, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, x)
		}
		return out
	}
	good := chain(cert)
	if err := verifyPinned(good, ca.Pin()); err != nil {
		t.Fatal(err)
	}
	forged := *good[1]
	forged.Signature = append([]byte(nil), forged.Signature...)
	forged.Signature[len(forged.Signature)-1] ^= 1
	if err := verifyPinned([]*x509.Certificate{good[0], &forged}, ca.Pin()); err == nil {
		t.Error("a CA certificate with a broken signature was believed")
	}
	if err := verifyPinned(good[:1], ca.Pin()); err == nil {
		t.Error("no CA")
	}
	if err := verifyPinned(nil, ca.Pin()); err == nil {
		t.Error("no certificates")
	}
	if err := verifyPinned(good, ""); err == nil {
		t.Error("empty pin")
	}
}

func FuzzParseResponse(f *testing.F) {
	f.Add([]byte(`{"nodeCertificate":"-----BEGIN CERTIFICATE-----","podCIDRs":["10.0.0.0/16"]}`), "")
	f.Add([]byte(`{"error":{"code":"token-used","message":"x"}}`), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	f.Fuzz(func(t *testing.T, b []byte, ca string) {
		resp, err := parseResponse(b)
		if err == nil {
			_ = checkCA(resp.CACertificate, strings.Repeat("0", 32))
		}
		if checkCA(ca, strings.Repeat("0", 32)) == nil {
			t.Fatal("a CA with a key that hashes to zeros")
		}
	})
}
