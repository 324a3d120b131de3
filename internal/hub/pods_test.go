package hub

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/hub/link"
	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
	"github.com/edgewright/terraform-provider-edge/internal/hub/overlay"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

const testIssuer = "https://kubernetes.default.svc"

// signer signs tokens as an apiserver does.
type signer struct {
	t      *testing.T
	signer jose.Signer
	public jose.JSONWebKey
}

func newSigner(t *testing.T) *signer {
	t.Helper()
	key := newKey(t)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{t, s, jose.JSONWebKey{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}
}

// token of a pod; change alters its claims.
func (s *signer) token(change func(map[string]any)) string {
	s.t.Helper()
	claims := map[string]any{
		"iss": testIssuer, "aud": []string{testIssuer}, "sub": "system:serviceaccount:shop:web", "exp": time.Now().Add(-time.Hour).Unix(),
		"kubernetes.io": map[string]any{
			"namespace": "shop", "serviceaccount": map[string]any{"name": "web"}, "pod": map[string]any{"name": "p", "uid": "pod"},
		},
	}
	if change != nil {
		change(claims)
	}
	text, err := jwt.Signed(s.signer).Claims(claims).Serialize()
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

// answerIssuer answers, as an apiserver does, who signs tokens; false for requests
// for something else.
func answerIssuer(t *testing.T, w http.ResponseWriter, q *http.Request, keys jose.JSONWebKeySet) bool {
	var answer any
	switch q.URL.Path {
	case "/.well-known/openid-configuration":
		answer = map[string]string{"issuer": testIssuer}
	case "/openid/v1/jwks":
		if !strings.Contains(q.Header.Get("Accept"), "application/jwk-set+json") {
			w.WriteHeader(http.StatusNotAcceptable)
			return true
		}
		answer = keys
	default:
		return false
	}
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		t.Error(err)
	}
	return true
}

// cutRig is a hub whose pods' door is open, and which has learned, online, about
// a service account that may list services everywhere and get one ConfigMap and
// the pods of its own namespace.
func cutRig(t *testing.T) (*rig, *signer, string) {
	t.Helper()
	r, _ := newLocalRig(t)
	s := newSigner(t)
	token := s.token(nil)
	read := func(resource string, names ...string) authorizationv1.ResourceRule {
		return authorizationv1.ResourceRule{Verbs: []string{"get", "list", "watch"}, APIGroups: []string{""}, Resources: []string{resource}, ResourceNames: names}
	}
	r.api.setRefuse(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if answerIssuer(t, w, q, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{s.public}}) {
			return
		}
		var answer any
		switch {
		case strings.HasSuffix(q.URL.Path, "/token"):
			answer = authenticationv1.TokenRequest{TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"}, Status: authenticationv1.TokenRequestStatus{Token: token}}
			w.WriteHeader(201)
		case strings.HasSuffix(q.URL.Path, "/selfsubjectrulesreviews"):
			if q.Header.Get("Authorization") != "Bearer "+token {
				w.WriteHeader(401)
				return
			}
			var review authorizationv1.SelfSubjectRulesReview
			if err := json.NewDecoder(q.Body).Decode(&review); err != nil {
				t.Error(err)
			}
			review.Status.ResourceRules = []authorizationv1.ResourceRule{read("services"), {Verbs: []string{"create"}, APIGroups: []string{"*"}, Resources: []string{"*"}}}
			if review.Spec.Namespace == "shop" {
				review.Status.ResourceRules = append(review.Status.ResourceRules, read("pods"), read("secrets", "other"))
			}
			answer = review
		default:
			fmt.Fprintf(w, `{"from":"the apiserver","path":%q}`, q.URL.Path)
			return
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.hub.ServePods(t.Context(), listener) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Errorf("ServePods: %v", err)
		}
	})
	r.online(true)
	asked := &authenticationv1.TokenRequest{
		TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"},
		Spec:     authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", Name: "p", UID: "pod"}},
	}
	if resp, body := r.do(r.caller(CallerKubelet), "POST", "/api/v1/namespaces/shop/serviceaccounts/web/token", bytes.NewReader(encoded(t, asked)), http.Header{"Content-Type": {wire.MediaProtobuf}}); resp.StatusCode != 201 {
		t.Fatalf("%s %s", resp.Status, body)
	}
	for limit := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		_, issuer := r.hub.local.config.Memo.Get(bucketIssuer, "issuer")
		_, rights := r.hub.local.config.Memo.Get(bucketRights, "shop/web")
		if issuer && rights {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("learned the issuer: %v, the rights: %v", issuer, rights)
		}
	}
	return r, s, listener.Addr().String()
}

