package hub

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	testingclock "k8s.io/utils/clock/testing"
)

func statusOf(t *testing.T, resp *http.Response, body string) metav1.Status {
	t.Helper()
	var s metav1.Status
	if err := json.Unmarshal([]byte(body), &s); err != nil || s.Kind != "Status" {
		t.Fatalf("%s: not a Status: %q (%v)", resp.Status, body, err)
	}
	if int(s.Code) != resp.StatusCode {
		t.Errorf("Status code %d in an answer %d", s.Code, resp.StatusCode)
	}
	return s
}

func TestAuthentication(t *testing.T) {
	r := newRig(t, nil)
	foreign := newAuthority(t, "local") // the same name, another key
	hour := time.Now().Add(time.Hour)
	for _, c := range []struct {
		name   string
		client *http.Client
		code   int
	}{
		{"none", r.client(nil), 401},
		{"of another authority", r.client(foreign.client(string(CallerKubelet), hour)), 401},
		{"of the cluster's authority", r.client(r.cluster.client(string(CallerKubelet), hour)), 401},
		{"expired", r.client(r.local.client(string(CallerKubelet), time.Now().Add(-time.Minute))), 401},
		{"of an unknown caller", r.client(r.local.client("system:node:n1", hour)), 401},
		{"of a server", r.client(r.local.server("edge:local:kubelet")), 401},
		{"kubelet's", r.caller(CallerKubelet), 200},
	} {
		resp, body := r.do(c.client, "GET", "/api/v1/nodes", nil, http.Header{"Authorization": {"Bearer x"}})
		if resp.StatusCode != c.code {
			t.Errorf("certificate %s: %s, want %d", c.name, resp.Status, c.code)
		}
		if c.code == 401 {
			if s := statusOf(t, resp, body); s.Reason != metav1.StatusReasonUnauthorized {
				t.Errorf("certificate %s: reason %q", c.name, s.Reason)
			}
		}
	}
	if n := len(r.api.sawAll()); n != 1 {
		t.Errorf("the apiserver saw %d requests, want kubelet's one", n)
	}
}

