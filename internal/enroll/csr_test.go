package enroll

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"strings"
	"testing"

	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

func testKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func testCSR(t testing.TB, text string, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// The forgeries are in internal/controllers, where they are decided; here is
// that what a device makes is what is accepted.
func TestOwnRequestsPass(t *testing.T) {
	key := testKey(t)
	node, err := NodeCSR("n", key)
	node = testCSR(t, node, err)
	hub, err := HubCSR("n", key)
	hub = testCSR(t, hub, err)
	serving, err := ServingCSR("n", key)
	serving = testCSR(t, serving, err)
	for text, want := range map[string]Subject{
		node:    {CommonName: "system:node:n", Organization: "system:nodes"},
		hub:     {CommonName: "edge:hub:n", Organization: "edge:hubs"},
		serving: {CommonName: "system:node:n", Organization: "system:nodes", DNSNames: []string{"n"}},
	} {
		req, err := ParseCSR([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckCSR(req, want); err != nil {
			t.Error(err)
		}
		want.CommonName += "x"
		if CheckCSR(req, want) == nil {
			t.Error("another name passes")
		}
	}
	want, err := pki.Fingerprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Fingerprint(key.Public()); err != nil || got != want {
		t.Errorf("fingerprint is %s, %v", got, err)
	}
}

func TestParseCSRRefuses(t *testing.T) {
	good, err := NodeCSR("n", testKey(t))
	good = testCSR(t, good, err)
	for what, text := range map[string]string{
		"empty":           "",
		"no PEM":          "x",
		"another block":   strings.ReplaceAll(good, "CERTIFICATE REQUEST", "CERTIFICATE"),
		"two":             good + good,
		"something after": good + "x",
		"too long":        good + strings.Repeat("\n", maxCSR),
		"changed":         strings.Replace(good, "MI", "MJ", 1),
	} {
		if _, err := ParseCSR([]byte(text)); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
	if _, err := ParseCSR([]byte(good + "\r\n\n")); err != nil {
		t.Errorf("a line end after it: %v", err)
	}
}

func FuzzParseCSR(f *testing.F) {
	good, err := NodeCSR("n", testKey(f))
	f.Add([]byte(testCSR(f, good, err)))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	f.Add([]byte{})
	want := Subject{CommonName: "system:node:n", Organization: NodesGroup}
	f.Fuzz(func(t *testing.T, text []byte) {
		req, err := ParseCSR(text)
		if err != nil {
			return
		}
		if CheckCSR(req, want) == nil && (req.Subject.CommonName != want.CommonName || len(req.Extensions) > 0) {
			t.Fatal("checked, and yet not what is wanted")
		}
	})
}