// pod is a pod's client: it trusts the cluster's authority and the node's.
func (r *rig) pod() *http.Client {
	roots := r.cluster.pool()
	roots.AddCert(r.podCA.cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "kubernetes.default.svc"}, ForceAttemptHTTP2: true}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

func ask(t *testing.T, client *http.Client, method, url, token string) (int, string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		q.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(q)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// TestPodsThroughACut: one client of a pod, before, in and after a cut.
func TestPodsThroughACut(t *testing.T) {
	r, s, address := cutRig(t)
	client, token := r.pod(), s.token(nil)
	url := "https://" + address
	if _, body := ask(t, client, "GET", url+"/api/v1/services", token); !strings.Contains(body, "the apiserver") {
		t.Fatalf("online: %s", body)
	}
	r.online(false)
	client.CloseIdleConnections()
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/api/v1/services", 200},
		{"GET", "/api/v1/namespaces/shop/services/till", 200},
		{"GET", "/api/v1/namespaces/shop/pods/p", 200},
		{"GET", "/version", 200},
		{"GET", "/apis", 200},
		{"GET", "/api/v1/pods", 403},                          // in its own namespace only
		{"GET", "/api/v1/namespaces/other/pods/p", 503},       // nobody asked for its rights there
		{"GET", "/api/v1/namespaces/shop/secrets/s", 403},     // another name
		{"GET", "/api/v1/namespaces/shop/secrets", 403},       // all names
		{"GET", "/api/v1/nodes/n1", 403},                      // never told
		{"GET", "/api/v1/namespaces/shop/secrets/other", 503}, // allowed, and not there
		{"GET", "/api/v1/namespaces/shop/pods", 503},          // allowed, and the node holds a part only
		{"POST", "/api/v1/namespaces/shop/configmaps", 503},
		{"DELETE", "/api/v1/namespaces/shop/pods/p", 403},
		{"GET", "/api/v1/namespaces/shop/pods/p/log", 403},
		{"GET", "/metrics", 403},
		{"GET", "/readyz", 503},
	} {
		if code, body := ask(t, client, c.method, url+c.path, token); code != c.want {
			t.Errorf("%s %s: %d %s, want %d", c.method, c.path, code, body, c.want)
		}
	}
	r.online(true)
	client.CloseIdleConnections() // the hub has closed them
	if _, body := ask(t, client, "GET", url+"/api/v1/services", token); !strings.Contains(body, "the apiserver") {
		t.Errorf("after the cut: %s", body)
	}
}

