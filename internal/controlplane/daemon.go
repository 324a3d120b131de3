//go:build linux

package controlplane

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/edgewright/terraform-provider-edge/internal/controllers"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/gateway/members"
	"github.com/edgewright/terraform-provider-edge/internal/gateway/process"
	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

// Run is the daemon of a cluster directory. It returns when ctx ends, leaving
// its children running: another daemon adopts them, `down` stops them. Any other
// end is an error, after which its parent starts it again.
func Run(ctx context.Context, dir string, logger *slog.Logger) error {
	d := &daemon{layout: Layout{dir}, logger: logger, began: time.Now()}
	if err := os.Chdir(dir); err != nil {
		return fmt.Errorf("enter the cluster directory: %w", err)
	}
	lock, err := supervise.AcquireDaemon(d.layout.Run())
	if err != nil {
		return fmt.Errorf("become the daemon of %s: %w", dir, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	go func() {
		if err := supervise.WatchParent(watch, logger, nil); err != nil {
			logger.Error("the parent is not watched any more", "error", err)
		}
	}()
	if err := d.run(ctx); err != nil && ctx.Err() == nil {
		d.fail(err)
		return err
	}
	stopWatching()
	return lock.Release()
}

type daemon struct {
	layout Layout
	spec   *Spec
	logger *slog.Logger
	began  time.Time

	mu     sync.Mutex // guards status
	status Status
}

func (d *daemon) run(ctx context.Context) error {
	spec, err := LoadSpec(d.layout.Dir)
	if err != nil {
		return err
	}
	d.spec = spec
	if d.status.SpecDigest, err = spec.digest(); err != nil {
		return err
	}
	d.status.PID = os.Getpid()
	if d.status.Program, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program: %w", err)
	}

	d.enter("pki")
	creds, err := ensurePKI(spec, d.layout)
	if err != nil {
		return err
	}
	if err := writeConf(d.layout); err != nil {
		return err
	}
	specs, err := children(spec, d.layout, creds)
	if err != nil {
		return err
	}
	sup, err := supervise.New(supervise.Options{RunDir: d.layout.Run(), LogDir: d.layout.Logs(), Logger: d.logger})
	if err != nil {
		return err
	}

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return sup.Run(ctx, specs) })
	g.Go(func() error { return creds.renew(ctx, d.logger) })

	gw, known, sessions, err := d.gateway(ctx, g, creds)
	if err != nil {
		return err
	}
	g.Go(func() error { return d.bringUp(ctx, g, sup, creds, gw, known, sessions) })
	return g.Wait()
}

// gateway starts its listeners. The egress socket must exist before the
// apiserver wants to dial; sessions are admitted once the members have synced.
func (d *daemon) gateway(ctx context.Context, g *errgroup.Group, creds *credentials) (*gateway.Gateway, *members.Members, *sessions, error) {
	known := members.New()
	sessions, err := newSessions(creds.config(d.spec, gatewayUser), d.logger)
	if err != nil {
		return nil, nil, nil, err
	}
	enroller, err := newEnroller(d.spec, creds, d.logger)
	if err != nil {
		return nil, nil, nil, err
	}
	ranges, err := d.spec.Ranges()
	if err != nil {
		return nil, nil, nil, err
	}
	var dialer net.Dialer
	gw, err := gateway.New(gateway.Config{
		ID:          MainGateway,
		CA:          creds.ca.Certificate,
		Certificate: creds.gatewayCertificate,
		ClientCAs:   creds.ca.Pool(), // not the etcd CA, which roots has for the probes
		Authorize:   known.Authorize,
		DialAPIServer: func(ctx context.Context) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", loopbackPort(d.spec.Ports.API))
		},
		Policy:    known.Policy,
		Enroller:  enroller,
		Renewer:   enroller,
		Routes:    known,
		Service:   known.Service,
		DialLocal: members.Outside(ranges),
		OnSession: sessions.set,
		// Of nodes that hold their session here; another gateway hears its own.
		OnHeartbeat: sessions.heartbeat,
		Logger:      d.logger,
	})
	if err != nil {
		return nil, nil, nil, err
	}
	known.Revoked = func(node, reason string) { gw.Kick(node, reason) }
	known.PolicyChanged = gw.PolicyChanged
	known.GatewaysChanged = func(doc []byte) {
		if err := gw.SetGateways(doc); err != nil {
			d.logger.Error("the list of gateways is not used", "error", err)
		}
	}
	egress, err := process.TakeSocket(ctx, EgressSocket)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("listen for the apiserver's egress: %w", err)
	}
	var listen net.ListenConfig
	packets, err := listen.ListenPacket(ctx, "udp", fmt.Sprintf(":%d", d.spec.Ports.Gateway))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("listen for nodes on UDP port %d: %w", d.spec.Ports.Gateway, err)
	}
	admin, err := process.TakeSocket(ctx, AdminSocket)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("listen for operators: %w", err)
	}
	g.Go(func() error { return gw.ServeAdmin(ctx, admin) })
	conns, err := listen.Listen(ctx, "tcp", fmt.Sprintf(":%d", d.spec.Ports.Gateway))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("listen for nodes on TCP port %d: %w", d.spec.Ports.Gateway, err)
	}
	g.Go(func() error { return gw.ServeEgress(ctx, egress) })
	g.Go(func() error { return gw.ServeTCP(ctx, conns) })
	g.Go(func() error { return gw.ServePacket(ctx, packets) })
	g.Go(func() error { // nothing of the gateway may outlive its daemon
		<-ctx.Done()
		closing, cancel := context.WithTimeout(context.Background(), gatewayDrain)
		defer cancel()
		return gw.Close(closing)
	})
	return gw, known, sessions, nil
}

