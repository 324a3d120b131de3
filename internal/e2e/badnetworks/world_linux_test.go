package badnetworks

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/netlab"
	"github.com/edgewright/terraform-provider-edge/internal/netwatch"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// full says whether the long form runs.
func full() bool { return os.Getenv("EDGE_TEST_SCALE") == "full" }

var (
	cloudPrefix = netip.MustParsePrefix("10.77.0.1/24")
	edgePrefix  = netip.MustParsePrefix("10.77.0.2/24")
	gatewayAt   = netip.AddrPortFrom(cloudPrefix.Addr(), 7443)
	listenAt    = netip.AddrPortFrom(netip.IPv4Unspecified(), gatewayAt.Port())
	kubeletAt   = netip.MustParseAddrPort("127.0.0.1:10250")
	anywhere    = netip.MustParsePrefix("0.0.0.0/0")
)

const node = "berlin-1"

// world is a gateway in the cloud, a node at the edge, and the link between.
type world struct {
	t           *testing.T
	lab         *netlab.Lab
	cloud, edge *netlab.Host
	link        *netlab.Link
	gw          *gateway.Gateway
	agent       *agent.Agent
	egress      string
	ca          *tunneltest.CA
	logs        *logBuffer
	up          chan bool
	stops       []func() // in reverse order
}

// newWorld makes everything but the agent, which start does.
func newWorld(t *testing.T, seed uint64, shape netlab.Shape) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("outages take as long as they take")
	}
	lab := netlab.ForTest(t, seed)
	w := &world{t: t, lab: lab, cloud: lab.Host("cloud"), edge: lab.Host("edge"), ca: tunneltest.NewCA(t), logs: &logBuffer{}, up: make(chan bool, 1000)}
	w.link = lab.Link(netlab.Port{Host: w.cloud, Prefix: cloudPrefix}, netlab.Port{Host: w.edge, Prefix: edgePrefix}, shape)
	w.must(w.link.B.AddRoute(anywhere))
	t.Cleanup(func() {
		w.stop()
		if t.Failed() {
			t.Log(w.logs.tail(100))
		}
	})
	logger := slog.New(slog.NewTextHandler(w.logs, nil))
	gw, err := gateway.New(gateway.Config{
		Certificate: tunneltest.Source(w.ca.Gateway(t, tunnel.ServerName)), ClientCAs: w.ca.Pool,
		Authorize:     func(string, *x509.Certificate) error { return nil },
		DialAPIServer: func(context.Context) (net.Conn, error) { a, b := net.Pipe(); go kubelet(b); return a, nil },
		Routes:        routes{}, Logger: logger,
	})
	w.must(err)
	w.gw = gw
	pc, err := w.cloud.ListenUDP(listenAt)
	w.must(err)
	ln, err := w.cloud.ListenTCP(listenAt)
	w.must(err)
	w.egress = filepath.Join(t.TempDir(), "egress.sock")
	unix, err := net.Listen("unix", w.egress)
	w.must(err)
	for _, serve := range []func() error{
		func() error { return gw.ServePacket(context.Background(), pc) },
		func() error { return gw.ServeTCP(context.Background(), ln) },
		func() error { return gw.ServeEgress(context.Background(), unix) },
	} {
		w.run(serve)
	}
	w.stops = append(w.stops, func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = gw.Close(ctx) // a stream that a failed test left is cut
	})
	w.serveKubelet()
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// run runs f until the world ends; it must end then.
func (w *world) run(f func() error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(); err != nil {
			w.t.Errorf("ended: %v", err)
		}
	}()
	w.stops = append(w.stops, func() { <-done })
}

func (w *world) stop() {
	for i := len(w.stops) - 1; i >= 0; i-- {
		w.stops[i]()
	}
	w.stops = nil
}

// serveKubelet listens where the agent looks for the kubelet.
func (w *world) serveKubelet() {
	ln, err := w.edge.ListenTCP(kubeletAt)
	w.must(err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { kubelet(c) })
		}
	})
	w.stops = append(w.stops, wg.Wait, func() { ln.Close() })
}

