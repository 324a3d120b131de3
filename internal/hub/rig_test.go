package hub

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
)

// patience is how long a test waits for what must happen; far beyond what it
// takes, and never waited out by a test that passes.
const patience = 20 * time.Second

// rig is a hub between a fake apiserver and callers.
type rig struct {
	t       testing.TB
	api     *fakeAPI
	hub     *Hub
	address string
	local   *authority // of callers and hub
	cluster *authority // of apiserver, node and hub identities
	podCA   *authority // of what pods are answered with while cut
	stop    context.CancelFunc
	served  chan error

	mu     sync.Mutex // guards what follows
	cut    bool
	conns  []net.Conn
	dials  int
	node   *tls.Certificate
	stalls chan struct{} // when set, dialling waits for it
}

func newRig(t testing.TB, clk clock.WithDelayedExecution) *rig { return newRigWith(t, clk, nil) }

// newRigWith is newRig of a hub that has something on its own node.
func newRigWith(t testing.TB, clk clock.WithDelayedExecution, local *Local) *rig {
	t.Helper()
	r := &rig{t: t, local: newAuthority(t, "local"), cluster: newAuthority(t, "cluster")}
	r.api = newFakeAPI(t, r.cluster, r.cluster)
	r.node = r.cluster.client("system:node:n1", time.Now().Add(time.Hour))
	hubCert := r.cluster.client("edge:hub:n1", time.Now().Add(time.Hour))
	serving := r.local.server("localhost")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = listener.Addr().String()
	r.hub, err = New(Config{
		NodeName:           "n1",
		Listener:           listener,
		ServingCertificate: func() (*tls.Certificate, error) { return serving, nil },
		LocalCA:            r.local.pool(),
		DialUpstream:       r.dial,
		UpstreamCA:         r.cluster.pool(),
		UpstreamServerName: "kubernetes.default.svc",
		NodeCertificate: func() (*tls.Certificate, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.node, nil
		},
		HubCertificate:     func() (*tls.Certificate, error) { return hubCert, nil },
		KubernetesEndpoint: netip.MustParseAddrPort("169.254.20.11:443"),
		Logger:             slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Clock:              clk,
		Local:              local,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop, r.served = stop, make(chan error, 1)
	go func() { r.served <- r.hub.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		r.setCut(true)
		select {
		case err := <-r.served:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("Serve did not end")
		}
	})
	return r
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Helper()
	return len(p), nil
}

func (r *rig) dial(ctx context.Context) (net.Conn, error) {
	r.mu.Lock()
	r.dials++
	cut, stalls := r.cut, r.stalls
	r.mu.Unlock()
	if stalls != nil {
		select {
		case <-stalls:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if cut {
		return nil, errors.New("the link is cut")
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", r.api.server.Listener.Addr().String())
	if err == nil {
		r.mu.Lock()
		r.conns = append(r.conns, c)
		r.mu.Unlock()
	}
	return c, err
}

// setCut cuts or restores the link; a cut closes what is open.
func (r *rig) setCut(cut bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = cut
	if cut {
		for _, c := range r.conns {
			c.Close()
		}
		r.conns = nil
	}
}

// tls is a caller's client configuration.
func (r *rig) tls(cert *tls.Certificate) *tls.Config {
	c := &tls.Config{RootCAs: r.local.pool(), ServerName: "localhost"}
	if cert != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return c
}

func (r *rig) caller(c Caller) *http.Client {
	return r.client(r.local.client(string(c), time.Now().Add(time.Hour)))
}

func (r *rig) client(cert *tls.Certificate) *http.Client {
	transport := &http.Transport{TLSClientConfig: r.tls(cert), ForceAttemptHTTP2: true, DisableCompression: true}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// restConfig is a caller's client-go configuration.
func (r *rig) restConfig(c Caller, contentType string) *rest.Config {
	client := r.caller(c)
	return &rest.Config{
		Host:          "https://" + r.address,
		Transport:     client.Transport,
		QPS:           -1,
		ContentConfig: rest.ContentConfig{ContentType: contentType, AcceptContentTypes: contentType},
	}
}

func (r *rig) url(path string) string { return "https://" + r.address + path }

// do sends a request and returns the answer with its body.
func (r *rig) do(client *http.Client, method, path string, body io.Reader, header http.Header) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, r.url(path), body)
	if err != nil {
		r.t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp, string(b)
}

func (r *rig) get(c Caller, path string) (*http.Response, string) {
	r.t.Helper()
	return r.do(r.caller(c), http.MethodGet, path, nil, nil)
}