// TestAllowed: what is known of a service account's rights is the apiserver's word,
// and nothing else is.
func TestAllowed(t *testing.T) {
	read := func(resource string, names ...string) authorizationv1.ResourceRule {
		return authorizationv1.ResourceRule{Verbs: []string{"get", "list"}, APIGroups: []string{""}, Resources: []string{resource}, ResourceNames: names}
	}
	known := rights{
		Own:   []authorizationv1.ResourceRule{read("pods"), read("namespaces")},
		Every: []authorizationv1.ResourceRule{read("services"), read("namespaces", "public")},
	}
	incomplete := known
	incomplete.Incomplete = true
	const (
		may, mayNot = "may", "may not"
		there       = "does not know what shop/web may do in namespace other"
	)
	for _, c := range []struct {
		rights       *rights
		method, path string
		want         string
	}{
		{&known, "GET", "/api/v1/namespaces/shop/pods/p", may},
		{&known, "GET", "/api/v1/namespaces/shop/secrets/s", mayNot},
		{&known, "GET", "/api/v1/namespaces/other/services/s", may},
		{&known, "GET", "/api/v1/namespaces/other/pods/p", there},
		{&known, "GET", "/api/v1/namespaces/other/pods", there},
		{&known, "DELETE", "/api/v1/namespaces/other/pods/p", may}, // not done in any case
		{&known, "DELETE", "/api/v1/namespaces/shop/pods/p", mayNot},
		{&known, "GET", "/api/v1/pods", mayNot}, // in all: every rule for that is known
		{&known, "GET", "/api/v1/nodes/n1", mayNot},
		{&known, "GET", "/metrics", mayNot},
		// A namespace's own rules say who reads it.
		{&known, "GET", "/api/v1/namespaces/shop", may},
		{&known, "GET", "/api/v1/namespaces/shop/status", mayNot}, // another resource to RBAC
		{&known, "GET", "/api/v1/namespaces/public", may},
		{&known, "GET", "/api/v1/namespaces/other", there},
		{&known, "GET", "/api/v1/namespaces", mayNot},
		{&known, "GET", "/api/v1/namespaces?fieldSelector=metadata.name%3Dshop", mayNot},
		{&known, "DELETE", "/api/v1/namespaces/shop", mayNot},
		{&incomplete, "GET", "/api/v1/namespaces/shop/pods/p", may},
		{&incomplete, "GET", "/api/v1/namespaces/shop/secrets/s", "does not know all that shop/web may do"},
		{&incomplete, "DELETE", "/api/v1/namespaces/shop/pods/p", may},
		{nil, "GET", "/api/v1/namespaces/shop/pods/p", "does not know what shop/web may do"},
		{nil, "DELETE", "/api/v1/namespaces/shop/pods/p", may},
	} {
		l := &local{config: Local{Memo: memo.New(nil, nil, nil)}}
		if c.rights != nil {
			value, err := json.Marshal(c.rights)
			if err != nil {
				t.Fatal(err)
			}
			l.config.Memo.Put(bucketRights, "shop/web", value)
		}
		u, err := url.Parse(c.path)
		if err != nil {
			t.Fatal(err)
		}
		request, err := parseRequest(c.method, u)
		if err != nil {
			t.Fatal(err)
		}
		err = l.allowed(serviceAccount{"shop", "web"}, request)
		switch {
		case c.want == may && err == nil,
			c.want == mayNot && err != nil && !errors.Is(err, errUnknownRights),
			c.want != may && c.want != mayNot && errors.Is(err, errUnknownRights) && strings.Contains(err.Error(), c.want):
		default:
			t.Errorf("%s %s: %v, want %s", c.method, c.path, err, c.want)
		}
	}
}

// TestStrangersAmongPods: a wrong token opens nothing.
func TestStrangersAmongPods(t *testing.T) {
	r, s, address := cutRig(t)
	r.online(false)
	kubernetes := func(key string, value any) func(map[string]any) {
		return func(c map[string]any) { c["kubernetes.io"].(map[string]any)[key] = value }
	}
	unsigned := strings.Join(strings.Split(s.token(nil), ".")[:2], ".") + "."
	none := "eyJhbGciOiJub25lIn0." + strings.Split(s.token(nil), ".")[1] + "."
	client := r.pod()
	for name, token := range map[string]string{
		"none": "", "garbage": "x.y.z", "another's key": newSigner(t).token(nil), "unsigned": unsigned, "algorithm none": none,
		"another issuer":     s.token(func(c map[string]any) { c["iss"] = "https://elsewhere" }),
		"another audience":   s.token(func(c map[string]any) { c["aud"] = []string{"vault"} }),
		"another subject":    s.token(func(c map[string]any) { c["sub"] = "system:serviceaccount:kube-system:admin" }),
		"a pod elsewhere":    s.token(kubernetes("pod", map[string]any{"name": "p", "uid": "elsewhere"})),
		"bound to no pod":    s.token(kubernetes("pod", map[string]any{})),
		"another namespace":  s.token(kubernetes("namespace", "kube-system")),
		"a forged signature": s.token(nil)[:len(s.token(nil))-8] + "AAAAAAAA",
	} {
		for _, path := range []string{"/", "/api", "/version", "/readyz", "/api/v1/services", "/api/v1/namespaces/shop/secrets/s", "/api/v1/services?watch=1"} {
			for _, method := range []string{"GET", "POST", "HEAD"} {
				if code, body := ask(t, client, method, "https://"+address+path, token); code != 401 || strings.Contains(body, "items") {
					t.Errorf("%s: %s %s: %d %s", name, method, path, code, body)
				}
			}
		}
	}
	// The doors are apart: a component's certificate opens nothing here, a pod's
	// token nothing there.
	if resp, _ := r.do(r.client(nil), "GET", "/api/v1/services", nil, http.Header{"Authorization": {"Bearer " + s.token(nil)}}); resp.StatusCode != 401 {
		t.Errorf("a token at the components' door: %s", resp.Status)
	}
}

