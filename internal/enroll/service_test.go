package enroll

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	edgefake "sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// bench is a Service on stand-ins for the apiserver; internal/controllers tests
// it on a real one.
type bench struct {
	*Service
	kube   *fake.Clientset
	edge   client.Client
	tokens *Store
	log    *bytes.Buffer
	clock  *clocktesting.FakePassiveClock
}

func newBench(t *testing.T, objects ...client.Object) *bench {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	b := &bench{
		kube:  fake.NewClientset(),
		edge:  edgefake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithStatusSubresource(&v1alpha1.EdgeNode{}).Build(),
		log:   &bytes.Buffer{},
		clock: clocktesting.NewFakePassiveClock(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)),
	}
	b.Service = newService(b.kube, b.edge, ServiceConfig{
		Cluster: Cluster{ID: "local/c-00000001"}, Logger: slog.New(slog.NewTextHandler(b.log, nil)), Clock: b.clock,
	})
	b.tokens = NewStore(StoreConfig{Client: b.kube, CAPin: testPin, Clock: b.clock, Random: rand.Reader})
	// The stand-in has no names of its own making.
	b.kube.PrependReactor("create", "certificatesigningrequests", func(action clienttesting.Action) (bool, runtime.Object, error) {
		nameRequest(action)
		return false, nil, nil
	})
	return b
}

func nameRequest(action clienttesting.Action) *certificatesv1.CertificateSigningRequest {
	csr := action.(clienttesting.CreateAction).GetObject().(*certificatesv1.CertificateSigningRequest)
	csr.Name = csr.GenerateName + strings.TrimPrefix(csr.Spec.SignerName, "kubernetes.io/")
	return csr
}

func pool(name string) *v1alpha1.NodePool {
	return &v1alpha1.NodePool{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func (b *bench) mint(t *testing.T, opts MintOptions) Token {
	t.Helper()
	token, err := b.tokens.Mint(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func deviceRequest(t *testing.T, token Token, name string, key *ecdsa.PrivateKey) Request {
	t.Helper()
	node, err := NodeCSR(name, key)
	node = testCSR(t, node, err)
	hub, err := HubCSR(name, key)
	hub = testCSR(t, hub, err)
	return Request{Token: token.Reveal(), Name: name, NodeCSR: node, HubCSR: hub, EngineVersion: "0.1.0", Architecture: "arm64"}
}

// signAll answers certificate requests as answer says, from the moment they are
// made.
func (b *bench) signAll(t *testing.T, answer func(*certificatesv1.CertificateSigningRequest)) {
	t.Helper()
	b.kube.PrependReactor("create", "certificatesigningrequests", func(action clienttesting.Action) (bool, runtime.Object, error) {
		answer(nameRequest(action))
		return false, nil, nil
	})
}

// sign is a signer that issues what is asked for, by whatever key.
func sign(t *testing.T, csr *certificatesv1.CertificateSigningRequest, key *ecdsa.PrivateKey) {
	t.Helper()
	req, err := ParseCSR(csr.Spec.Request)
	if err != nil {
		t.Fatal(err)
	}
	public := req.PublicKey
	if key != nil {
		public = key.Public()
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: req.Subject, NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, testKey(t))
	if err != nil {
		t.Fatal(err)
	}
	csr.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

var from = netip.MustParseAddrPort("198.18.0.2:4711")

func TestEnroll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, pool("berlin"))
		b.signAll(t, func(csr *certificatesv1.CertificateSigningRequest) {
			signed := csr.DeepCopy()
			sign(t, signed, nil)
			go func() {
				// Later (in the test's own time), as a signer does: the watch has
				// to bring it.
				time.Sleep(time.Second)
				if _, err := b.kube.CertificatesV1().CertificateSigningRequests().UpdateStatus(t.Context(), signed, metav1.UpdateOptions{}); err != nil {
					t.Error(err)
				}
			}()
		})
		key := testKey(t)
		token := b.mint(t, MintOptions{Pool: "berlin"})
		response := b.Enroll(t.Context(), deviceRequest(t, token, "berlin-1", key), from)
		if response.Error != nil {
			t.Fatalf("%v\n%s", response.Error, b.log)
		}
		if response.Pool != "berlin" || response.NodeCertificate == "" || response.HubCertificate == "" || response.ClusterID != "local/c-00000001" {
			t.Errorf("answer is %+v", response)
		}
		var node v1alpha1.EdgeNode
		if err := b.edge.Get(t.Context(), client.ObjectKey{Name: "berlin-1"}, &node); err != nil {
			t.Fatal(err)
		}
		want, err := Fingerprint(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		if node.Spec.Pool != "berlin" || node.Status.Key != want || node.Status.Architecture != "arm64" || node.Status.EngineVersion != "0.1.0" {
			t.Errorf("record is %+v", node)
		}
		if secret := strings.Split(token.Reveal(), ".")[2]; strings.Contains(b.log.String(), secret) {
			t.Error("the log tells the token")
		}
	})
}

func TestEnrollWaitsNoLongerThanTheDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, pool("berlin"))
		started := time.Now()
		response := b.Enroll(t.Context(), deviceRequest(t, b.mint(t, MintOptions{Pool: "berlin"}), "berlin-1", testKey(t)), from)
		if response.Error == nil || response.Error.Code != CodeInternal || !response.Error.Retryable() {
			t.Errorf("answer is %+v", response)
		}
		if took := time.Since(started); took != certificateWait {
			t.Errorf("it took %s", took)
		}
	})
}

