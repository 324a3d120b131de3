//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/edgewright/terraform-provider-edge/internal/controllers"
	"github.com/edgewright/terraform-provider-edge/internal/controllers/apitest"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// patience bounds what takes seconds: a control plane's start, a node's lists.
const patience = 2 * time.Minute

// world is what the measurements of a run share.
type world struct {
	options
	dir string // temporary
}

func (w *world) say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// cluster is a real etcd, kube-apiserver and kube-controller-manager with this
// project's objects in it.
type cluster struct {
	dir    string
	server *apitest.Server
	kube   kubernetes.Interface // an administrator's
	store  *pki.Store
}

// startCluster starts a control plane. The caller must call stop.
func (w *world) startCluster(ctx context.Context, name string) (*cluster, error) {
	c := &cluster{dir: filepath.Join(w.dir, name)}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if c.server, err = apitest.Start(ctx, c.dir); err != nil {
		return nil, err
	}
	if err := c.install(ctx); err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

func (c *cluster) install(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	admin, err := c.server.Admin()
	if err != nil {
		return err
	}
	if err := controllers.Install(ctx, admin, slog.New(slog.DiscardHandler)); err != nil {
		return errors.Join(err, c.server.Ready(ctx))
	}
	if c.kube, err = kubernetes.NewForConfig(admin); err != nil {
		return err
	}
	c.store, err = pki.Open(filepath.Join(c.dir, "bench"), nil)
	return err
}

// makeDefaultAccount makes the service account of pods, which no controller makes here.
func (c *cluster) makeDefaultAccount(ctx context.Context) error {
	_, err := c.kube.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	return err
}

func (c *cluster) stop() error { return c.server.Stop() }

// address of the apiserver.
func (c *cluster) address() string { return strings.TrimPrefix(c.server.URL, "https://") }

// anyNode is a gateway's routes where nobody dials a node.
type anyNode struct{}

func (anyNode) PodOwner(netip.Addr) (string, error) { return "", gateway.ErrNoRoute }
func (anyNode) HasNode(string) bool                 { return true }

// gateway serves the cluster's nodes on a socket, with the leases of those whose
// kubelet lives, until stop is called.
func (c *cluster) gateway(ctx context.Context, pc net.PacketConn) (stop func() error, err error) {
	cert, key, _, err := c.store.Ensure(c.server.CA, pki.Request{
		Name: "gateway", CommonName: tunnel.ServerName, DNSNames: []string{tunnel.ServerName}, Server: true,
	})
	if err != nil {
		return nil, err
	}
	pair, err := pki.LoadTLS(cert, key)
	if err != nil {
		return nil, err
	}
	pair.Certificate = append(pair.Certificate, c.server.CA.Certificate.Raw)
	admin, err := c.server.Admin()
	if err != nil {
		return nil, err
	}
	quiet := slog.New(slog.DiscardHandler)
	leases, err := controllers.NewLeaseKeeper(controllers.LeaseKeeperConfig{RESTConfig: admin, Logger: quiet})
	if err != nil {
		return nil, err
	}
	g, err := gateway.New(gateway.Config{
		Certificate: func() (*tls.Certificate, error) { return &pair, nil },
		ClientCAs:   c.server.CA.Pool(),
		Authorize:   func(string, *x509.Certificate) error { return nil },
		DialAPIServer: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", c.address())
		},
		Routes: anyNode{}, OnHeartbeat: leases.Beat, Logger: quiet,
	})
	if err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	serving, running := errgroup.WithContext(running)
	serving.Go(func() error { return leases.Run(running) })
	serving.Go(func() error { return g.ServePacket(running, pc) })
	return func() error {
		closing, done := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer done()
		err := g.Close(closing)
		cancel()
		return errors.Join(err, serving.Wait())
	}, nil
}
