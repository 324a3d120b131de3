package hub

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/edgewright/terraform-provider-edge/internal/hub/link"
	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
	"github.com/edgewright/terraform-provider-edge/internal/hub/overlay"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// layered is a cache that the test feeds, and what it is below the overlay.
type layered struct {
	*replica.Cache
	mu   sync.Mutex // guards base
	base map[replica.Collection]replica.Content
}

func (l *layered) Lay(c replica.Collection, e *replica.Event) error {
	return l.Publish(c, []*replica.Event{e}, e.Version())
}

func (l *layered) Lift(collections []replica.Collection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range collections {
		if err := l.Reset(c, l.base[c]); err != nil {
			panic(err)
		}
	}
}

func (l *layered) Below(c replica.Collection, namespace, name string) (*replica.Object, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.base[c].Objects {
		if o.Namespace == namespace && o.Name == name {
			return o, nil
		}
	}
	return nil, nil
}

func (l *layered) fill(t testing.TB, c replica.Collection, version replica.Version, objects ...runtime.Object) {
	t.Helper()
	content := replica.Content{Version: version}
	var kind schema.GroupVersionKind
	for _, o := range objects {
		kind = o.GetObjectKind().GroupVersionKind()
		r, err := replica.NewObject(wire.MediaProtobuf, encoded(t, o))
		if err != nil {
			t.Fatal(err)
		}
		content.Objects = append(content.Objects, r)
	}
	l.Open(c, kind)
	if err := l.Load(c, content); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.base[c] = content
}

func encoded(t testing.TB, o runtime.Object) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(o, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func core(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: resource}
}

var (
	ownNode  = replica.Collection{Resource: core("nodes"), Name: "n1"}
	ownPods  = replica.Collection{Resource: core("pods"), Node: "n1"}
	services = replica.Collection{Resource: core("services")}
	secret   = replica.Collection{Resource: core("secrets"), Namespace: "shop", Name: "s"}
)

// newLocalRig is a hub with a node, a pod, a Secret and a Service mirrored.
func newLocalRig(t *testing.T) (*rig, *layered) { return newLocalRigAt(t, nil) }

// newLocalRigAt is newLocalRig with a clock of the test's.
func newLocalRigAt(t *testing.T, clk clock.WithDelayedExecution) (*rig, *layered) {
	t.Helper()
	l := &layered{Cache: replica.NewCache(), base: map[replica.Collection]replica.Content{}}
	l.fill(t, ownNode, 10, &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node", ResourceVersion: "9", Labels: map[string]string{"a": "b"}}})
	l.fill(t, ownPods, 10, &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", UID: "pod", ResourceVersion: "8"},
		Spec: corev1.PodSpec{NodeName: "n1"}, Status: corev1.PodStatus{Phase: "Pending"},
	})
	l.fill(t, services, 10, &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "till", UID: "svc", ResourceVersion: "7"}})
	l.fill(t, secret, 10, &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s", UID: "secret", ResourceVersion: "6"}, Data: map[string][]byte{"k": []byte("v")}})
	pods := newAuthority(t, "pods")
	certificate := pods.server("kubernetes.default.svc")
	r := newRigWith(t, clk, &Local{
		PodCertificate: func() (*tls.Certificate, error) { return certificate, nil },
		Replica:        l, Layer: l, Memo: memo.New(nil, nil, nil), OnLink: func(s link.State) { l.SetLink(s.Online, s.Since) },
	})
	r.podCA = pods
	return r, l
}

// online waits until the hub takes the link for what it is to be.
func (r *rig) online(want bool) {
	r.t.Helper()
	if want {
		r.setCut(false)
		r.hub.Link().Session(true)
	} else {
		r.setCut(true)
		r.hub.Link().Session(false)
	}
	for limit := time.Now().Add(patience); r.hub.Link().State().Online != want; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			r.t.Fatalf("the link is never online=%v", want)
		}
	}
}

// settled waits, of a hub that is offline, until it asks for nothing that it began to
// ask for before: an answer that comes late is remembered too. When it takes a third
// request to learn it is done with the first.
func (r *rig) settled() {
	r.t.Helper()
	for range 3 {
		select {
		case r.hub.local.learning <- struct{}{}:
		case <-time.After(patience):
			r.t.Fatal("the hub still learns")
		}
	}
}

