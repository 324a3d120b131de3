package pki

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"time"
)

const (
	// backdate is how long before it is made a certificate begins to be valid,
	// for devices whose clock is behind.
	backdate = 24 * time.Hour
	// defaultLifetime of a certificate is a year, as kubeadm's is.
	defaultLifetime = 365 * 24 * time.Hour
	// authorityLifetime is ten years, as kubeadm's is.
	authorityLifetime = 10 * 365 * 24 * time.Hour
)

// Request declares a certificate.
type Request struct {
	// Name of the files, without suffix; may name a directory: "etcd/server".
	Name          string
	CommonName    string
	Organizations []string
	DNSNames      []string
	IPs           []net.IP
	Server        bool // usage: TLS server
	Client        bool // usage: TLS client; at least one of the two
	// Lifetime from the moment of issue, one year when zero. A certificate
	// never outlives its authority.
	Lifetime time.Duration
}

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*(/[a-zA-Z0-9][a-zA-Z0-9._-]*)*$`)

func (r *Request) check() error {
	switch {
	case !validName.MatchString(r.Name):
		return fmt.Errorf("certificate %q: not a file name", r.Name)
	case r.CommonName == "":
		return fmt.Errorf("certificate %s: no common name", r.Name)
	case !r.Server && !r.Client:
		return fmt.Errorf("certificate %s: neither for servers nor for clients", r.Name)
	case r.Server && len(r.DNSNames) == 0 && len(r.IPs) == 0:
		return fmt.Errorf("certificate %s: a server needs a DNS name or an address", r.Name)
	case r.Lifetime < 0:
		return fmt.Errorf("certificate %s: negative lifetime", r.Name)
	}
	return nil
}

func (r *Request) lifetime() time.Duration {
	if r.Lifetime == 0 {
		return defaultLifetime
	}
	return r.Lifetime
}

func (r *Request) usages() []x509.ExtKeyUsage {
	var out []x509.ExtKeyUsage
	if r.Server {
		out = append(out, x509.ExtKeyUsageServerAuth)
	}
	if r.Client {
		out = append(out, x509.ExtKeyUsageClientAuth)
	}
	return out
}

// validity returns the times of a certificate made now. A clock that is behind
// the authority's birth is wrong, so the authority's is taken.
func (r *Request) validity(ca *x509.Certificate, now time.Time) (notBefore, notAfter time.Time, err error) {
	if born := ca.NotBefore.Add(backdate); now.Before(born) {
		now = born
	}
	notBefore = now.Add(-backdate)
	notAfter = now.Add(r.lifetime())
	if notAfter.After(ca.NotAfter) {
		notAfter = ca.NotAfter
	}
	if !notAfter.After(now) {
		return notBefore, notAfter, fmt.Errorf("its authority %q ended on %s", ca.Subject.CommonName, ca.NotAfter.Format(time.DateOnly))
	}
	return notBefore, notAfter, nil
}

// sign makes the certificate for a public key.
func (r *Request) sign(ca *Authority, pub any, now time.Time) (*x509.Certificate, error) {
	notBefore, notAfter, err := r.validity(ca.Certificate, now)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		Subject:     pkix.Name{CommonName: r.CommonName, Organization: r.Organizations},
		NotBefore:   notBefore,
		NotAfter:    notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: r.usages(),
		DNSNames:    r.DNSNames,
		IPAddresses: r.IPs,
		// basicConstraints says that this is no authority.
		BasicConstraintsValid: true,
	}, ca.Certificate, pub, ca.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// issuedAt is when a certificate of this package was made.
func issuedAt(cert *x509.Certificate) time.Time { return cert.NotBefore.Add(backdate) }

// RenewAt is when a certificate made by this package is due: after two thirds of
// the time from its issue to its end.
func RenewAt(cert *x509.Certificate) time.Time {
	issued := issuedAt(cert)
	return issued.Add(cert.NotAfter.Sub(issued) / 3 * 2)
}

// whyReissue says why cert no longer serves for the request, or nil.
func (r *Request) whyReissue(cert *x509.Certificate, ca *Authority, now time.Time) error {
	switch {
	case !now.Before(RenewAt(cert)):
		return errors.New("two thirds of its life are over")
	case cert.CheckSignatureFrom(ca.Certificate) != nil:
		return errors.New("its authority has changed")
	case cert.Subject.CommonName != r.CommonName, !sameSet(cert.Subject.Organization, r.Organizations):
		return errors.New("its subject has changed")
	case !sameSet(cert.DNSNames, r.DNSNames), !sameSet(ipStrings(cert.IPAddresses), ipStrings(r.IPs)):
		return errors.New("its names have changed")
	case !slices.Equal(cert.ExtKeyUsage, r.usages()):
		return errors.New("its usages have changed")
	}
	_, notAfter, err := r.validity(ca.Certificate, issuedAt(cert))
	if err != nil {
		return err
	}
	// Certificates hold whole seconds.
	if d := notAfter.Sub(cert.NotAfter).Abs(); d > 2*time.Second {
		return errors.New("its lifetime has changed")
	}
	return nil
}

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

func ipStrings(ips []net.IP) []string {
	out := make([]string, len(ips))
	for i, ip := range ips {
		out[i] = ip.String() // the 4 and the 16 byte form of an address are equal
	}
	return out
}
