package pki

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// durability says whether a write waits for the disk.
type durability bool

const (
	durable durability = true
	// quick is for what can be made again: a dozen waits for a slow disk would
	// be the longest part of a cluster's start.
	quick durability = false
)

// writeFile replaces path in one step.
func writeFile(path string, data []byte, mode os.FileMode, wait durability) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = os.Chmod(tmp.Name(), mode)
	}
	if err == nil && wait == durable {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
		return err
	}
	if wait == durable {
		return syncDir(dir)
	}
	return nil
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	data, err := EncodeKeyPEM(key)
	if err != nil {
		return err
	}
	return writeFile(path, data, 0o600, quick)
}

// WriteKey writes a private key, 0600, in one step and waits for the disk: a
// device's key is its identity and cannot be made again.
func WriteKey(path string, key *ecdsa.PrivateKey) error {
	data, err := EncodeKeyPEM(key)
	if err != nil {
		return err
	}
	if err := writeFile(path, data, 0o600, durable); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	return nil
}

// WriteCertificates writes certificates in PEM, 0644, in one step.
func WriteCertificates(path string, certs ...*x509.Certificate) error {
	if err := writeFile(path, EncodeCertificatesPEM(certs...), 0o644, quick); err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	return nil
}

// LoadTLS reads a certificate with its chain and key into memory, with the leaf
// parsed. Both must belong together.
func LoadTLS(certFile, keyFile string) (tls.Certificate, error) {
	certPEM, err := os.ReadFile(certFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("load certificate: %w", err)
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("load key: %w", err)
	}
	certs, err := ParseCertificatesPEM(certPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("load certificate %s: %w", certFile, err)
	}
	key, err := ParseKeyPEM(keyPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("load key %s: %w", keyFile, err)
	}
	cert, err := TLSCertificate(key, certs...)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("load certificate %s: %w", certFile, err)
	}
	return cert, nil
}

// TLSCertificate joins a key and its certificates, leaf first.
func TLSCertificate(key *ecdsa.PrivateKey, certs ...*x509.Certificate) (tls.Certificate, error) {
	if len(certs) == 0 || !key.PublicKey.Equal(certs[0].PublicKey) {
		return tls.Certificate{}, errors.New("key and certificate do not belong together")
	}
	out := tls.Certificate{PrivateKey: key, Leaf: certs[0]}
	for _, c := range certs {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, nil
}