func TestIdentityByResource(t *testing.T) {
	const node, hub, no = "system:node:n1", "edge:hub:n1", ""
	r := newRig(t, nil)
	clients := map[Caller]*http.Client{}
	for _, c := range []Caller{CallerKubelet, CallerKubeProxy, CallerCoreDNS, CallerNode, CallerAdmin} {
		clients[c] = r.caller(c)
	}
	for _, c := range []struct {
		method, path                               string
		kubelet, proxy, coredns, nodeDaemon, admin string
	}{
		{"GET", "/api/v1/services", node, hub, hub, hub, hub},
		{"GET", "/api/v1/services?watch=0", node, hub, hub, hub, hub},
		{"GET", "/api/v1/namespaces", node, hub, hub, hub, hub},
		{"GET", "/api/v1/namespaces/default", node, hub, hub, hub, hub},
		{"GET", "/apis/discovery.k8s.io/v1/endpointslices", node, hub, hub, hub, hub},
		{"GET", "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices", node, hub, hub, hub, hub},
		{"GET", "/apis/networking.k8s.io/v1/servicecidrs", node, hub, hub, hub, hub},
		{"GET", "/apis/edgewright.dev/v1alpha1/nodepools", node, no, no, hub, hub},
		{"GET", "/api/v1/nodes/n1", node, node, node, node, node},
		{"GET", "/api/v1/pods", node, no, no, node, node},
		{"GET", "/api/v1/namespaces/x/secrets/s", node, no, no, no, no},
		{"GET", "/api/v1/namespaces/x/pods/p/log", node, no, no, no, no},
		{"GET", "/version", node, node, node, node, node},
		{"GET", "/apis", node, node, node, node, node},
		{"GET", "/apis/discovery.k8s.io/v1", node, node, node, node, node},
		{"GET", "/readyz", node, node, node, node, node},
		{"GET", "/metrics", node, no, no, no, no},
		{"POST", "/version", node, no, no, no, no},
		{"POST", "/api/v1/namespaces/default/events", node, node, node, node, no},
		{"POST", "/apis/events.k8s.io/v1/namespaces/default/events", node, node, node, node, no},
		{"PATCH", "/apis/events.k8s.io/v1/namespaces/default/events/e", node, node, node, node, no},
		{"DELETE", "/apis/events.k8s.io/v1/namespaces/default/events/e", node, no, no, no, no},
		{"POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests", node, no, no, node, no},
		{"GET", "/apis/certificates.k8s.io/v1/certificatesigningrequests/c", node, no, no, node, node},
		{"PUT", "/apis/certificates.k8s.io/v1/certificatesigningrequests/c/approval", node, no, no, no, no},
		{"PATCH", "/api/v1/nodes/n1/status", node, no, no, no, no},
		{"POST", "/api/v1/services", node, no, no, no, no},
		{"DELETE", "/api/v1/namespaces/default/pods/p", node, no, no, no, no},
		{"POST", "/api/v1/namespaces/default/serviceaccounts/a/token", node, no, no, no, no},
		{"GET", "/api/v1/namespaces/x/pods/p/exec?command=sh", no, no, no, no, no},
		{"POST", "/api/v1/namespaces/x/pods/p/attach", no, no, no, no, no},
		{"GET", "/api/v1/namespaces/x/pods/p/portforward", no, no, no, no, no},
		{"GET", "/api/v1/nodes/n1/proxy/pods", no, no, no, no, no},
	} {
		for caller, want := range map[Caller]string{
			CallerKubelet: c.kubelet, CallerKubeProxy: c.proxy, CallerCoreDNS: c.coredns, CallerNode: c.nodeDaemon, CallerAdmin: c.admin,
		} {
			before := len(r.api.sawAll())
			resp, body := r.do(clients[caller], c.method, c.path, nil, nil)
			after := r.api.sawAll()[before:]
			if want == no {
				if s := statusOf(t, resp, body); s.Reason != metav1.StatusReasonForbidden || len(after) != 0 {
					t.Errorf("%s %s by %s: %s, %d requests upstream", c.method, c.path, caller, resp.Status, len(after))
				}
				continue
			}
			if resp.StatusCode != 200 || len(after) != 1 || after[0].user != want {
				t.Errorf("%s %s by %s: %s, upstream %v, want as %s", c.method, c.path, caller, resp.Status, after, want)
			}
		}
	}
}

func TestHeadersUpstream(t *testing.T) {
	r := newRig(t, nil)
	header := http.Header{
		"Authorization":                 {"Bearer stolen"},
		"Impersonate-User":              {"system:admin"},
		"Impersonate-Group":             {"system:masters"},
		"Impersonate-Extra-Scopes":      {"x"},
		"X-Remote-User":                 {"system:admin"},
		"X-Remote-Group":                {"system:masters"},
		"Cookie":                        {"a=b"},
		"Accept":                        {"application/json"},
		"Accept-Encoding":               {"gzip"},
		"User-Agent":                    {"kubelet/v1.36.3"},
		"Kubernetes-Audit-Something":    {"kept"},
		http.CanonicalHeaderKey("x-ok"): {"kept"},
	}
	resp, body := r.do(r.caller(CallerKubelet), "PATCH", "/api/v1/nodes/n1/status?fieldManager=kubelet", strings.NewReader(`{"a":1}`), header)
	if resp.StatusCode != 200 || !strings.Contains(body, `{\"a\":1}`) {
		t.Fatalf("%s %s", resp.Status, body)
	}
	if !strings.Contains(body, "HTTP/2") {
		t.Errorf("upstream is not HTTP/2: %s", body)
	}
	saw := r.api.sawAll()[0]
	for name := range saw.header {
		for _, bad := range []string{"Authorization", "Impersonate", "X-Remote", "Cookie", "X-Forwarded"} {
			if strings.HasPrefix(name, bad) {
				t.Errorf("%s went upstream", name)
			}
		}
	}
	for _, kept := range []string{"Accept", "Accept-Encoding", "User-Agent", "Kubernetes-Audit-Something", "X-Ok"} {
		if d := cmp.Diff(header[kept], saw.header[kept]); d != "" {
			t.Errorf("%s: %s", kept, d)
		}
	}
	if saw.query != "fieldManager=kubelet" || saw.path != "/api/v1/nodes/n1/status" {
		t.Errorf("upstream saw %s?%s", saw.path, saw.query)
	}
}

