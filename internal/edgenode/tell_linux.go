//go:build linux

package edgenode

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/hub"
	"github.com/edgewright/terraform-provider-edge/internal/hub/mirror"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// tellSocket in run/ is where the daemon answers `edge node status` and whoever
// gathers metrics: GET /status (Live, in JSON), /history (tunnel.Happened, a list in
// JSON) and /metrics (Prometheus' text). It takes the owner of the node's files and
// root, whom the kernel names.
const tellSocket = "node.sock"

// tellTimeout bounds one answer; the socket is local.
const tellTimeout = 5 * time.Second

// serveTelling answers on the socket until ctx ends. A socket that cannot be made
// costs the answers, not the node.
func (n *node) serveTelling(ctx context.Context, h *hub.Hub) error {
	path := filepath.Join(n.dir, runDir, tellSocket)
	listener, err := n.listenTelling(ctx, path)
	if err != nil {
		n.log.Error("answer for the node's status", "socket", path, "error", err)
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(n.live(h)) // a caller that is gone needs no answer
	})
	mux.HandleFunc("GET /history", func(w http.ResponseWriter, _ *http.Request) {
		happened := []tunnel.Happened{}
		if a := n.agent.Load(); a != nil {
			happened = a.History()
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(happened)
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_ = writeMetrics(w, n.spec.Name, n.live(h))
	})
	server := &http.Server{
		Handler: mux, ReadTimeout: tellTimeout, WriteTimeout: tellTimeout, IdleTimeout: tellTimeout, MaxHeaderBytes: 4 << 10,
	}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		n.log.Error("answer for the node's status", "socket", path, "error", err)
	}
	return nil
}

func (n *node) listenTelling(ctx context.Context, path string) (net.Listener, error) {
	if err := removeFile(path); err != nil { // of a daemon that was killed
		return nil, err
	}
	short, release, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer release()
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "unix", short)
	if err != nil {
		return nil, err
	}
	// Its name is of a descriptor that is closed by then; the next daemon removes it.
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(path, 0o600), giveTo(path, n.spec.OwnerUID, n.spec.OwnerGID)); err != nil {
		listener.Close()
		return nil, err
	}
	return peers{listener, uint32(n.spec.OwnerUID)}, nil //nolint:gosec // an id of a user
}

// shortPath names a file by its directory's descriptor: addresses of sockets have
// 108 bytes, and state directories are deep.
func shortPath(path string) (short string, release func(), err error) {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open %s: %w", filepath.Dir(path), err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path)), func() { unix.Close(dir) }, nil
}

// peers takes connections of root and one user only.
type peers struct {
	net.Listener
	owner uint32
}

func (p peers) Accept() (net.Conn, error) {
	for {
		c, err := p.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if uid, err := peer(c); err == nil && (uid == 0 || uid == p.owner) {
			return c, nil
		}
		c.Close()
	}
}

// peer is the user at the other end of a unix socket.
func peer(c net.Conn) (uint32, error) {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return cred.Uid, nil
}

// tunnelFigures are the agent's as they are told.
func tunnelFigures(f agent.Figures) *LiveTunnel {
	t := &LiveTunnel{
		Transport: string(f.Transport), Wanted: string(f.Wanted), Fallback: f.Fallback, Sessions: map[string]uint64{}, Takeovers: f.Takeovers,
		Migrations: f.Migrations, Streams: f.Streams, SendErrors: map[string]uint64{},
		StalledBytes: f.StalledBytes, StallAborts: f.StallAborts,
	}
	for transport, n := range f.Sessions {
		t.Sessions[string(transport)] = n
	}
	for errno, n := range f.SendErrors {
		t.SendErrors[tunnel.ErrnoName(errno)] = n
	}
	for d, n := range f.Dials {
		t.Dials = append(t.Dials, LiveDials{Kind: d.Kind, Result: d.Result, Count: n})
	}
	slices.SortFunc(t.Dials, func(a, b LiveDials) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Result, b.Result))
	})
	return t
}

// live is what the node's daemon knows now.
func (n *node) live(h *hub.Hub) Live {
	link := h.LinkState()
	l := Live{Link: LiveLink{Online: link.Online, Since: link.Since, Reason: link.Reason}, Traffic: LiveTraffic(h.Traffic()), Pods: LivePods(h.PodConnections())}
	if a := n.agent.Load(); a != nil {
		figures := a.Figures()
		l.Tunnel = tunnelFigures(figures)
		if err := n.transport.trouble(figures); err != nil {
			l.Tunnel.Trouble = err.Error()
		}
	}
	for _, f := range h.Faults() {
		l.Faults = append(l.Faults, Fault(f))
	}
	if r, ok := h.Replica(); ok {
		l.ReplicaBytes = r.Bytes
		for _, c := range r.Collections {
			l.Collections = append(l.Collections, liveCollection(c))
		}
	}
	for _, name := range []string{nodeCertFile, hubCertFile, servingName + ".crt"} {
		data, err := os.ReadFile(n.pki(name))
		if err != nil {
			continue // there is none yet; faults say so of the node's own
		}
		if certs, err := pki.ParseCertificatesPEM(data); err == nil {
			l.Certificates = append(l.Certificates, LiveCertificate{Name: certs[0].Subject.CommonName, File: name, Ends: certs[0].NotAfter})
		}
	}
	return l
}

func liveCollection(c mirror.Collection) LiveCollection {
	l := LiveCollection{
		Name: c.Collection.String(), Complete: c.Complete, Objects: c.Objects, Bytes: c.Bytes, Requests: c.Requests, Heard: c.Heard,
		Version: c.Version.String(),
	}
	if c.Err != nil {
		l.Error = c.Err.Error()
	}
	return l
}

// LoadLive asks the daemon of a node dir. The caller must be root or the owner of
// the node's files.
func LoadLive(ctx context.Context, dir string) (*Live, error) {
	live := &Live{}
	if err := ask(ctx, dir, "status", live); err != nil {
		return nil, err
	}
	return live, nil
}

// LoadHistory asks the daemon of a node dir what has happened to its tunnel, the
// oldest first. The caller must be root or the owner of the node's files.
func LoadHistory(ctx context.Context, dir string) ([]tunnel.Happened, error) {
	var happened []tunnel.Happened
	if err := ask(ctx, dir, "history", &happened); err != nil {
		return nil, err
	}
	return happened, nil
}

// ask asks a node's daemon for what it has, in JSON.
func ask(ctx context.Context, dir, what string, to any) error {
	path := filepath.Join(dir, runDir, tellSocket)
	short, release, err := shortPath(path)
	if err != nil {
		return err
	}
	defer release()
	client := &http.Client{Timeout: tellTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", short)
		},
	}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node/"+what, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("ask the node's daemon at %s: %w", path, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("ask the node's daemon at %s: %s", path, response.Status)
	}
	if err := json.NewDecoder(response.Body).Decode(to); err != nil {
		return fmt.Errorf("the answer of the node's daemon: %w", err)
	}
	return nil
}
