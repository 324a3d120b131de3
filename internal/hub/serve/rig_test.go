package serve

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// patience is how long a test waits for what must happen; never waited out by a
// test that passes.
const patience = 20 * time.Second

var (
	services    = replica.Collection{Resource: schema.GroupVersionResource{Version: "v1", Resource: "services"}}
	ownPods     = replica.Collection{Resource: schema.GroupVersionResource{Version: "v1", Resource: "pods"}, Node: "n1"}
	widgets     = replica.Collection{Resource: schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "widgets"}}
	serviceKind = corev1.SchemeGroupVersion.WithKind("Service")
	podKind     = corev1.SchemeGroupVersion.WithKind("Pod")
	widgetKind  = schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Widget"}
)

// rig is a Server before a cache that the test feeds.
type rig struct {
	t     *testing.T
	cache *replica.Cache
	http  *httptest.Server
	// component, stale: as in Request.
	component, stale atomic.Bool
}

func newRig(t *testing.T, clk clock.WithDelayedExecution) *rig {
	t.Helper()
	r := &rig{t: t, cache: replica.NewCache()}
	r.component.Store(true)
	r.cache.Open(services, serviceKind)
	r.cache.SetLink(true, time.Now())
	s := New(Options{Replica: r.cache, Clock: clk})
	r.http = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		request := r.parse(q)
		if !s.Serve(q.Context(), w, request) {
			http.Error(w, "upstream", http.StatusTeapot)
		}
	}))
	r.http.EnableHTTP2 = true
	r.http.StartTLS()
	t.Cleanup(func() {
		r.http.CloseClientConnections()
		r.http.Close()
	})
	return r
}

// parse reads a path of one of the rig's collections.
func (r *rig) parse(q *http.Request) Request {
	segments := strings.Split(strings.Trim(q.URL.Path, "/"), "/")
	out := Request{Query: q.URL.Query(), Accept: q.Header.Get("Accept"), Component: r.component.Load(), Stale: r.stale.Load()}
	if segments[0] == "apis" {
		out.Resource.Group, segments = segments[1], segments[1:]
	}
	out.Resource.Version, segments = segments[1], segments[2:]
	if segments[0] == "namespaces" && len(segments) > 2 {
		out.Namespace, segments = segments[1], segments[2:]
	}
	out.Resource.Resource = segments[0]
	out.Verb = "list"
	if len(segments) > 1 {
		out.Verb, out.Name = "get", segments[1]
	} else if w := out.Query.Get("watch"); w == "1" || w == "true" {
		out.Verb = "watch"
	}
	return out
}

func service(namespace, name, clusterIP string, version replica.Version, labels map[string]string) *corev1.Service {
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, ResourceVersion: version.String(), UID: "u", Labels: labels, Annotations: map[string]string{"html": "<&>"}},
		Spec:       corev1.ServiceSpec{ClusterIP: clusterIP, Type: corev1.ServiceTypeClusterIP},
	}
}

