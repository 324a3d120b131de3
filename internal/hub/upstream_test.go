package hub

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"

	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// seen is a request as it came to the fake apiserver.
type seen struct {
	user, method, path, query string
	header                    http.Header
	body                      string
}

// fakeAPI stands for an apiserver: it stores EndpointSlices and serves lists and
// watches of them as one does, in JSON and protobuf; all other paths echo.
type fakeAPI struct {
	t      testing.TB
	server *httptest.Server

	mu        sync.Mutex // guards what follows
	version   int64
	compacted int64
	slices    map[string]*discoveryv1.EndpointSlice
	history   []fakeEvent
	changed   chan struct{} // closed and replaced at every change
	broken    chan struct{} // closed and replaced by breakWatches
	requests  []seen
	// refuse, when set, answers instead of everything else.
	refuse http.HandlerFunc
}

// userOf is who asks, "" where that is a token's to say.
func userOf(r *http.Request) string {
	if len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	return r.TLS.PeerCertificates[0].Subject.CommonName
}

type fakeEvent struct {
	version int64
	kind    string
	object  *discoveryv1.EndpointSlice
}

func newFakeAPI(t testing.TB, ca *authority, clients *authority) *fakeAPI {
	f := &fakeAPI{
		t: t, version: 100, slices: map[string]*discoveryv1.EndpointSlice{},
		changed: make(chan struct{}), broken: make(chan struct{}),
	}
	f.server = httptest.NewUnstartedServer(f)
	f.server.EnableHTTP2 = true
	f.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.server.TLS = &tls.Config{
		Certificates: []tls.Certificate{*ca.server("kubernetes.default.svc")},
		ClientAuth:   tls.VerifyClientCertIfGiven,
		ClientCAs:    clients.pool(),
	}
	f.server.StartTLS()
	t.Cleanup(func() {
		f.server.CloseClientConnections()
		f.server.Close()
	})
	return f
}

// put stores a slice; remove deletes one.
func (f *fakeAPI) put(namespace, name string, labels map[string]string, address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	key := namespace + "/" + name
	kind := "ADDED"
	if f.slices[key] != nil {
		kind = "MODIFIED"
	}
	slice := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, Labels: labels, ResourceVersion: strconv.FormatInt(f.version, 10),
			Annotations: map[string]string{"note": "<a&b>"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{address}}},
	}
	f.slices[key] = slice
	f.record(kind, slice)
}

func (f *fakeAPI) remove(namespace, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	key := namespace + "/" + name
	slice := f.slices[key].DeepCopy()
	slice.ResourceVersion = strconv.FormatInt(f.version, 10)
	delete(f.slices, key)
	f.record("DELETED", slice)
}

func (f *fakeAPI) record(kind string, slice *discoveryv1.EndpointSlice) {
	f.history = append(f.history, fakeEvent{f.version, kind, slice})
	close(f.changed)
	f.changed = make(chan struct{})
}

// compact forgets the history: watches from before get 410.
func (f *fakeAPI) compact() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.history, f.compacted = nil, f.version
}

// breakWatches ends every watch in an orderly way.
func (f *fakeAPI) breakWatches() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.broken)
	f.broken = make(chan struct{})
}

func (f *fakeAPI) setRefuse(h http.HandlerFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = h
}

// sawAll returns the requests so far.
func (f *fakeAPI) sawAll() []seen {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.requests)
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler) // the link was cut under the request: it never came
	}
	s := seen{
		user: userOf(r), method: r.Method,
		path: r.URL.Path, query: r.URL.RawQuery, header: r.Header, body: string(body),
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	f.mu.Lock()
	f.requests = append(f.requests, s)
	refuse := f.refuse
	f.mu.Unlock()
	if refuse != nil {
		refuse(w, r)
		return
	}
	namespace := ""
	switch p := strings.TrimPrefix(r.URL.Path, "/apis/discovery.k8s.io/v1"); p {
	case "/endpointslices":
	case "/namespaces/default/endpointslices":
		namespace = "default"
	case "/namespaces/shop/endpointslices":
		namespace = "shop"
	default:
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]string{"user": s.user, "body": s.body, "proto": r.Proto})
		return
	}
	if r.Header.Get("Accept-Encoding") == "gzip" {
		f.t.Error("the hub asked for compressed slices")
	}
	if r.URL.Query().Get("watch") != "" {
		f.watch(w, r, namespace)
	} else {
		f.list(w, r, namespace)
	}
}

func (f *fakeAPI) matches(r *http.Request, namespace string, s *discoveryv1.EndpointSlice) bool {
	l, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		f.t.Error(err)
		return false
	}
	fs, err := fields.ParseSelector(r.URL.Query().Get("fieldSelector"))
	if err != nil {
		f.t.Error(err)
		return false
	}
	return (namespace == "" || s.Namespace == namespace) && l.Matches(labels.Set(s.Labels)) &&
		fs.Matches(fields.Set{"metadata.name": s.Name, "metadata.namespace": s.Namespace})
}

