package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

const (
	blockCertificate = "CERTIFICATE"
	blockKey         = "PRIVATE KEY"    // PKCS#8, RFC 5958
	blockECKey       = "EC PRIVATE KEY" // SEC 1, RFC 5915: read, never written
	blockPublicKey   = "PUBLIC KEY"
	blockRequest     = "CERTIFICATE REQUEST"
)

// GenerateKey makes a P-256 key.
func GenerateKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return key, nil
}

// EncodeKeyPEM returns the key as PKCS#8 in PEM.
func EncodeKeyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: der}), nil
}

// EncodePublicKeyPEM returns the key as PKIX in PEM.
func EncodePublicKeyPEM(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockPublicKey, Bytes: der}), nil
}

// ParseKeyPEM reads the first private key of data, PKCS#8 or SEC 1. It must be
// a P-256 key. Errors do not quote the input.
func ParseKeyPEM(data []byte) (*ecdsa.PrivateKey, error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, errors.New("no private key in PEM found")
		}
		var key any
		var err error
		switch block.Type {
		case blockKey:
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case blockECKey:
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default: // openssl writes "EC PARAMETERS" before a key
			continue
		}
		if err != nil {
			return nil, errors.New("private key is damaged")
		}
		ec, ok := key.(*ecdsa.PrivateKey)
		if !ok || ec.Curve != elliptic.P256() {
			return nil, errors.New("private key is not a P-256 key")
		}
		return ec, nil
	}
}

// EncodeCertificatesPEM returns the certificates in PEM, in the given order.
func EncodeCertificatesPEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: blockCertificate, Bytes: c.Raw})...)
	}
	return out
}

// ParseCertificatesPEM reads every certificate of data, at least one. Text
// between the blocks is skipped as RFC 7468 allows; a block of another type is
// an error, because it means that the wrong file was given, perhaps a key.
func ParseCertificatesPEM(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != blockCertificate {
			return nil, errors.New("certificates in PEM expected, another kind of block found")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM found")
	}
	return certs, nil
}

// NewCSR returns a certificate request in PEM for key.
func NewCSR(key crypto.Signer, subject pkix.Name, dnsNames []string) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: subject, DNSNames: dnsNames,
	}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request for %q: %w", subject.CommonName, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockRequest, Bytes: der}), nil
}

// Fingerprint names a public key: "SHA256:" and the unpadded base64 of the
// SHA-256 of its PKIX form. It is what devices show and EdgeNode.status.key
// holds.
func Fingerprint(pub crypto.PublicKey) (string, error) {
	sum, err := hashPublicKey(pub)
	if err != nil {
		return "", err
	}
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:]), nil
}

// PublicKeyPin is the same hash as 64 lower case hexadecimal digits. A join
// token carries the first 32 of the authority's.
func PublicKeyPin(pub crypto.PublicKey) (string, error) {
	sum, err := hashPublicKey(pub)
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(sum[:]), nil
}

func hashPublicKey(pub crypto.PublicKey) ([sha256.Size]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("hash public key: %w", err)
	}
	return sha256.Sum256(der), nil
}