// FuzzPodToken: nothing but a signed token is ever anybody.
func FuzzPodToken(f *testing.F) {
	f.Add("eyJhbGciOiJFUzI1NiJ9.e30.AAAA")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add("a.b.c")
	key := newKey(f)
	known := issuer{Issuer: testIssuer, Keys: jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k"}}}}
	f.Fuzz(func(t *testing.T, token string) {
		who, _, err := known.verify(token, func() (map[string]bool, bool) { return map[string]bool{"": true, "pod": true}, true })
		if err == nil {
			t.Fatalf("%q is %s", token, who)
		}
	})
}

func TestWithRootCA(t *testing.T) {
	if got := withRootCA("cluster\n", "node\n"); got != "cluster\nnode\n" || withRootCA(got, "node") != got {
		t.Errorf("got %q", got)
	}
}

// TestPodWatchesBound: a pod's watches in a cut are spread over connections, and there
// is an end to them, which it is told.
func TestPodWatchesBound(t *testing.T) {
	r, s, address := cutRig(t)
	r.online(false)
	client, token := r.pod(), s.token(nil)
	client.Timeout = 0 // of a watch it would be the end
	watch := func() (*http.Response, func()) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/api/v1/services?watch=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		end := func() {
			resp.Body.Close()
			cancel()
		}
		t.Cleanup(end)
		return resp, end
	}
	var end func()
	for i := range podWatches {
		var resp *http.Response
		if resp, end = watch(); resp.StatusCode != http.StatusOK {
			t.Fatalf("watch %d: %s", i, resp.Status)
		}
	}
	if n, want := r.hub.PodConnections().Open, (podWatches+podStreams-1)/podStreams; n < want {
		t.Errorf("%d watches on %d connections, want %d at least", podWatches, n, want)
	}
	resp, _ := watch()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != fmt.Sprint(watchRetryAfter) ||
		!strings.Contains(string(body), fmt.Sprint(podWatches, " watches open")) {
		t.Errorf("one more: %s %s", resp.Status, body)
	}
	// All else goes on, and a place that is free is had again.
	if code, body := ask(t, client, "GET", "https://"+address+"/api/v1/services", token); code != http.StatusOK {
		t.Errorf("a list: %d %s", code, body)
	}
	end()
	for limit := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		resp, end := watch()
		if resp.StatusCode == http.StatusOK {
			break
		}
		end()
		if time.Now().After(limit) {
			t.Fatalf("after the end of one: %s", resp.Status)
		}
	}
}

