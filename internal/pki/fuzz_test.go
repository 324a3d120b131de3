package pki

import (
	"testing"
	"time"
)

func FuzzParseCertificatesPEM(f *testing.F) {
	key, err := GenerateKey()
	if err != nil {
		f.Fatal(err)
	}
	s, err := Open(f.TempDir(), nil)
	if err != nil {
		f.Fatal(err)
	}
	ca, err := s.Authority("ca", "seed")
	if err != nil {
		f.Fatal(err)
	}
	leaf, err := ca.Sign(Request{Name: "x", CommonName: "x", Client: true}, &key.PublicKey, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	keyPEM, err := EncodeKeyPEM(key)
	if err != nil {
		f.Fatal(err)
	}
	chain := EncodeCertificatesPEM(leaf, ca.Certificate)
	if certs, err := ParseCertificatesPEM(append([]byte("text before\n"), chain...)); err != nil || len(certs) != 2 {
		f.Fatalf("own chain: %d certificates, %v", len(certs), err)
	}
	if _, err := ParseCertificatesPEM(append(chain, keyPEM...)); err == nil {
		f.Fatal("a key among certificates is accepted")
	}
	f.Add(chain)
	f.Add(keyPEM)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := ParseCertificatesPEM(data)
		if err != nil {
			return
		}
		again, err := ParseCertificatesPEM(EncodeCertificatesPEM(certs...))
		if err != nil || len(again) != len(certs) || len(certs) == 0 {
			t.Errorf("%d certificates became %d, %v", len(certs), len(again), err)
		}
	})
}

func FuzzParseKeyPEM(f *testing.F) {
	key, err := GenerateKey()
	if err != nil {
		f.Fatal(err)
	}
	seed, err := EncodeKeyPEM(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(testPublicKey))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := ParseKeyPEM(data)
		if err != nil {
			return
		}
		encoded, err := EncodeKeyPEM(key)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseKeyPEM(encoded); err != nil || !again.Equal(key) {
			t.Errorf("round trip: %v", err)
		}
	})
}