func TestEnrollTellsDenialsApart(t *testing.T) {
	for what, answer := range map[string]func(*certificatesv1.CertificateSigningRequest){
		"denied": func(csr *certificatesv1.CertificateSigningRequest) {
			csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateDenied, Status: corev1.ConditionTrue, Reason: "secret-reason"}}
		},
		"failed": func(csr *certificatesv1.CertificateSigningRequest) {
			csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: "secret-reason"}}
		},
		"no certificate": func(csr *certificatesv1.CertificateSigningRequest) { csr.Status.Certificate = []byte("secret-reason") },
		"another's":      func(csr *certificatesv1.CertificateSigningRequest) { sign(t, csr, testKey(t)) },
		"nonsense in a wrap": func(csr *certificatesv1.CertificateSigningRequest) {
			csr.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})
		},
	} {
		t.Run(what, func(t *testing.T) {
			b := newBench(t, pool("berlin"))
			// The stand-in sends no event for what was there before the watch,
			// so the watch ends at once and the request is read.
			b.kube.PrependWatchReactor("certificatesigningrequests", endedWatch)
			b.signAll(t, answer)
			response := b.Enroll(t.Context(), deviceRequest(t, b.mint(t, MintOptions{Pool: "berlin"}), "berlin-1", testKey(t)), from)
			if response.Error == nil || response.Error.Code != CodeInternal {
				t.Fatalf("answer is %+v", response)
			}
			if strings.Contains(response.Error.Message, "secret-reason") {
				t.Error("the device is told what broke inside")
			}
		})
	}
}

func TestRefusedBeforeAnythingIsWritten(t *testing.T) {
	b := newBench(t, pool("berlin"))
	token := b.mint(t, MintOptions{Pool: "berlin"})
	key := testKey(t)
	before := len(b.kube.Actions())
	for what, edit := range map[string]func(*Request){
		"long version":      func(r *Request) { r.EngineVersion = strings.Repeat("x", 65) },
		"long architecture": func(r *Request) { r.Architecture = strings.Repeat("x", 65) },
		"upper case name":   func(r *Request) { *r = deviceRequest(t, token, "BERLIN", key) },
		"path as name":      func(r *Request) { *r = deviceRequest(t, token, "../x", key) },
		"no node request":   func(r *Request) { r.NodeCSR = "" },
		"no hub request":    func(r *Request) { r.HubCSR = "" },
	} {
		request := deviceRequest(t, token, "berlin-1", key)
		edit(&request)
		response := b.Enroll(t.Context(), request, from)
		if response.Error == nil || response.Error.Code != CodeRequestInvalid || response.Error.Retryable() {
			t.Errorf("%s: %+v", what, response)
		}
	}
	for _, action := range b.kube.Actions()[before:] {
		if action.GetVerb() != "get" {
			t.Errorf("it wrote: %v", action)
		}
	}
}