func TestRefusedRequests(t *testing.T) {
	r := newRig(t, nil)
	kubelet := r.caller(CallerKubelet)
	for _, path := range []string{
		"/api/v1/namespaces/default/../../nodes", "/api//v1/nodes", "/api/v1/nodes/%2e%2e/x", "/api/v1/nodes/a%2Fb%252F",
		"/api/v1/watch/nodes", "/api/v1/nodes?a=%zz", "/api/v1/nodes?a=1;b=2", "/api/v1/nodes/a%00",
	} {
		req := httptest.NewRequest("GET", "https://"+r.address+"/", nil)
		u, err := url.Parse("https://" + r.address)
		if err != nil {
			t.Fatal(err)
		}
		at, query, _ := strings.Cut(path, "?")
		if u.Path, err = url.PathUnescape(at); err != nil {
			t.Fatal(err)
		}
		u.RawPath, u.RawQuery = at, query
		req.URL, req.RequestURI = u, ""
		resp, err := kubelet.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 400 {
			t.Errorf("%s: %s, want 400", path, resp.Status)
		}
	}
	resp, body := r.do(kubelet, "POST", "/api/v1/namespaces/default/events", strings.NewReader(strings.Repeat("x", maxRequestBody+1)), nil)
	if s := statusOf(t, resp, body); s.Code != 413 {
		t.Errorf("a large body: %d", s.Code)
	}
	// Of unknown length.
	resp, body = r.do(kubelet, "POST", "/api/v1/namespaces/default/events", struct{ *strings.Reader }{strings.NewReader(strings.Repeat("x", maxRequestBody+1))}, nil)
	if s := statusOf(t, resp, body); s.Code != 413 {
		t.Errorf("a large body of unknown length: %d", s.Code)
	}
	if n := len(r.api.sawAll()); n != 0 {
		t.Errorf("%d requests went upstream", n)
	}
}

func TestUnreachable(t *testing.T) {
	r := newRig(t, nil)
	r.setCut(true)
	for _, c := range []struct {
		caller       Caller
		method, path string
	}{
		{CallerKubelet, "GET", "/api/v1/nodes/n1"},
		{CallerKubelet, "GET", "/api/v1/pods?watch=1"},
		{CallerKubelet, "PATCH", "/api/v1/nodes/n1/status"},
		{CallerKubeProxy, "GET", "/apis/discovery.k8s.io/v1/endpointslices"},
		{CallerKubeProxy, "GET", "/apis/discovery.k8s.io/v1/endpointslices?watch=1&resourceVersion=5"},
		{CallerKubeProxy, "GET", "/apis/discovery.k8s.io/v1/endpointslices?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"},
		{CallerCoreDNS, "GET", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"},
	} {
		resp, body := r.do(r.caller(c.caller), c.method, c.path, nil, nil)
		s := statusOf(t, resp, body)
		if s.Code != 503 || s.Reason != metav1.StatusReasonServiceUnavailable || resp.Header.Get("Retry-After") != "1" || s.Details.RetryAfterSeconds != 1 {
			t.Errorf("%s %s: %d %s, Retry-After %q", c.method, c.path, s.Code, s.Reason, resp.Header.Get("Retry-After"))
		}
	}
	r.setCut(false)
	if resp, body := r.get(CallerKubelet, "/api/v1/nodes/n1"); resp.StatusCode != 200 {
		t.Errorf("after the cut: %s %s", resp.Status, body)
	}
}

// TestUnknownOutcome: a write that was sent and got no answer is not said to
// have failed, and no client library repeats it unasked.
func TestUnknownOutcome(t *testing.T) {
	r := newRig(t, nil)
	r.api.setRefuse(func(w http.ResponseWriter, req *http.Request) { r.setCut(true) })
	resp, body := r.do(r.caller(CallerKubelet), "POST", "/api/v1/namespaces/default/pods", strings.NewReader("{}"), nil)
	if s := statusOf(t, resp, body); s.Code != 504 || s.Reason != metav1.StatusReasonTimeout || resp.Header.Get("Retry-After") != "" {
		t.Errorf("a write: %s %s", resp.Status, body)
	}
	r.setCut(false)
	resp, body = r.do(r.caller(CallerKubelet), "GET", "/api/v1/namespaces/default/pods/p", nil, nil)
	if s := statusOf(t, resp, body); s.Code != 503 {
		t.Errorf("a read: %s %s", resp.Status, body)
	}
}

// TestSilentUpstream: an apiserver that takes a request and says nothing.
func TestSilentUpstream(t *testing.T) {
	clk := testingclock.NewFakeClock(time.Now())
	r := newRig(t, clk)
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	r.api.setRefuse(func(w http.ResponseWriter, req *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
		case <-req.Context().Done():
		}
	})
	defer close(release)
	codes := make(chan int, 1)
	go func() {
		resp, _ := r.get(CallerKubelet, "/api/v1/nodes/n1")
		codes <- resp.StatusCode
	}()
	<-arrived
	clk.Step(readHeaderTimeout)
	select {
	case code := <-codes:
		if code != 503 {
			t.Errorf("got %d, want 503", code)
		}
	case <-time.After(patience):
		t.Fatal("the request hangs")
	}
}

