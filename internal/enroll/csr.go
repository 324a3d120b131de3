package enroll

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

// NodesGroup is the organization of a node's certificates, as the Node
// authorizer wants it.
const NodesGroup = "system:nodes"

// maxCSR bounds a PEM certificate request, in bytes. One of ours has about 400.
const maxCSR = 8 << 10

var (
	oidCommonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidOrganization = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidSAN          = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// Fingerprint names a public key as EdgeNode.status.key does.
func Fingerprint(key crypto.PublicKey) (string, error) { return pki.Fingerprint(key) }

// NodeCSR makes the PEM request for a node's own identity, system:node:<name>.
func NodeCSR(name string, key crypto.Signer) (string, error) {
	return newCSR(v1alpha1.NodeUserPrefix+name, NodesGroup, nil, key)
}

// HubCSR makes the PEM request for a node's second identity, edge:hub:<name>,
// of the same key.
func HubCSR(name string, key crypto.Signer) (string, error) {
	return newCSR(v1alpha1.HubUserPrefix+name, v1alpha1.HubGroup, nil, key)
}

// ServingCSR makes the PEM request for the kubelet's serving certificate, whose
// only name is the node's. Its key is the kubelet's own.
func ServingCSR(name string, key crypto.Signer) (string, error) {
	return newCSR(v1alpha1.NodeUserPrefix+name, NodesGroup, []string{name}, key)
}

func newCSR(commonName, organization string, dnsNames []string, key crypto.Signer) (string, error) {
	text, err := pki.NewCSR(key, pkix.Name{CommonName: commonName, Organization: []string{organization}}, dnsNames)
	return string(text), err
}

// ParseCSR parses one PEM certificate request and nothing after it, and checks
// that it is signed by the key it names.
func ParseCSR(text []byte) (*x509.CertificateRequest, error) {
	if len(text) > maxCSR {
		return nil, fmt.Errorf("certificate request is longer than %d bytes", maxCSR)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("no PEM certificate request")
	}
	for _, c := range rest {
		if c != '\n' && c != '\r' && c != ' ' && c != '\t' {
			return nil, errors.New("something follows the PEM certificate request")
		}
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate request: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check signature of certificate request: %w", err)
	}
	return req, nil
}

// Subject is what a certificate request must say, to the letter.
type Subject struct {
	CommonName   string
	Organization string
	// DNSNames of a serving certificate; none for a client's.
	DNSNames []string
}

// CheckCSR refuses a request that says anything but want: another or a second
// common name or organization, any further attribute in its subject, any other
// name of any kind, any extension, a key that is not P-256. What the signer
// does not copy today it may copy tomorrow, so nothing is let pass as harmless.
func CheckCSR(req *x509.CertificateRequest, want Subject) error {
	if req.Subject.CommonName != want.CommonName {
		return fmt.Errorf("common name is %q, must be %q", req.Subject.CommonName, want.CommonName)
	}
	if len(req.Subject.Organization) != 1 || req.Subject.Organization[0] != want.Organization {
		return fmt.Errorf("organization is %q, must be exactly %q", req.Subject.Organization, want.Organization)
	}
	if len(req.Subject.Names) != 2 {
		return fmt.Errorf("subject has %d attributes, must have common name and organization only", len(req.Subject.Names))
	}
	for _, attribute := range req.Subject.Names {
		if !attribute.Type.Equal(oidCommonName) && !attribute.Type.Equal(oidOrganization) {
			return fmt.Errorf("subject has attribute %s beside common name and organization", attribute.Type)
		}
	}
	if len(req.IPAddresses) > 0 || len(req.EmailAddresses) > 0 || len(req.URIs) > 0 {
		return errors.New("names an IP address, email address or URI")
	}
	if len(req.DNSNames) != len(want.DNSNames) {
		return fmt.Errorf("DNS names are %q, must be %q", req.DNSNames, want.DNSNames)
	}
	for i, name := range req.DNSNames {
		if name != want.DNSNames[i] {
			return fmt.Errorf("DNS names are %q, must be %q", req.DNSNames, want.DNSNames)
		}
	}
	for _, extension := range req.Extensions {
		if !extension.Id.Equal(oidSAN) || len(want.DNSNames) == 0 {
			return fmt.Errorf("asks for extension %s", extension.Id)
		}
	}
	if key, ok := req.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return errors.New("key is not ECDSA P-256")
	}
	return nil
}
