package hub

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// fakeKubelet is what answers at the kubelet's port: who came, for what.
type fakeKubelet struct {
	server *httptest.Server
	mu     sync.Mutex // guards seen
	seen   []string
}

func (k *fakeKubelet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	k.seen = append(k.seen, r.TLS.PeerCertificates[0].Subject.CommonName+" "+r.Method+" "+r.URL.String())
	k.mu.Unlock()
	switch {
	case r.Header.Get("Authorization") != "" || r.Header.Get("Impersonate-User") != "":
		http.Error(w, "a caller's own claims came through", http.StatusTeapot)
	case strings.HasPrefix(r.URL.Path, "/containerLogs/shop/p/gone"):
		http.Error(w, "container is waiting to start", http.StatusBadRequest)
	case r.Header.Get("Upgrade") != "":
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
		if rw.Flush() != nil {
			return
		}
		_, _ = io.Copy(conn, rw) // echo, until either end is gone
	default:
		fmt.Fprintln(w, "a line")
	}
}

func (k *fakeKubelet) last() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.seen) == 0 {
		return ""
	}
	return k.seen[len(k.seen)-1]
}

// newOperatorRig is newLocalRig whose pod has containers, with a kubelet.
func newOperatorRig(t *testing.T) (*rig, *layered, *fakeKubelet) {
	t.Helper()
	r, l := newLocalRig(t)
	l.fill(t, ownPods, 11, &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", UID: "pod", ResourceVersion: "11"},
		Spec: corev1.PodSpec{NodeName: "n1", InitContainers: []corev1.Container{{Name: "gone"}}, Containers: []corev1.Container{{Name: "web"}}},
	})
	kubeletCA := newAuthority(t, "kubelet clients")
	client := kubeletCA.client(OperatorUser, time.Now().Add(time.Hour))
	k := &fakeKubelet{}
	k.server = httptest.NewUnstartedServer(k)
	k.server.TLS = &tls.Config{Certificates: []tls.Certificate{*r.cluster.server("n1")}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: kubeletCA.pool()}
	k.server.StartTLS()
	t.Cleanup(k.server.Close)
	r.hub.config.Kubelet = &Kubelet{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", k.server.Listener.Addr().String())
		},
		Certificate: func() (*tls.Certificate, error) { return client, nil },
		RootCAs:     r.cluster.pool(),
	}
	return r, l, k
}

const podPath = "/api/v1/namespaces/shop/pods/p"

func TestOperatorReadsLogs(t *testing.T) {
	r, _, k := newOperatorRig(t)
	for _, online := range []bool{true, false} {
		r.online(online)
		response, body := r.do(r.caller(CallerAdmin), http.MethodGet, podPath+"/log?container=web&follow=true&tailLines=3&command=x&insecureSkipTLSVerifyBackend=true", nil,
			http.Header{"Authorization": {"Bearer x"}, "Impersonate-User": {"root"}})
		if response.StatusCode != http.StatusOK || body != "a line\n" {
			t.Errorf("online=%v: %s %q", online, response.Status, body)
		}
		if got, want := k.last(), OperatorUser+" GET /containerLogs/shop/p/web?follow=true&tailLines=3"; got != want {
			t.Errorf("online=%v: the kubelet saw %q, want %q", online, got, want)
		}
	}
	response, body := r.get(CallerAdmin, podPath+"/log?container=gone")
	if response.StatusCode != http.StatusBadRequest || !strings.Contains(body, `"kind":"Status"`) || !strings.Contains(body, "waiting to start") {
		t.Errorf("the kubelet's refusal: %s %s", response.Status, body)
	}
}

func TestOperatorExecs(t *testing.T) {
	r, _, k := newOperatorRig(t)
	r.online(false)
	cert := r.local.client(string(CallerAdmin), time.Now().Add(time.Hour))
	conn, err := tls.Dial("tcp", r.address, r.tls(cert))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST %s/exec?command=echo&command=a+b&stdin=true&stdout=true&stderr=false&tty=1 HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n", podPath)
	in := bufio.NewReader(conn)
	response, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusSwitchingProtocols || response.Header.Get("Upgrade") != "SPDY/3.1" {
		t.Fatalf("%s %v", response.Status, response.Header)
	}
	if got, want := k.last(), OperatorUser+" POST /exec/shop/p/web?command=echo&command=a+b&input=1&output=1&tty=1"; got != want {
		t.Errorf("the kubelet saw %q, want %q", got, want)
	}
	fmt.Fprintln(conn, "hello")
	if line, err := in.ReadString('\n'); err != nil || line != "hello\n" {
		t.Errorf("echo: %q %v", line, err)
	}
}