// stored makes an object as the mirror would, by apimachinery's own encoders.
func stored(t testing.TB, media string, o runtime.Object) *replica.Object {
	t.Helper()
	m := o.(metav1.Object)
	version, err := replica.ParseVersion(m.GetResourceVersion())
	if err != nil {
		t.Fatal(err)
	}
	out := &replica.Object{Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUID(), Version: version, Media: media}
	if media == wire.MediaJSON {
		if out.Raw, err = json.Marshal(o); err != nil {
			t.Fatal(err)
		}
		out.Message = out.Raw
		return out
	}
	var b bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(o, &b); err != nil {
		t.Fatal(err)
	}
	unknown, err := wire.ParseEnvelope(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	out.Raw, out.Message = b.Bytes(), unknown.Message
	return out
}

func pb(t testing.TB, o runtime.Object) *replica.Object { return stored(t, wire.MediaProtobuf, o) }

func (r *rig) load(version replica.Version, objects ...runtime.Object) {
	r.t.Helper()
	content := replica.Content{Version: version}
	for _, o := range objects {
		content.Objects = append(content.Objects, pb(r.t, o))
	}
	if err := r.cache.Load(services, content); err != nil {
		r.t.Fatal(err)
	}
}

// publish makes the change from one state to the next; nil is none.
func (r *rig) publish(before, after *corev1.Service) {
	r.t.Helper()
	var e replica.Event
	switch {
	case before == nil:
		e.Type, e.Object = watch.Added, pb(r.t, after)
	case after.DeletionTimestamp != nil:
		e.Type, e.Object, e.Previous = watch.Deleted, pb(r.t, after), pb(r.t, before)
	default:
		e.Type, e.Object, e.Previous = watch.Modified, pb(r.t, after), pb(r.t, before)
	}
	if err := r.cache.Publish(services, []*replica.Event{&e}, e.Version()); err != nil {
		r.t.Fatal(err)
	}
}

// gone is the state in which a service was deleted.
func gone(s *corev1.Service, version replica.Version) *corev1.Service {
	s = s.DeepCopy()
	s.ResourceVersion = version.String()
	s.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	return s
}

func (r *rig) open(path, accept string) *http.Response {
	r.t.Helper()
	q, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, r.http.URL+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	q.Header.Set("Accept", accept)
	response, err := r.http.Client().Do(q)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { response.Body.Close() })
	return response
}

func (r *rig) get(path, accept string) (*http.Response, []byte) {
	r.t.Helper()
	response := r.open(path, accept)
	body, err := io.ReadAll(response.Body)
	if err != nil {
		r.t.Fatalf("%s: %v", path, err)
	}
	return response, body
}

// status returns the code and reason of a refusal.
func (r *rig) status(path string) string {
	r.t.Helper()
	response, body := r.get(path, "")
	if response.StatusCode == http.StatusTeapot {
		return "upstream"
	}
	if response.StatusCode == http.StatusOK {
		return "200"
	}
	var s metav1.Status
	if err := json.Unmarshal(body, &s); err != nil {
		r.t.Fatalf("%s: %v in %q", path, err, body)
	}
	return fmt.Sprint(response.StatusCode, " ", s.Reason)
}

// watching reads a watch event by event.
type watching struct {
	t        *testing.T
	response *http.Response
	events   chan string
}

// watch opens one; its events are "TYPE namespace/name@version".
func (r *rig) watch(path, accept string) *watching {
	r.t.Helper()
	response := r.open(path, accept)
	w := &watching{t: r.t, response: response, events: make(chan string, 4096)}
	protobuf := strings.Contains(response.Header.Get("Content-Type"), "protobuf")
	frames := codec.NewWatchCodec(codec.Encoding{Protobuf: protobuf}, response.Body)
	go func() {
		defer close(w.events)
		for {
			frame, err := frames.Read()
			if err != nil {
				if err != io.EOF {
					w.events <- "broken"
				}
				return
			}
			event, err := frames.Parse(frame)
			switch {
			case err != nil:
				w.events <- err.Error()
			case event.Kind == "ERROR":
				code := "?"
				for _, c := range []string{"410", "504"} {
					if bytes.Contains(frame, []byte(`"code":`+c)) || protobuf {
						code = c
						break
					}
				}
				w.events <- "ERROR " + code
			case event.EndsInitialEvents():
				w.events <- "END @" + event.Meta.ResourceVersion
			default:
				w.events <- fmt.Sprintf("%s %s/%s@%s", event.Kind, event.Meta.Namespace, event.Meta.Name, event.Meta.ResourceVersion)
			}
		}
	}()
	return w
}

// expect reads exactly these events.
func (w *watching) expect(want ...string) {
	w.t.Helper()
	for _, e := range want {
		if got := w.next(); got != e {
			w.t.Fatalf("got %q, want %q", got, e)
		}
	}
}

// next is the next event, "" at the end.
func (w *watching) next() string {
	w.t.Helper()
	select {
	case e := <-w.events:
		return e
	case <-time.After(patience):
		w.t.Fatal("the watch is silent")
		return ""
	}
}
