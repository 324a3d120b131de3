package enroll

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"strings"
)

// The text form of a token:
//
//	edge1.<id>.<secret>.<pin>.<check>
//
//	id      8 lower-case hex digits; names the Secret that knows the token
//	secret  32 characters of lower-case base32 without padding: 160 random bits
//	pin     the first 32 hex digits of the SHA-256 of the cluster CA's PKIX
//	        public key: 128 bits, so that finding a second key is out of reach
//	check   8 hex digits: CRC-32 (IEEE) of everything before the last dot, so
//	        that a slip in copying is told apart from a wrong token
const (
	tokenPrefix  = "edge1"
	idLength     = 8
	secretLength = 32
	pinLength    = 32
	checkLength  = 8
	// tokenLength is the exact length of a token in bytes.
	tokenLength = len(tokenPrefix) + 1 + idLength + 1 + secretLength + 1 + pinLength + 1 + checkLength
)

// secretEncoding is base32 in lower case: a token may have to be typed, and
// base32 has no characters that look alike in it.
var secretEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// ErrMalformedToken is returned for text that is no token. It never says which
// text it was.
var ErrMalformedToken = errors.New("this is not a join token: it must be one line that starts with " + tokenPrefix + ". and is copied whole")

// ErrMistypedToken is returned for text that has a token's form but whose
// check digits do not fit.
var ErrMistypedToken = errors.New("the join token was changed or cut on its way: its check digits do not fit")

// Token is a parsed join token. It prints without its secret in every verb of
// fmt, in slog and in JSON; only Reveal gives the whole text.
type Token struct {
	id     string
	secret string
	pin    string
}

// ParseToken parses a token's text. White space around it is ignored. Errors
// are ErrMalformedToken and ErrMistypedToken and never hold the text.
func ParseToken(text string) (Token, error) {
	text = strings.TrimSpace(text)
	if len(text) != tokenLength {
		return Token{}, ErrMalformedToken
	}
	parts := strings.Split(text, ".")
	if len(parts) != 5 || parts[0] != tokenPrefix {
		return Token{}, ErrMalformedToken
	}
	id, secret, pin, check := parts[1], parts[2], parts[3], parts[4]
	if !isHex(id, idLength) || !isHex(pin, pinLength) || !isHex(check, checkLength) || !isSecret(secret) {
		return Token{}, ErrMalformedToken
	}
	t := Token{id: id, secret: secret, pin: pin}
	if check != checkDigits(t.body()) {
		return Token{}, ErrMistypedToken
	}
	return t, nil
}

// newToken makes a token from 24 bytes of random.
func newToken(random io.Reader, pin string) (Token, error) {
	if !isHex(pin, pinLength) {
		return Token{}, fmt.Errorf("make join token: the CA pin must be %d hex digits", pinLength)
	}
	var raw [idLength/2 + secretLength*5/8]byte
	if _, err := io.ReadFull(random, raw[:]); err != nil {
		return Token{}, fmt.Errorf("make join token: read random bytes: %w", err)
	}
	return Token{
		id:     hex.EncodeToString(raw[:idLength/2]),
		secret: secretEncoding.EncodeToString(raw[idLength/2:]),
		pin:    pin,
	}, nil
}

// ID names the token in lists and logs. It is no secret.
func (t Token) ID() string { return t.id }

// Pin is the fingerprint of the cluster CA's key as hex. It is no secret.
func (t Token) Pin() string { return t.pin }

// Reveal returns the whole text, which lets its holder join the cluster.
func (t Token) Reveal() string {
	body := t.body()
	return body + "." + checkDigits(body)
}

// MatchesCA says whether cert is the CA that the token pins. The device must
// find such a certificate in the chain the gateway presents, and verify the
// gateway's certificate against it, before it sends the token.
func (t Token) MatchesCA(cert *x509.Certificate) bool {
	return cert != nil && cert.IsCA && subtle.ConstantTimeCompare([]byte(Pin(cert)), []byte(t.pin)) == 1
}

// String implements fmt.Stringer without the secret.
func (t Token) String() string { return tokenPrefix + "." + t.id + ".(secret)" }

// GoString implements fmt.GoStringer without the secret.
func (t Token) GoString() string { return "enroll.Token(" + t.String() + ")" }

// LogValue implements slog.LogValuer without the secret.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText implements encoding.TextMarshaler without the secret.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// Pin returns the pin of a CA certificate: the first 32 hex digits of the
// SHA-256 of its PKIX public key. It is that of the key, so a CA certificate
// may be renewed without making tokens useless.
func Pin(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])[:pinLength]
}

func (t Token) body() string {
	return strings.Join([]string{tokenPrefix, t.id, t.secret, t.pin}, ".")
}

// digest is what the cluster keeps of the secret. The secret has 160 random
// bits, so a plain hash is enough: there is nothing to guess.
func (t Token) digest() [sha256.Size]byte { return sha256.Sum256([]byte(t.secret)) }

func checkDigits(body string) string {
	return fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(body)))
}

func isHex(s string, length int) bool {
	if len(s) != length {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func isSecret(s string) bool {
	if len(s) != secretLength {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}
