package process

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"

	"github.com/edgewright/terraform-provider-edge/internal/controllers"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/gateway/members"
	"github.com/edgewright/terraform-provider-edge/internal/memory"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

const (
	// meshWait bounds the wait for the other gateways before this one serves: a
	// gateway that is down must not keep the others from starting.
	meshWait = 5 * time.Second
	// meshLook and portLook are how often the two things are looked at that
	// nobody announces: links of the mesh, and a port that another process has.
	meshLook = 50 * time.Millisecond
	portLook = 100 * time.Millisecond
)

// daemon is a running gateway process.
type daemon struct {
	dir    string
	spec   *Spec
	logger *slog.Logger
	ca     *x509.Certificate
	gw     *gateway.Gateway
	known  *members.Members
	leases *controllers.LeaseKeeper
}

// Run runs the gateway of a directory until ctx ends, and then drains: it
// returns when nodes have moved and carried connections have ended, or after the
// spec's drain time; then the error says what was cut.
func Run(ctx context.Context, dir string, logger *slog.Logger) error {
	spec, err := LoadSpec(dir)
	if err != nil {
		return err
	}
	d := &daemon{dir: dir, spec: spec, logger: logger.With("gateway", spec.ID), known: members.New()}
	if err := d.make(); err != nil {
		return err
	}
	// Serving outlasts ctx: the end of ctx is where draining begins.
	serve, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, serve := errgroup.WithContext(serve)
	g.Go(func() error { memory.Keep(serve, memory.Gateway); return nil })
	g.Go(func() error { return d.known.Run(serve, d.restConfig()) })
	g.Go(func() error { return d.leases.Run(serve) })
	g.Go(func() error {
		defer stop()
		select {
		case <-ctx.Done():
		case <-serve.Done():
		}
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.spec.Drain())
		defer cancel()
		return d.gw.Close(closing)
	})
	g.Go(func() error { return d.serve(ctx, serve, g) })
	return g.Wait()
}

func (d *daemon) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(d.dir, name)
}

// make puts the gateway together.
func (d *daemon) make() error {
	raw, err := os.ReadFile(d.path(CAFile))
	if err != nil {
		return fmt.Errorf("read the cluster's CA: %w", err)
	}
	certs, err := pki.ParseCertificatesPEM(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", d.path(CAFile), err)
	}
	d.ca = certs[0]
	for _, key := range []string{KeyFile, ClientKey} {
		if err := private(d.path(key)); err != nil {
			return err
		}
	}
	roots := x509.NewCertPool()
	roots.AddCert(d.ca)
	var enroller gateway.Enroller
	var renewer enroll.Renewer
	if d.spec.Cluster != nil {
		service, err := enroll.NewService(enroll.ServiceConfig{RESTConfig: d.restConfig(), Cluster: *d.spec.Cluster, Logger: d.logger})
		if err != nil {
			return err
		}
		enroller, renewer = service, service
	}
	d.leases, err = controllers.NewLeaseKeeper(controllers.LeaseKeeperConfig{RESTConfig: d.restConfig(), Logger: d.logger})
	if err != nil {
		return err
	}
	var dialer net.Dialer
	d.gw, err = gateway.New(gateway.Config{
		ID: d.spec.ID, CA: d.ca, Certificate: d.certificate, ClientCAs: roots,
		Authorize: d.known.Authorize, Policy: d.known.Policy,
		DialAPIServer: func(ctx context.Context) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", d.spec.APIServer)
		},
		OnHeartbeat: d.leases.Beat,
		OnSession: func(node string, connected bool, _ time.Time) {
			if !connected {
				d.leases.Forget(node)
			}
		},
		Enroller: enroller, Renewer: renewer, Routes: d.known, Service: d.known.Service, DialLocal: members.Outside(d.spec.Ranges),
		Logger: d.logger,
	})
	if err != nil {
		return err
	}
	d.known.Revoked = func(node, reason string) { d.gw.Kick(node, reason) }
	d.known.PolicyChanged = d.gw.PolicyChanged
	d.known.GatewaysChanged = func(doc []byte) {
		if err := d.gw.SetGateways(doc); err != nil {
			d.logger.Error("the list of gateways is not used", "error", err)
		}
	}
	doc, err := os.ReadFile(d.path(GatewaysFile))
	if err != nil {
		return fmt.Errorf("read the list of gateways: %w", err)
	}
	return d.gw.SetGateways(doc)
}

// private refuses a key that others on this machine can read.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("look at the key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("key %s may be read by others (mode %v): run `chmod 600 %s`", path, info.Mode().Perm(), path)
	}
	return nil
}

