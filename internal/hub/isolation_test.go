package hub

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// everyPath is at least one path of each kind that an apiserver or the hub serves.
var everyPath = []string{
	"/", "/api", "/api/v1", "/apis", "/apis/apps/v1", "/version", "/openapi/v2", "/openapi/v3/api/v1", "/.well-known/openid-configuration", "/openid/v1/jwks",
	"/healthz", "/livez", "/readyz", "/metrics", "/debug/pprof/heap", "/logs/", "/unknown",
	"/api/v1/nodes", "/api/v1/nodes/n1", "/api/v1/nodes/n1/status", "/api/v1/nodes/n1/proxy/metrics", "/api/v1/nodes?watch=1&fieldSelector=metadata.name%3Dn1",
	"/api/v1/pods", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", "/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn1",
	"/api/v1/namespaces/shop/pods/p", "/api/v1/namespaces/shop/pods/p/status", "/api/v1/namespaces/shop/pods/p/log", "/api/v1/namespaces/shop/pods/p/exec?command=id",
	"/api/v1/namespaces/shop/pods/p/portforward", "/api/v1/namespaces/shop/pods/p/eviction", "/api/v1/namespaces/shop/pods/p/ephemeralcontainers",
	"/api/v1/secrets", "/api/v1/namespaces/shop/secrets", "/api/v1/namespaces/shop/secrets/s", "/api/v1/namespaces/shop/secrets/s?resourceVersion=0",
	"/api/v1/namespaces/shop/secrets?fieldSelector=metadata.name%3Ds", "/api/v1/namespaces/shop/secrets?watch=1&fieldSelector=metadata.name%3Ds",
	"/api/v1/configmaps", "/api/v1/namespaces/shop/configmaps/kube-root-ca.crt", "/api/v1/namespaces", "/api/v1/namespaces/shop",
	"/api/v1/services", "/api/v1/services?watch=1", "/api/v1/services?resourceVersion=0&limit=1", "/api/v1/namespaces/shop/services/till", "/api/v1/namespaces/shop/services/till/proxy/",
	"/apis/discovery.k8s.io/v1/endpointslices", "/apis/discovery.k8s.io/v1/endpointslices?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan",
	"/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes", "/apis/networking.k8s.io/v1/servicecidrs", "/apis/node.k8s.io/v1/runtimeclasses",
	"/apis/storage.k8s.io/v1/csidrivers", "/apis/storage.k8s.io/v1/csinodes/n1", "/apis/storage.k8s.io/v1/volumeattachments/v", "/api/v1/persistentvolumes/v",
	"/api/v1/namespaces/shop/persistentvolumeclaims/c", "/api/v1/namespaces/shop/serviceaccounts/web", "/api/v1/namespaces/shop/serviceaccounts/web/token",
	"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1", "/api/v1/namespaces/shop/events", "/apis/events.k8s.io/v1/namespaces/shop/events/e",
	"/apis/certificates.k8s.io/v1/certificatesigningrequests", "/apis/authentication.k8s.io/v1/tokenreviews", "/apis/authorization.k8s.io/v1/subjectaccessreviews",
	"/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin",
	"/apis/edgewright.dev/v1alpha1/nodepools/site", "/apis/edgewright.dev/v1alpha1/edgenodes", "/apis/apps/v1/namespaces/shop/deployments",
}

var everyMethod = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions}

// strangers are those whom the components' door knows nothing of. Each brings the
// good token of a pod along, and claims to be more.
func (r *rig) strangers(token string) (map[string]*http.Client, http.Header) {
	hour := time.Now().Add(time.Hour)
	return map[string]*http.Client{
			"another user of this machine":       r.client(nil),
			"a certificate of another authority": r.client(newAuthority(r.t, "local").client(string(CallerKubelet), hour)),
			"the node's own for the cluster":     r.client(r.node),
			"a name that is no component's":      r.client(r.local.client("edge:local:pod", hour)),
			"a certificate that has ended":       r.client(r.local.client(string(CallerKubelet), time.Now().Add(-time.Minute))),
		}, http.Header{
			"Authorization": {"Bearer " + token}, "User-Agent": {"kubelet"},
			"X-Remote-User": {"system:node:n1"}, "Impersonate-User": {"system:admin"}, "X-Forwarded-For": {"127.0.0.1"},
		}
}

