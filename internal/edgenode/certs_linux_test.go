//go:build linux

package edgenode

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes/fake"

	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// renewal is a node that has joined, and a gateway on loopback.
type renewal struct {
	t     *testing.T
	node  *node
	ca    *pki.Authority
	id    *identity
	asked int
	// refuse is the gateway's answer in place of certificates.
	refuse *enroll.RemoteError
	// onAsk, if set, is told of each request.
	onAsk func(n int)
}

func newRenewal(t *testing.T) *renewal {
	t.Helper()
	store, err := pki.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &renewal{t: t}
	if r.ca, err = store.Authority("ca", "test-ca"); err != nil {
		t.Fatal(err)
	}
	_, _, _, err = store.Ensure(r.ca, pki.Request{Name: "gateway", CommonName: tunnel.ServerName, Server: true, DNSNames: []string{tunnel.ServerName}})
	if err != nil {
		t.Fatal(err)
	}
	serving, err := pki.LoadTLS(store.CertFile("gateway"), store.KeyFile("gateway"))
	if err != nil {
		t.Fatal(err)
	}
	var listen net.ListenConfig
	packets, err := listen.ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gw, err := gateway.New(gateway.Config{
		Certificate:   func() (*tls.Certificate, error) { return &serving, nil },
		ClientCAs:     r.ca.Pool(),
		Authorize:     func(string, *x509.Certificate) error { return nil },
		DialAPIServer: func(context.Context) (net.Conn, error) { return nil, errors.New("no apiserver here") },
		Routes:        noRoutes{}, Renewer: r, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	beyond := context.WithoutCancel(t.Context()) // cleanups run after the test's context
	served := make(chan error, 1)
	go func() { served <- gw.ServePacket(beyond, packets) }()
	t.Cleanup(func() {
		if err := errors.Join(gw.Close(beyond), <-served); err != nil {
			t.Error(err)
		}
	})

	dir := t.TempDir()
	spec := testSpec()
	spec.Gateways = []string{packets.LocalAddr().String()}
	if err := os.MkdirAll(filepath.Join(dir, pkiDir), 0o700); err != nil {
		t.Fatal(err)
	}
	r.node = &node{dir: dir, spec: spec, log: slog.New(slog.DiscardHandler), now: time.Now}
	r.node.transport = loadTransport(filepath.Join(dir, transportFile), r.node.log)
	key, err := loadOrMakeKey(r.node.pki(deviceKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	r.id = &identity{ca: r.ca.Pool(), key: key}
	issued := time.Now()
	for file, csr := range map[string]func(string) string{nodeCertFile: r.nodeCert(issued), hubCertFile: r.hubCert(issued)} {
		if err := r.node.keepCertificate(key, file, csr(spec.Name)); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r *renewal) nodeCert(issued time.Time) func(string) string {
	return func(name string) string {
		return r.sign("system:node:"+name, enroll.NodesGroup, &r.id.key.PublicKey, issued)
	}
}

func (r *renewal) hubCert(issued time.Time) func(string) string {
	return func(name string) string { return r.sign("edge:hub:"+name, "edge:hubs", &r.id.key.PublicKey, issued) }
}

// sign makes a certificate of an hour.
func (r *renewal) sign(commonName, organization string, key *ecdsa.PublicKey, issued time.Time) string {
	r.t.Helper()
	cert, err := r.ca.Sign(pki.Request{Name: "x", CommonName: commonName, Organizations: []string{organization}, Client: true, Lifetime: time.Hour}, key, issued)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(pki.EncodeCertificatesPEM(cert))
}

// Renew implements enroll.Renewer.
func (r *renewal) Renew(_ context.Context, name string, _ *x509.Certificate, req enroll.RenewRequest, _ netip.AddrPort) enroll.Response {
	r.asked++
	if r.onAsk != nil {
		r.onAsk(r.asked)
	}
	if r.refuse != nil {
		return enroll.Response{Error: r.refuse}
	}
	for _, csr := range []string{req.NodeCSR, req.HubCSR} {
		parsed, err := enroll.ParseCSR([]byte(csr))
		if err != nil || !r.id.key.PublicKey.Equal(parsed.PublicKey) {
			r.t.Errorf("request: %v", err)
		}
	}
	now := time.Now()
	return enroll.Response{NodeCertificate: r.nodeCert(now)(name), HubCertificate: r.hubCert(now)(name)}
}

func (r *renewal) ends(file string) time.Time {
	r.t.Helper()
	data, err := os.ReadFile(r.node.pki(file))
	if err != nil {
		r.t.Fatal(err)
	}
	certs, err := pki.ParseCertificatesPEM(data)
	if err != nil {
		r.t.Fatal(err)
	}
	return certs[0].NotAfter
}

type noRoutes struct{}

func (noRoutes) PodOwner(netip.Addr) (string, error) { return "", gateway.ErrNoRoute }
func (noRoutes) HasNode(string) bool                 { return false }

func TestEndedCertificateIsRenewed(t *testing.T) {
	r := newRenewal(t)
	poked := 0
	r.node.renewed = func() { poked++ }
	want := r.node.clusterCertificates(r.id, r.id.key)
	if err := r.node.renewEnded(t.Context(), want); err != nil || r.asked != 0 {
		t.Fatalf("asked %d times before the end: %v", r.asked, err)
	}
	before := r.ends(nodeCertFile)
	r.node.now = func() time.Time { return before.Add(time.Minute) }
	if err := r.node.renewEnded(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{nodeCertFile, hubCertFile} {
		if end := r.ends(file); end.Before(before) {
			t.Errorf("%s ends %s", file, end)
		}
	}
	if r.asked != 1 || poked != 1 {
		t.Errorf("asked %d times, the agent was told %d times", r.asked, poked)
	}
}

func TestRefusedRenewalKeepsWhatThereIs(t *testing.T) {
	r := newRenewal(t)
	r.refuse = &enroll.RemoteError{Code: enroll.CodeRevoked, Message: "revoked"}
	before := r.ends(nodeCertFile)
	r.node.now = func() time.Time { return before.Add(time.Minute) }
	err := r.node.renewEnded(t.Context(), r.node.clusterCertificates(r.id, r.id.key))
	var refused *enroll.RemoteError
	if !errors.As(err, &refused) || refused.Code != enroll.CodeRevoked {
		t.Errorf("error: %v", err)
	}
	if !r.ends(nodeCertFile).Equal(before) {
		t.Error("the certificate was replaced")
	}
}

// TestNothingIsAskedWithAnEndedCertificate: what cannot be answered before the
// node's certificate is renewed keeps nobody waiting.
func TestNothingIsAskedWithAnEndedCertificate(t *testing.T) {
	r := newRenewal(t)
	r.refuse = &enroll.RemoteError{Code: enroll.CodeInternal, Message: "not now"}
	end := r.ends(nodeCertFile)
	r.node.now = func() time.Time { return end.Add(time.Minute) }
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r.onAsk = func(n int) {
		if n == 2 {
			cancel()
		}
	}
	client, first := fake.NewClientset(), make(chan struct{})
	if err := r.node.keepCertificates(ctx, client, r.node.clusterCertificates(r.id, r.id.key), first); err != nil {
		t.Fatal(err)
	}
	if asked := client.Actions(); len(asked) != 0 {
		t.Errorf("asked the API %v", asked)
	}
	select {
	case <-first:
		t.Error("the node counts as certified")
	default:
	}
}
