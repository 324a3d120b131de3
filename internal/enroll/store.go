package enroll

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// What a token is in the cluster: a Secret edge-system/join-token-<id> of type
// TokenSecretType with these keys.
//
//	hash     hex SHA-256 of the token's secret part
//	pool     the pool that its bearer joins
//	name     the node name it is bound to, once it is
//	bound    who bound it: "operator" when minted, "device" at first use
//	expires  RFC 3339, UTC
//	used-by  fingerprint of the key that joined with it
const (
	// TokenSecretType is the type of Secrets that hold a token's record.
	TokenSecretType corev1.SecretType = "edgewright.dev/join-token"
	// TokenSecretPrefix and a token's id make the name of its Secret.
	TokenSecretPrefix = "join-token-"

	fieldHash    = "hash"
	fieldPool    = "pool"
	fieldName    = "name"
	fieldBound   = "bound"
	fieldExpires = "expires"
	fieldUsedBy  = "used-by"

	boundByOperator = "operator"
	boundByDevice   = "device"
)

// How long tokens live.
const (
	// DefaultTokenTTL is long enough to carry a token to a device by hand.
	DefaultTokenTTL = time.Hour
	// MaxTokenTTL keeps a forgotten token from being a standing way in; it
	// still lets a device be shipped with one.
	MaxTokenTTL = 90 * 24 * time.Hour
	// ExpiredTokenKept is how long an expired token's record stays, so that a
	// late device is told that its token expired and not that it is wrong.
	ExpiredTokenKept = 24 * time.Hour
)

// mintTries bounds the search for a free id: with 2^32 ids a second try is
// rare and a fifth means that something else is wrong.
const mintTries = 5

// Record is what the cluster knows of a token. Nothing in it is secret.
type Record struct {
	ID   string
	Pool string
	// Name is the node name the token is bound to; empty while it is unbound.
	Name string
	// ByOperator says that the operator named the node when minting: such a
	// token may move a name to new hardware.
	ByOperator bool
	Expires    time.Time
	// UsedBy is the fingerprint of the key that joined; empty while unused.
	UsedBy string

	hash   [sha256.Size]byte
	secret *corev1.Secret
}

// StoreConfig is what a Store needs.
type StoreConfig struct {
	Client kubernetes.Interface
	// CAPin is Pin of the cluster's CA; only Mint needs it.
	CAPin string
	Clock clock.PassiveClock
	// Random is crypto/rand.Reader outside tests.
	Random io.Reader
}

// Store keeps join tokens as Secrets of the cluster.
type Store struct {
	cfg StoreConfig
}

// NewStore returns a store of the cluster that the client talks to.
func NewStore(cfg StoreConfig) *Store { return &Store{cfg: cfg} }

// MintOptions says what a new token is for.
type MintOptions struct {
	Pool string
	// Node binds the token to a node name from the start. Empty: the first
	// name presented is taken.
	Node string
	// TTL until the token expires; zero means DefaultTokenTTL.
	TTL time.Duration
}

// Mint makes a token and records it. The returned Token is the only copy of
// its secret. Mint does not ask whether the pool exists: enrolling does.
func (s *Store) Mint(ctx context.Context, opts MintOptions) (Token, error) {
	if opts.TTL == 0 {
		opts.TTL = DefaultTokenTTL
	}
	if opts.TTL < 0 || opts.TTL > MaxTokenTTL {
		return Token{}, fmt.Errorf("mint join token: a token must live for more than 0 and at most %s", MaxTokenTTL)
	}
	if msgs := validation.IsDNS1123Label(opts.Pool); len(msgs) > 0 {
		return Token{}, fmt.Errorf("mint join token: pool name %q: %s", opts.Pool, strings.Join(msgs, "; "))
	}
	if opts.Node != "" {
		if v1alpha1.ReservedNodeName(opts.Node) {
			return Token{}, fmt.Errorf("mint join token: node name %q belongs to the cluster's own servers", opts.Node)
		}
		if msgs := validation.IsDNS1123Label(opts.Node); len(msgs) > 0 {
			return Token{}, fmt.Errorf("mint join token: node name %q: %s", opts.Node, strings.Join(msgs, "; "))
		}
	}
	var lastErr error
	for range mintTries {
		token, err := newToken(s.cfg.Random, s.cfg.CAPin)
		if err != nil {
			return Token{}, err
		}
		digest := token.digest()
		data := map[string][]byte{
			fieldHash:    []byte(hex.EncodeToString(digest[:])),
			fieldPool:    []byte(opts.Pool),
			fieldExpires: []byte(s.cfg.Clock.Now().Add(opts.TTL).UTC().Format(time.RFC3339)),
		}
		if opts.Node != "" {
			data[fieldName] = []byte(opts.Node)
			data[fieldBound] = []byte(boundByOperator)
		}
		_, err = s.secrets().Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: TokenSecretPrefix + token.id},
			Type:       TokenSecretType,
			Data:       data,
		}, metav1.CreateOptions{})
		if err == nil {
			return token, nil
		}
		lastErr = fmt.Errorf("mint join token for pool %s: %w", opts.Pool, err)
		if !apierrors.IsAlreadyExists(err) {
			break
		}
	}
	return Token{}, lastErr
}

