package enroll

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// How a node keeps its two client certificates:
//
//	issued --2/3 of its life, less a little--> due: the node asks the API itself
//	     --its end--> expired: the node asks a gateway, which lets it do nothing else
//	     --RenewWindow--> lost: the device joins again
//
// A node's key is revoked by its enrolment record, whatever its certificate's
// end is: no renewal passes it.

// RenewWindow is how long after its end a certificate may still be renewed with: a
// device that lay in a store for a season comes back by itself, and one that was
// forgotten does not come back in years.
const RenewWindow = 90 * 24 * time.Hour

// RenewRequest is what a node sends to renew its certificates. Who it is, it has
// proven with the present one.
type RenewRequest struct {
	// NodeCSR and HubCSR are as in Request, of the same key as the certificate.
	NodeCSR string `json:"nodeCSR"`
	HubCSR  string `json:"hubCSR"`
}

// Renewer is the cloud side of a renewal, served by the gateway. node and leaf are
// the name and the certificate that the gateway has verified in all but its end.
// Of the answer only the certificates are set, or the error.
type Renewer interface {
	Renew(ctx context.Context, node string, leaf *x509.Certificate, req RenewRequest, remote netip.AddrPort) Response
}

var _ Renewer = (*Service)(nil)

// RenewAt is when a certificate is due: at two thirds of its life, or up to a
// tenth of its life before. Nodes that joined together do not come together;
// when is the certificate's own, so that a restart does not draw again.
func RenewAt(cert *x509.Certificate) time.Time {
	life := cert.NotAfter.Sub(cert.NotBefore)
	sum := sha256.Sum256(cert.Raw)
	early := time.Duration(float64(binary.BigEndian.Uint32(sum[:4])) / (1 << 32) * float64(life) / 10)
	return cert.NotBefore.Add(life/3*2 - early)
}

// CheckRenewable says whether a node may renew with a certificate at the time. It
// judges times only.
func CheckRenewable(cert *x509.Certificate, now time.Time) error {
	switch {
	case now.Before(cert.NotBefore):
		return refuse(CodeRequestInvalid, "the node's certificate begins in the future")
	case now.Sub(cert.NotAfter) > RenewWindow:
		return refuse(CodeTooLate, fmt.Sprintf("the node's certificate ended on %s, more than %d days ago; remove the node and join it again",
			cert.NotAfter.UTC().Format(time.DateOnly), RenewWindow/(24*time.Hour)))
	}
	return nil
}

// Renew implements Renewer. It may be called again with the same request after
// any failure.
func (s *Service) Renew(ctx context.Context, node string, leaf *x509.Certificate, req RenewRequest, remote netip.AddrPort) Response {
	log := s.log.With("remote", remote.String(), "node", node, "ended", leaf.NotAfter.UTC().Format(time.RFC3339), "expired", s.clock.Now().After(leaf.NotAfter))
	certificates, err := s.renew(ctx, node, leaf, req)
	if err != nil {
		answer := refusal(err)
		if answer.Code == CodeInternal {
			log.Error("renewal failed", "error", err)
		} else {
			log.Warn("renewal refused", "code", answer.Code, "reason", answer.Message)
		}
		return Response{Error: answer}
	}
	log.Info("certificates of node renewed")
	return Response{NodeCertificate: certificates.node, HubCertificate: certificates.hub}
}

func (s *Service) renew(ctx context.Context, node string, leaf *x509.Certificate, req RenewRequest) (certificatePair, error) {
	if err := CheckRenewable(leaf, s.clock.Now()); err != nil {
		return certificatePair{}, err
	}
	want := Request{Name: node, NodeCSR: req.NodeCSR, HubCSR: req.HubCSR}
	key, err := checkRequest(want)
	if err != nil {
		return certificatePair{}, err
	}
	held, err := Fingerprint(leaf.PublicKey)
	if err != nil {
		return certificatePair{}, refuse(CodeRequestInvalid, err.Error())
	}
	if key != held {
		return certificatePair{}, refuse(CodeRequestInvalid, "the certificate requests are not of the key of the certificate")
	}
	record, err := s.readNode(ctx, node)
	if err != nil {
		return certificatePair{}, err
	}
	if err := mayRenew(record, node, key); err != nil {
		return certificatePair{}, err
	}
	return s.certificates(ctx, want)
}

// mayRenew asks the enrolment record, which alone says whose the name is.
func mayRenew(record *v1alpha1.EdgeNode, node, key string) error {
	switch {
	case record == nil:
		return refuse(CodeRevoked, "node "+node+" is not declared any more")
	case !record.DeletionTimestamp.IsZero():
		return refuse(CodeRevoked, "node "+node+" is being removed")
	case slices.Contains(record.Status.RevokedKeys, key):
		return refuse(CodeRevoked, "this device's key was revoked for node "+node)
	case record.Status.Key != key:
		return refuse(CodeRevoked, "another device holds the name "+node)
	}
	return nil
}