// TestOperatorIsRefused: what leads into pods is for the operator alone, for the
// node's own pods alone, and the operator changes nothing.
func TestOperatorIsRefused(t *testing.T) {
	r, _, k := newOperatorRig(t)
	r.online(false)
	for _, c := range []struct {
		name, method, path string
		caller             Caller
		upgrade            string
		code               int
		says               string
	}{
		{"kubectl's newest protocol", "GET", podPath + "/exec?command=x", CallerAdmin, "websocket", 400, "SPDY"},
		{"no upgrade", "POST", podPath + "/exec?command=x", CallerAdmin, "", 400, "upgraded"},
		{"another's pod", "GET", "/api/v1/namespaces/shop/pods/other/log", CallerAdmin, "", 404, "not on this node"},
		{"a container that is a path", "GET", podPath + "/log?container=..%2F..%2Frun", CallerAdmin, "", 400, "no container"},
		{"a longer path", "GET", podPath + "/log/more", CallerAdmin, "", 503, "cut off"},
		{"the pods' proxy", "GET", podPath + "/proxy", CallerAdmin, "", 403, "proxy"},
		{"the node's proxy", "GET", "/api/v1/nodes/n1/proxy/pods", CallerAdmin, "", 403, "proxy"},
		{"kube-proxy", "POST", podPath + "/exec?command=x", CallerKubeProxy, "SPDY/3.1", 403, "exec"},
		{"kube-proxy's logs", "GET", podPath + "/log", CallerKubeProxy, "", 403, "log"},
		{"the daemon", "POST", podPath + "/exec?command=x", CallerNode, "SPDY/3.1", 403, "exec"},
		{"the kubelet", "POST", podPath + "/exec?command=x", CallerKubelet, "SPDY/3.1", 403, "exec"},
		{"a Secret", "GET", "/api/v1/namespaces/shop/secrets/s", CallerAdmin, "", 403, "no Secrets"},
		{"all Secrets", "GET", "/api/v1/secrets", CallerAdmin, "", 403, "no Secrets"},
		{"deleting", "DELETE", podPath, CallerAdmin, "", 403, "may only read"},
		{"creating", "POST", "/api/v1/namespaces/shop/pods", CallerAdmin, "", 403, "may only read"},
		{"patching", "PATCH", "/api/v1/nodes/n1", CallerAdmin, "", 403, "may only read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			header := http.Header{}
			if c.upgrade != "" {
				header.Set("Connection", "Upgrade")
				header.Set("Upgrade", c.upgrade)
			}
			client := &http.Client{Timeout: patience, Transport: &http.Transport{
				TLSClientConfig: r.tls(r.local.client(string(c.caller), time.Now().Add(time.Hour))), DisableKeepAlives: true,
			}}
			response, body := r.do(client, c.method, c.path, nil, header)
			if response.StatusCode != c.code || !strings.Contains(body, c.says) {
				t.Errorf("%s %s, want %d with %q", response.Status, body, c.code, c.says)
			}
		})
	}
	if response, body := r.do(r.client(nil), "GET", podPath+"/log", nil, nil); response.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a certificate: %s %s", response.Status, body)
	}
	if seen := k.last(); seen != "" {
		t.Errorf("the kubelet was asked: %s", seen)
	}
}

// TestHubVouchesForOperator: what the kubelet asks about OperatorUser is answered
// here, and nothing else is.
func TestHubVouchesForOperator(t *testing.T) {
	r, _, _ := newOperatorRig(t)
	own := authorizationv1.ResourceAttributes{Verb: "create", Version: "v1", Resource: "nodes", Subresource: "proxy", Name: "n1"}
	with := func(change func(*authorizationv1.ResourceAttributes)) *authorizationv1.ResourceAttributes {
		a := own
		change(&a)
		return &a
	}
	for _, online := range []bool{true, false} {
		r.online(online)
		for _, c := range []struct {
			name    string
			caller  Caller
			user    string
			a       *authorizationv1.ResourceAttributes
			code    int
			allowed bool
		}{
			{"exec", CallerKubelet, OperatorUser, &own, 201, true},
			{"logs", CallerKubelet, OperatorUser, with(func(a *authorizationv1.ResourceAttributes) { a.Verb = "get" }), 201, true},
			{"its settings", CallerKubelet, OperatorUser, with(func(a *authorizationv1.ResourceAttributes) { a.Subresource = "configz" }), 201, false},
			{"another node", CallerKubelet, OperatorUser, with(func(a *authorizationv1.ResourceAttributes) { a.Name = "n2" }), 201, false},
			{"no resource", CallerKubelet, OperatorUser, nil, 201, false},
			{"asked by another", CallerNode, OperatorUser, &own, 403, false},
		} {
			body, err := json.Marshal(&authorizationv1.SubjectAccessReview{
				TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SubjectAccessReview"},
				Spec:     authorizationv1.SubjectAccessReviewSpec{User: c.user, ResourceAttributes: c.a},
			})
			if err != nil {
				t.Fatal(err)
			}
			response, text := r.do(r.caller(c.caller), http.MethodPost, "/apis/authorization.k8s.io/v1/subjectaccessreviews", bytes.NewReader(body), http.Header{"Content-Type": {wire.MediaJSON}})
			var review authorizationv1.SubjectAccessReview
			if response.StatusCode == http.StatusCreated {
				if err := json.Unmarshal([]byte(text), &review); err != nil {
					t.Fatal(err)
				}
			}
			if response.StatusCode != c.code || review.Status.Allowed != c.allowed {
				t.Errorf("%s, online=%v: %s %s", c.name, online, response.Status, text)
			}
		}
	}
	if asked := r.asked(); len(asked) > 0 {
		t.Errorf("the apiserver was asked: %v", asked)
	}
	// Anybody else is the cluster's to judge: nobody, while it is cut off.
	body := `{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{"user":"edge:local:kubelet","resourceAttributes":{"verb":"get","resource":"nodes","subresource":"proxy","name":"n1"}}}`
	response, text := r.do(r.caller(CallerKubelet), http.MethodPost, "/apis/authorization.k8s.io/v1/subjectaccessreviews", strings.NewReader(body), http.Header{"Content-Type": {wire.MediaJSON}})
	if response.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("another user, cut off: %s %s", response.Status, text)
	}
}

