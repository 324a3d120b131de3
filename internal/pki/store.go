package pki

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"k8s.io/utils/clock"
)

// Store is a directory of authorities, certificates and keys. It may be used by
// several goroutines, and by several processes at once.
type Store struct {
	dir   string
	clock clock.PassiveClock
	// issue serialises what writes: in this process by the mutex, between
	// processes by the file lock.
	issue sync.Mutex
	lock  *flock.Flock

	mu    sync.Mutex           // guards renew
	renew map[string]time.Time // by request name, of certificates ensured by this Store
}

// Open makes the directory if it is missing and returns its Store. clk may be
// nil for the system's clock.
func Open(dir string, clk clock.PassiveClock) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open certificate store: %w", err)
	}
	if clk == nil {
		clk = clock.RealClock{}
	}
	return &Store{
		dir: dir, clock: clk,
		lock:  flock.New(filepath.Join(dir, ".lock"), flock.SetPermissions(0o600)),
		renew: map[string]time.Time{},
	}, nil
}

// CertFile is where the certificate of a name is.
func (s *Store) CertFile(name string) string {
	return filepath.Join(s.dir, filepath.FromSlash(name)+".crt")
}

// KeyFile is where the private key of a name is.
func (s *Store) KeyFile(name string) string {
	return filepath.Join(s.dir, filepath.FromSlash(name)+".key")
}

// Authority is a certificate authority with its key.
type Authority struct {
	Name        string
	Certificate *x509.Certificate
	CertFile    string
	KeyFile     string
	key         *ecdsa.PrivateKey
}

// PEM returns the authority's certificate.
func (a *Authority) PEM() []byte { return EncodeCertificatesPEM(a.Certificate) }

// Pool returns the authority as the only trusted root.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Certificate)
	return pool
}

// Sign makes a certificate for a key that is not in a store: a device's, or one
// that lives in memory only. Name of the request is not used for a file.
func (a *Authority) Sign(r Request, pub *ecdsa.PublicKey, now time.Time) (*x509.Certificate, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	cert, err := r.sign(a, pub, now)
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", r.Name, err)
	}
	return cert, nil
}

