package mirror

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// fakeAPI is an apiserver, as a RoundTripper: versions, watches with and without
// initial events, pages, compaction, and every way to fail that a test asks for.
// It knows collections by path and field selector, and everything is a Pod to it
// but what is JSON.
type fakeAPI struct {
	t testing.TB

	mu      sync.Mutex // guards what follows
	version replica.Version
	// compacted: versions below cannot be gone on from.
	compacted replica.Version
	tables    map[string]*fakeTable
	asked     []string // requests, as path?query
	watches   map[*fakeWatch]bool
	// refuse answers a request with a status instead, where it returns one.
	refuse func(table, query string) int
	// breakAfter ends the body of each answer, unless 0, after so many bytes.
	breakAfter int
	// silent watches send nothing that happens.
	silent bool
	// mixed lists say of each page but the first that it is of another version.
	mixed bool
}

type fakeTable struct {
	objects map[string]fakeObject
	history []fakeEvent
}

type fakeObject struct {
	uid     string
	version replica.Version
	payload string
}

type fakeEvent struct {
	kind string
	name string
	fakeObject
}

type fakeWatch struct {
	table     string
	media     string
	bookmarks bool
	pipe      *io.PipeWriter
	queue     chan []byte
}

func newFakeAPI(t testing.TB) *fakeAPI {
	return &fakeAPI{t: t, version: 100, tables: map[string]*fakeTable{}, watches: map[*fakeWatch]bool{}}
}

// garbled is the payload of an object that nobody understands when it comes in an
// event.
const garbled = "garbled"

// podsTable is where the node's pods are.
const podsTable = "/api/v1/pods spec.nodeName=n1"

func (f *fakeAPI) table(name string) *fakeTable {
	if f.tables[name] == nil {
		f.tables[name] = &fakeTable{objects: map[string]fakeObject{}}
	}
	return f.tables[name]
}

// put makes or changes shop/<name>.
func (f *fakeAPI) put(table, name, payload string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.table(table)
	f.version++
	o, ok := t.objects[name]
	kind := "MODIFIED"
	if !ok {
		kind, o.uid = "ADDED", fmt.Sprintf("u-%s-%s", name, f.version)
	}
	o.version, o.payload = f.version, payload
	t.objects[name] = o
	f.tell(table, fakeEvent{kind, name, o})
}

func (f *fakeAPI) remove(table, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.table(table)
	o, ok := t.objects[name]
	if !ok {
		return
	}
	f.version++
	o.version = f.version
	delete(t.objects, name)
	f.tell(table, fakeEvent{"DELETED", name, o})
}

func (f *fakeAPI) tell(table string, e fakeEvent) {
	t := f.table(table)
	t.history = append(t.history, e)
	if f.silent {
		return
	}
	for w := range f.watches {
		if w.table == table {
			w.queue <- f.frame(w.media, e)
		}
	}
}

// bookmark tells everybody who wants bookmarks the present version.
func (f *fakeAPI) bookmark() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.watches {
		if !w.bookmarks {
			continue
		}
		w.queue <- f.frame(w.media, fakeEvent{kind: "BOOKMARK", fakeObject: fakeObject{version: f.version}})
	}
}

// compact forgets the past; breaking ends all watches.
func (f *fakeAPI) compact() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.compacted = f.version
	for _, t := range f.tables {
		t.history = nil
	}
}

func (f *fakeAPI) breakWatches() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.watches {
		w.pipe.CloseWithError(io.ErrUnexpectedEOF)
		delete(f.watches, w)
		close(w.queue)
	}
}

func (f *fakeAPI) requests(table string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.asked {
		if strings.HasPrefix(a, table+"?") {
			n++
		}
	}
	return n
}

// state is what a whole replica of a table holds.
func (f *fakeAPI) state(table string) map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	state := map[string]string{}
	for name, o := range f.table(table).objects {
		state[name] = o.version.String() + " " + o.uid + " " + o.payload
	}
	return state
}

func (f *fakeAPI) message(media, name string, o fakeObject, annotations map[string]string) []byte {
	meta := metav1.ObjectMeta{
		Name: name, UID: types.UID(o.uid), ResourceVersion: o.version.String(), Annotations: annotations,
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "test"}},
	}
	if name != "" {
		meta.Namespace = "shop"
	}
	if media == wire.MediaJSON {
		meta.Namespace = ""
		b, err := json.Marshal(map[string]any{"kind": "NodePool", "apiVersion": "edgewright.dev/v1alpha1", "metadata": meta, "payload": o.payload})
		if err != nil {
			panic(err)
		}
		return b
	}
	b, err := (&corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{NodeName: "n1", SchedulerName: o.payload}}).Marshal()
	if err != nil {
		panic(err)
	}
	return b
}

