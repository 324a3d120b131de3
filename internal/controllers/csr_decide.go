package controllers

import (
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
)

// Verdict is what becomes of a certificate request.
type Verdict int

// The verdicts.
const (
	// Ignore: the request is not in our names; others decide.
	Ignore Verdict = iota
	Approve
	Deny
)

// Decision is a verdict with its reason, as it is written into the request.
type Decision struct {
	Verdict Verdict
	Reason  string // CamelCase
	Message string
}

// The reasons of a decision.
const (
	reasonEnrolled  = "Enrolled" // asked by the gateway for a key it has recorded
	reasonRenewal   = "Renewal"  // asked by the node itself
	reasonRequester = "WrongRequester"
	reasonRequest   = "WrongRequest"
	reasonNode      = "NodeNotEnrolled"
	reasonKey       = "WrongKey"
)

// claimedNode returns the node whose name a request claims, and whether the
// request is in our names at all: it then is ours to decide, and nobody else's
// request in these names may pass.
func claimedNode(csr *certificatesv1.CertificateSigningRequest) (name string, ours bool) {
	switch csr.Spec.SignerName {
	case certificatesv1.KubeAPIServerClientSignerName,
		certificatesv1.KubeAPIServerClientKubeletSignerName,
		certificatesv1.KubeletServingSignerName:
	default:
		// Other signers' certificates are worth nothing at the apiserver (and
		// certificates.k8s.io/v1 knows no kubernetes.io/legacy-unknown).
		return "", false
	}
	req, err := enroll.ParseCSR(csr.Spec.Request)
	if err != nil {
		// The apiserver accepts no request that it cannot parse; one that only
		// our parser refuses is not signed for lack of an approval.
		return "", false
	}
	for _, prefix := range []string{v1alpha1.NodeUserPrefix, v1alpha1.HubUserPrefix} {
		if name, found := strings.CutPrefix(req.Subject.CommonName, prefix); found {
			return name, true
		}
	}
	for _, name := range append([]string{req.Subject.CommonName}, req.Subject.Organization...) {
		if name == enroll.NodesGroup || name == kubeletClientUser || strings.HasPrefix(name, ownPrefix) {
			return "", true
		}
	}
	return "", false
}

const (
	// ownPrefix begins the names of the cluster's own identities, operators
	// included. Their certificates are made from the CA's key, never on request.
	ownPrefix = "edge:"
	// kubeletClientUser is the apiserver's identity towards kubelets.
	kubeletClientUser = "kube-apiserver-kubelet-client"
)

// Decide says what becomes of a certificate request, given the enrolment
// record of the node whose name it claims (nil if there is none). A request is
// approved only if all of these hold:
//
//   - it asks for one of the three certificates of a node, to the letter;
//   - the gateway asks, or the node itself (the gateway never for serving);
//   - the node is enrolled and stays;
//   - for the two client certificates: the key is the enrolled one.
//
// Who asks decides: a request in another's name is denied however well formed.
// It reads nothing but its arguments.
func Decide(csr *certificatesv1.CertificateSigningRequest, node *v1alpha1.EdgeNode) Decision {
	name, ours := claimedNode(csr)
	if !ours {
		return Decision{Verdict: Ignore}
	}
	if name == "" {
		return deny(reasonRequest, "the request asks for an identity of the cluster itself, or for a group of nodes without a node's name")
	}
	if v1alpha1.ReservedNodeName(name) {
		return deny(reasonRequest, fmt.Sprintf("the name %q belongs to the cluster's own servers", name))
	}
	byGateway := csr.Spec.Username == v1alpha1.GatewayUser
	byNode := csr.Spec.Username == v1alpha1.NodeUserPrefix+name && slices.Contains(csr.Spec.Groups, enroll.NodesGroup)
	if !byGateway && !byNode {
		return deny(reasonRequester, fmt.Sprintf("user %q may not request certificates of node %q", csr.Spec.Username, name))
	}

	var want enroll.Subject
	usages := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}
	serving := false
	switch csr.Spec.SignerName {
	case certificatesv1.KubeAPIServerClientKubeletSignerName:
		want = enroll.Subject{CommonName: v1alpha1.NodeUserPrefix + name, Organization: enroll.NodesGroup}
	case certificatesv1.KubeAPIServerClientSignerName:
		want = enroll.Subject{CommonName: v1alpha1.HubUserPrefix + name, Organization: v1alpha1.HubGroup}
	case certificatesv1.KubeletServingSignerName:
		if !byNode {
			return deny(reasonRequester, "only a node itself may request its serving certificate")
		}
		serving = true
		want = enroll.Subject{CommonName: v1alpha1.NodeUserPrefix + name, Organization: enroll.NodesGroup, DNSNames: []string{name}}
		usages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}
	default:
		return deny(reasonRequest, "signer "+csr.Spec.SignerName+" signs nothing for nodes")
	}
	req, err := enroll.ParseCSR(csr.Spec.Request)
	if err != nil {
		return deny(reasonRequest, err.Error())
	}
	if err := enroll.CheckCSR(req, want); err != nil {
		return deny(reasonRequest, err.Error())
	}
	if !sameUsages(csr.Spec.Usages, usages) {
		return deny(reasonRequest, fmt.Sprintf("usages are %q, must be exactly %q", csr.Spec.Usages, usages))
	}

	if node == nil || node.Name != name {
		return deny(reasonNode, fmt.Sprintf("node %q is not declared", name))
	}
	if !node.DeletionTimestamp.IsZero() {
		return deny(reasonNode, fmt.Sprintf("node %q is being removed", name))
	}
	if node.Status.Key == "" {
		return deny(reasonNode, fmt.Sprintf("node %q is declared but holds no key", name))
	}
	key, err := enroll.Fingerprint(req.PublicKey)
	if err != nil {
		return deny(reasonRequest, err.Error())
	}
	if slices.Contains(node.Status.RevokedKeys, key) {
		return deny(reasonKey, fmt.Sprintf("key %s was revoked for node %q", key, name))
	}
	if !serving && key != node.Status.Key {
		return deny(reasonKey, fmt.Sprintf("key %s is not the enrolled key of node %q", key, name))
	}
	if byGateway {
		return Decision{Verdict: Approve, Reason: reasonEnrolled, Message: "requested by the gateway for the enrolled key of node " + name}
	}
	return Decision{Verdict: Approve, Reason: reasonRenewal, Message: "requested by node " + name + " itself"}
}

func deny(reason, message string) Decision {
	return Decision{Verdict: Deny, Reason: reason, Message: message}
}

func sameUsages(got, want []certificatesv1.KeyUsage) bool {
	if len(got) != len(want) {
		return false
	}
	for _, usage := range want {
		if !slices.Contains(got, usage) {
			return false
		}
	}
	return true
}
