package hubload

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/hub"
	"github.com/edgewright/terraform-provider-edge/internal/memory"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// processEnv makes a program that calls Main a hub, as the JSON in it says.
const processEnv = "EDGE_HUBLOAD_PROCESS"

// Process is a hub in a process of its own.
type Process struct {
	NodeName string
	// Gateway is "host:port" of a gateway's UDP socket, which the hub reaches the
	// apiserver through; an agent is in the process then, as in the node's daemon.
	// Empty: APIServer is dialled as it is.
	Gateway string
	// APIServer is "host:port", and ServerName a name in its certificate.
	APIServer, ServerName, UpstreamCA string
	// Client certificates at the apiserver; the node's is the agent's too.
	NodeCert, NodeKey, HubCert, HubKey string
	// The node's own authority and the hub's certificate of it.
	LocalCA, ServingCert, ServingKey string
	DataDir                          string
}

// Main is the begin of the main function of a program that starts a Process: in
// the child it is the hub and does not return.
func Main() {
	config := os.Getenv(processEnv)
	if config == "" {
		return
	}
	var p Process
	err := json.Unmarshal([]byte(config), &p)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		err = p.run(ctx)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hub:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Running is a started Process.
type Running struct {
	// Address is where the hub's components connect.
	Address string
	PID     int
	cmd     *exec.Cmd
}

// Start starts the hub: this very program, again. It returns once it listens. The
// caller must call Stop; the end of this program ends it too. start starts the
// command, in a namespace say; nil: (*exec.Cmd).Start.
func (p Process) Start(start func(*exec.Cmd) error) (*Running, error) {
	if start == nil {
		start = (*exec.Cmd).Start
	}
	config, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(context.Background(), self)
	cmd.Env = append(os.Environ(), processEnv+"="+string(config))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("start the hub of node %s: %w", p.NodeName, err)
	}
	r := &Running{PID: cmd.Process.Pid, cmd: cmd}
	if _, err := fmt.Fscan(stdout, &r.Address); err != nil {
		return nil, errors.Join(fmt.Errorf("the hub of node %s did not say where it listens: %w", p.NodeName, err), r.Stop())
	}
	return r, nil
}

// Stop ends the hub as its node's daemon would, and says whether it ended well.
func (r *Running) Stop() error {
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := r.cmd.Wait(); err != nil {
		return fmt.Errorf("the hub ended: %w", err)
	}
	return nil
}

func (p Process) run(ctx context.Context) error {
	pair := func(cert, key string) func() (*tls.Certificate, error) {
		return sync.OnceValues(func() (*tls.Certificate, error) {
			c, err := pki.LoadTLS(cert, key)
			return &c, err
		})
	}
	upstreamCA, err := pool(p.UpstreamCA)
	if err != nil {
		return err
	}
	localCA, err := pool(p.LocalCA)
	if err != nil {
		return err
	}
	rootCA, err := os.ReadFile(p.LocalCA)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { memory.Keep(ctx, memory.Node); return nil }) // as the node's daemon
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	dial := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", p.APIServer)
	}
	var (
		mu        sync.Mutex // guards the two, and the order in which the hub is told
		up        *hub.Hub
		connected = p.Gateway == ""
	)
	current := func() *hub.Hub {
		mu.Lock()
		defer mu.Unlock()
		return up
	}
	if p.Gateway != "" {
		a, err := agent.New(agent.Config{
			Gateways: []string{p.Gateway}, RootCAs: upstreamCA, Certificate: pair(p.NodeCert, p.NodeKey), NodeName: p.NodeName,
			DialKubelet: func(context.Context) (net.Conn, error) { return nil, errors.New("there is no kubelet here") },
			OnState: func(is bool, _ string) {
				mu.Lock()
				defer mu.Unlock()
				connected = is
				if up != nil {
					up.Link().Session(is)
				}
			},
			Heartbeat: func() tunnel.Heartbeat { return heartbeat(current()) },
			Logger:    logger,
		})
		if err != nil {
			return err
		}
		dial = a.DialAPIServer
		g.Go(func() error { return a.Run(ctx) })
	}
	h, err := hub.New(hub.Config{
		NodeName: p.NodeName, Listener: listener, ServingCertificate: pair(p.ServingCert, p.ServingKey), LocalCA: localCA,
		DialUpstream: dial, UpstreamCA: upstreamCA, UpstreamServerName: p.ServerName,
		NodeCertificate: pair(p.NodeCert, p.NodeKey), HubCertificate: pair(p.HubCert, p.HubKey),
		KubernetesEndpoint: netip.MustParseAddrPort("169.254.20.11:443"), DataDir: p.DataDir,
		PodCertificate: pair(p.ServingCert, p.ServingKey), RootCA: string(rootCA), Logger: logger,
	})
	if err != nil {
		return err
	}
	mu.Lock()
	up = h
	h.Link().Session(connected)
	mu.Unlock()
	fmt.Println(listener.Addr())
	g.Go(func() error { return h.Serve(ctx) })
	return g.Wait()
}

// heartbeat says what the node's daemon says.
func heartbeat(h *hub.Hub) tunnel.Heartbeat {
	if h == nil {
		return tunnel.Heartbeat{}
	}
	var autonomy tunnel.Autonomy
	for _, f := range h.Faults() {
		autonomy.Faults = append(autonomy.Faults, tunnel.Fault{Reason: f.Reason, Message: f.Message})
	}
	beat := tunnel.Heartbeat{Autonomy: &autonomy}
	if at, ok := h.KubeletRenewed(); ok {
		beat = beat.WithKubeletAge(time.Since(at))
	}
	return beat
}

func pool(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return pool, nil
}
