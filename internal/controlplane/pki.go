//go:build linux

package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

// Names of the certificates with which this process itself speaks to the API.
const (
	adminUser       = "super-admin" // installs the cluster's own objects, nothing else
	gatewayUser     = "gateway-client"
	controllersUser = "controllers"
)

// credentials are the cluster's certificates as files, and what this process
// needs of them in memory.
type credentials struct {
	store             *pki.Store
	layout            Layout
	requests          []declared
	ca                *pki.Authority
	roots             *x509.CertPool  // cluster CA and etcd CA: what the probes meet
	etcdClient, admin tls.Certificate // what the readiness probes present
}

// declared is one certificate and the authority that signs it.
type declared struct {
	ca      *pki.Authority
	request pki.Request
}

// ensurePKI makes what is missing or due. Everything is P-256: a key takes
// microseconds, where an RSA one would hold up the start.
func ensurePKI(s *Spec, l Layout) (*credentials, error) {
	store, err := pki.Open(l.Join("pki"), nil)
	if err != nil {
		return nil, err
	}
	c := &credentials{store: store, layout: l}
	var etcdCA, frontProxy *pki.Authority
	for _, a := range []struct {
		into       **pki.Authority
		name, text string
	}{
		{&c.ca, "ca", "edge cluster " + s.Name + "-" + s.UID},
		{&etcdCA, "etcd-ca", "edge etcd " + s.Name + "-" + s.UID},
		{&frontProxy, "front-proxy-ca", "edge front proxy " + s.Name + "-" + s.UID},
	} {
		if *a.into, err = store.Authority(a.name, a.text); err != nil {
			return nil, err
		}
	}
	if _, _, err := store.ServiceAccountKey("sa"); err != nil {
		return nil, err
	}
	serviceIP, err := s.ServiceIP()
	if err != nil {
		return nil, err
	}
	c.requests = declare(s, c.ca, etcdCA, frontProxy, net.IP(serviceIP.AsSlice()))
	if err := c.ensure(); err != nil {
		return nil, err
	}
	c.roots = c.ca.Pool()
	c.roots.AddCert(etcdCA.Certificate)
	if c.etcdClient, err = c.load("apiserver-etcd-client"); err != nil {
		return nil, err
	}
	if c.admin, err = c.load(adminUser); err != nil {
		return nil, err
	}
	for file, name := range map[string]string{
		"kube-controller-manager.kubeconfig": "controller-manager",
		"kube-scheduler.kubeconfig":          "scheduler",
	} {
		if err := os.MkdirAll(l.Join("conf"), 0o700); err != nil {
			return nil, fmt.Errorf("make the configuration directory: %w", err)
		}
		_, err := pki.WriteKubeconfig(l.Conf(file), pki.KubeconfigOptions{
			Server: s.Endpoint(), CAPEM: c.ca.PEM(), CertFile: store.CertFile(name), KeyFile: store.KeyFile(name),
		})
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

// declare lists the cluster's certificates. Rights hang on the common names;
// only super-admin, which exists to install RBAC itself, has a built-in group.
func declare(s *Spec, ca, etcdCA, frontProxy *pki.Authority, serviceIP net.IP) []declared {
	loopback := []net.IP{net.IPv4(127, 0, 0, 1)}
	local := []string{"localhost"}
	client := func(name, cn string, orgs ...string) declared {
		return declared{ca, pki.Request{Name: name, CommonName: cn, Organizations: orgs, Client: true}}
	}
	return []declared{
		{etcdCA, pki.Request{Name: "etcd-server", CommonName: "etcd-server", Server: true, Client: true, DNSNames: local, IPs: loopback}},
		{etcdCA, pki.Request{Name: "etcd-peer", CommonName: "etcd-peer", Server: true, Client: true, DNSNames: local, IPs: loopback}},
		{etcdCA, pki.Request{Name: "apiserver-etcd-client", CommonName: "kube-apiserver", Client: true}},
		{frontProxy, pki.Request{Name: "front-proxy-client", CommonName: "front-proxy-client", Client: true}},
		{ca, pki.Request{Name: "apiserver", CommonName: "kube-apiserver", Server: true,
			DNSNames: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + s.DNSDomain},
			IPs:      append([]net.IP{serviceIP}, loopback...)}},
		{ca, pki.Request{Name: "controller-manager-server", CommonName: "kube-controller-manager", Server: true, DNSNames: local, IPs: loopback}},
		{ca, pki.Request{Name: "scheduler-server", CommonName: "kube-scheduler", Server: true, DNSNames: local, IPs: loopback}},
		{ca, memberRequest("gateway", MainGateway)},
		client("apiserver-kubelet-client", "kube-apiserver-kubelet-client"),
		client("controller-manager", "system:kube-controller-manager"),
		client("scheduler", "system:kube-scheduler"),
		client(gatewayUser, v1alpha1.GatewayUser),
		client(controllersUser, v1alpha1.ControllersUser),
		client(adminUser, "edge:super-admin", "system:masters"),
	}
}

func (c *credentials) ensure() error {
	var g errgroup.Group
	for _, d := range c.requests {
		g.Go(func() error {
			_, _, _, err := c.store.Ensure(d.ca, d.request)
			return err
		})
	}
	return g.Wait()
}

// renew re-issues what becomes due while the daemon runs. apiserver,
// controller-manager, scheduler, etcd and client-go read renewed files by
// themselves.
func (c *credentials) renew(ctx context.Context, logger *slog.Logger) error {
	const retry = time.Minute
	for {
		at, ok := c.store.NextRenewal()
		wait := time.Until(at)
		if !ok {
			wait = 24 * time.Hour
		}
		if wait < retry {
			wait = retry
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if err := c.ensure(); err != nil {
			logger.Error("certificates were not renewed and will be tried again", "error", err)
		}
	}
}

func (c *credentials) load(name string) (tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(c.store.CertFile(name), c.store.KeyFile(name))
	if err != nil {
		return cert, fmt.Errorf("load certificate %s: %w", name, err)
	}
	return cert, nil
}

// gatewayCertificate is the gateway's chain up to the CA: a device that joins
// knows nothing but the pin of the CA's key.
func (c *credentials) gatewayCertificate() (*tls.Certificate, error) {
	cert, err := c.load("gateway")
	if err != nil {
		return nil, err
	}
	cert.Certificate = append(cert.Certificate, c.ca.Certificate.Raw)
	return &cert, nil
}

// config is a client of the apiserver with one of the cluster's certificates.
func (c *credentials) config(s *Spec, user string) *rest.Config {
	return &rest.Config{
		Host:      s.Endpoint(),
		UserAgent: "edge/" + user,
		QPS:       200, // beside the apiserver, on loopback
		Burst:     400,
		TLSClientConfig: rest.TLSClientConfig{
			CAData:   c.ca.PEM(),
			CertFile: c.store.CertFile(user),
			KeyFile:  c.store.KeyFile(user),
		},
	}
}

func newEnroller(s *Spec, c *credentials, logger *slog.Logger) (*enroll.Service, error) {
	cluster, err := clusterOf(s, c.ca)
	if err != nil {
		return nil, err
	}
	return enroll.NewService(enroll.ServiceConfig{RESTConfig: c.config(s, gatewayUser), Cluster: *cluster, Logger: logger})
}