// Authority loads the authority of that name, or makes one that is valid for ten
// years. An authority that is there is never replaced: one that is damaged, or
// has lost its key, is an error.
func (s *Store) Authority(name, commonName string) (*Authority, error) {
	if !validName.MatchString(name) || commonName == "" {
		return nil, fmt.Errorf("authority %q: name or common name missing", name)
	}
	a, err := s.loadAuthority(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	unlock, err := s.lockAll()
	if err != nil {
		return nil, fmt.Errorf("authority %s: %w", name, err)
	}
	defer unlock()
	if a, err = s.loadAuthority(name); !errors.Is(err, fs.ErrNotExist) {
		return a, err // another was quicker
	}
	if a, err = s.makeAuthority(name, commonName); err != nil {
		return nil, fmt.Errorf("make authority %s: %w", name, err)
	}
	return a, nil
}

// LoadAuthority loads an authority that must exist; a missing one is
// fs.ErrNotExist.
func (s *Store) LoadAuthority(name string) (*Authority, error) { return s.loadAuthority(name) }

func (s *Store) loadAuthority(name string) (*Authority, error) {
	a := &Authority{Name: name, CertFile: s.CertFile(name), KeyFile: s.KeyFile(name)}
	// The certificate is written last: without it there is no authority yet.
	certPEM, err := os.ReadFile(a.CertFile)
	if err != nil {
		return nil, fmt.Errorf("authority %s: %w", name, err)
	}
	certs, err := ParseCertificatesPEM(certPEM)
	if err != nil {
		return nil, fmt.Errorf("authority %s: %s: %w", name, a.CertFile, err)
	}
	a.Certificate = certs[0]
	keyPEM, err := os.ReadFile(a.KeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		// Must not read as "no authority": it would be replaced.
		return nil, fmt.Errorf("authority %s: its key %s is missing", name, a.KeyFile)
	}
	if err != nil {
		return nil, fmt.Errorf("authority %s: %w", name, err)
	}
	if a.key, err = ParseKeyPEM(keyPEM); err != nil {
		return nil, fmt.Errorf("authority %s: %s: %w", name, a.KeyFile, err)
	}
	if !a.key.PublicKey.Equal(a.Certificate.PublicKey) {
		return nil, fmt.Errorf("authority %s: key and certificate do not belong together", name)
	}
	if !a.Certificate.IsCA {
		return nil, fmt.Errorf("authority %s: %s is not an authority's certificate", name, a.CertFile)
	}
	return a, nil
}

func (s *Store) makeAuthority(name, commonName string) (*Authority, error) {
	key, err := GenerateKey()
	if err != nil {
		return nil, err
	}
	now := s.clock.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(authorityLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true, // it signs leaves only
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &Authority{Name: name, Certificate: cert, CertFile: s.CertFile(name), KeyFile: s.KeyFile(name), key: key}
	keyPEM, err := EncodeKeyPEM(key)
	if err != nil {
		return nil, err
	}
	// A lost authority cannot be made again, so this is on the disk before
	// anything trusts it.
	if err := writeFile(a.KeyFile, keyPEM, 0o600, durable); err != nil {
		return nil, err
	}
	if err := writeFile(a.CertFile, a.PEM(), 0o644, durable); err != nil {
		return nil, err
	}
	return a, nil
}

// Ensure makes sure that the declared certificate and its key exist and are not
// due, and says where. renewed is true if the certificate was made by this call.
// See the package's doc for what makes it due.
func (s *Store) Ensure(ca *Authority, r Request) (certFile, keyFile string, renewed bool, err error) {
	certFile, keyFile = s.CertFile(r.Name), s.KeyFile(r.Name)
	if err := r.check(); err != nil {
		return certFile, keyFile, false, err
	}
	now := s.clock.Now()
	if cert, _, err := s.load(r.Name); err == nil && r.whyReissue(cert, ca, now) == nil {
		s.noteRenewal(r.Name, cert)
		return certFile, keyFile, false, nil
	}
	unlock, err := s.lockAll()
	if err != nil {
		return certFile, keyFile, false, fmt.Errorf("certificate %s: %w", r.Name, err)
	}
	defer unlock()
	cert, key, err := s.load(r.Name)
	if err == nil && r.whyReissue(cert, ca, now) == nil { // another was quicker
		s.noteRenewal(r.Name, cert)
		return certFile, keyFile, false, nil
	}
	if key == nil {
		if key, err = GenerateKey(); err != nil {
			return certFile, keyFile, false, fmt.Errorf("certificate %s: %w", r.Name, err)
		}
		if err := writeKey(keyFile, key); err != nil {
			return certFile, keyFile, false, fmt.Errorf("certificate %s: %w", r.Name, err)
		}
	}
	if cert, err = r.sign(ca, key.Public(), now); err != nil {
		return certFile, keyFile, false, fmt.Errorf("certificate %s: %w", r.Name, err)
	}
	if err := writeFile(certFile, EncodeCertificatesPEM(cert), 0o644, quick); err != nil {
		return certFile, keyFile, false, fmt.Errorf("certificate %s: %w", r.Name, err)
	}
	s.noteRenewal(r.Name, cert)
	return certFile, keyFile, true, nil
}

// load returns a certificate and its key. With an error, key is still returned
// if it alone is sound.
func (s *Store) load(name string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	keyPEM, err := os.ReadFile(s.KeyFile(name))
	if err != nil {
		return nil, nil, err
	}
	key, err := ParseKeyPEM(keyPEM)
	if err != nil {
		return nil, nil, err
	}
	certPEM, err := os.ReadFile(s.CertFile(name))
	if err != nil {
		return nil, key, err
	}
	certs, err := ParseCertificatesPEM(certPEM)
	if err != nil {
		return nil, key, err
	}
	if !key.PublicKey.Equal(certs[0].PublicKey) {
		return nil, key, errors.New("key and certificate do not belong together")
	}
	return certs[0], key, nil
}

// NextRenewal is the earliest time at which a certificate that this Store has
// ensured is due; ok is false if there is none.
func (s *Store) NextRenewal() (at time.Time, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.renew {
		if !ok || t.Before(at) {
			at, ok = t, true
		}
	}
	return at, ok
}

func (s *Store) noteRenewal(name string, cert *x509.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renew[name] = RenewAt(cert)
}

// ServiceAccountKey makes sure that the key pair that signs service account
// tokens exists, <name>.key and <name>.pub, and says where. It does not expire.
func (s *Store) ServiceAccountKey(name string) (keyFile, pubFile string, err error) {
	keyFile = s.KeyFile(name)
	pubFile = filepath.Join(s.dir, filepath.FromSlash(name)+".pub")
	if !validName.MatchString(name) {
		return keyFile, pubFile, fmt.Errorf("service account key %q: not a file name", name)
	}
	unlock, err := s.lockAll()
	if err != nil {
		return keyFile, pubFile, fmt.Errorf("service account key: %w", err)
	}
	defer unlock()
	var key *ecdsa.PrivateKey
	data, err := os.ReadFile(keyFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if key, err = GenerateKey(); err == nil {
			err = writeKey(keyFile, key)
		}
	case err == nil:
		// A damaged key is not replaced: every token out there would be void.
		key, err = ParseKeyPEM(data)
	}
	if err != nil {
		return keyFile, pubFile, fmt.Errorf("service account key %s: %w", keyFile, err)
	}
	pub, err := EncodePublicKeyPEM(key.Public())
	if err != nil {
		return keyFile, pubFile, err
	}
	if have, err := os.ReadFile(pubFile); err == nil && string(have) == string(pub) {
		return keyFile, pubFile, nil
	}
	return keyFile, pubFile, writeFile(pubFile, pub, 0o644, quick)
}

// lockAll takes the right to write to the store.
func (s *Store) lockAll() (unlock func(), err error) {
	s.issue.Lock()
	if err := s.lock.Lock(); err != nil {
		s.issue.Unlock()
		return nil, fmt.Errorf("lock certificate store: %w", err)
	}
	return func() {
		s.lock.Close() // the lock is gone with the file, whatever Close says
		s.issue.Unlock()
	}, nil
}