// gatewayDrain is how long a daemon that ends waits for streams to end: an
// operator's own stop is what it is, and nodes reconnect to the next daemon.
const gatewayDrain = 500 * time.Millisecond

// bringUp follows the start to its end and says where it is.
func (d *daemon) bringUp(ctx context.Context, g *errgroup.Group, sup *supervise.Supervisor, creds *credentials, gw *gateway.Gateway, known *members.Members, sessions *sessions) error {
	d.enter(etcd)
	if err := sup.WaitReady(ctx, etcd); err != nil {
		return err
	}
	d.enter(apiserver)
	// The manifests go in as soon as the apiserver answers at all, beside its
	// own bootstrap: Install retries until it is served. What runs under RBAC
	// waits for both: upstream's discovery roles are part of the bootstrap, and
	// a watch that is refused once is tried again only after a second.
	installed := make(chan error, 1)
	go func() { installed <- controllers.Install(ctx, creds.config(d.spec, adminUser), d.logger) }()
	if err := sup.WaitReady(ctx, apiserver); err != nil {
		return err
	}
	d.enter("manifests")
	if err := <-installed; err != nil {
		return fmt.Errorf("install the cluster's own objects: %w", err)
	}
	d.enter("controllers and gateway")
	g.Go(func() error { return sessions.leases.Run(ctx) })
	g.Go(func() error { return known.Run(ctx, creds.config(d.spec, gatewayUser)) })
	g.Go(func() error {
		return controllers.Run(ctx, controllers.Config{
			RESTConfig: creds.config(d.spec, controllersUser),
			Sessions:   sessions,
			Reports:    sessions.reports,
			Kick:       func(node, reason string) { gw.Kick(node, reason) },
			Authority:  creds.ca,
			Logger:     d.logger,
		})
	})
	select {
	case <-known.Synced():
	case <-ctx.Done():
		return ctx.Err()
	}
	d.enter("kube-controller-manager and kube-scheduler")
	if err := sup.WaitReady(ctx, controllerManager, scheduler); err != nil {
		return err
	}
	d.enter(PhaseReady)
	return nil
}

// enter records that everything before phase is complete.
func (d *daemon) enter(phase string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.status.Phase != "" {
		d.status.Phases = append(d.status.Phases, PhaseTime{d.status.Phase, time.Since(d.began)})
	}
	d.status.Phase, d.status.Error, d.status.Since = phase, "", time.Now().UTC()
	d.write()
	d.logger.Info("phase", "phase", phase, "elapsed", time.Since(d.began))
}

func (d *daemon) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status.Error = err.Error()
	d.write()
	d.logger.Error("the control plane does not run", "phase", d.status.Phase, "error", err)
}

// write is called with mu held. A status that cannot be written is logged: the
// control plane itself can go on without it.
func (d *daemon) write() {
	raw, err := json.Marshal(d.status)
	if err == nil {
		err = writeFile(d.layout.Join(StatusFile), raw)
	}
	if err != nil {
		d.logger.Error("status not written", "error", err)
	}
}

func (s *Spec) digest() (string, error) {
	raw, err := json.Marshal(s)
	if err != nil {
		return "", fmt.Errorf("digest of the spec: %w", err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:16]), nil
}

var _ gateway.Enroller = (*enroll.Service)(nil)
