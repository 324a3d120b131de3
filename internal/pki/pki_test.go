package pki

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/yaml"
)

var epoch = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func newStore(t *testing.T) (*Store, *clocktesting.FakePassiveClock, *Authority) {
	t.Helper()
	clk := clocktesting.NewFakePassiveClock(epoch)
	s, err := Open(filepath.Join(t.TempDir(), "pki"), clk)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := s.Authority("ca", "test authority")
	if err != nil {
		t.Fatal(err)
	}
	return s, clk, ca
}

func server() Request {
	return Request{
		Name: "apiserver", CommonName: "kube-apiserver", Server: true,
		DNSNames: []string{"kubernetes", "localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP("10.96.0.1")},
	}
}

func ensure(t *testing.T, s *Store, ca *Authority, r Request) (cert *x509.Certificate, renewed bool) {
	t.Helper()
	certFile, keyFile, renewed, err := s.Ensure(ca, r)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := LoadTLS(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf, renewed
}

func TestAuthority(t *testing.T) {
	s, clk, ca := newStore(t)
	c := ca.Certificate
	if !c.IsCA || !c.MaxPathLenZero || c.Subject.CommonName != "test authority" {
		t.Errorf("certificate: %+v", c.Subject)
	}
	if !c.NotBefore.Equal(epoch.Add(-backdate)) || !c.NotAfter.Equal(epoch.Add(authorityLifetime)) {
		t.Errorf("valid from %s to %s", c.NotBefore, c.NotAfter)
	}
	clk.SetTime(epoch.Add(9 * 365 * 24 * time.Hour))
	again, err := s.Authority("ca", "another name")
	if err != nil || !again.Certificate.Equal(c) {
		t.Errorf("the authority was replaced: %v", err)
	}
	if _, err := s.LoadAuthority("none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing authority: %v", err)
	}
	modes(t, map[string]fs.FileMode{filepath.Dir(ca.CertFile): 0o700, ca.CertFile: 0o644, ca.KeyFile: 0o600})
}

func modes(t *testing.T, want map[string]fs.FileMode) {
	t.Helper()
	if runtime.GOOS == "windows" {
		return // has no such modes
	}
	for path, mode := range want {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != mode {
			t.Errorf("%s has mode %o, want %o", path, info.Mode().Perm(), mode)
		}
	}
}

// An authority that is there but broken is an error, never a new authority.
func TestAuthorityIsNeverReplaced(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, ca *Authority){
		"key lost":            func(t *testing.T, ca *Authority) { os.Remove(ca.KeyFile) },
		"key damaged":         func(t *testing.T, ca *Authority) { os.WriteFile(ca.KeyFile, []byte("x"), 0o600) },
		"certificate damaged": func(t *testing.T, ca *Authority) { os.WriteFile(ca.CertFile, []byte("x"), 0o600) },
		"another key": func(t *testing.T, ca *Authority) {
			key, err := GenerateKey()
			if err != nil {
				t.Fatal(err)
			}
			if err := WriteKey(ca.KeyFile, key); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, _, ca := newStore(t)
			damage(t, ca)
			before, err := os.ReadFile(ca.CertFile)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Authority("ca", "test authority")
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), "PRIVATE") {
				t.Errorf("the error shows key material: %v", err)
			}
			after, err := os.ReadFile(ca.CertFile)
			if err != nil || string(before) != string(after) {
				t.Errorf("the certificate was changed (%v)", err)
			}
		})
	}
}