// learned waits until the hub has learned, since the link was back, who signs
// tokens: the last it asks for unasked where it has no pods' tokens. The fake
// apiserver must say so (see answerIssuer).
func (r *rig) learned() {
	r.t.Helper()
	for limit := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if _, ok := r.hub.local.config.Memo.Get(bucketIssuer, "issuer"); ok {
			return
		}
		if time.Now().After(limit) {
			r.t.Fatal("the hub never learns who signs tokens")
		}
	}
}

// asked are the requests the apiserver saw, less the hub's own.
func (r *rig) asked() []string {
	var out []string
	for _, s := range r.api.sawAll() {
		if s.header.Get("User-Agent") != "edge-hub" {
			out = append(out, s.method+" "+s.path)
		}
	}
	return out
}

// TestFirstFailedRequest: whoever runs into a cut is answered from the replica,
// in the same request, and nobody after is sent that way.
func TestFirstFailedRequest(t *testing.T) {
	// Time stands still: the apiserver is probed when something fails, and at no
	// other time.
	r, _ := newLocalRigAt(t, testingclock.NewFakeClock(time.Now()))
	keys := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{newSigner(t).public}}
	r.api.setRefuse(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", wire.MediaJSON)
		if !answerIssuer(t, w, q, keys) {
			io.WriteString(w, "{}")
		}
	})
	r.online(true)
	r.learned()
	const path = "/api/v1/nodes/n1"
	if resp, _ := r.get(CallerKubelet, path); resp.StatusCode != 200 || len(r.asked()) != 1 {
		t.Fatalf("online a get goes upstream: %s, %v", resp.Status, r.asked())
	}
	r.setCut(true)
	before := r.dialled()
	resp, body := r.get(CallerKubelet, path)
	if resp.StatusCode != 200 || !strings.Contains(body, `"uid":"node"`) {
		t.Fatalf("the first request of a cut: %s %s", resp.Status, body)
	}
	if s := r.hub.Link().State(); s.Online {
		t.Error("the hub has not noticed")
	}
	for range 5 {
		if resp, _ := r.get(CallerKubelet, path); resp.StatusCode != 200 {
			t.Errorf("%s", resp.Status)
		}
	}
	if n := r.dialled() - before; n > 2 { // the first request's own, and the probe that follows its failure
		t.Errorf("dialled %d times for six requests", n)
	}
	r.online(true)
	if resp, _ := r.get(CallerKubelet, path); resp.StatusCode != 200 {
		t.Errorf("after the cut: %s", resp.Status)
	}
	if asked := r.asked(); len(asked) != 2 {
		t.Errorf("asked %v", asked)
	}
}

// TestHangingRequest: a request that hangs when the cut is noticed is answered
// from the replica.
func TestHangingRequest(t *testing.T) {
	r, _ := newLocalRig(t)
	r.online(true)
	arrived := make(chan struct{})
	r.api.setRefuse(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path != "/readyz" {
			close(arrived)
			<-q.Context().Done()
		}
	})
	got := make(chan string, 1)
	go func() {
		resp, body := r.get(CallerKubelet, "/api/v1/nodes/n1")
		got <- resp.Status + body
	}()
	select {
	case <-arrived:
	case <-time.After(patience):
		t.Fatal("nothing went upstream")
	}
	r.hub.Link().Session(false)
	select {
	case s := <-got:
		if !strings.Contains(s, `"uid":"node"`) {
			t.Errorf("got %s", s)
		}
	case <-time.After(patience):
		t.Fatal("it hangs")
	}
}

func (r *rig) dialled() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dials
}

