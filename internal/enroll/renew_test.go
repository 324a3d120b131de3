package enroll

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

func certificateOf(t *testing.T, notBefore, notAfter time.Time) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: notBefore, NotAfter: notAfter}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestRenewAt(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	life := 300 * 24 * time.Hour
	seen := map[time.Time]bool{}
	for range 20 {
		cert := certificateOf(t, begin, begin.Add(life))
		at := RenewAt(cert)
		if latest := begin.Add(life / 3 * 2); at.After(latest) || at.Before(latest.Add(-life/10)) {
			t.Errorf("due at %s", at)
		}
		if again := RenewAt(cert); again != at {
			t.Errorf("the same certificate is due at %s and at %s", at, again)
		}
		seen[at] = true
	}
	if len(seen) < 15 {
		t.Errorf("20 certificates are due at %d times", len(seen))
	}
}

func TestCheckRenewable(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	cert := certificateOf(t, begin, begin.Add(time.Hour))
	for name, tc := range map[string]struct {
		at   time.Time
		code Code
	}{
		"before":           {begin.Add(-time.Minute), CodeRequestInvalid},
		"in its life":      {begin.Add(time.Minute), ""},
		"after its end":    {begin.Add(2 * time.Hour), ""},
		"last day":         {cert.NotAfter.Add(RenewWindow), ""},
		"after the window": {cert.NotAfter.Add(RenewWindow + time.Second), CodeTooLate},
	} {
		err := CheckRenewable(cert, tc.at)
		var refused *RemoteError
		if tc.code == "" && err != nil || tc.code != "" && (!errors.As(err, &refused) || refused.Code != tc.code) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMayRenew(t *testing.T) {
	record := func(change func(*v1alpha1.EdgeNode)) *v1alpha1.EdgeNode {
		node := &v1alpha1.EdgeNode{Status: v1alpha1.EdgeNodeStatus{Key: "k"}}
		change(node)
		return node
	}
	for name, tc := range map[string]struct {
		record *v1alpha1.EdgeNode
		ok     bool
	}{
		"its key":        {record(func(*v1alpha1.EdgeNode) {}), true},
		"not declared":   {nil, false},
		"being removed":  {record(func(n *v1alpha1.EdgeNode) { n.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }), false},
		"revoked":        {record(func(n *v1alpha1.EdgeNode) { n.Status.Key, n.Status.RevokedKeys = "", []string{"k"} }), false},
		"another device": {record(func(n *v1alpha1.EdgeNode) { n.Status.Key = "other" }), false},
		"no key":         {record(func(n *v1alpha1.EdgeNode) { n.Status.Key = "" }), false},
	} {
		err := mayRenew(tc.record, "n", "k")
		var refused *RemoteError
		if tc.ok != (err == nil) || err != nil && (!errors.As(err, &refused) || refused.Code != CodeRevoked) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