// List returns the records of all tokens, the ones that expire first first.
// Secrets that are no token records are left out.
func (s *Store) List(ctx context.Context) ([]Record, error) {
	list, err := s.secrets().List(ctx, metav1.ListOptions{FieldSelector: "type=" + string(TokenSecretType)})
	if err != nil {
		return nil, fmt.Errorf("list join tokens: %w", err)
	}
	var records []Record
	for i := range list.Items {
		if record, err := ParseRecord(&list.Items[i]); err == nil {
			records = append(records, *record)
		}
	}
	slices.SortFunc(records, func(a, b Record) int {
		if c := a.Expires.Compare(b.Expires); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return records, nil
}

// Revoke deletes a token by its id. A node that joined with it stays. The
// error is NotFound (k8s.io/apimachinery/pkg/api/errors) if there is none.
func (s *Store) Revoke(ctx context.Context, id string) error {
	if !isHex(id, idLength) {
		return fmt.Errorf("revoke join token: an id is %d hex digits", idLength)
	}
	if err := s.secrets().Delete(ctx, TokenSecretPrefix+id, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("revoke join token %s: %w", id, err)
	}
	return nil
}

// ParseRecord reads a token's record from its Secret. An error means that the
// Secret is no token record.
func ParseRecord(secret *corev1.Secret) (*Record, error) {
	id, found := strings.CutPrefix(secret.Name, TokenSecretPrefix)
	if secret.Type != TokenSecretType || !found || !isHex(id, idLength) {
		return nil, fmt.Errorf("secret %s/%s is no join token", secret.Namespace, secret.Name)
	}
	record := &Record{
		ID:         id,
		Pool:       string(secret.Data[fieldPool]),
		Name:       string(secret.Data[fieldName]),
		ByOperator: string(secret.Data[fieldBound]) == boundByOperator,
		UsedBy:     string(secret.Data[fieldUsedBy]),
		secret:     secret,
	}
	digest, err := hex.DecodeString(string(secret.Data[fieldHash]))
	if err != nil || len(digest) != sha256.Size {
		return nil, fmt.Errorf("join token %s: its hash cannot be read", id)
	}
	record.hash = [sha256.Size]byte(digest)
	if record.Expires, err = time.Parse(time.RFC3339, string(secret.Data[fieldExpires])); err != nil {
		return nil, fmt.Errorf("join token %s: its expiry cannot be read", id)
	}
	if record.Pool == "" {
		return nil, fmt.Errorf("join token %s names no pool", id)
	}
	return record, nil
}

// Expired says whether the token is too old at the given time.
func (r *Record) Expired(now time.Time) bool { return !now.Before(r.Expires) }

// find returns the record of a token whose secret is right. An unknown id, a
// record that cannot be read and a wrong secret are one refusal, and take the
// same comparison, so that ids cannot be told from the answer or its time.
func (s *Store) find(ctx context.Context, token Token) (*Record, error) {
	record := &Record{}
	secret, err := s.secrets().Get(ctx, TokenSecretPrefix+token.id, metav1.GetOptions{})
	known := err == nil
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("look up join token %s: %w", token.id, err)
	}
	if known {
		if parsed, err := ParseRecord(secret); err == nil {
			record = parsed
		} else {
			known = false
		}
	}
	digest := token.digest()
	same := subtle.ConstantTimeCompare(digest[:], record.hash[:]) == 1
	if !known || !same {
		return nil, refuse(CodeTokenInvalid, "the join token is wrong or was revoked")
	}
	return record, nil
}

// use binds the token to name and key. A conflict error means that the record
// changed since find: look again.
func (s *Store) use(ctx context.Context, record *Record, name, key string) error {
	if record.Name == name && record.UsedBy == key {
		return nil
	}
	secret := record.secret.DeepCopy()
	if record.Name == "" {
		secret.Data[fieldName] = []byte(name)
		secret.Data[fieldBound] = []byte(boundByDevice)
	}
	secret.Data[fieldUsedBy] = []byte(key)
	updated, err := s.secrets().Update(ctx, secret, metav1.UpdateOptions{})
	if err != nil {
		return fmt.Errorf("bind join token %s to node %s: %w", record.ID, name, err)
	}
	record.Name, record.UsedBy, record.secret = name, key, updated
	return nil
}

func (s *Store) secrets() typedcorev1.SecretInterface {
	return s.cfg.Client.CoreV1().Secrets(v1alpha1.SystemNamespace)
}
