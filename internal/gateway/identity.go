package gateway

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// nodesGroup is the organization of a node's certificate (Kubernetes node
// authorization, k8s.io/kubernetes/pkg/auth/nodeidentifier).
const nodesGroup = "system:nodes"

// nodeOf returns the node that a verified client certificate is for. The
// extended key usage was checked with the chain (crypto/tls asks for client
// authentication).
func nodeOf(chain []*x509.Certificate) (node string, leaf *x509.Certificate, err error) {
	if len(chain) == 0 {
		return "", nil, errors.New("no client certificate")
	}
	leaf = chain[0]
	node, ok := strings.CutPrefix(leaf.Subject.CommonName, v1alpha1.NodeUserPrefix)
	if !ok || node == "" {
		return "", nil, fmt.Errorf("client certificate of %q is not a node's", leaf.Subject.CommonName)
	}
	if !slices.Equal(leaf.Subject.Organization, []string{nodesGroup}) {
		return "", nil, fmt.Errorf("client certificate of %q has organizations %q, want only %q",
			leaf.Subject.CommonName, leaf.Subject.Organization, nodesGroup)
	}
	return node, leaf, nil
}
