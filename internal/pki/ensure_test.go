package pki

import (
	"crypto/ecdsa"
	"crypto/x509"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestEnsure(t *testing.T) {
	s, _, ca := newStore(t)
	r := server()
	cert, renewed := ensure(t, s, ca, r)
	if !renewed {
		t.Error("the first is not new")
	}
	if !cert.NotBefore.Equal(epoch.Add(-backdate)) || !cert.NotAfter.Equal(epoch.Add(defaultLifetime)) {
		t.Errorf("valid from %s to %s", cert.NotBefore, cert.NotAfter)
	}
	_, err := cert.Verify(x509.VerifyOptions{
		Roots: ca.Pool(), CurrentTime: epoch, DNSName: "10.96.0.1", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		t.Error(err)
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: ca.Pool(), CurrentTime: epoch, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err == nil {
		t.Error("a server's certificate serves clients")
	}
	same, renewed := ensure(t, s, ca, r)
	if renewed || !same.Equal(cert) {
		t.Error("made anew without reason")
	}
	modes(t, map[string]fs.FileMode{s.CertFile(r.Name): 0o644, s.KeyFile(r.Name): 0o600})

	nested := Request{Name: "etcd/peer", CommonName: "etcd", Server: true, Client: true, DNSNames: []string{"localhost"}, Organizations: []string{"a", "b"}}
	cert, _ = ensure(t, s, ca, nested)
	if diff := cmp.Diff([]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, cert.ExtKeyUsage); diff != "" {
		t.Error(diff)
	}
	modes(t, map[string]fs.FileMode{filepath.Dir(s.CertFile(nested.Name)): 0o700})
}

func TestWhatMakesACertificateDue(t *testing.T) {
	day := 24 * time.Hour
	tests := []struct {
		name   string
		after  time.Duration
		change func(*Request)
		due    bool
	}{
		{"nothing", 0, func(*Request) {}, false},
		{"before two thirds", 243 * day, func(*Request) {}, false},
		{"after two thirds", 244 * day, func(*Request) {}, true},
		{"after its end", 400 * day, func(*Request) {}, true},
		{"clock behind", -3650 * day, func(*Request) {}, false},
		{"order of names", 0, func(r *Request) { r.DNSNames = []string{"localhost", "kubernetes"} }, false},
		{"form of an address", 0, func(r *Request) { r.IPs[0] = r.IPs[0].To4() }, false},
		{"name added", 0, func(r *Request) { r.DNSNames = append(r.DNSNames, "x") }, true},
		{"address removed", 0, func(r *Request) { r.IPs = r.IPs[:1] }, true},
		{"common name", 0, func(r *Request) { r.CommonName = "x" }, true},
		{"organization", 0, func(r *Request) { r.Organizations = []string{"x"} }, true},
		{"usage", 0, func(r *Request) { r.Client = true }, true},
		{"shorter life", 0, func(r *Request) { r.Lifetime = day }, true},
		{"longer life", 0, func(r *Request) { r.Lifetime = 500 * day }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, clk, ca := newStore(t)
			before, _ := ensure(t, s, ca, server())
			clk.SetTime(epoch.Add(tt.after))
			r := server()
			tt.change(&r)
			cert, renewed := ensure(t, s, ca, r)
			if renewed != tt.due || cert.Equal(before) == tt.due {
				t.Errorf("renewed: %v, want %v", renewed, tt.due)
			}
			if !cert.PublicKey.(*ecdsa.PublicKey).Equal(before.PublicKey) {
				t.Error("the key was replaced")
			}
			if _, again := ensure(t, s, ca, r); again {
				t.Error("still due")
			}
		})
	}
}

func TestAnotherAuthorityMakesACertificateDue(t *testing.T) {
	s, _, ca := newStore(t)
	ensure(t, s, ca, server())
	other, err := s.Authority("other", "test authority") // the same name, another key
	if err != nil {
		t.Fatal(err)
	}
	cert, renewed := ensure(t, s, other, server())
	if !renewed || cert.CheckSignatureFrom(other.Certificate) != nil {
		t.Errorf("renewed: %v", renewed)
	}
}

func TestDamagedFilesAreMadeAgain(t *testing.T) {
	for name, damage := range map[string]func(s *Store) error{
		"key lost":            func(s *Store) error { return os.Remove(s.KeyFile("apiserver")) },
		"key cut":             func(s *Store) error { return os.Truncate(s.KeyFile("apiserver"), 40) },
		"key empty":           func(s *Store) error { return os.Truncate(s.KeyFile("apiserver"), 0) },
		"certificate lost":    func(s *Store) error { return os.Remove(s.CertFile("apiserver")) },
		"certificate emptied": func(s *Store) error { return os.Truncate(s.CertFile("apiserver"), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			s, _, ca := newStore(t)
			ensure(t, s, ca, server())
			if err := damage(s); err != nil {
				t.Fatal(err)
			}
			if _, renewed := ensure(t, s, ca, server()); !renewed {
				t.Error("not renewed")
			}
		})
	}
}

func TestNeverOutlivesItsAuthority(t *testing.T) {
	s, clk, ca := newStore(t)
	clk.SetTime(ca.Certificate.NotAfter.Add(-30 * 24 * time.Hour))
	cert, _ := ensure(t, s, ca, server())
	if !cert.NotAfter.Equal(ca.Certificate.NotAfter) {
		t.Errorf("ends %s, its authority %s", cert.NotAfter, ca.Certificate.NotAfter)
	}
	if _, renewed := ensure(t, s, ca, server()); renewed {
		t.Error("made anew without reason")
	}
	clk.SetTime(ca.Certificate.NotAfter.Add(time.Hour))
	if _, _, _, err := s.Ensure(ca, server()); err == nil || !strings.Contains(err.Error(), "authority") {
		t.Errorf("with an authority that has ended: %v", err)
	}
}

func TestIssuedByAClockThatIsBehind(t *testing.T) {
	s, clk, ca := newStore(t)
	clk.SetTime(time.Unix(0, 0))
	cert, _ := ensure(t, s, ca, server())
	if cert.NotBefore.Before(ca.Certificate.NotBefore) {
		t.Errorf("valid from %s, its authority from %s", cert.NotBefore, ca.Certificate.NotBefore)
	}
	clk.SetTime(epoch.Add(time.Hour)) // the clock is set
	if _, renewed := ensure(t, s, ca, server()); renewed {
		t.Error("due as soon as the clock is right")
	}
}

func TestShortLife(t *testing.T) {
	s, clk, ca := newStore(t)
	r := server()
	r.Lifetime = time.Hour // shorter than what certificates are dated back by
	cert, _ := ensure(t, s, ca, r)
	if _, renewed := ensure(t, s, ca, r); renewed {
		t.Error("due at once")
	}
	if at, ok := s.NextRenewal(); !ok || !at.Equal(epoch.Add(40*time.Minute)) || !at.Equal(RenewAt(cert)) {
		t.Errorf("next renewal: %s, %v", at, ok)
	}
	clk.SetTime(epoch.Add(40 * time.Minute))
	if _, renewed := ensure(t, s, ca, r); !renewed {
		t.Error("not due after two thirds")
	}
	if at, _ := s.NextRenewal(); !at.Equal(epoch.Add(80 * time.Minute)) {
		t.Errorf("next renewal: %s", at)
	}
}

func TestNextRenewalIsTheEarliest(t *testing.T) {
	s, _, ca := newStore(t)
	if _, ok := s.NextRenewal(); ok {
		t.Error("there is none yet")
	}
	for i, life := range []time.Duration{30 * time.Hour, 3 * time.Hour, 300 * time.Hour} {
		r := server()
		r.Name, r.Lifetime = string(rune('a'+i)), life
		ensure(t, s, ca, r)
	}
	if at, ok := s.NextRenewal(); !ok || !at.Equal(epoch.Add(2*time.Hour)) {
		t.Errorf("next renewal: %s, %v", at, ok)
	}
}
