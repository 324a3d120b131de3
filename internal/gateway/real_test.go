package gateway_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// On real sockets: UDP on loopback, the egress unix socket, an HTTPS kubelet,
// and a client that reads the answer to CONNECT as strictly as the apiserver.
func TestRealSockets(t *testing.T) {
	ca := tunneltest.NewCA(t)
	kubelet := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s of %s", r.URL.Path, r.Host)
	}))
	kubelet.TLS = &tls.Config{Certificates: []tls.Certificate{*ca.Gateway(t, "berlin-1")}}
	kubelet.StartTLS()
	defer kubelet.Close()
	apiserver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "apiserver") }))
	defer apiserver.Close()

	dialer := func(addr string) func(context.Context) (net.Conn, error) {
		return func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	logger := slog.New(slog.DiscardHandler)
	gw, err := gateway.New(gateway.Config{
		Certificate: tunneltest.Source(ca.Gateway(t, tunnel.ServerName)), ClientCAs: ca.Pool,
		Authorize:     func(string, *x509.Certificate) error { return nil },
		DialAPIServer: dialer(apiserver.Listener.Addr().String()), Routes: &routes{}, Logger: logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "egress.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 3)
	go func() { served <- gw.ServePacket(context.Background(), pc) }()
	go func() { served <- gw.ServeEgress(context.Background(), ln) }()

	up := make(chan bool, 10)
	a, err := agent.New(agent.Config{
		Gateways: []string{pc.LocalAddr().String()}, RootCAs: ca.Pool, NodeName: "berlin-1",
		Certificate: tunneltest.Source(ca.Node(t, "berlin-1")), DialKubelet: dialer(kubelet.Listener.Addr().String()),
		OnState: func(b bool, _ string) { up <- b }, Logger: logger,
		Jitter: func(time.Duration) time.Duration { return 0 },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { served <- a.Run(ctx) }()
	if !<-up {
		t.Fatal("not connected")
	}

	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return connectAsAPIServer(ctx, socket, addr)
		},
		TLSClientConfig:   &tls.Config{RootCAs: ca.Pool},
		DisableKeepAlives: true,
	}}
	for i := range 20 {
		resp, err := client.Get(fmt.Sprintf("https://berlin-1:10250/logs/%d", i))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := fmt.Sprintf("/logs/%d of berlin-1:10250", i); err != nil || string(b) != want {
			t.Fatalf("%q, %v", b, err)
		}
	}
	if _, err := client.Get("https://tokyo-1:10250/"); err == nil || !strings.Contains(err.Error(), "no edge node has this name") {
		t.Errorf("error: %v", err)
	}

	api := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return a.DialAPIServer(ctx) },
		DisableKeepAlives: true,
	}}
	resp, err := api.Get("http://kubernetes/")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(b) != "apiserver" {
		t.Errorf("%q", b)
	}

	cancel()
	cctx, ccancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer ccancel()
	if err := gw.Close(cctx); err != nil {
		t.Error(err)
	}
	for range 3 {
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// connectAsAPIServer does what k8s.io/apiserver's egress selector does: the same
// bytes out, and any answer but 200 or any byte after the header is an error.
func connectAsAPIServer(ctx context.Context, socket, addr string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", addr, "127.0.0.1"); err != nil {
		c.Close()
		return nil, err
	}
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		c.Close()
		return nil, err
	}
	if resp.StatusCode != 200 {
		b, _ := io.ReadAll(resp.Body)
		c.Close()
		return nil, fmt.Errorf("error from proxy while dialing %s, code %d: %s", addr, resp.StatusCode, b)
	}
	if br.Buffered() > 0 {
		c.Close()
		return nil, errors.New("unexpected data after the answer")
	}
	return c, nil
}