// state returns the slices in an apiserver's order.
func (f *fakeAPI) state(r *http.Request, namespace string) (int64, []*discoveryv1.EndpointSlice) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var keys []string
	for k := range f.slices {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var out []*discoveryv1.EndpointSlice
	for _, k := range keys {
		if f.matches(r, namespace, f.slices[k]) {
			out = append(out, f.slices[k])
		}
	}
	return f.version, out
}

func (f *fakeAPI) list(w http.ResponseWriter, r *http.Request, namespace string) {
	version, all := f.state(r, namespace)
	meta := metav1.ListMeta{ResourceVersion: strconv.FormatInt(version, 10)}
	from := 0
	if c := r.URL.Query().Get("continue"); c != "" {
		raw, err := base64.StdEncoding.DecodeString(c)
		if err != nil {
			f.t.Error(err)
		}
		from, _ = strconv.Atoi(string(raw))
	}
	to := len(all)
	if limit, err := strconv.Atoi(r.URL.Query().Get("limit")); err == nil && limit > 0 && from+limit < to {
		to = from + limit
		meta.Continue = base64.StdEncoding.EncodeToString([]byte(strconv.Itoa(to)))
	}
	var object runtime.Object
	if partial(r) {
		list := &metav1.PartialObjectMetadataList{
			TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadataList"}, ListMeta: meta,
		}
		for _, s := range all[from:to] {
			list.Items = append(list.Items, *toPartial(s))
		}
		object = list
	} else {
		list := &discoveryv1.EndpointSliceList{
			TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSliceList"}, ListMeta: meta,
		}
		for _, s := range all[from:to] {
			list.Items = append(list.Items, *s)
		}
		object = list
	}
	media := strings.Split(r.Header.Get("Accept"), ";")[0]
	w.Header().Set("Content-Type", media)
	w.Header().Set("Audit-Id", "list")
	w.Write(f.encode(media, object))
}

func partial(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata")
}

func toPartial(s *discoveryv1.EndpointSlice) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"},
		ObjectMeta: *s.ObjectMeta.DeepCopy(),
	}
}

// encode is apimachinery's encoding, not the hub's.
func (f *fakeAPI) encode(media string, object runtime.Object) []byte {
	if media == wire.MediaProtobuf {
		var b strings.Builder
		if err := protobuf.NewSerializer(nil, nil).Encode(object, &b); err != nil {
			f.t.Error(err)
		}
		return []byte(b.String())
	}
	b, err := json.Marshal(object)
	if err != nil {
		f.t.Error(err)
	}
	return b
}

func (f *fakeAPI) frame(media, kind string, object runtime.Object) []byte {
	event := metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Raw: f.encode(media, object)}}
	if media == wire.MediaProtobuf {
		b, err := event.Marshal()
		if err != nil {
			f.t.Error(err)
		}
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
	}
	b, err := json.Marshal(event)
	if err != nil {
		f.t.Error(err)
	}
	return append(b, '\n')
}

func (f *fakeAPI) watch(w http.ResponseWriter, r *http.Request, namespace string) {
	q := r.URL.Query()
	media := strings.Split(r.Header.Get("Accept"), ";")[0]
	contentType := media
	if media == wire.MediaProtobuf {
		contentType += ";stream=watch"
	}
	f.mu.Lock()
	broken := f.broken
	f.mu.Unlock()
	send := func(kind string, object runtime.Object) {
		if s, ok := object.(*discoveryv1.EndpointSlice); ok && partial(r) {
			object = toPartial(s)
		}
		w.Write(f.frame(media, kind, object))
		w.(http.Flusher).Flush()
	}
	w.Header().Set("Content-Type", contentType)
	w.(http.Flusher).Flush()

	from, _ := strconv.ParseInt(q.Get("resourceVersion"), 10, 64)
	initial := q.Get("sendInitialEvents") == "true"
	if initial || from == 0 && q.Get("sendInitialEvents") == "" {
		version, all := f.state(r, namespace)
		for _, s := range all {
			send("ADDED", s)
		}
		from = version
		if initial && q.Get("allowWatchBookmarks") == "true" {
			send("BOOKMARK", bookmark(version, true))
		}
	}
	for {
		f.mu.Lock()
		changed, compacted, history := f.changed, f.compacted, slices.Clone(f.history)
		f.mu.Unlock()
		if from < compacted {
			send("ERROR", &metav1.Status{
				TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
				Code: http.StatusGone, Reason: metav1.StatusReasonExpired, Message: "too old resource version",
			})
			return
		}
		for _, e := range history {
			if e.version <= from {
				continue
			}
			from = e.version
			if f.matches(r, namespace, e.object) {
				send(e.kind, e.object)
			}
		}
		select {
		case <-changed:
		case <-broken:
			return
		case <-r.Context().Done():
			return
		}
	}
}

func bookmark(version int64, ends bool) *discoveryv1.EndpointSlice {
	b := &discoveryv1.EndpointSlice{
		TypeMeta:   metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{ResourceVersion: fmt.Sprint(version)},
	}
	if ends {
		b.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	return b
}