// start starts the agent and waits until it is connected.
func (w *world) start(change func(*agent.Config)) {
	w.t.Helper()
	ns, err := netns.GetFromPath(w.edge.Path())
	w.must(err)
	w.stops = append(w.stops, func() { ns.Close() })
	logger := slog.New(slog.NewTextHandler(w.logs, nil)).With("end", "edge")
	watcher := netwatch.Watcher{Namespace: ns, Logger: logger}
	cfg := agent.Config{
		Gateways: []string{gatewayAt.String()}, RootCAs: w.ca.Pool, NodeName: node,
		Certificate:  tunneltest.Source(w.ca.Node(w.t, node)),
		DialKubelet:  func(ctx context.Context) (net.Conn, error) { return w.edge.DialTCP(ctx, kubeletAt) },
		ListenPacket: func() (net.PacketConn, error) { return w.edge.ListenUDP(netip.MustParseAddrPort("0.0.0.0:0")) },
		DialStream: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return w.edge.DialTCP(ctx, netip.MustParseAddrPort(addr))
		},
		Addresses: func() (addrs []net.Addr, err error) {
			err = w.edge.Do(func() error { addrs, err = net.InterfaceAddrs(); return err })
			return addrs, err
		},
		Network: func() agent.Network {
			n, err := watcher.Current()
			if err != nil {
				w.t.Errorf("network: %v", err)
			}
			return agent.Network(n)
		},
		OnState: func(up bool, _ string) { w.up <- up },
		Jitter:  func(time.Duration) time.Duration { return 0 },
		Logger:  logger,
	}
	if change != nil {
		change(&cfg)
	}
	a, err := agent.New(cfg)
	w.must(err)
	w.agent = a
	ctx, cancel := context.WithCancel(context.Background())
	w.run(func() error { return a.Run(ctx) })
	w.run(func() error { return watcher.Run(ctx, a.Poke) })
	w.stops = append(w.stops, cancel)
	w.await(true)
}

// await waits for the agent's next state.
func (w *world) await(want bool) {
	w.t.Helper()
	timeout := time.After(time.Minute)
	for {
		select {
		case up := <-w.up:
			if up == want {
				return
			}
		case <-timeout:
			w.t.Fatalf("the agent's state did not become %v", want)
		}
	}
}

// eventually waits for a condition.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for tick := time.Tick(10 * time.Millisecond); !ok(); <-tick {
		if time.Now().After(deadline) {
			w.t.Fatalf("not so after a minute: %s", what)
		}
	}
}

// exec connects to the kubelet as the apiserver does and says what it is to do.
func (w *world) exec(what string) *net.UnixConn {
	w.t.Helper()
	c, err := w.connect()
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := fmt.Fprintln(c, what); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// connect is a CONNECT to the kubelet.
func (w *world) connect() (*net.UnixConn, error) {
	c, err := net.Dial("unix", w.egress)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(c, "CONNECT %s:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", node)
	var head []byte
	for one := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); head = append(head, one[0]) {
		if _, err := io.ReadFull(c, one); err != nil {
			c.Close()
			return nil, err
		}
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), nil)
	if err != nil || resp.StatusCode != 200 {
		c.Close()
		return nil, fmt.Errorf("CONNECT: %q, %v", head, err)
	}
	return c.(*net.UnixConn), nil
}

// kubelet does what the first line of c says: "echo", "sink" (the answer is the
// number of bytes and their SHA-256), "source <bytes>", "reset".
func kubelet(c net.Conn) {
	defer c.Close()
	br := bufio.NewReader(c)
	line, err := br.ReadString('\n')
	if err != nil {
		return
	}
	word, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch word {
	case "echo":
		if _, err := io.Copy(c, br); err == nil {
			if half, ok := c.(interface{ CloseWrite() error }); ok {
				half.CloseWrite()
			}
		}
	case "sink":
		h := sha256.New()
		n, err := io.Copy(h, br)
		if err == nil {
			fmt.Fprintf(c, "%d %s\n", n, hex.EncodeToString(h.Sum(nil)))
		}
	case "source":
		n, err := strconv.Atoi(arg)
		if err != nil {
			return
		}
		io.CopyN(c, &pattern{}, int64(n))
	case "reset":
		if t, ok := c.(*net.TCPConn); ok {
			t.SetLinger(0)
		}
	}
}

// pattern is an endless stream of known bytes.
type pattern struct{ at int }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte((p.at + i) * 7 / 3)
	}
	p.at += len(b)
	return len(b), nil
}

type routes struct{}

func (routes) PodOwner(netip.Addr) (string, error) { return "", gateway.ErrNoRoute }
func (routes) HasNode(name string) bool            { return name == node }

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if bytes.Contains(p, []byte("msg=dial ")) {
		return len(p), nil // thousands
	}
	return l.b.Write(p)
}

func (l *logBuffer) tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := strings.Split(l.b.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
