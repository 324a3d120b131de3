package enroll

import (
	"context"
	"fmt"
	"net/netip"
)

// ALPN is the TLS application protocol of a join connection: no client
// certificate, one bidirectional stream, one Request and one Response.
const ALPN = "edge-join/1"

// MaxMessage bounds a Request or Response on the wire, in bytes of JSON. Two
// certificates and a CA certificate are under 8 KiB; the rest is room.
const MaxMessage = 64 << 10

// Request is what a device sends to join. It is JSON on the wire.
type Request struct {
	// Token is the whole join token; see ParseToken.
	Token string `json:"token"`
	// Name the device wants as node name: a DNS-1123 label.
	Name string `json:"name"`
	// NodeCSR is a PEM certificate request for CN system:node:<name>,
	// O system:nodes.
	NodeCSR string `json:"nodeCSR"`
	// HubCSR is a PEM certificate request for CN edge:hub:<name>, O edge:hubs,
	// of the same key.
	HubCSR string `json:"hubCSR"`
	// EngineVersion and Architecture (a GOARCH) as the device reports them.
	EngineVersion string `json:"engineVersion,omitempty"`
	Architecture  string `json:"architecture,omitempty"`
}

// Response answers a Request or a RenewRequest: either Error is set, or everything else is.
type Response struct {
	// NodeCertificate and HubCertificate are PEM chains for the two requests.
	NodeCertificate string `json:"nodeCertificate,omitempty"`
	HubCertificate  string `json:"hubCertificate,omitempty"`

	ClusterID   string `json:"clusterID,omitempty"`
	ClusterName string `json:"clusterName,omitempty"`
	// CACertificate is the cluster's CA as PEM. The device checks it against
	// the pin in its token before it believes anything else here.
	CACertificate     string `json:"caCertificate,omitempty"`
	KubernetesVersion string `json:"kubernetesVersion,omitempty"`
	DNSDomain         string `json:"dnsDomain,omitempty"`
	// PodCIDRs and ServiceCIDRs of the cluster, one per address family.
	PodCIDRs     []string `json:"podCIDRs,omitempty"`
	ServiceCIDRs []string `json:"serviceCIDRs,omitempty"`
	// KubernetesServiceIP is the ClusterIP of default/kubernetes.
	KubernetesServiceIP string `json:"kubernetesServiceIP,omitempty"`
	// Pool the node belongs to, from the token.
	Pool string `json:"pool,omitempty"`

	Error *RemoteError `json:"error,omitempty"`
}

// Code is why an enrolment was refused.
type Code string

// The codes of a RemoteError. Only CodeInternal is worth trying again with the
// same token.
const (
	CodeTokenInvalid Code = "token-invalid"
	CodeTokenExpired Code = "token-expired"
	CodeTokenUsed    Code = "token-used"
	CodeNameConflict Code = "name-conflict"
	CodePoolUnknown  Code = "pool-unknown"
	CodeInternal     Code = "internal"
	// CodeRevoked is a renewal with a key that does not hold the name any more.
	CodeRevoked Code = "revoked"
	// CodeTooLate is a renewal with a certificate that ended too long ago.
	CodeTooLate Code = "too-late"
	// CodeRequestInvalid is a name or certificate request that can never be
	// right, whatever the token.
	CodeRequestInvalid Code = "request-invalid"
)

// RemoteError is a refusal as the device sees it. Its message never holds the
// token or anything else the device did not know already or may not know.
type RemoteError struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

// Error implements error.
func (e *RemoteError) Error() string { return fmt.Sprintf("%s (%s)", e.Message, e.Code) }

// Retryable says whether the same request may succeed later.
func (e *RemoteError) Retryable() bool { return e.Code == CodeInternal }

// Enroller is the cloud side of a join, served by the gateway. remote is the
// address the request came from, for the log. The answer is always meaningful:
// a failure is in Response.Error.
type Enroller interface {
	Enroll(ctx context.Context, req Request, remote netip.AddrPort) Response
}
