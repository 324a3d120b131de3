package hub

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
)

// Caller is the common name of a node-local client certificate: who on the node
// is asking.
type Caller string

// The callers the hub knows. A certificate of the node-local CA with any other
// common name is refused.
const (
	CallerKubelet   Caller = "edge:local:kubelet"
	CallerKubeProxy Caller = "edge:local:kube-proxy"
	CallerCoreDNS   Caller = "edge:local:coredns"
	// CallerNode is the node daemon itself.
	CallerNode Caller = "edge:local:node"
	// CallerAdmin is an operator on the node.
	CallerAdmin Caller = "edge:local:admin"
)

// authenticate says who sent the request. The TLS handshake has proved that the
// caller holds the certificate's key, but has not judged the certificate.
func (h *Hub) authenticate(r *http.Request) (Caller, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return "", errors.New("no client certificate")
	}
	leaf := r.TLS.PeerCertificates[0]
	intermediates := x509.NewCertPool()
	for _, c := range r.TLS.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         h.config.LocalCA,
		Intermediates: intermediates,
		CurrentTime:   h.clock.Now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return "", fmt.Errorf("client certificate %q: %w", leaf.Subject.CommonName, err)
	}
	switch caller := Caller(leaf.Subject.CommonName); caller {
	case CallerKubelet, CallerKubeProxy, CallerCoreDNS, CallerNode, CallerAdmin:
		return caller, nil
	}
	return "", fmt.Errorf("client certificate %q names no component of this node", leaf.Subject.CommonName)
}
