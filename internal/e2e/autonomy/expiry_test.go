//go:build linux

package autonomy

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

// ended is how long the certificates live that a cut node gets from the test.
const ended = 10 * time.Second

// clusterCertificates are those that the cluster's authority has signed for a node.
var clusterCertificates = []string{"node.crt", "hub.crt", "kubelet-serving.crt"}

// expires: all that the cluster has signed for the node ends while it is cut off,
// and then it reboots. Its pods run again, and it is a node again once the link is
// back, with nobody's help.
func (l *lab) expires(t *testing.T) {
	l.lab(t, "cut", pool)
	l.notices(t)
	end := l.shorten(t)
	over := time.NewTimer(time.Until(end) + time.Second)
	defer over.Stop()
	<-over.C
	rig.Eventually(t, time.Minute, "the node says that its certificates have ended", func() error {
		_, faults, err := l.status()
		if err != nil || !strings.Contains(strings.Join(faults, " "), "CertExpiring") {
			return fmt.Errorf("%v %v", faults, err)
		}
		return nil
	})
	l.reboots(t)
	running := l.servers(t)
	l.lab(t, "restore", pool)
	took := rig.Eventually(t, 3*time.Minute, "the node is one of its cluster's again", func() error {
		if up, err := l.connected(t); err != nil || !up {
			return fmt.Errorf("connected: %v %v", up, err)
		}
		for _, file := range clusterCertificates {
			if c := l.certificate(t, file); time.Until(c.NotAfter) < 24*time.Hour {
				return fmt.Errorf("%s ends at %s", file, c.NotAfter)
			}
		}
		if _, faults, err := l.status(); err != nil || len(faults) > 0 {
			return fmt.Errorf("%v %v", faults, err)
		}
		if res := l.TryEdge(t, "kubectl", "-c", cluster, "--request-timeout=5s", "wait", "node/"+node, "--for=condition=Ready", "--timeout=1s"); res.Err != nil {
			return errors.New(res.Stderr)
		}
		// The serving certificate is the kubelet's, and the way to it the tunnel's.
		if res := l.TryEdge(t, "kubectl", "-c", cluster, "--request-timeout=5s", "logs", "deployment/web", "--tail=1"); res.Err != nil {
			return errors.New(res.Stderr)
		}
		return l.sameObjects(t)
	})
	t.Logf("with new certificates and Ready %.1f s after the link was back", took.Seconds())
	if now := l.servers(t); !maps.Equal(now, running) {
		t.Errorf("containers changed (-before +now):\n%s", cmp.Diff(running, now))
	}
}

// shorten puts certificates of seconds in the place of the node's, for the same
// keys and names, and returns when they end.
func (l *lab) shorten(t *testing.T) time.Time {
	t.Helper()
	store, err := pki.Open(filepath.Join(filepath.Dir(filepath.Dir(l.dir)), "pki"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := store.LoadAuthority("ca")
	if err != nil {
		t.Fatal(err)
	}
	var end time.Time
	for _, file := range clusterCertificates {
		old := l.certificate(t, file)
		request := pki.Request{
			Name: "short", CommonName: old.Subject.CommonName, Organizations: old.Subject.Organization,
			DNSNames: old.DNSNames, IPs: old.IPAddresses, Lifetime: ended,
		}
		for _, use := range old.ExtKeyUsage {
			request.Server = request.Server || use == x509.ExtKeyUsageServerAuth
			request.Client = request.Client || use == x509.ExtKeyUsageClientAuth
		}
		key, ok := old.PublicKey.(*ecdsa.PublicKey)
		if !ok {
			t.Fatalf("%s has a %T", file, old.PublicKey)
		}
		cert, err := ca.Sign(request, key, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		made := filepath.Join(l.Work(), file)
		if err := pki.WriteCertificates(made, cert); err != nil {
			t.Fatal(err)
		}
		// Renamed into its place, for the daemon may be reading it.
		there := filepath.Join(l.dir, "pki", file)
		for _, command := range [][]string{{"cp", "--preserve=mode", made, there + ".short"}, {"mv", there + ".short", there}} {
			if res := l.AsRoot(t, command[0], command[1:]...); res.Err != nil {
				t.Fatalf("%v: %s", command, res.Stderr)
			}
		}
		end = cert.NotAfter
	}
	return end
}

// certificate of the node.
func (l *lab) certificate(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	res := l.AsRoot(t, "cat", filepath.Join(l.dir, "pki", file))
	if res.Err != nil {
		t.Fatalf("%s: %s", file, res.Stderr)
	}
	certs, err := pki.ParseCertificatesPEM([]byte(res.Stdout))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return certs[0]
}

// tokens are when the tokens of each container's volume "short" end.
func (l *lab) tokens(t *testing.T) (map[string]time.Time, error) {
	t.Helper()
	ends := map[string]time.Time{}
	for pid := range l.servers(t) {
		token, err := os.ReadFile(filepath.Join("/proc", pid, "root/short/token"))
		if err != nil {
			return nil, err
		}
		if ends[pid], err = tokenEnd(string(token)); err != nil {
			return nil, fmt.Errorf("token of container %s: %w", pid, err)
		}
	}
	return ends, nil
}

// tokensEnd: every container's token of ten minutes has ended, so that a reboot that
// follows has none that is good. A cut of less than that shows nothing here: it is
// TestTokensThroughACut of the hub that has a clock to set.
func (l *lab) tokensEnd(t *testing.T) {
	t.Helper()
	ends, err := l.tokens(t)
	if err != nil || len(ends) != l.want {
		t.Fatalf("tokens of %d containers: %v", len(ends), err)
	}
	for pid, end := range ends {
		if !time.Now().After(end) {
			t.Errorf("the token of container %s is good until %s", pid, end)
		}
	}
}

// freshTokens waits until every container has a token that is good: after a cut
// that was longer than a token's life the kubelet puts a new one in its place.
func (l *lab) freshTokens(t *testing.T) {
	t.Helper()
	took := rig.Eventually(t, 4*time.Minute, "every container has a token that has not ended", func() error {
		ends, err := l.tokens(t)
		if err != nil {
			return err
		}
		for pid, end := range ends {
			if time.Now().After(end) {
				return fmt.Errorf("the token of container %s ended at %s", pid, end)
			}
		}
		return nil
	})
	t.Logf("every container has a good token %.1f s later", took.Seconds())
}

// tokenEnd reads when a service-account token ends.
func tokenEnd(token string) (time.Time, error) {
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(parts) != 3 {
		return time.Time{}, fmt.Errorf("%d parts in a token", len(parts))
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}, err
	}
	var claims struct {
		Exp int64 `json:"exp"`
	}
	if err := json.Unmarshal(raw, &claims); err != nil {
		return time.Time{}, err
	}
	if claims.Exp == 0 {
		return time.Time{}, errors.New("a token without an end")
	}
	return time.Unix(claims.Exp, 0), nil
}
