//go:build linux

package edgenode

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

// Files of a node's identity, in pki/.
const (
	deviceKeyFile = "device.key"
	nodeCertFile  = "node.crt" // system:node:<name>
	hubCertFile   = "hub.crt"  // edge:hub:<name>, of the same key
	clusterCAFile = "cluster-ca.crt"
	// localDir is the store of the node-local authority.
	localDir = "local"
	// servingName is the kubelet's serving certificate and key.
	servingName = "kubelet-serving"
)

// joined is what the cluster told the node when it joined.
type joined struct {
	ClusterID           string   `json:"clusterID"`
	ClusterName         string   `json:"clusterName"`
	KubernetesVersion   string   `json:"kubernetesVersion"`
	DNSDomain           string   `json:"dnsDomain"`
	PodCIDRs            []string `json:"podCIDRs"`
	ServiceCIDRs        []string `json:"serviceCIDRs"`
	KubernetesServiceIP string   `json:"kubernetesServiceIP"`
	Pool                string   `json:"pool"`
}

// identity is a node that has joined.
type identity struct {
	joined
	ca        *x509.CertPool
	authority *x509.Certificate // the one that the join token pinned
	key       *ecdsa.PrivateKey
}

// joinPoll is how often a node without a token looks whether it got one.
const joinPoll = 200 * time.Millisecond

// joinRetry is the wait after a join that failed for want of a connection.
const joinRetry = time.Second

// join returns the node's identity: the one it has, or else the one it gets for
// its token. A token that is refused is dropped; the next one is waited for.
func (n *node) join(ctx context.Context) (*identity, error) {
	for {
		id, err := n.loadIdentity()
		if err == nil {
			return id, removeFile(tokenPath(n.dir))
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err := n.tryJoin(ctx); err != nil {
			return nil, err
		}
	}
}

// tryJoin sends one request. An error is one that a later try cannot cure.
func (n *node) tryJoin(ctx context.Context) error {
	attempt := tokenAttempt(n.dir)
	text, err := os.ReadFile(tokenPath(n.dir))
	if errors.Is(err, fs.ErrNotExist) {
		n.status.update(func(s *Status) {
			if s.Phase != PhaseFailed { // a refusal stays to be read until a new token comes
				s.Phase, s.Message = PhaseJoining, "waiting for a join token"
			}
		})
		return n.wait(ctx, joinPoll)
	}
	if err != nil {
		return fmt.Errorf("read the join token: %w", err)
	}
	n.status.update(func(s *Status) {
		s.Phase, s.Message = PhaseJoining, "joining the cluster through its gateway"
		s.Error, s.Next, s.Attempt = "", "", 0
	})
	err = n.enroll(ctx, string(text))
	var refused *enroll.RemoteError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &refused) && !refused.Retryable(),
		errors.Is(err, agent.ErrPin), errors.Is(err, enroll.ErrMalformedToken), errors.Is(err, enroll.ErrMistypedToken):
		n.log.Error("the join was refused", "error", err)
		n.status.update(func(s *Status) {
			s.Phase, s.Message = PhaseFailed, "the join was refused"
			s.Error, s.Attempt = err.Error(), attempt
			s.Next = joinAdvice(n.spec, refused)
		})
		if tokenAttempt(n.dir) != attempt {
			return nil // a new one came meanwhile
		}
		return removeFile(tokenPath(n.dir))
	default:
		n.log.Warn("the join failed, trying again", "error", err, "retry_in", joinRetry)
		n.status.update(func(s *Status) { s.Message = "trying again to join: " + err.Error() })
		return n.wait(ctx, joinRetry)
	}
}

// joinAdvice is what a person types after a refusal.
func joinAdvice(s *Spec, refused *enroll.RemoteError) string {
	const mint = "Apply the node's configuration again (`terraform apply`): every apply brings a new token."
	if refused == nil {
		return "The token belongs to another cluster or was cut short. " + mint
	}
	switch refused.Code {
	case enroll.CodeNameConflict:
		return fmt.Sprintf("Choose another name, or remove the node %s that holds this one first.", s.Name)
	case enroll.CodePoolUnknown:
		return fmt.Sprintf("Create the pool %s first. ", s.Pool) + mint
	default:
		return mint
	}
}