// certificate reads the pair anew, so that a renewed one is used, and puts the
// CA at its end for devices that know its pin alone.
func (d *daemon) certificate() (*tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(d.path(CertFile), d.path(KeyFile))
	if err != nil {
		return nil, fmt.Errorf("load the gateway's certificate: %w", err)
	}
	cert.Certificate = append(cert.Certificate, d.ca.Raw)
	return &cert, nil
}

func (d *daemon) restConfig() *rest.Config {
	return &rest.Config{
		Host: d.spec.APIServerURL, UserAgent: "edge-gateway/" + d.spec.ID, QPS: 50, Burst: 100,
		TLSClientConfig: rest.TLSClientConfig{
			CAFile: d.path(CAFile), CertFile: d.path(ClientCert), KeyFile: d.path(ClientKey),
		},
	}
}

// serve opens the sockets in the order of the package's doc. asked ends when the
// process is asked to end, ctx when it does.
func (d *daemon) serve(asked, ctx context.Context, g *errgroup.Group) error {
	select {
	case <-d.known.Synced():
	case <-asked.Done():
		return nil
	}
	d.awaitMesh(asked)
	if d.spec.Egress != "" {
		ln, err := TakeSocket(ctx, d.path(d.spec.Egress))
		if err != nil {
			return fmt.Errorf("take the egress socket: %w", err)
		}
		g.Go(func() error { return d.gw.ServeEgress(ctx, ln) })
	}
	admin, err := TakeSocket(ctx, d.path(AdminSocket))
	if err != nil {
		return fmt.Errorf("take the admin socket: %w", err)
	}
	g.Go(func() error { return d.gw.ServeAdmin(ctx, admin) })
	d.logger.Info("serving the apiserver")
	pc, err := d.listen(asked)
	if err != nil || pc == nil {
		return err
	}
	// Whoever had the one has the other for no longer.
	ln, err := d.listenTCP(asked)
	if err != nil || ln == nil {
		return errors.Join(err, pc.Close())
	}
	g.Go(func() error { return unlessClosed(d.gw.ServeTCP(ctx, ln)) })
	d.logger.Info("serving nodes", "address", pc.LocalAddr())
	return unlessClosed(d.gw.ServePacket(ctx, pc))
}

// unlessClosed drops the error of a gateway that was asked to end meanwhile.
func unlessClosed(err error) error {
	if errors.Is(err, gateway.ErrClosed) {
		return nil
	}
	return err
}

// awaitMesh waits until every other gateway of the list is connected.
func (d *daemon) awaitMesh(ctx context.Context) {
	deadline := time.NewTimer(meshWait)
	defer deadline.Stop()
	tick := time.NewTicker(meshLook)
	defer tick.Stop()
	for {
		missing := d.gw.Missing()
		if len(missing) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			d.logger.Warn("serving without all other gateways", "missing", missing)
			return
		case <-ctx.Done():
			return
		}
	}
}

// listen opens the UDP socket, as soon as no other process has the port. It
// returns nil when ctx ends before.
func (d *daemon) listen(ctx context.Context) (pc net.PacketConn, err error) {
	var config net.ListenConfig
	err = d.awaitPort(ctx, "UDP", func() error {
		pc, err = config.ListenPacket(ctx, "udp", d.spec.Listen)
		return err
	})
	return pc, err
}

// listenTCP is listen for TCP.
func (d *daemon) listenTCP(ctx context.Context) (ln net.Listener, err error) {
	var config net.ListenConfig
	err = d.awaitPort(ctx, "TCP", func() error {
		ln, err = config.Listen(ctx, "tcp", d.spec.Listen)
		return err
	})
	return ln, err
}

// awaitPort opens a port as soon as no other process has it. It returns nil too
// when ctx ends before.
func (d *daemon) awaitPort(ctx context.Context, network string, open func() error) error {
	tick := time.NewTicker(portLook)
	defer tick.Stop()
	for waited := false; ; waited = true {
		err := open()
		switch {
		case err == nil, ctx.Err() != nil:
			return nil
		case !errors.Is(err, unix.EADDRINUSE):
			return fmt.Errorf("listen for nodes on %s %s: %w", network, d.spec.Listen, err)
		case !waited:
			d.logger.Info("waiting for the port, which another process has", "network", network, "address", d.spec.Listen)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// TakeSocket listens on a path from one moment to the next: whoever connects
// meets the old listener or the new one. Only this user may connect.
func TakeSocket(ctx context.Context, path string) (net.Listener, error) {
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// Under another name first: with the mode, and never half there.
	var config net.ListenConfig
	ln, err := config.Listen(ctx, "unix", temp)
	if err != nil {
		return nil, err
	}
	// The name may be another's by the time that this one is closed.
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	err = os.Chmod(temp, 0o600)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, errors.Join(err, ln.Close(), os.Remove(temp))
	}
	return ln, nil
}