// TestPodThatReadsNoAnswer: in a cut too, a connection is closed that takes no bytes.
func TestPodThatReadsNoAnswer(t *testing.T) {
	certificate := newAuthority(t, "pods").server("kubernetes.default.svc")
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		l := &local{
			hub: &Hub{log: log}, link: link.New(link.Options{Logger: log, Probe: func(context.Context) error { return nil }}),
			config: Local{PodCertificate: func() (*tls.Certificate, error) { return certificate, nil }},
		}
		ctx, stop := context.WithCancel(t.Context())
		here := newHandOff(&net.TCPAddr{})
		done := make(chan error, 1)
		go func() { done <- newPodServer(l).serve(ctx, here) }()
		near, far := net.Pipe() // holds nothing that is not read
		here.give(far)
		pod := tls.Client(near, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12}) //nolint:gosec // of the test's own, in a bubble's time; nothing of the handshake is left to be read
		if err := pod.Handshake(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := near.SetWriteDeadline(began.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		settings := "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
		_, err := pod.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings))
		for err == nil {
			time.Sleep(time.Second)
			_, err = pod.Write([]byte("\x00\x00\x08\x06\x00\x00\x00\x00\x0001234567")) // a ping
		}
		if took := time.Since(began); took < writeStall || took > 2*writeStall {
			t.Errorf("it ended after %s: %v", took, err)
		}
		stop()
		here.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestRightsOfStartingApiserver: what an apiserver that has just come back does not
// allow any more counts once it has had the time to read its roles.
func TestRightsOfStartingApiserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		l := &local{
			hub: &Hub{log: log, clock: clock.RealClock{}}, learning: make(chan struct{}, 1),
			link:   link.New(link.Options{Logger: log, Probe: func(context.Context) error { return nil }}),
			config: Local{Memo: memo.New(nil, nil, nil)},
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.link.Run(ctx) }()
		back := func() {
			l.link.Session(false)
			l.link.Session(true)
			synctest.Wait()
		}
		token, err := json.Marshal(kept{Body: encoded(t, &authenticationv1.TokenRequest{
			TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"}, Status: authenticationv1.TokenRequestStatus{Token: "t"},
		})})
		if err != nil {
			t.Fatal(err)
		}
		l.config.Memo.Put(bucketTokens, tokenKey("shop", "web", &authenticationv1.TokenRequest{
			Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{UID: "pod"}},
		}), token)
		var has []string // the resources it may read
		learn := func(resources ...string) {
			t.Helper()
			has = resources
			err := l.learnRights(ctx, func(_ context.Context, _, _ string, body []byte) ([]byte, error) {
				var review authorizationv1.SelfSubjectRulesReview
				if err := json.Unmarshal(body, &review); err != nil {
					return nil, err
				}
				for _, resource := range has {
					review.Status.ResourceRules = append(review.Status.ResourceRules, authorizationv1.ResourceRule{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{resource}})
				}
				return json.Marshal(review)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		may := func(when string, resources ...string) {
			t.Helper()
			var allowed []string
			for _, resource := range []string{"nodes", "pods", "services"} {
				if l.allowed(serviceAccount{"shop", "web"}, request{method: "GET", verb: "get", version: "v1", resource: resource, name: "x"}) == nil {
					allowed = append(allowed, resource)
				}
			}
			if !slices.Equal(allowed, resources) {
				t.Errorf("%s: it may read %v, want %v", when, allowed, resources)
			}
		}
		asks := func(when string, want bool) {
			t.Helper()
			synctest.Wait()
			select {
			case <-l.learning:
				if !want {
					t.Errorf("%s: it is asked again", when)
				}
			default:
				if want {
					t.Errorf("%s: it is not asked again", when)
				}
			}
		}
		back()
		learn("services")
		may("at first", "services")
		learn("services", "pods")
		may("with more", "pods", "services")
		learn("pods", "services")
		asks("whose rules come in another order", false)
		time.Sleep(time.Minute)
		learn("pods")
		may("a minute after the cut", "pods", "services")
		time.Sleep(overlay.RefusalsPass - time.Minute - time.Second)
		asks("while it may be starting", false)
		time.Sleep(time.Second)
		asks("once it has started", true)
		learn("pods")
		may("once it has started", "pods")
		learn()
		may("when all is taken away later")
		time.Sleep(time.Hour)
		asks("an hour later", false)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
