package agent_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// noRoutes knows no node: nothing is dialled through the tunnel here.
type noRoutes struct{}

func (noRoutes) PodOwner(netip.Addr) (string, error) { return "", gateway.ErrNoRoute }
func (noRoutes) HasNode(string) bool                 { return false }

// logText is a log that may be read while it is written.
type logText struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

// A node is told to use TCP and its gateway has none: it says so and keeps its
// cluster, also when it has to connect anew. Once there has been a session over
// TCP it uses nothing else.
func TestChosenTransportDoesNotGetThrough(t *testing.T) {
	at, from := netip.MustParseAddrPort("10.0.0.1:7443"), netip.MustParseAddr("10.0.1.1")
	synctest.Test(t, func(t *testing.T) {
		ca, network, logs := tunneltest.NewCA(t), tunneltest.NewNetwork(t, 5*time.Millisecond), &logText{}
		gw, err := gateway.New(gateway.Config{
			Certificate: tunneltest.Source(ca.Gateway(t, tunnel.ServerName)), ClientCAs: ca.Pool, Routes: noRoutes{},
			Authorize:     func(string, *x509.Certificate) error { return nil },
			DialAPIServer: func(context.Context) (net.Conn, error) { return nil, net.ErrClosed },
			Logger:        slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		var served sync.WaitGroup
		packets := network.Listen(at)
		served.Go(func() {
			if err := gw.ServePacket(t.Context(), packets); err != nil {
				t.Errorf("serve packets: %v", err)
			}
		})
		a, err := agent.New(agent.Config{
			Gateways: []string{at.String()}, RootCAs: ca.Pool, NodeName: "berlin-1",
			Certificate:  tunneltest.Source(ca.Node(t, "berlin-1")),
			DialKubelet:  func(context.Context) (net.Conn, error) { return nil, net.ErrClosed },
			ListenPacket: func() (net.PacketConn, error) { return network.Listen(netip.AddrPortFrom(from, 0)), nil },
			DialStream: func(ctx context.Context, _, addr string) (net.Conn, error) {
				return network.DialStream(ctx, from, netip.MustParseAddrPort(addr))
			},
			Logger: slog.New(slog.NewTextHandler(logs, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Run(ctx) }()
		defer func() {
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			over, now := context.WithCancel(context.Background())
			now()
			_ = gw.Close(over) // without patience
			served.Wait()
			if t.Failed() {
				t.Log(logs.text.String())
			}
		}()
		after := func(d time.Duration, carrier, wanted agent.Transport, trouble string) {
			t.Helper()
			<-time.After(d)
			f := a.Figures()
			if f.Transport != carrier || f.Wanted != wanted || !strings.Contains(fmt.Sprint(f.Trouble), trouble) {
				t.Errorf("over %q, wanted %q, trouble %v; want %q, %q, %q", f.Transport, f.Wanted, f.Trouble, carrier, wanted, trouble)
			}
		}
		kick := func() {
			t.Helper()
			if n := gw.Kick("berlin-1", "try again"); n != 1 {
				t.Errorf("%d sessions", n)
			}
		}
		const refused, none, warning = "over TCP: connection refused", "<nil>", "no session over the other transport yet"

		after(time.Second, agent.QUIC, agent.Auto, none)
		a.SetTransport(agent.TCP)
		after(5*time.Minute, agent.QUIC, agent.TCP, refused)
		if n := logs.count(warning); n != 1 {
			t.Errorf("it was told %d times", n)
		}
		kick()
		after(time.Minute, agent.QUIC, agent.TCP, refused)

		stream := network.ListenStream(at)
		served.Go(func() { _ = gw.ServeTCP(t.Context(), stream) }) // ends with its listener
		after(time.Minute, agent.TCP, agent.TCP, none)
		// What took over is not ended by what bounds the session that it took over from.
		after(time.Hour, agent.TCP, agent.TCP, none)
		if n := a.Figures().Sessions[agent.TCP]; n != 1 {
			t.Errorf("%d sessions over TCP within an hour", n)
		}

		stream.Close()
		kick()
		after(5*time.Minute, "", agent.TCP, "over TCP: ")
		a.SetTransport(agent.Auto)
		after(5*time.Minute, agent.QUIC, agent.Auto, none)
	})
}