// TestFaults: reasons from tokens, from the certificate, and from what the pool
// says of a cut's length.
func TestFaults(t *testing.T) {
	r, l := newLocalRig(t)
	store := memo.New(nil, nil, nil)
	r.hub.local.config.Memo = store
	r.hub.config.Pool, r.hub.config.RenewWindow = "site", 90*24*time.Hour
	faults := func() string {
		var out []string
		for _, f := range r.hub.Faults() {
			out = append(out, f.Reason+": "+f.Message)
		}
		return strings.Join(out, "\n")
	}
	renew := func(life time.Duration) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.node = r.cluster.client("system:node:n1", time.Now().Add(life))
	}
	renew(365 * 24 * time.Hour)
	if got := faults(); got != "" {
		t.Fatalf("at first: %s", got)
	}

	pod := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", UID: "pod", ResourceVersion: "11"},
		Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: "till", Volumes: []corev1.Volume{{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}},
		}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
	l.fill(t, ownPods, 11, pod)
	if got := faults(); got != "" {
		t.Errorf("a pod that has not begun: %s", got)
	}
	pod.Status.Phase = corev1.PodRunning
	l.fill(t, ownPods, 12, pod)
	if got := faults(); !strings.Contains(got, "CacheIncomplete: no token is kept for pods shop/p") {
		t.Errorf("a running pod without a token: %q", got)
	}
	store.Put(bucketTokens, podTokens(pod)[0], []byte("{}"))
	if got := faults(); got != "" {
		t.Errorf("its token is kept: %s", got)
	}

	pool := func(duration string) {
		message := fmt.Appendf(nil, `{"apiVersion":"edgewright.dev/v1alpha1","kind":"NodePool","metadata":{"name":"site","uid":"u","resourceVersion":"5"},"spec":{"autonomy":{%s}}}`, duration)
		o, err := replica.NewObject(wire.MediaJSON, message)
		if err != nil {
			t.Fatal(err)
		}
		id := replica.Collection{Resource: schema.GroupVersionResource{Group: "edgewright.dev", Version: "v1alpha1", Resource: "nodepools"}, Name: "site"}
		l.Open(id, id.Resource.GroupVersion().WithKind("NodePool"))
		if err := l.Load(id, replica.Content{Version: 5, Objects: []*replica.Object{o}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, duration string
		life           time.Duration
		want           string
	}{
		{"a short cut", `"duration":"24h"`, 365 * 24 * time.Hour, ""},
		{"longer than the certificate can be renewed", `"duration":"12000h"`, 365 * 24 * time.Hour, "CertExpiring: a cut may last 12000h0m0s by pool site"},
		{"for ever", ``, 365 * 24 * time.Hour, ""},
		{"not renewed though due", ``, 24 * time.Hour, ""},
		{"about to end", ``, 5 * time.Minute, "CertExpiring: the node's certificate ends"},
		{"ended", `"duration":"24h"`, -time.Minute, "CertExpiring: the node's certificate ends"},
	} {
		pool(c.duration)
		renew(c.life)
		if got := faults(); c.want == "" && got != "" || !strings.HasPrefix(got, c.want) || strings.Contains(got, "\n") {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestDiscoveryPrefersWhole: kubectl asks for all of discovery at once and takes the
// old form too; given that, it asks for every group, which a cut node cannot answer.
func TestDiscoveryPrefersWhole(t *testing.T) {
	r, _ := newLocalRig(t)
	for accept, body := range map[string]string{wire.MediaJSON: "old", aggregatedAccept: "whole"} {
		value, err := json.Marshal(kept{Type: accept, Body: []byte(body)})
		if err != nil {
			t.Fatal(err)
		}
		r.hub.local.config.Memo.Put(bucketDiscovery, "/apis? "+accept, value)
	}
	r.online(false)
	for accept, want := range map[string]string{
		aggregatedAccept + ",application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json": "whole",
		"application/json, */*": "old",
	} {
		response, body := r.do(r.caller(CallerAdmin), http.MethodGet, "/apis?timeout=32s", nil, http.Header{"Accept": {accept}})
		if response.StatusCode != http.StatusOK || body != want {
			t.Errorf("%s: %s %q, want %q", accept, response.Status, body, want)
		}
	}
}
