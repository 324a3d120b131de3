package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// The lab's addresses.
var (
	gatewayAddr = netip.MustParseAddrPort("10.0.0.1:7443")
	edgeAddr    = netip.MustParseAddr("10.0.1.1")
)

// lab is a gateway, its network and its egress socket, inside a synctest bubble:
// a goroutine that outlives the test fails it.
type lab struct {
	t      *testing.T
	ca     *tunneltest.CA
	net    *tunneltest.Network
	gw     *gateway.Gateway
	cfg    gateway.Config
	egress *tunneltest.Listener
	routes *routes
	api    *tunneltest.Listener
	logs   *logBuffer

	mu     sync.Mutex // guards denied
	denied map[string]error
	events chan string
}

// inLab runs f in a bubble with a running gateway.
func inLab(t *testing.T, change func(l *lab, c *gateway.Config), f func(t *testing.T, l *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &lab{
			t: t, ca: tunneltest.NewCA(t), net: tunneltest.NewNetwork(t, 5*time.Millisecond),
			routes: &routes{pods: map[netip.Addr]string{}, ambiguous: map[netip.Addr]bool{}, nodes: map[string]bool{}},
			api:    tunneltest.NewListener(), logs: &logBuffer{},
			denied: map[string]error{}, events: make(chan string, 1000),
		}
		t.Cleanup(func() { l.api.Close() })
		cert := l.ca.Gateway(t, tunnel.ServerName)
		l.cfg = gateway.Config{
			Certificate: tunneltest.Source(cert), ClientCAs: l.ca.Pool, Authorize: l.authorize,
			DialAPIServer: func(context.Context) (net.Conn, error) { return l.api.Dial() },
			Routes:        l.routes,
			ProcessorTime: func() time.Duration { return 0 }, // it does not go with the lab's clock
			OnSession: func(node string, connected bool, _ time.Time) {
				l.events <- fmt.Sprintf("%s %v", node, connected)
			},
			Logger: slog.New(slog.NewTextHandler(l.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		}
		if change != nil {
			change(l, &l.cfg)
		}
		l.start()
		defer func() {
			l.stop()
			if t.Failed() {
				t.Log(l.logs.String())
			}
		}()
		f(t, l)
	})
}

func (l *lab) authorize(node string, _ *x509.Certificate) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.denied[node]
}

func (l *lab) deny(node string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.denied[node] = err
}

// start runs a new gateway process, so to speak.
func (l *lab) start() { l.startAt(gatewayAddr) }

func (l *lab) startAt(addr netip.AddrPort) {
	l.t.Helper()
	gw, err := gateway.New(l.cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	l.gw, l.egress = gw, tunneltest.NewListener()
	pc, ln := l.net.Listen(addr), l.net.ListenStream(addr)
	go func() {
		if err := gw.ServePacket(context.Background(), pc); err != nil {
			l.t.Errorf("ServePacket: %v", err)
		}
	}()
	go func() {
		if err := gw.ServeTCP(context.Background(), ln); err != nil {
			l.t.Errorf("ServeTCP: %v", err)
		}
	}()
	go func() {
		if err := gw.ServeEgress(context.Background(), l.egress); err != nil {
			l.t.Errorf("ServeEgress: %v", err)
		}
	}()
	synctest.Wait()
}

// stop closes the gateway without patience.
func (l *lab) stop() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.gw.Close(ctx); err != nil && !errors.Is(err, context.Canceled) {
		l.t.Errorf("Close: %v", err)
	}
}

// await takes events until want.
func (l *lab) await(want string) {
	l.t.Helper()
	timeout := time.After(5 * time.Minute) // of the bubble's time
	for {
		select {
		case got := <-l.events:
			if got == want {
				return
			}
		case <-timeout:
			l.t.Fatalf("no event %q\n%s", want, l.logs.String())
		}
	}
}

// node is an agent with a kubelet that speaks HTTP.
type node struct {
	*agent.Agent
	kubelet *tunneltest.Listener
	states  chan bool
	stop    func()
}