func (f *fakeAPI) frame(media string, e fakeEvent) []byte {
	var annotations map[string]string
	kind := e.kind
	if kind == "END" {
		kind, annotations = "BOOKMARK", map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	object := f.message(media, e.name, e.fakeObject, annotations)
	if media == wire.MediaProtobuf {
		object = wire.Envelope{APIVersion: "v1", Kind: "Pod", Message: object}.Append(nil)
	}
	if e.payload == garbled {
		object = []byte(garbled)
	}
	b, err := wire.AppendEvent(media, nil, wire.Event{Type: kind, Object: object})
	if err != nil {
		panic(err)
	}
	return b
}

// RoundTrip implements http.RoundTripper.
func (f *fakeAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	query := r.URL.Query()
	table := r.URL.Path
	if s := query.Get("fieldSelector"); s != "" {
		table += " " + s
	}
	f.asked = append(f.asked, table+"?"+r.URL.RawQuery)
	media := r.Header.Get("Accept")
	if f.refuse != nil {
		if code := f.refuse(table, r.URL.RawQuery); code != 0 {
			return f.status(r, code, "refused"), nil
		}
	}
	if query.Get("watch") != "true" {
		return f.list(r, table, media)
	}
	var first [][]byte
	if query.Get("sendInitialEvents") == "true" {
		objects := f.table(table).objects
		for _, name := range slices.Sorted(maps.Keys(objects)) {
			first = append(first, f.frame(media, fakeEvent{"ADDED", name, objects[name]}))
		}
		first = append(first, f.frame(media, fakeEvent{kind: "END", fakeObject: fakeObject{version: f.version}}))
	} else {
		from, err := replica.ParseVersion(query.Get("resourceVersion"))
		if err != nil {
			return nil, err
		}
		if from < f.compacted {
			return f.status(r, http.StatusGone, string(metav1.StatusReasonExpired)), nil
		}
		for _, e := range f.table(table).history {
			if e.version > from {
				first = append(first, f.frame(media, e))
			}
		}
	}
	reader, writer := io.Pipe()
	w := &fakeWatch{table: table, media: media, bookmarks: query.Get("allowWatchBookmarks") == "true", pipe: writer, queue: make(chan []byte, 100_000)}
	for _, b := range first {
		w.queue <- b
	}
	f.watches[w] = true
	breaks, left := f.breakAfter > 0, f.breakAfter
	go func() {
		defer writer.Close()
		for b := range w.queue {
			if breaks && len(b) >= left {
				_, _ = writer.Write(b[:left])
				writer.CloseWithError(io.ErrUnexpectedEOF)
				return
			}
			left -= len(b)
			if _, err := writer.Write(b); err != nil {
				return
			}
		}
	}()
	stop := func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.watches[w] {
			delete(f.watches, w)
			close(w.queue)
		}
		writer.CloseWithError(r.Context().Err())
	}
	go func() { <-r.Context().Done(); stop() }()
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {media + ";stream=watch"}}, Body: reader}, nil
}

func (f *fakeAPI) list(r *http.Request, table, media string) (*http.Response, error) {
	query := r.URL.Query()
	if query.Get("limit") == "" {
		return f.status(r, http.StatusBadRequest, "no limit"), nil
	}
	limit, err := strconv.Atoi(query.Get("limit"))
	if err != nil {
		return nil, err
	}
	objects := f.table(table).objects
	names := slices.Sorted(maps.Keys(objects))
	version, from := f.version, ""
	if token := query.Get("continue"); token != "" {
		if _, err := fmt.Sscanf(token, "%d/%s", &version, &from); err != nil {
			return nil, err
		}
		if version < f.version {
			return f.status(r, http.StatusGone, string(metav1.StatusReasonExpired)), nil
		}
	}
	said := version
	if f.mixed && from != "" {
		said++
	}
	list := &corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: said.String()}}
	for _, name := range names {
		if name <= from {
			continue
		}
		if len(list.Items) == limit {
			list.Continue = fmt.Sprintf("%d/%s", version, list.Items[limit-1].Name)
			break
		}
		var pod corev1.Pod
		if err := pod.Unmarshal(f.message(wire.MediaProtobuf, name, objects[name], nil)); err != nil {
			return nil, err
		}
		list.Items = append(list.Items, pod)
	}
	message, err := list.Marshal()
	if err != nil {
		return nil, err
	}
	body := wire.Envelope{APIVersion: "v1", Kind: "PodList", Message: message}.Append(nil)
	if f.breakAfter > 0 && len(body) > f.breakAfter {
		return &http.Response{
			StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {media}},
			Body: io.NopCloser(io.MultiReader(bytes.NewReader(body[:f.breakAfter]), broken{})),
		}, nil
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {media}}, Body: io.NopCloser(bytes.NewReader(body))}, nil
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func (f *fakeAPI) status(_ *http.Request, code int, reason string) *http.Response {
	b, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Code: int32(code), Reason: metav1.StatusReason(reason),
	})
	if err != nil {
		panic(err)
	}
	return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(b))}
}