// enroll presents the token and keeps what comes back.
func (n *node) enroll(ctx context.Context, text string) error {
	token, err := enroll.ParseToken(text)
	if err != nil {
		return err
	}
	key, err := loadOrMakeKey(filepath.Join(n.dir, pkiDir, deviceKeyFile))
	if err != nil {
		return err
	}
	req := enroll.Request{Token: token.Reveal(), Name: n.spec.Name, EngineVersion: n.version, Architecture: runtime.GOARCH}
	if req.NodeCSR, err = enroll.NodeCSR(n.spec.Name, key); err != nil {
		return err
	}
	if req.HubCSR, err = enroll.HubCSR(n.spec.Name, key); err != nil {
		return err
	}
	resp, err := agent.Enroll(ctx, agent.EnrollConfig{
		Gateways: n.spec.Gateways, CAPin: token.Pin(), Proxy: n.proxy,
	}, req)
	if err != nil {
		return err
	}
	return n.keep(key, &resp)
}

// keep checks an answer and writes it down, joinedFile last.
func (n *node) keep(key *ecdsa.PrivateKey, resp *enroll.Response) error {
	for _, c := range []struct{ file, text string }{
		{nodeCertFile, resp.NodeCertificate}, {hubCertFile, resp.HubCertificate},
	} {
		if err := n.keepCertificate(key, c.file, c.text); err != nil {
			return fmt.Errorf("certificate of the answer: %w", err)
		}
	}
	ca, err := pki.ParseCertificatesPEM([]byte(resp.CACertificate))
	if err != nil {
		return fmt.Errorf("CA of the answer: %w", err)
	}
	if err := pki.WriteCertificates(n.pki(clusterCAFile), ca...); err != nil {
		return err
	}
	j := joined{
		ClusterID: resp.ClusterID, ClusterName: resp.ClusterName, KubernetesVersion: resp.KubernetesVersion,
		DNSDomain: resp.DNSDomain, PodCIDRs: resp.PodCIDRs, ServiceCIDRs: resp.ServiceCIDRs,
		KubernetesServiceIP: resp.KubernetesServiceIP, Pool: resp.Pool,
	}
	if j.DNSDomain == "" {
		j.DNSDomain = defaultDNSDomain
	}
	if _, err := j.prefixes(j.PodCIDRs); err != nil {
		return fmt.Errorf("pod ranges of the answer: %w", err)
	}
	if _, err := j.prefixes(j.ServiceCIDRs); err != nil {
		return fmt.Errorf("service ranges of the answer: %w", err)
	}
	if j.Pool != n.spec.Pool {
		return &enroll.RemoteError{Code: enroll.CodeNameConflict, Message: fmt.Sprintf("the token is for pool %q, and this node is for pool %q", j.Pool, n.spec.Pool)}
	}
	return writeJSON(n.pki(joinedFile), j)
}

// keepCertificate writes a certificate down if it is one of the key.
func (n *node) keepCertificate(key *ecdsa.PrivateKey, file, text string) error {
	certs, err := pki.ParseCertificatesPEM([]byte(text))
	if err != nil {
		return err
	}
	if _, err := pki.TLSCertificate(key, certs...); err != nil {
		return err
	}
	return pki.WriteCertificates(n.pki(file), certs...)
}

// loadIdentity reads what keep wrote; fs.ErrNotExist: the node has not joined.
func (n *node) loadIdentity() (*identity, error) {
	data, err := os.ReadFile(n.pki(joinedFile))
	if err != nil {
		return nil, err
	}
	id := &identity{}
	if err := json.Unmarshal(data, &id.joined); err != nil {
		return nil, fmt.Errorf("%s: %w", n.pki(joinedFile), err)
	}
	keyPEM, err := os.ReadFile(n.pki(deviceKeyFile))
	if err != nil {
		return nil, fmt.Errorf("the node's key is lost, remove the node and join it again: %s", err) //nolint:errorlint // fs.ErrNotExist would say that it never joined
	}
	if id.key, err = pki.ParseKeyPEM(keyPEM); err != nil {
		return nil, fmt.Errorf("%s: %w", n.pki(deviceKeyFile), err)
	}
	caPEM, err := os.ReadFile(n.pki(clusterCAFile))
	if err != nil {
		return nil, fmt.Errorf("the cluster's CA is lost, remove the node and join it again: %s", err) //nolint:errorlint // as above
	}
	certs, err := pki.ParseCertificatesPEM(caPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.pki(clusterCAFile), err)
	}
	id.authority = certs[0]
	id.ca = x509.NewCertPool()
	for _, c := range certs {
		id.ca.AddCert(c)
	}
	return id, nil
}

func loadOrMakeKey(path string) (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if err == nil {
		return pki.ParseKeyPEM(data)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := pki.GenerateKey()
	if err != nil {
		return nil, err
	}
	return key, pki.WriteKey(path, key)
}

// certificate returns a function that gives the certificate in a file with the
// device's key, read again whenever the file has changed.
func (n *node) certificate(file string) func() (*tls.Certificate, error) {
	return cachedCertificate(n.pki(file), n.pki(deviceKeyFile))
}