// join starts an agent. kubelet serves its connections; nil: an echo.
func (l *lab) join(name string, kubelet func(net.Conn), change func(*agent.Config)) *node {
	l.t.Helper()
	n := &node{kubelet: tunneltest.NewListener(), states: make(chan bool, 100)}
	if kubelet == nil {
		kubelet = echo
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := n.kubelet.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); kubelet(c) })
		}
	})
	cfg := agent.Config{
		Gateways: []string{gatewayAddr.String()}, RootCAs: l.ca.Pool,
		Certificate: tunneltest.Source(l.ca.Node(l.t, name)), NodeName: name,
		Info:         agent.Info{EngineVersion: "1.2.3", Architecture: "amd64", BootID: "boot-1"},
		DialKubelet:  func(context.Context) (net.Conn, error) { return n.kubelet.Dial() },
		OnState:      func(up bool, _ string) { n.states <- up },
		ListenPacket: func() (net.PacketConn, error) { return l.net.Listen(netip.AddrPortFrom(edgeAddr, 0)), nil },
		DialStream:   l.dialStream(edgeAddr),
		Logger:       slog.New(slog.NewTextHandler(l.logs, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	a, err := agent.New(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	n.Agent = a
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.Run(ctx); err != nil {
			l.t.Errorf("Run: %v", err)
		}
	}()
	n.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		n.kubelet.Close()
		wg.Wait()
	})
	l.t.Cleanup(n.stop)
	return n
}

// dialStream dials TCP from an address of the lab's network.
func (l *lab) dialStream(from netip.Addr) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		return l.net.DialStream(ctx, from, netip.MustParseAddrPort(addr))
	}
}

// joined is join and waits for the session.
func (l *lab) joined(name string, kubelet func(net.Conn), change func(*agent.Config)) *node {
	l.t.Helper()
	n := l.join(name, kubelet, change)
	l.await(name + " true")
	if up := <-n.states; !up { // WELCOME takes its time to arrive
		l.t.Fatal("the agent's first state is not connected")
	}
	return n
}

// connect sends a CONNECT as the apiserver does and returns the raw connection
// and everything of the answer up to the end of the header.
func (l *lab) connect(target string) (*tunneltest.PipeConn, string) {
	l.t.Helper()
	c, err := l.egress.Dial()
	if err != nil {
		l.t.Fatal(err)
	}
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", target)
	return c, readHead(l.t, c)
}

// connected is connect and fails the test unless it worked.
func (l *lab) connected(target string) *tunneltest.PipeConn {
	l.t.Helper()
	c, head := l.connect(target)
	if head != "HTTP/1.1 200 Connection established\r\n\r\n" {
		rest, _ := io.ReadAll(c)
		l.t.Fatalf("CONNECT %s: %q %q", target, head, rest)
	}
	return c
}

// refused is connect for a target that must not work; it returns code and text.
func (l *lab) refused(target string) (int, string) {
	l.t.Helper()
	c, head := l.connect(target)
	defer c.Close()
	rest, err := io.ReadAll(c)
	if err != nil {
		l.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(append([]byte(head), rest...))), nil)
	if err != nil {
		l.t.Fatalf("CONNECT %s: %q: %v", target, head, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// readHead reads byte by byte, so that what follows the header stays.
func readHead(t *testing.T, c net.Conn) string {
	t.Helper()
	var head []byte
	one := make([]byte, 1)
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if _, err := io.ReadFull(c, one); err != nil {
			t.Fatalf("header so far %q: %v", head, err)
		}
		head = append(head, one[0])
	}
	return string(head)
}

func echo(c net.Conn) {
	if _, err := io.Copy(c, struct{ io.Reader }{c}); err == nil {
		c.(*tunneltest.PipeConn).CloseWrite()
	}
}

// roundTrip sends p and reads it back.
func roundTrip(t *testing.T, c net.Conn, p []byte) {
	t.Helper()
	errc := make(chan error, 1)
	go func() {
		_, err := c.Write(p)
		errc <- err
	}()
	got := make([]byte, len(p))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("read back: %v", err)
	}
	if err := <-errc; err != nil {
		t.Fatalf("write: %v", err)
	}
	if !bytes.Equal(got, p) {
		t.Fatal("bytes differ")
	}
}

type routes struct {
	mu        sync.Mutex
	pods      map[netip.Addr]string
	ambiguous map[netip.Addr]bool
	nodes     map[string]bool
}

func (r *routes) PodOwner(a netip.Addr) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ambiguous[a] {
		return "", fmt.Errorf("pod %s: %w", a, gateway.ErrAmbiguous)
	}
	if n, ok := r.pods[a]; ok {
		return n, nil
	}
	return "", gateway.ErrNoRoute
}

func (r *routes) HasNode(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.nodes[name]
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
