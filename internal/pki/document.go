package pki

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

// MaxDocument bounds a signed document in bytes: it crosses the tunnel in one
// control message.
const MaxDocument = 48 << 10

// documentPrefix separates what an authority signs here from everything else it
// signs: a certificate begins with 0x30, not with this text.
const documentPrefix = "edgewright.dev signed document 1\x00"

// document is a signed document as it is stored and sent: JSON.
type document struct {
	Kind      string `json:"kind"`
	Payload   []byte `json:"payload"`
	Signature []byte `json:"signature"` // ASN.1, over documentDigest
}

// ErrDocument: a document that the authority did not sign, or not as this kind.
var ErrDocument = errors.New("document is not signed by the cluster's authority")

// SignDocument signs a payload of a kind: a statement of the authority that is
// no certificate, such as the list of gateways. Who has the authority's
// certificate verifies it with VerifyDocument.
func (a *Authority) SignDocument(kind string, payload []byte) ([]byte, error) {
	return SignDocument(a.key, kind, payload)
}

// SignDocument is Authority.SignDocument for an authority whose key is elsewhere
// than in a Store.
func SignDocument(key *ecdsa.PrivateKey, kind string, payload []byte) ([]byte, error) {
	digest := documentDigest(kind, payload)
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		return nil, fmt.Errorf("sign document %s: %w", kind, err)
	}
	doc, err := json.Marshal(document{Kind: kind, Payload: payload, Signature: sig})
	if err != nil {
		return nil, fmt.Errorf("sign document %s: %w", kind, err)
	}
	if len(doc) > MaxDocument {
		return nil, fmt.Errorf("sign document %s: %d bytes are more than the %d allowed", kind, len(doc), MaxDocument)
	}
	return doc, nil
}

// VerifyDocument returns the payload of a document that the authority of the
// certificate signed as this kind. Any other error than a malformed document
// wraps ErrDocument.
func VerifyDocument(ca *x509.Certificate, kind string, doc []byte) ([]byte, error) {
	if len(doc) > MaxDocument {
		return nil, fmt.Errorf("document %s: %d bytes are more than the %d allowed", kind, len(doc), MaxDocument)
	}
	var d document
	if err := json.Unmarshal(doc, &d); err != nil {
		return nil, fmt.Errorf("document %s: %w", kind, err)
	}
	key, ok := ca.PublicKey.(*ecdsa.PublicKey)
	if !ok || !ca.IsCA {
		return nil, fmt.Errorf("document %s: %q is no authority of ours: %w", kind, ca.Subject.CommonName, ErrDocument)
	}
	if d.Kind != kind {
		return nil, fmt.Errorf("document %s: it is of kind %q: %w", kind, d.Kind, ErrDocument)
	}
	digest := documentDigest(kind, d.Payload)
	if !ecdsa.VerifyASN1(key, digest[:], d.Signature) {
		return nil, fmt.Errorf("document %s: %w", kind, ErrDocument)
	}
	return d.Payload, nil
}

// documentDigest hashes kind and payload so that neither can run into the other.
func documentDigest(kind string, payload []byte) [sha256.Size]byte {
	b := binary.BigEndian.AppendUint32([]byte(documentPrefix), uint32(len(kind)))
	b = append(b, kind...)
	return sha256.Sum256(append(b, payload...))
}