// A write that loses against another gateway's is looked at afresh, and given
// up after a few.
func TestConflictsAreTriedAgain(t *testing.T) {
	for _, c := range []struct {
		conflicts int
		joins     bool
	}{{conflictTries - 1, true}, {conflictTries, false}} {
		b := newBench(t, pool("berlin"))
		b.kube.PrependWatchReactor("certificatesigningrequests", endedWatch)
		b.signAll(t, func(csr *certificatesv1.CertificateSigningRequest) { sign(t, csr, nil) })
		left := c.conflicts
		b.kube.PrependReactor("update", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			if left == 0 {
				return false, nil, nil
			}
			left--
			return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "secrets"}, "x", errors.New("changed"))
		})
		response := b.Enroll(t.Context(), deviceRequest(t, b.mint(t, MintOptions{Pool: "berlin"}), "berlin-1", testKey(t)), from)
		if (response.Error == nil) != c.joins {
			t.Errorf("after %d conflicts: %+v", c.conflicts, response.Error)
		}
	}
}

func TestMayHold(t *testing.T) {
	now := metav1.NewTime(time.Unix(1, 0))
	node := func(key string, revoked ...string) *v1alpha1.EdgeNode {
		return &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: v1alpha1.EdgeNodeSpec{Pool: "p"},
			Status: v1alpha1.EdgeNodeStatus{Key: key, RevokedKeys: revoked}}
	}
	gone := node("")
	gone.DeletionTimestamp = &now
	for _, c := range []struct {
		what   string
		node   *v1alpha1.EdgeNode
		record Record
		may    bool
	}{
		{"declared", node(""), Record{Pool: "p"}, true},
		{"the same key", node("k"), Record{Pool: "p"}, true},
		{"another key", node("other"), Record{Pool: "p"}, false},
		{"another key, the operator's word", node("other"), Record{Pool: "p", ByOperator: true}, true},
		{"another pool", node(""), Record{Pool: "q"}, false},
		{"another pool, the operator's word", node("other"), Record{Pool: "q", ByOperator: true}, false},
		{"revoked", node("", "k"), Record{Pool: "p"}, false},
		{"revoked, the operator's word", node("other", "x", "k"), Record{Pool: "p", ByOperator: true}, false},
		{"being removed", gone, Record{Pool: "p", ByOperator: true}, false},
	} {
		err := mayHold(c.node, &c.record, "k")
		if (err == nil) != c.may {
			t.Errorf("%s: %v", c.what, err)
		}
		if remote, ok := errors.AsType[*RemoteError](err); err != nil && (!ok || remote.Code != CodeNameConflict) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestMintRefuses(t *testing.T) {
	b := newBench(t)
	for what, opts := range map[string]MintOptions{
		"no pool":     {},
		"bad pool":    {Pool: "Berlin"},
		"bad node":    {Pool: "berlin", Node: "a/b"},
		"past":        {Pool: "berlin", TTL: -time.Second},
		"for decades": {Pool: "berlin", TTL: MaxTokenTTL + 1},
	} {
		if _, err := b.tokens.Mint(t.Context(), opts); err == nil {
			t.Errorf("%s: a token was minted", what)
		}
	}
	if err := b.tokens.Revoke(t.Context(), "../x"); err == nil || apierrors.IsNotFound(err) {
		t.Errorf("revoking a path: %v", err)
	}
	if err := b.tokens.Revoke(t.Context(), "00000000"); !apierrors.IsNotFound(err) {
		t.Errorf("revoking what is not there: %v", err)
	}
}

// A taken id is no error: the next one is tried.
func TestMintTriesAnotherID(t *testing.T) {
	b := newBench(t)
	taken := b.mint(t, MintOptions{Pool: "berlin"})
	id, err := hexBytes(taken.ID())
	if err != nil {
		t.Fatal(err)
	}
	random := append(append(id, make([]byte, 20)...), bytes.Repeat([]byte{7}, 24)...)
	store := NewStore(StoreConfig{Client: b.kube, CAPin: testPin, Clock: b.clock, Random: bytes.NewReader(random)})
	token, err := store.Mint(t.Context(), MintOptions{Pool: "berlin"})
	if err != nil || token.ID() != "07070707" {
		t.Errorf("token %s, %v", token.ID(), err)
	}
}

func hexBytes(s string) ([]byte, error) {
	n, ok := new(big.Int).SetString(s, 16)
	if !ok {
		return nil, errors.New("no hex")
	}
	return n.FillBytes(make([]byte, len(s)/2)), nil
}

func TestParseRecordRefuses(t *testing.T) {
	good := func() *corev1.Secret {
		return &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: TokenSecretPrefix + "deadbeef"}, Type: TokenSecretType,
			Data: map[string][]byte{
				fieldHash: []byte(strings.Repeat("ab", 32)), fieldPool: []byte("p"), fieldExpires: []byte("2026-01-02T03:04:05Z"),
			},
		}
	}
	if record, err := ParseRecord(good()); err != nil || record.ID != "deadbeef" || record.Pool != "p" {
		t.Fatalf("record %+v, %v", record, err)
	}
	for what, edit := range map[string]func(*corev1.Secret){
		"another type": func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque },
		"another name": func(s *corev1.Secret) { s.Name = "deadbeef" },
		"no id":        func(s *corev1.Secret) { s.Name = TokenSecretPrefix },
		"no hash":      func(s *corev1.Secret) { delete(s.Data, fieldHash) },
		"short hash":   func(s *corev1.Secret) { s.Data[fieldHash] = []byte("abcd") },
		"no expiry":    func(s *corev1.Secret) { delete(s.Data, fieldExpires) },
		"no pool":      func(s *corev1.Secret) { delete(s.Data, fieldPool) },
	} {
		secret := good()
		edit(secret)
		if _, err := ParseRecord(secret); err == nil {
			t.Errorf("%s: read", what)
		}
	}
}