// TestRenewedCertificate: requests after a renewal use it; a watch from before
// goes on.
func TestRenewedCertificate(t *testing.T) {
	r := newRig(t, nil)
	begun := make(chan struct{})
	more := make(chan struct{})
	r.api.setRefuse(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if req.URL.Query().Get("watch") == "" {
			json.NewEncoder(w).Encode(map[string]string{"user": req.TLS.PeerCertificates[0].SerialNumber.String()})
			return
		}
		w.(http.Flusher).Flush()
		close(begun)
		<-more
		w.Write([]byte("more\n"))
	})
	watch, err := r.caller(CallerKubelet).Get(r.url("/api/v1/pods?watch=1"))
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Body.Close()
	<-begun
	_, before := r.get(CallerKubelet, "/api/v1/nodes/n1")
	renewed := r.cluster.client("system:node:n1", time.Now().Add(2*time.Hour))
	r.mu.Lock()
	r.node = renewed
	r.mu.Unlock()
	_, after := r.get(CallerKubelet, "/api/v1/nodes/n1")
	if before == after {
		t.Errorf("the renewed certificate is not used: %s", after)
	}
	close(more)
	b := make([]byte, 5)
	if n, err := watch.Body.Read(b); string(b[:n]) != "more\n" {
		t.Errorf("the watch from before: %q, %v", b[:n], err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dials != 2 {
		t.Errorf("%d connections for two certificates", r.dials)
	}
}

// TestServeEnds: watches do not hold it up.
func TestServeEnds(t *testing.T) {
	r := newRig(t, nil)
	begun := make(chan struct{})
	r.api.setRefuse(func(w http.ResponseWriter, req *http.Request) {
		w.(http.Flusher).Flush()
		close(begun)
		<-req.Context().Done()
	})
	watch, err := r.caller(CallerKubelet).Get(r.url("/api/v1/pods?watch=1"))
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Body.Close()
	<-begun
	r.stop()
	if _, err := watch.Body.Read(make([]byte, 1)); err == nil {
		t.Error("the watch goes on")
	}
	select {
	case err := <-r.served:
		r.served <- err // for the rig's own end
	case <-time.After(patience):
		t.Fatal("Serve does not end")
	}
}

func TestNewValidates(t *testing.T) {
	if _, err := New(Config{NodeName: "n1"}); err == nil || !strings.Contains(err.Error(), "Listener") {
		t.Errorf("New of an empty Config: %v", err)
	}
}
