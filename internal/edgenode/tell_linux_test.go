//go:build linux

package edgenode

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/hub"
	"github.com/edgewright/terraform-provider-edge/internal/hub/mirror"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// TestNodeTells asks a daemon for its status and metrics, in a directory whose
// path is longer than a socket's address may be.
func TestNodeTells(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.MkdirAll(filepath.Join(dir, runDir), 0o700); err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	none := func() (*tls.Certificate, error) { return nil, os.ErrNotExist }
	log := slog.New(slog.DiscardHandler)
	h, err := hub.New(hub.Config{
		NodeName: "n1", Listener: listener, ServingCertificate: none, LocalCA: x509.NewCertPool(),
		DialUpstream: func(context.Context) (net.Conn, error) { return nil, os.ErrDeadlineExceeded },
		UpstreamCA:   x509.NewCertPool(), UpstreamServerName: "kubernetes", NodeCertificate: none, HubCertificate: none,
		KubernetesEndpoint: netip.MustParseAddrPort("169.254.20.11:443"), DataDir: filepath.Join(dir, "hub"), PodCertificate: none, RootCA: "x", Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{dir: dir, spec: &Spec{Name: "n1", OwnerUID: os.Getuid(), OwnerGID: os.Getgid()}, log: log, now: time.Now}
	tunnel, err := agent.New(agent.Config{
		Gateways: []string{"127.0.0.1:1"}, RootCAs: x509.NewCertPool(), Certificate: none, NodeName: "n1",
		DialKubelet: func(context.Context) (net.Conn, error) { return nil, os.ErrDeadlineExceeded },
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tunnel.DialAPIServer(t.Context()); !errors.Is(err, agent.ErrNotConnected) {
		t.Fatal(err)
	}
	n.agent.Store(tunnel)
	n.transport = loadTransport(filepath.Join(dir, transportFile), log)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan struct{})
	ready := filepath.Join(dir, runDir, tellSocket)
	// What a killed daemon has left is no obstacle.
	if err := os.WriteFile(ready, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	hubEnded := make(chan error, 1)
	go func() { hubEnded <- h.Serve(ctx) }()
	go func() {
		defer close(served)
		if err := n.serveTelling(ctx, h); err != nil {
			t.Error(err)
		}
	}()
	defer func() {
		stop()
		<-served
		if err := <-hubEnded; err != nil {
			t.Error(err)
		}
	}()

	var live *Live
	for limit := time.Now().Add(20 * time.Second); live == nil; time.Sleep(time.Millisecond) {
		if live, err = LoadLive(t.Context(), dir); err != nil && time.Now().After(limit) {
			t.Fatal(err)
		}
	}
	if live.Link.Online || live.Link.Reason == "" {
		t.Errorf("link: %+v", live.Link)
	}
	var reasons []string
	for _, f := range live.Faults {
		reasons = append(reasons, f.Reason)
	}
	if d := cmp.Diff([]string{hub.FaultCache, hub.FaultCertificate}, reasons); d != "" {
		t.Errorf("faults: %s", d)
	}
	if len(live.Collections) < 5 {
		t.Errorf("collections: %+v", live.Collections)
	}
	for _, c := range live.Collections {
		if c.Complete || !c.Heard.IsZero() {
			t.Errorf("collection %+v was never heard of", c)
		}
	}
	if info, err := os.Stat(ready); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v %v", info, err)
	}

	// No session could be made, for the agent does not run.
	if happened, err := LoadHistory(t.Context(), dir); err != nil || happened == nil || len(happened) != 0 {
		t.Errorf("history: %v, %v", happened, err)
	}
	tunnel.Poke()
	if happened, err := LoadHistory(t.Context(), dir); err != nil || len(happened) != 1 || happened[0].Event != "network" || happened[0].At.IsZero() {
		t.Errorf("history: %v, %v", happened, err)
	}

	short, release, err := shortPath(ready)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", short)
	}}}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://node/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`edge_node_link_online{node="n1"} 0`, `edge_node_fault{node="n1",reason="CacheIncomplete"} 1`,
		`edge_node_apiserver_bytes_total{node="n1",direction="received"} 0`,
		`edge_node_replica_complete{node="n1",collection="pods.v1 node=n1"} 0`, "# TYPE edge_node_replica_bytes_total counter",
		`edge_node_tunnel_wanted{node="n1",transport="auto"} 1`,
		`edge_node_tunnel_fallback{node="n1"} 0`, `edge_node_tunnel_dials_total{node="n1",kind="apiserver",result="not connected"} 1`,
		"# TYPE edge_node_tunnel_send_errors_total counter",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("metrics lack %q:\n%s", want, text)
		}
	}
}

// TestLiveCollection: why a collection is not followed is told.
func TestLiveCollection(t *testing.T) {
	c := mirror.Collection{Collection: replica.Collection{Resource: schema.GroupVersionResource{Version: "v1", Resource: "services"}}, Complete: true, Version: 7}
	if got := liveCollection(c); got.Error != "" || got.Name != "services.v1" || !got.Complete || got.Version != "7" {
		t.Errorf("one that is followed: %+v", got)
	}
	c.Err = errors.New("services is forbidden")
	if got := liveCollection(c); got.Error != "services is forbidden" {
		t.Errorf("one that is not: %+v", got)
	}
}

// TestPeersTakesOwners: whoever is neither root nor the owner gets no answer.
func TestPeersTakesOwners(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	var lc net.ListenConfig
	listener, err := lc.Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	owner := uint32(os.Getuid()) //nolint:gosec // an id of a user
	dial := func() net.Conn {
		c, err := new(net.Dialer).DialContext(t.Context(), "unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	if dial(); owner != 0 {
		// Nobody's listener: the connection is closed, and Accept waits for another.
		strangers := peers{listener, owner + 1}
		go func() { _, _ = strangers.Accept() }() // ends with the listener
		c := dial()
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("a stranger was read %d bytes, %v", n, err)
		}
		return
	}
	c, err := peers{listener, owner + 1}.Accept()
	if err != nil {
		t.Fatal(err) // root is always let in
	}
	defer c.Close()
	if uid, err := peer(c); err != nil || uid != owner {
		t.Errorf("peer: %d %v", uid, err)
	}
}