// A broken record must not be a way in: it has an all-zero hash in memory.
func TestBrokenRecordLetsNobodyIn(t *testing.T) {
	b := newBench(t, pool("berlin"))
	token := b.mint(t, MintOptions{Pool: "berlin"})
	secrets := b.kube.CoreV1().Secrets(v1alpha1.SystemNamespace)
	secret, err := secrets.Get(t.Context(), TokenSecretPrefix+token.ID(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secret.Data[fieldHash] = []byte("x")
	if _, err := secrets.Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	response := b.Enroll(t.Context(), deviceRequest(t, token, "berlin-1", testKey(t)), from)
	if response.Error == nil || response.Error.Code != CodeTokenInvalid {
		t.Errorf("answer is %+v", response)
	}
}

func TestWireForm(t *testing.T) {
	text, err := json.Marshal(Response{Error: &RemoteError{Code: CodeTokenUsed, Message: "m"}})
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != `{"error":{"code":"token-used","message":"m"}}` {
		t.Errorf("a refusal is %s", text)
	}
	if text, err = json.Marshal(Request{Token: "t", Name: "n", NodeCSR: "a", HubCSR: "b"}); err != nil {
		t.Fatal(err)
	}
	if string(text) != `{"token":"t","name":"n","nodeCSR":"a","hubCSR":"b"}` {
		t.Errorf("a request is %s", text)
	}
}

// endedWatch is a watch that ends before it says anything.
func endedWatch(clienttesting.Action) (bool, watch.Interface, error) {
	ended := watch.NewFake()
	ended.Stop()
	return true, ended, nil
}