// Two stores stand for two processes.
func TestParallel(t *testing.T) {
	dir := t.TempDir()
	var work sync.WaitGroup
	var mu sync.Mutex // guards made, seen
	made, seen := map[string]int{}, map[string]bool{}
	for range 2 {
		s, err := Open(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 8 {
			work.Go(func() {
				ca, err := s.Authority("ca", "test authority")
				if err != nil {
					t.Error(err)
					return
				}
				pin, err := PublicKeyPin(ca.Certificate.PublicKey)
				if err != nil {
					t.Error(err)
				}
				for _, name := range []string{"a", "b", "c"} {
					r := server()
					r.Name = name
					cert, key, renewed, err := s.Ensure(ca, r)
					if err == nil {
						_, err = LoadTLS(cert, key)
					}
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					seen[pin] = true
					if renewed {
						made[name]++
					}
					mu.Unlock()
				}
				if _, _, err := s.ServiceAccountKey("sa"); err != nil {
					t.Error(err)
				}
			})
		}
	}
	work.Wait()
	if diff := cmp.Diff(map[string]int{"a": 1, "b": 1, "c": 1}, made); diff != "" || len(seen) != 1 {
		t.Errorf("%d authorities; %s", len(seen), diff)
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	s, _, ca := newStore(t)
	for name, change := range map[string]func(*Request){
		"no name":       func(r *Request) { r.Name = "" },
		"leaves store":  func(r *Request) { r.Name = "../x" },
		"absolute":      func(r *Request) { r.Name = "/x" },
		"hidden":        func(r *Request) { r.Name = ".lock" },
		"no CN":         func(r *Request) { r.CommonName = "" },
		"no usage":      func(r *Request) { r.Server = false },
		"nameless":      func(r *Request) { r.DNSNames, r.IPs = nil, nil },
		"negative life": func(r *Request) { r.Lifetime = -1 },
	} {
		r := server()
		change(&r)
		if _, _, _, err := s.Ensure(ca, r); err == nil {
			t.Errorf("%s: accepted", name)
		}
		key, err := GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ca.Sign(r, &key.PublicKey, epoch); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

func TestServiceAccountKey(t *testing.T) {
	s, _, _ := newStore(t)
	key, pub, err := s.ServiceAccountKey("sa")
	if err != nil {
		t.Fatal(err)
	}
	modes(t, map[string]fs.FileMode{key: 0o600, pub: 0o644})
	first, err := os.ReadFile(pub)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(first)
	if block == nil || block.Type != blockPublicKey {
		t.Fatalf("public key: %s", first)
	}
	if err := os.Remove(pub); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.ServiceAccountKey("sa"); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(pub); err != nil || string(again) != string(first) {
		t.Errorf("the public key has changed (%v)", err)
	}
	if err := os.WriteFile(key, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.ServiceAccountKey("sa"); err == nil {
		t.Error("a damaged key was replaced")
	}
}

func TestSignAndServe(t *testing.T) {
	_, _, ca := newStore(t)
	key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Sign(server(), &key.PublicKey, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := TLSCertificate(key, cert)
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	served := make(chan error, 1)
	go func() { served <- tls.Server(a, &tls.Config{Certificates: []tls.Certificate{pair}}).Handshake() }()
	if err := tls.Client(b, &tls.Config{RootCAs: ca.Pool(), ServerName: "kubernetes", Time: time.Now}).Handshake(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	other, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TLSCertificate(other, cert); err == nil {
		t.Error("another key was accepted")
	}
}

func TestKeysAndFingerprints(t *testing.T) {
	block, _ := pem.Decode([]byte(testPublicKey))
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	fingerprint, err := Fingerprint(pub)
	if err != nil || fingerprint != testFingerprint {
		t.Errorf("fingerprint %s, %v", fingerprint, err)
	}
	pin, err := PublicKeyPin(pub)
	if err != nil || pin != testPin {
		t.Errorf("pin %s, %v", pin, err)
	}
	key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	// As openssl writes it: the curve first, then SEC 1.
	sec1 := append(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}}),
		pem.EncodeToMemory(&pem.Block{Type: blockECKey, Bytes: der})...)
	if again, err := ParseKeyPEM(sec1); err != nil || !again.Equal(key) {
		t.Errorf("SEC 1: %v", err)
	}
	encoded, err := EncodeKeyPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ParseKeyPEM(encoded); err != nil || !again.Equal(key) {
		t.Errorf("round trip: %v", err)
	}
	if _, err := Fingerprint("not a key"); err == nil {
		t.Error("a fingerprint of nothing")
	}

	csrPEM, err := NewCSR(key, pkix.Name{CommonName: "system:node:a", Organization: []string{"system:nodes"}}, []string{"a"})
	if err != nil {
		t.Fatal(err)
	}
	block, _ = pem.Decode(csrPEM)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil || csr.Subject.CommonName != "system:node:a" || csr.DNSNames[0] != "a" {
		t.Errorf("request: %+v, %v", csr, err)
	}
}

func TestKubeconfig(t *testing.T) {
	_, _, ca := newStore(t)
	path := filepath.Join(t.TempDir(), "conf", "admin.kubeconfig")
	o := KubeconfigOptions{Server: "https://127.0.0.1:6443", CAPEM: ca.PEM(), CertFile: "/x/a.crt", KeyFile: "/x/a.key", TLSServerName: "kubernetes"}
	for i, want := range []bool{true, false} {
		changed, err := WriteKubeconfig(path, o)
		if err != nil || changed != want {
			t.Errorf("write %d: changed %v, %v", i, changed, err)
		}
	}
	modes(t, map[string]fs.FileMode{path: 0o600})
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		CurrentContext string `json:"current-context"`
		Clusters       []struct {
			Cluster struct {
				Server string `json:"server"`
				CA     []byte `json:"certificate-authority-data"`
				Name   string `json:"tls-server-name"`
			} `json:"cluster"`
		} `json:"clusters"`
		Users []struct {
			User map[string]string `json:"user"`
		} `json:"users"`
	}
	if err := yaml.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	c := got.Clusters[0].Cluster
	if c.Server != o.Server || string(c.CA) != string(ca.PEM()) || c.Name != "kubernetes" || got.CurrentContext != "edge" {
		t.Errorf("cluster: %+v", got)
	}
	if diff := cmp.Diff(map[string]string{"client-certificate": "/x/a.crt", "client-key": "/x/a.key"}, got.Users[0].User); diff != "" {
		t.Error(diff)
	}
	o.CertPEM, o.KeyPEM = []byte("c"), []byte("k")
	if _, err := Kubeconfig(o); err == nil {
		t.Error("files and contents at once were accepted")
	}
	o.CertFile, o.KeyFile = "", ""
	if data, err = Kubeconfig(o); err != nil || !strings.Contains(string(data), "client-key-data: aw==") {
		t.Errorf("embedded: %s, %v", data, err)
	}
}