// TestNobodyElse: no path of the components' door gives anybody but a component
// anything, with a link and without, and nothing of it reaches the apiserver.
func TestNobodyElse(t *testing.T) {
	r, s, _ := cutRig(t)
	for _, online := range []bool{true, false} {
		r.online(online)
		before := len(r.asked())
		clients, header := r.strangers(s.token(nil))
		for who, client := range clients {
			for _, path := range everyPath {
				for _, method := range everyMethod {
					resp, body := r.do(client, method, path, nil, header)
					if resp.StatusCode != http.StatusUnauthorized || strings.Contains(body, "items") || strings.Contains(body, "uid") {
						t.Errorf("online %v: %s %s by %s: %s %s", online, method, path, who, resp.Status, body)
					}
				}
			}
		}
		if after := r.asked(); len(after) != before {
			t.Errorf("online %v: the apiserver was asked %v", online, after[before:])
		}
	}
}

// TestPodsWithoutRights: while the node is cut off, a token that is not good opens
// nothing, and a good one of a pod that may do nothing opens what the apiserver
// shows to all whom it knows (system:discovery): what it serves, and its version.
// What it may do in other namespaces than its own is not known: it is refused that
// with a 503. With a link it is the apiserver itself that pods talk to.
func TestPodsWithoutRights(t *testing.T) {
	r, s, address := cutRig(t)
	r.online(false)
	r.settled()
	r.hub.local.config.Memo.Put(bucketRights, "shop/web", []byte(`{}`))
	wrong := s.token(func(c map[string]any) { c["aud"] = []string{"vault"} })
	for who, c := range map[string]struct{ token, want string }{
		"nobody":               {"", "401"},
		"another's key":        {newSigner(t).token(nil), "401"},
		"another audience":     {wrong, "401"},
		"a pod without rights": {s.token(nil), "403"},
	} {
		client := r.pod()
		for _, path := range everyPath {
			for _, method := range everyMethod {
				resp := r.asPod(client, address, method, path, c.token)
				shown := c.want == "403" && method == http.MethodGet && discovery(path)
				if shown && (resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusServiceUnavailable) {
					continue
				}
				if method == http.MethodOptions && resp.StatusCode == http.StatusBadRequest && c.want == "403" {
					continue // not a method of the API
				}
				want := c.want
				if want == "403" && (strings.Contains(path, "/namespaces/default/") || strings.Contains(path, "/namespaces/kube-node-lease/")) {
					want = "503"
				}
				if !strings.HasPrefix(resp.Status, want) {
					t.Errorf("%s %s by %s: %s, want %s", method, path, who, resp.Status, want)
				}
			}
		}
	}
}

func (r *rig) asPod(client *http.Client, address, method, path, token string) *http.Response {
	r.t.Helper()
	q, err := http.NewRequestWithContext(r.t.Context(), method, "https://"+address+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if token != "" {
		q.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(q)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	resp.Body.Close()
	return resp
}

// TestWritesOfPods: a cut node does not say of a write that it is forbidden where
// the apiserver might allow it.
func TestWritesOfPods(t *testing.T) {
	r, s, address := cutRig(t)
	r.online(false)
	r.settled()
	m := r.hub.local.config.Memo
	rule := `{"verbs":["create"],"apiGroups":[""],"resources":["pods/eviction","configmaps"]}`
	for name, c := range map[string]struct {
		known string
		want  map[string]int
	}{
		"it may":                 {`{"own":[` + rule + `]}`, map[string]int{"configmaps": 503, "pods/p/eviction": 503, "secrets": 403, "pods/p/exec": 403}},
		"it may elsewhere":       {`{}`, map[string]int{"configmaps": 403}},
		"there may be more":      {`{"incomplete":true}`, map[string]int{"configmaps": 503, "pods/p/eviction": 503}},
		"nobody has said so":     {"", map[string]int{"configmaps": 503}},
		"all of a subresource":   {`{"every":[{"verbs":["*"],"apiGroups":["*"],"resources":["*/eviction"]}]}`, map[string]int{"pods/p/eviction": 503, "pods/p/exec": 403}},
		"it may do all there is": {`{"every":[{"verbs":["*"],"apiGroups":["*"],"resources":["*"]}]}`, map[string]int{"secrets": 503}},
	} {
		m.Delete(bucketRights, "shop/web")
		if c.known != "" {
			m.Put(bucketRights, "shop/web", []byte(c.known))
		}
		for what, want := range c.want {
			if resp := r.asPod(r.pod(), address, http.MethodPost, "/api/v1/namespaces/shop/"+what, s.token(nil)); resp.StatusCode != want {
				t.Errorf("%s: create %s: %s, want %d", name, what, resp.Status, want)
			}
		}
	}
}
