package enroll

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"time"
)

const testPin = "0123456789abcdef0123456789abcdef"

func testToken(t testing.TB) Token {
	t.Helper()
	token, err := newToken(rand.Reader, testPin)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestTokenText(t *testing.T) {
	random := bytes.NewReader([]byte{0xde, 0xad, 0xbe, 0xef, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19})
	token, err := newToken(random, testPin)
	if err != nil {
		t.Fatal(err)
	}
	// Written down, so that a token of an older version stays readable.
	const want = "edge1.deadbeef.aaaqeayeaudaocajbifqydiob4ibceqt.0123456789abcdef0123456789abcdef.8a00a176"
	if got := token.Reveal(); got != want {
		t.Errorf("token is %s, want %s", got, want)
	}
	parsed, err := ParseToken(" " + want + "\r\n")
	if err != nil || parsed != token {
		t.Errorf("parsed %v, %v", parsed, err)
	}
	if parsed.ID() != "deadbeef" || parsed.Pin() != testPin {
		t.Errorf("id %s, pin %s", parsed.ID(), parsed.Pin())
	}
	if _, err := newToken(random, testPin); err == nil {
		t.Error("a token without random bytes")
	}
	if _, err := newToken(rand.Reader, "short"); err == nil {
		t.Error("a token without a pin")
	}
}

func TestParseTokenRefuses(t *testing.T) {
	good := testToken(t).Reveal()
	parts := strings.Split(good, ".")
	withCheck := func(body string) string { return body + "." + checkDigits(body) }
	for what, text := range map[string]string{
		"empty":            "",
		"another prefix":   withCheck("edge2." + strings.Join(parts[1:4], ".")),
		"cut":              good[:len(good)-1],
		"longer":           good + "0",
		"upper case":       strings.ToUpper(good),
		"upper case id":    withCheck("edge1.DEADBEEF." + strings.Join(parts[2:4], ".")),
		"secret alphabet":  withCheck("edge1." + parts[1] + "." + strings.Repeat("1", secretLength) + "." + parts[3]),
		"pin alphabet":     withCheck("edge1." + parts[1] + "." + parts[2] + "." + strings.Repeat("g", pinLength)),
		"more parts":       withCheck("edge1." + parts[1] + "." + parts[2][:15] + "." + parts[2][16:] + "." + parts[3]),
		"a line inside":    good[:20] + "\n" + good[21:],
		"not even UTF-8":   strings.Repeat("\xff", tokenLength),
		"check in letters": strings.Join(parts[:4], ".") + ".zzzzzzzz",
	} {
		if _, err := ParseToken(text); !errors.Is(err, ErrMalformedToken) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range good {
		for _, c := range []byte("a0") {
			if good[i] == c || good[i] == '.' || i < len(tokenPrefix) {
				continue
			}
			changed := good[:i] + string(c) + good[i+1:]
			if _, err := ParseToken(changed); err == nil {
				t.Errorf("a token changed at %d is accepted", i)
			} else if strings.Contains(err.Error(), parts[2]) {
				t.Error("the error tells the token")
			}
		}
	}
}

func TestTokenHidesItsSecret(t *testing.T) {
	token := testToken(t)
	secret := strings.Split(token.Reveal(), ".")[2]
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "token", token, "in", struct{ T Token }{token})
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "token", token, "in", map[string]any{"t": token})
	text, err := json.Marshal(map[string]any{"t": token})
	if err != nil {
		t.Fatal(err)
	}
	for _, printed := range []string{
		fmt.Sprint(token), fmt.Sprintf("%v %+v %#v %s %q", token, token, token, token, token), fmt.Sprintf("%v %+v", &token, []Token{token}),
		log.String(), string(text), fmt.Errorf("x: %v", token).Error(),
	} {
		if strings.Contains(printed, secret) {
			t.Errorf("the secret is printed: %s", printed)
		}
	}
}

func TestMatchesCA(t *testing.T) {
	ca, leaf := certificate(t, true), certificate(t, false)
	token, err := newToken(rand.Reader, Pin(ca))
	if err != nil {
		t.Fatal(err)
	}
	if !token.MatchesCA(ca) {
		t.Error("the pinned CA does not match")
	}
	if token.MatchesCA(certificate(t, true)) || token.MatchesCA(nil) {
		t.Error("another CA matches")
	}
	forLeaf, err := newToken(rand.Reader, Pin(leaf))
	if err != nil {
		t.Fatal(err)
	}
	if forLeaf.MatchesCA(leaf) {
		t.Error("a certificate that is no CA matches")
	}
}

func certificate(t *testing.T, ca bool) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, BasicConstraintsValid: true, IsCA: ca,
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func FuzzParseToken(f *testing.F) {
	f.Add("")
	f.Add("edge1.deadbeef.aaaqeayeaudaocajbifqydiob4ibceqt.0123456789abcdef0123456789abcdef.8a00a176")
	f.Add("edge1....")
	f.Add(strings.Repeat(".", tokenLength))
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			if len(text) > 12 && strings.Contains(err.Error(), text) {
				t.Fatal("the error tells the text")
			}
			return
		}
		// What is accepted is exactly what is written.
		if token.Reveal() != strings.TrimSpace(text) {
			t.Fatalf("%q was read as %q", text, token.Reveal())
		}
	})
}