// TestHonestWrites goes through the requests of an unmodified node, and through
// every verb on what it reads, with the link cut: each is kept or refused, and
// what was kept is what the apiserver is sent, or what a read on the node shows.
func TestHonestWrites(t *testing.T) {
	const (
		kept     = "kept"
		refused  = "503 ServiceUnavailable"
		denied   = "403 Forbidden"
		notFound = "404 NotFound"
	)
	event := &corev1.Event{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Event"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "e"}, Count: 1}
	csiOf := func(name, version string) *storagev1.CSINode {
		return &storagev1.CSINode{TypeMeta: metav1.TypeMeta{APIVersion: "storage.k8s.io/v1", Kind: "CSINode"}, ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: version}}
	}
	csi := csiOf("n1", "")
	leased := &coordinationv1.Lease{TypeMeta: metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"}, ObjectMeta: metav1.ObjectMeta{Namespace: leaseNamespace, Name: "n1"}}
	token := &authenticationv1.TokenRequest{TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"}}
	strategic := string(types.StrategicMergePatchType)
	type row struct {
		caller       Caller
		method, path string
		contentType  string
		body         any
		want         string
	}
	rows := []row{
		{CallerKubelet, "PATCH", "/api/v1/nodes/n1/status", strategic, `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, kept},
		{CallerKubelet, "PATCH", "/api/v1/namespaces/shop/pods/p/status", strategic, `{"metadata":{"uid":"pod"},"status":{"phase":"Running","podIP":"10.1.1.1"}}`, kept},
		{CallerKubelet, "PATCH", "/api/v1/namespaces/shop/pods/p/status", strategic, `{"metadata":{"uid":"another"},"status":{"phase":"Failed"}}`, "409 Conflict"},
		{CallerKubelet, "PATCH", "/api/v1/namespaces/shop/pods/p/status", string(types.MergePatchType), `{}`, "400 BadRequest"},
		{CallerKubelet, "PATCH", "/api/v1/namespaces/shop/pods/p/status", strategic, `{"status":`, "400 BadRequest"},
		{CallerKubelet, "PATCH", "/api/v1/namespaces/shop/pods/unknown/status", strategic, `{}`, notFound},
		{CallerKubelet, "PATCH", "/api/v1/nodes/n1/status", strategic, `{"metadata":{"labels":{"declared":"yes"},"annotations":{"also":"yes"}}}`, kept},
		{CallerKubelet, "PATCH", "/api/v1/nodes/n1/status", strategic, `{"metadata":{"finalizers":["x.example/y"]}}`, refused},
		{CallerKubelet, "PATCH", "/api/v1/nodes/n1/status?dryRun=All", strategic, `{"status":{"phase":"Running"}}`, refused},
		{CallerKubelet, "PATCH", "/api/v1/namespaces/shop/pods/p/status", strategic, `{"metadata":{"labels":{"x":"y"}}}`, denied},
		{CallerKubelet, "PATCH", "/api/v1/nodes/n2/status", strategic, `{}`, refused},
		{CallerKubelet, "PATCH", "/api/v1/nodes/n1", strategic, `{"metadata":{"labels":{"x":"y"}}}`, refused},
		{CallerKubelet, "POST", "/api/v1/nodes", "", &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, "409 AlreadyExists"},
		{CallerKubelet, "POST", "/api/v1/namespaces/shop/events", "", event, kept},
		{CallerKubelet, "POST", "/api/v1/namespaces/shop/events", "", event, "409 AlreadyExists"},
		{CallerKubelet, "POST", "/api/v1/namespaces/shop/events?dryRun=All", "", event, refused},
		{CallerKubelet, "POST", "/api/v1/namespaces/other/events", "", event, "400 BadRequest"},
		{CallerKubelet, "POST", "/apis/events.k8s.io/v1/namespaces/shop/events", "", event, "400 BadRequest"},
		{CallerKubelet, "POST", "/api/v1/events", "", event, "400 BadRequest"},
		{CallerKubelet, "POST", "/api/v1/namespaces/shop/events", "", leased, "400 BadRequest"},
		{CallerKubelet, "PATCH", "/api/v1/namespaces/shop/events/e", strategic, `{"count":7}`, kept},
		{CallerKubelet, "PATCH", "/api/v1/namespaces/shop/events/older", strategic, `{"count":7}`, notFound},
		{CallerKubelet, "PUT", "/api/v1/namespaces/shop/events/e", "", event, refused},
		{CallerKubelet, "DELETE", "/api/v1/namespaces/shop/events/e", "", nil, refused},
		{CallerKubeProxy, "POST", "/api/v1/namespaces/shop/events", "", &corev1.Event{TypeMeta: event.TypeMeta, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "proxy"}}, kept},
		{CallerCoreDNS, "POST", "/api/v1/namespaces/shop/events", "", &corev1.Event{TypeMeta: event.TypeMeta, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "dns"}}, kept},
		{CallerNode, "POST", "/api/v1/namespaces/shop/events", "", &corev1.Event{TypeMeta: event.TypeMeta, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "daemon"}}, kept},
		{CallerNode, "PATCH", "/api/v1/namespaces/shop/events/daemon", strategic, `{"count":2}`, kept},
		{CallerNode, "POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests", "", nil, refused},
		{CallerKubelet, "PUT", "/apis/storage.k8s.io/v1/csinodes/n1", "", csi, refused}, // nobody knows what the cluster has
		{CallerKubelet, "POST", "/apis/storage.k8s.io/v1/csinodes?dryRun=All", "", csi, refused},
		{CallerKubelet, "POST", "/apis/storage.k8s.io/v1/csinodes", "", csi, kept},
		{CallerKubelet, "POST", "/apis/storage.k8s.io/v1/csinodes", "", csi, "409 AlreadyExists"},
		{CallerKubelet, "PUT", "/apis/storage.k8s.io/v1/csinodes/n1", "", csi, kept},
		{CallerKubelet, "PUT", "/apis/storage.k8s.io/v1/csinodes/n1", "", csiOf("n1", "5"), "409 Conflict"},
		{CallerKubelet, "PUT", "/apis/storage.k8s.io/v1/csinodes/n1", "", csiOf("n2", ""), denied},
		{CallerKubelet, "PUT", "/apis/storage.k8s.io/v1/csinodes/n1", "", event, "400 BadRequest"},
		{CallerKubelet, "PUT", "/apis/storage.k8s.io/v1/csinodes/n2", "", csi, refused},
		{CallerKubelet, "PATCH", "/apis/storage.k8s.io/v1/csinodes/n1", strategic, `{"metadata":{"labels":{"x":"y"}}}`, refused},
		{CallerKubelet, "DELETE", "/apis/storage.k8s.io/v1/csinodes/n1", "", nil, refused},
		{CallerKubelet, "POST", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", "", leased, kept},
		{CallerKubelet, "PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1", "", leased, kept},
		{CallerKubelet, "PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n2", "", leased, refused},
		{CallerKubelet, "PATCH", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1", string(types.MergePatchType), `{"spec":{"holderIdentity":"another"}}`, refused},
		{CallerKubelet, "DELETE", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1", "", nil, refused},
		{CallerKubelet, "POST", "/api/v1/namespaces/shop/serviceaccounts/never/token", "", token, refused},
		{CallerKubelet, "POST", "/apis/authentication.k8s.io/v1/tokenreviews", "", nil, refused},
		{CallerKubelet, "POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", "", nil, refused},
		{CallerKubelet, "POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests", "", nil, refused},
		{CallerKubelet, "GET", "/api/v1/namespaces/shop/persistentvolumeclaims/never", "", nil, refused},
		{CallerKubelet, "GET", "/api/v1/namespaces/shop/secrets/never", "", nil, refused},
		{CallerKubelet, "GET", "/apis/discovery.k8s.io/v1/endpointslices", "", nil, refused},
		{CallerCoreDNS, "GET", "/apis/discovery.k8s.io/v1/endpointslices", "", nil, refused},
		{CallerKubeProxy, "GET", "/api/v1/namespaces/shop/secrets/s", "", nil, denied},
		{CallerCoreDNS, "GET", "/api/v1/namespaces/shop/pods/p", "", nil, denied},
		{CallerAdmin, "DELETE", "/api/v1/namespaces/shop/pods/p", "", nil, denied},
	}
	// Every verb that writes, on every resource the node knows, by those who may ask.
	for _, at := range []string{
		"/api/v1/namespaces/shop/pods/p", "/api/v1/namespaces/shop/secrets/s", "/api/v1/namespaces/shop/configmaps/c", "/api/v1/namespaces/shop/services/till",
		"/api/v1/namespaces/shop/persistentvolumeclaims/c", "/api/v1/persistentvolumes/v", "/api/v1/namespaces/shop", "/api/v1/namespaces/shop/serviceaccounts/a",
		"/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/s", "/apis/storage.k8s.io/v1/volumeattachments/v", "/apis/storage.k8s.io/v1/csidrivers/d",
		"/apis/node.k8s.io/v1/runtimeclasses/r", "/apis/resource.k8s.io/v1/namespaces/shop/resourceclaims/r", "/apis/networking.k8s.io/v1/servicecidrs/s",
		"/apis/edgewright.dev/v1alpha1/nodepools/p", "/api/v1/nodes/n1", "/apis/storage.k8s.io/v1/csinodes/other",
	} {
		collection := at[:strings.LastIndex(at, "/")]
		rows = append(rows,
			row{CallerKubelet, "PUT", at, "", nil, refused}, row{CallerKubelet, "DELETE", at, "", nil, refused},
			row{CallerKubelet, "PATCH", at, strategic, `{}`, refused}, row{CallerKubelet, "PUT", at + "/status", "", nil, refused},
			row{CallerKubelet, "DELETE", collection, "", nil, refused},
		)
		if !strings.HasSuffix(at, "/pods/p") && at != "/api/v1/nodes/n1" { // whose status is the kubelet's to write: above
			rows = append(rows, row{CallerKubelet, "PATCH", at + "/status", strategic, `{}`, refused})
		}
		if collection != "/api/v1/nodes" && collection != "/apis/storage.k8s.io/v1/csinodes" {
			rows = append(rows, row{CallerKubelet, "POST", collection, "", nil, refused})
		}
		for _, caller := range []Caller{CallerKubeProxy, CallerCoreDNS, CallerNode, CallerAdmin} {
			for _, where := range []string{at, at + "/status"} {
				rows = append(rows, row{caller, "PUT", where, "", nil, denied}, row{caller, "DELETE", where, "", nil, denied}, row{caller, "PATCH", where, strategic, `{}`, denied})
			}
			rows = append(rows, row{caller, "POST", collection, "", nil, denied}, row{caller, "DELETE", collection, "", nil, denied})
		}
	}
	// What the kubelet writes is nobody else's to write, but for events.
	for _, caller := range []Caller{CallerKubeProxy, CallerCoreDNS, CallerNode, CallerAdmin} {
		patched := notFound // the event, for it was not written here
		if caller == CallerAdmin {
			patched = denied
			rows = append(rows, row{caller, "POST", "/api/v1/namespaces/shop/events", "", event, denied})
		}
		rows = append(rows,
			row{caller, "PATCH", "/api/v1/namespaces/shop/events/older", strategic, `{"count":7}`, patched},
			row{caller, "PUT", "/api/v1/namespaces/shop/events/e", "", event, denied},
			row{caller, "DELETE", "/api/v1/namespaces/shop/events/e", "", nil, denied},
			row{caller, "POST", "/api/v1/nodes", "", nil, denied},
			row{caller, "POST", "/apis/storage.k8s.io/v1/csinodes", "", csi, denied}, row{caller, "PUT", "/apis/storage.k8s.io/v1/csinodes/n1", "", csi, denied},
			row{caller, "POST", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", "", leased, denied},
			row{caller, "PUT", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1", "", leased, denied},
			row{caller, "PATCH", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1", strategic, `{}`, denied},
			row{caller, "DELETE", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1", "", nil, denied},
			row{caller, "POST", "/api/v1/namespaces/shop/serviceaccounts/a/token", "", token, denied},
			row{caller, "POST", "/api/v1/namespaces/shop/pods/p/eviction", "", nil, denied},
			row{caller, "POST", "/apis/authentication.k8s.io/v1/tokenreviews", "", nil, denied},
		)
	}

	r, _ := newLocalRig(t)
	r.online(false)
	clients := map[Caller]*http.Client{}
	for _, c := range rows {
		if clients[c.caller] == nil {
			clients[c.caller] = r.caller(c.caller)
		}
		header := http.Header{"Accept": {wire.MediaJSON}}
		var body io.Reader
		switch b := c.body.(type) {
		case string:
			body = strings.NewReader(b)
			header.Set("Content-Type", c.contentType)
		case runtime.Object:
			body = bytes.NewReader(encoded(t, b))
			header.Set("Content-Type", wire.MediaProtobuf)
		}
		resp, text := r.do(clients[c.caller], c.method, c.path, body, header)
		got := kept
		if resp.StatusCode >= 300 {
			s := statusOf(t, resp, text)
			got = fmt.Sprint(s.Code, " ", s.Reason)
			if s.Code == 503 && !strings.Contains(s.Message, "cut off") {
				t.Errorf("%s %s: the refusal does not name the cut: %q", c.method, c.path, s.Message)
			}
		}
		if got != c.want {
			t.Errorf("%s %s by %s: %s, want %s", c.method, c.path, c.caller, got, c.want)
		}
	}

	// What was kept is seen on the node.
	client, err := kubernetes.NewForConfig(r.restConfig(CallerKubelet, wire.MediaProtobuf))
	if err != nil {
		t.Fatal(err)
	}
	pod, err := client.CoreV1().Pods("shop").Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil || pod.Status.Phase != "Running" || pod.Status.PodIP != "10.1.1.1" || pod.Spec.NodeName != "n1" {
		t.Errorf("the pod: %+v, %v", pod.Status, err)
	}
	if v, err := replica.ParseVersion(pod.ResourceVersion); err != nil || !v.Overlay() {
		t.Errorf("the pod is at %s", pod.ResourceVersion)
	}
	node, err := client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil || len(node.Status.Conditions) != 1 || node.Labels["a"] != "b" || node.Labels["x"] != "" {
		t.Errorf("the node: %+v, %v", node, err)
	}
	if got, err := client.StorageV1().CSINodes().Get(t.Context(), "n1", metav1.GetOptions{}); err != nil || got.Name != "n1" {
		t.Errorf("the CSINode: %v", err)
	}
	if n := len(r.asked()); n != 0 {
		t.Errorf("%d requests went upstream", n)
	}

	// The link is back: the apiserver gets what was kept, and nothing else.
	r.api.setRefuse(func(w http.ResponseWriter, q *http.Request) {
		if q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/csinodes/") {
			http.NotFound(w, q)
			return
		}
		io.WriteString(w, "{}")
	})
	r.online(true)
	var sent []string
	for limit := time.Now().Add(patience); len(sent) < 8; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("the apiserver was sent %v", sent)
		}
		sent = nil
		for _, s := range r.api.sawAll() {
			if s.method == "GET" {
				continue
			}
			sent = append(sent, s.method+" "+s.path)
			if s.path == "/api/v1/namespaces/shop/events" {
				o, _, err := scheme.Codecs.UniversalDeserializer().Decode([]byte(s.body), nil, nil)
				if err != nil {
					t.Fatalf("an event: %v", err)
				}
				count, known := map[string]int32{"e": 7, "proxy": 0, "dns": 0, "daemon": 2}[o.(*corev1.Event).Name]
				if !known || o.(*corev1.Event).Count != count {
					t.Errorf("an event as it was not kept: %v", o)
				}
			}
		}
	}
	slices.Sort(sent)
	want := []string{
		"PATCH /api/v1/namespaces/shop/pods/p/status", // as it is
		"PATCH /api/v1/nodes/n1/status",               // its labels
		"PATCH /api/v1/nodes/n1/status",               // as it is
		"POST /api/v1/namespaces/shop/events", "POST /api/v1/namespaces/shop/events",
		"POST /api/v1/namespaces/shop/events", "POST /api/v1/namespaces/shop/events",
		"POST /apis/storage.k8s.io/v1/csinodes",
	}
	if diff := cmp.Diff(want, sent); diff != "" {
		t.Errorf("the apiserver was sent (-want +got):\n%s", diff)
	}
	for _, s := range r.api.sawAll() {
		if s.method == http.MethodPatch && strings.Contains(s.path, "/pods/") && (!strings.Contains(s.body, `"phase":"Running"`) || !strings.Contains(s.body, `"podIP":"10.1.1.1"`)) {
			t.Errorf("of the pod it was told %s", s.body)
		}
	}
	for limit := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		pod, err = client.CoreV1().Pods("shop").Get(t.Context(), "p", metav1.GetOptions{ResourceVersion: "0"})
		if err == nil && pod.ResourceVersion == "8" && pod.Status.Phase == "Pending" {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("the overlay is not lifted: %+v %v", pod, err)
		}
	}
}

// TestClockFault: a clock that is behind what the node has seen is told once, and
// by what is known best.
func TestClockFault(t *testing.T) {
	clk := testingclock.NewFakeClock(time.Unix(0, 0))
	r, _ := newLocalRigAt(t, clk)
	clocks := func() (out []string) {
		for _, f := range r.hub.Faults() {
			if f.Reason == FaultClock {
				out = append(out, f.Message)
			}
		}
		return out
	}
	if got := clocks(); len(got) != 1 || !strings.Contains(got[0], "before the node's certificate begins") {
		t.Errorf("in 1970: %v", got)
	}
	why := "it is behind"
	r.hub.config.ClockFault = func() string { return why }
	if got := clocks(); len(got) != 1 || got[0] != why {
		t.Errorf("behind the last time seen: %v", got)
	}
	clk.SetTime(time.Now())
	why = ""
	if got := clocks(); len(got) != 0 {
		t.Errorf("today: %v", got)
	}
}

// TestWriteWithoutAnswer: a write that an apiserver does not answer, though the link
// is there, is not laid over the replica, where nothing would lift it.
func TestWriteWithoutAnswer(t *testing.T) {
	clk := testingclock.NewFakeClock(time.Now())
	r, l := newLocalRigAt(t, clk)
	arrived := make(chan struct{})
	r.api.setRefuse(func(w http.ResponseWriter, q *http.Request) {
		if q.Method == http.MethodPatch {
			close(arrived)
			<-q.Context().Done()
			return
		}
		io.WriteString(w, "{}")
	})
	r.online(true)
	client := r.caller(CallerKubelet)
	got := make(chan string, 1)
	go func() {
		resp, _ := r.do(client, "PATCH", "/api/v1/namespaces/shop/pods/p/status", strings.NewReader(`{"status":{"phase":"Running"}}`), http.Header{"Content-Type": {string(types.StrategicMergePatchType)}})
		got <- resp.Status
	}()
	<-arrived
	clk.Step(writeHeaderTimeout + time.Second)
	if s := <-got; !strings.HasPrefix(s, "504") {
		t.Errorf("it is answered %s", s)
	}
	if !r.hub.Link().State().Online {
		t.Error("the link counts as cut: this test shows nothing")
	}
	o, _, err := l.Get(ownPods, "shop", "p")
	if err != nil || o.Version.Overlay() {
		t.Errorf("it is laid over the replica: %+v, %v", o, err)
	}
}

// TestAcceptedAsTheLinkReturns: what is accepted in the moment in which the link
// comes back is handed back all the same.
func TestAcceptedAsTheLinkReturns(t *testing.T) {
	r, l := newLocalRig(t)
	r.api.setRefuse(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") })
	r.online(true)
	// As if the request had been judged an instant before.
	target := overlay.Target{Resource: core("pods"), Namespace: "shop", Name: "p"}
	if _, err := r.hub.local.overlay.PatchStatus(target, types.StrategicMergePatchType, []byte(`{"status":{"phase":"Running"}}`)); err != nil {
		t.Fatal(err)
	}
	r.hub.local.accepted()
	for limit := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		o, _, err := l.Get(ownPods, "shop", "p")
		if err != nil {
			t.Fatal(err)
		}
		if !o.Version.Overlay() {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("it stays laid over the replica")
		}
	}
}

// TestTokensThroughACut: a token had online is had again, with a soft expiry, for
// the same pod and audience only.
func TestTokensThroughACut(t *testing.T) {
	clk := testingclock.NewFakeClock(time.Now())
	r, _ := newLocalRigAt(t, clk)
	r.online(true)
	ask := func(uid, audience string, seconds int64) *authenticationv1.TokenRequest {
		return &authenticationv1.TokenRequest{
			TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"},
			Spec:     authenticationv1.TokenRequestSpec{Audiences: []string{audience}, ExpirationSeconds: &seconds, BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", Name: "p", UID: types.UID(uid)}},
		}
	}
	end := metav1.NewTime(clk.Now().Add(10 * time.Minute).Truncate(time.Second))
	r.api.setRefuse(func(w http.ResponseWriter, q *http.Request) {
		if q.Method != "POST" {
			return
		}
		answer := ask("pod", "api", 600)
		answer.Status = authenticationv1.TokenRequestStatus{Token: "secret-token", ExpirationTimestamp: end}
		w.Header().Set("Content-Type", wire.MediaProtobuf)
		w.WriteHeader(201)
		w.Write(encoded(t, answer))
	})
	request := func(uid, audience string, seconds int64) (*http.Response, string) {
		return r.do(r.caller(CallerKubelet), "POST", "/api/v1/namespaces/shop/serviceaccounts/a/token", bytes.NewReader(encoded(t, ask(uid, audience, seconds))),
			http.Header{"Content-Type": {wire.MediaProtobuf}, "Accept": {wire.MediaJSON}})
	}
	if resp, _ := request("pod", "api", 600); resp.StatusCode != 201 {
		t.Fatal(resp.Status)
	}
	r.online(false)
	given := func() {
		t.Helper()
		resp, body := request("pod", "api", 600)
		var got authenticationv1.TokenRequest
		if err := json.Unmarshal([]byte(body), &got); err != nil || resp.StatusCode != 201 || got.Status.Token != "secret-token" {
			t.Fatalf("%s %s %v", resp.Status, body, err)
		}
		// The kubelet takes it for good, and for due (see token_manager.go).
		if left := got.Status.ExpirationTimestamp.Sub(clk.Now()); left <= time.Minute || left > 10*time.Minute/5 {
			t.Errorf("it expires in %s", left)
		}
	}
	given()
	// Its end has come: without it the containers of a node that reboots could not
	// start, and for whom it is may still take it.
	for !clk.Now().After(end.Time) {
		clk.Step(4 * time.Minute)
		given()
	}
	for _, c := range []struct {
		uid, audience string
		seconds       int64
	}{{"pod", "other", 600}, {"another", "api", 600}, {"pod", "api", 3607}} {
		if resp, _ := request(c.uid, c.audience, c.seconds); resp.StatusCode != 503 {
			t.Errorf("a token for %v: %s", c, resp.Status)
		}
	}
}

// TestDiscoveryThroughACut: what was asked before is answered again.
func TestDiscoveryThroughACut(t *testing.T) {
	r, _ := newLocalRig(t)
	r.online(true)
	r.api.setRefuse(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("ETag", `"e"`)
		fmt.Fprintf(w, `{"path":%q}`, q.URL.Path)
	})
	const known = "/apis/discovery.k8s.io/v1"
	_, before := r.get(CallerCoreDNS, known)
	r.online(false)
	if resp, body := r.get(CallerKubelet, known); resp.StatusCode != 200 || body != before || resp.Header.Get("ETag") != `"e"` {
		t.Errorf("%s %s", resp.Status, body)
	}
	for _, unknown := range []string{"/apis/never/v1", "/readyz"} {
		if resp, _ := r.get(CallerKubelet, unknown); resp.StatusCode != 503 {
			t.Errorf("%s: %s", unknown, resp.Status)
		}
	}
}

// TestIsolationWhileCut: nobody gets a byte for the link being cut.
func TestIsolationWhileCut(t *testing.T) {
	r, _ := newLocalRig(t)
	r.online(false)
	stranger := newAuthority(t, "local")
	hour := time.Now().Add(time.Hour)
	for name, client := range map[string]*http.Client{
		"nobody": r.client(nil), "of another authority": r.client(stranger.client(string(CallerKubelet), hour)),
		"an unknown name": r.client(r.local.client("edge:local:pod", hour)), "expired": r.client(r.local.client(string(CallerKubelet), time.Now().Add(-time.Minute))),
	} {
		for _, path := range []string{
			"/", "/api", "/version", "/readyz", "/metrics", "/api/v1/nodes/n1", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", "/api/v1/namespaces/shop/secrets/s?resourceVersion=0",
			"/api/v1/services", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1", "/api/v1/services?watch=1",
		} {
			for _, method := range []string{"GET", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"} {
				resp, body := r.do(client, method, path, nil, http.Header{"Authorization": {"Bearer x"}, "User-Agent": {"kubelet"}})
				if resp.StatusCode != 401 || strings.Contains(body, "uid") {
					t.Errorf("%s %s by %s: %s %s", method, path, name, resp.Status, body)
				}
			}
		}
	}
	// An operator on the node sees its own, and writes nothing.
	for path, want := range map[string]int{
		"/api/v1/pods": 200, "/api/v1/nodes": 200, "/api/v1/namespaces/shop/pods/p": 200, "/api/v1/services": 200,
		"/api/v1/namespaces/shop/pods/other": 503, "/apis/apps/v1/deployments": 503,
	} {
		if resp, body := r.get(CallerAdmin, path); resp.StatusCode != want {
			t.Errorf("GET %s by an operator: %s %s", path, resp.Status, body)
		}
	}
}
