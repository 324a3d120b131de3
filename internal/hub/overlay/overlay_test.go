package overlay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

var (
	pods   = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	own    = replica.Collection{Resource: pods, Node: "n1"}
	thePod = Target{Resource: pods, Namespace: "shop", Name: "p"}
)

// layered is a cache with what is below the overlay.
type layered struct {
	*replica.Cache
	base replica.Content
}

func (l *layered) Lay(c replica.Collection, e *replica.Event) error {
	return l.Publish(c, []*replica.Event{e}, e.Version())
}

func (l *layered) Lift(collections []replica.Collection) {
	for _, c := range collections {
		if err := l.Reset(c, l.base); err != nil {
			panic(err)
		}
	}
}

// newLayered holds one pod of this uid, with what the cloud says of it.
func newLayered(t testing.TB, uid, cloud string) *layered {
	t.Helper()
	raw, err := encode(&corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", UID: types.UID(uid), ResourceVersion: "8", Labels: map[string]string{"cloud": cloud}},
		Status:     corev1.PodStatus{Phase: "Pending"},
	})
	if err != nil {
		t.Fatal(err)
	}
	o, err := replica.NewObject(wire.MediaProtobuf, raw)
	if err != nil {
		t.Fatal(err)
	}
	l := &layered{Cache: replica.NewCache(), base: replica.Content{Objects: []*replica.Object{o}, Version: 10}}
	l.Open(own, corev1.SchemeGroupVersion.WithKind("Pod"))
	if err := l.Load(own, l.base); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *layered) pod(t testing.TB) *corev1.Pod {
	t.Helper()
	o, _, err := l.Get(own, "shop", "p")
	if err != nil {
		t.Fatal(err)
	}
	object, err := decode(o)
	if err != nil {
		t.Fatal(err)
	}
	return object.(*corev1.Pod)
}

func version(t testing.TB, o runtime.Object) replica.Version {
	t.Helper()
	v, err := replica.ParseVersion(o.(metav1.Object).GetResourceVersion())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestStatusIsLaidAndLifted(t *testing.T) {
	m := memo.New(nil, nil, nil)
	l := newLayered(t, "pod", "before")
	o := New(Options{Replica: l, Layer: l, Memo: m, NodeName: "n1"})
	place, err := l.Watch(own, 10)
	if err != nil {
		t.Fatal(err)
	}
	patch := []byte(`{"metadata":{"uid":"pod","annotations":{"node":"yes"}},"spec":{"nodeName":"n2"},"status":{"phase":"Running","podIP":"10.1.1.1"}}`)
	after, err := o.PatchStatus(thePod, types.StrategicMergePatchType, patch)
	if err != nil {
		t.Fatal(err)
	}
	first := version(t, after)
	pod := l.pod(t)
	if !first.Overlay() || version(t, pod) != first || pod.Status.Phase != "Running" || pod.Labels["cloud"] != "before" || pod.Spec.NodeName != "" {
		t.Errorf("laid: %+v", pod)
	}
	if events, err := place.Take(9); err != nil || len(events) != 1 || events[0].Version() != first {
		t.Errorf("a watch saw %v, %v", events, err)
	}
	// The same again changes nothing.
	again, err := o.PatchStatus(thePod, types.StrategicMergePatchType, patch)
	if err != nil || version(t, again) != first {
		t.Errorf("the same patch again: %v at %s", err, version(t, again))
	}

	// A hub that starts anew in the same cut: what the cloud had said before the
	// cut stays, the status is the node's, and versions go on.
	l = newLayered(t, "pod", "later")
	o = New(Options{Replica: l, Layer: l, Memo: m, NodeName: "n1"})
	o.Restore()
	pod = l.pod(t)
	if v := version(t, pod); v <= first || pod.Status.PodIP != "10.1.1.1" || pod.Labels["cloud"] != "later" {
		t.Errorf("restored at %s after %s: %+v", v, first, pod)
	}
	// The link is back.
	o.Lift()
	if pod = l.pod(t); pod.ResourceVersion != "8" || pod.Status.Phase != "Pending" {
		t.Errorf("lifted: %+v", pod)
	}
	o.Restore()
	if pod = l.pod(t); pod.ResourceVersion != "8" {
		t.Error("what was lifted is laid again")
	}

	// Another pod of the name has come: nothing is laid on it.
	if _, err := o.PatchStatus(thePod, types.StrategicMergePatchType, patch); err != nil {
		t.Fatal(err)
	}
	l = newLayered(t, "another", "x")
	New(Options{Replica: l, Layer: l, Memo: m, NodeName: "n1"}).Restore()
	if pod = l.pod(t); pod.ResourceVersion != "8" {
		t.Errorf("laid over another pod: %+v", pod)
	}
}

func event(name string, count int32) *corev1.Event {
	return &corev1.Event{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Event"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Count: count}
}

// cloud is an apiserver that has events and a node, as far as a drain goes.
type cloud struct {
	t      testing.TB
	left   int // writes that are answered; then the link is cut
	code   int // of an answer to what is not known better; 0: as an apiserver
	lost   bool
	events map[string]*corev1.Event
	csi    *storagev1.CSINode
	writes []string
	bodies []string
}

var errCut = errors.New("cut")

func newCloud(t testing.TB) *cloud {
	return &cloud{t: t, left: 10 * maxSpool, events: map[string]*corev1.Event{}}
}

func (c *cloud) send(_ context.Context, w Write) (Answer, error) {
	if c.left == 0 {
		return Answer{}, errCut
	}
	c.left--
	c.writes, c.bodies = append(c.writes, w.Method+" "+w.Path), append(c.bodies, string(w.Body))
	if c.code != 0 {
		return Answer{Code: c.code}, nil
	}
	code, body := c.do(w)
	if c.lost {
		return Answer{}, errCut
	}
	return Answer{Code: code, Body: body}, nil
}

func (c *cloud) do(w Write) (int, []byte) {
	var object runtime.Object
	if w.Type == wire.MediaProtobuf {
		var err error
		if object, _, err = scheme.Codecs.UniversalDeserializer().Decode(w.Body, nil, nil); err != nil {
			c.t.Error(err)
		}
	}
	switch o := object.(type) {
	case *corev1.Event:
		if c.events[o.Name] != nil {
			return http.StatusConflict, nil
		}
		c.events[o.Name] = o
		return http.StatusCreated, nil
	case *storagev1.CSINode:
		switch {
		case w.Method == http.MethodPost && c.csi != nil, w.Method == http.MethodPut && (c.csi == nil || o.ResourceVersion != c.csi.ResourceVersion):
			return http.StatusConflict, nil
		case w.Method == http.MethodPost && o.ResourceVersion+string(o.UID) != "":
			return http.StatusBadRequest, nil
		}
		c.csi = o
		return http.StatusOK, nil
	}
	name := w.Path[strings.LastIndex(w.Path, "/")+1:]
	switch {
	case w.Method == http.MethodPatch && w.Type == string(types.MergePatchType) && c.events[name] != nil:
		if err := json.Unmarshal(w.Body, c.events[name]); err != nil {
			c.t.Error(err)
		}
		return http.StatusOK, nil
	case w.Method == http.MethodGet && c.csi != nil:
		body, err := json.Marshal(c.csi)
		if err != nil {
			c.t.Error(err)
		}
		return http.StatusOK, body
	}
	return http.StatusNotFound, nil
}

const eventsPath = "/api/v1/namespaces/shop/events"

func TestSpool(t *testing.T) {
	m := memo.New(nil, nil, nil)
	l := newLayered(t, "pod", "x")
	var log bytes.Buffer
	options := Options{Replica: l, Layer: l, Memo: m, NodeName: "n1", Logger: slog.New(slog.NewTextHandler(&log, nil))}
	o := New(options)
	for i := range maxSpool + 10 {
		if _, err := o.CreateEvent(eventsPath, event("e"+strings.Repeat("x", i), 1)); err != nil {
			t.Fatal(err)
		}
	}
	if n := o.Waiting(); n != maxSpool {
		t.Errorf("%d wait", n)
	}
	newest := "e" + strings.Repeat("x", maxSpool+9)
	if _, err := o.PatchEvent(eventsPath+"/"+newest, types.StrategicMergePatchType, []byte(`{"count":5}`)); err != nil {
		t.Error(err)
	}
	if _, err := o.PatchEvent(eventsPath+"/e", types.StrategicMergePatchType, []byte(`{"count":5}`)); !errors.Is(err, ErrNotSpooled) {
		t.Errorf("a patch of what is spooled no more: %v", err)
	}
	if _, err := o.PatchEvent(eventsPath+"/"+newest, types.StrategicMergePatchType, []byte(`{"metadata":{"name":"other"}}`)); !apierrors.IsBadRequest(err) {
		t.Errorf("a patch of the name: %v", err)
	}
	// What is kept can be sent, whatever a patch says of its kind, and where it
	// belongs.
	if _, err := o.PatchEvent(eventsPath+"/"+newest, types.StrategicMergePatchType, []byte(`{"kind":"Pod","apiVersion":null}`)); err != nil {
		t.Error(err)
	}
	if _, err := o.PatchEvent(eventsPath+"/"+newest, types.StrategicMergePatchType, []byte(`{"count":5}`)); err != nil {
		t.Errorf("a patch after one of the kind: %v", err)
	}
	if _, err := o.CreateEvent(eventsPath, event("../../kube-system/secrets/x", 1)); !apierrors.IsBadRequest(err) {
		t.Errorf("an event whose name leads elsewhere: %v", err)
	}

	// A cut in the middle of it: the rest is sent the next time, nothing twice.
	c := newCloud(t)
	c.left = 200
	if err := o.Drain(t.Context(), time.Now(), c.send); !errors.Is(err, errCut) {
		t.Errorf("a cut: %v", err)
	}
	if !strings.Contains(log.String(), "events=10") {
		t.Errorf("nobody is told of the ten that were not kept: %s", log.String())
	}
	for _, code := range []int{http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusUnauthorized} {
		unwell := newCloud(t)
		unwell.code = code
		if err := o.Drain(t.Context(), time.Now(), unwell.send); err == nil || o.Waiting() != maxSpool-200 {
			t.Errorf("an apiserver that answers %d has taken something: %v", code, err)
		}
	}
	o = New(options) // the hub starts anew
	c.left = maxSpool
	if err := o.Drain(t.Context(), time.Now(), c.send); err != nil {
		t.Error(err)
	}
	if len(c.writes) != maxSpool || len(c.events) != maxSpool || o.Waiting() != 0 || c.events[newest].Count != 5 {
		t.Errorf("%d of %d sent in %d writes, %d wait", len(c.events), maxSpool, len(c.writes), o.Waiting())
	}
	// A refusal is final, and told; a 403 is when the apiserver cannot be starting
	// any more.
	for _, code := range []int{http.StatusForbidden, http.StatusUnprocessableEntity} {
		if _, err := o.CreateEvent(eventsPath, event("refused", 1)); err != nil {
			t.Fatal(err)
		}
		c.code = code
		back := time.Now()
		if code == http.StatusForbidden {
			if err := o.Drain(t.Context(), back.Add(time.Second-RefusalsPass), c.send); !errors.Is(err, errForbidden) || o.Waiting() != 1 || strings.Contains(log.String(), "refused code=403") {
				t.Errorf("soon after the link is back %d wait, %v; %s", o.Waiting(), err, log.String())
			}
			back = back.Add(-RefusalsPass)
		}
		if err := o.Drain(t.Context(), back, c.send); err != nil || o.Waiting() != 0 || !strings.Contains(log.String(), fmt.Sprint("refused code=", code)) {
			t.Errorf("after a refusal %d wait, %v; %s", o.Waiting(), err, log.String())
		}
	}
}

// TestWriteThatFails: what the apiserver fails at, its webhook say, stays and keeps
// nothing else from being sent.
func TestWriteThatFails(t *testing.T) {
	l := newLayered(t, "pod", "x")
	o := New(Options{Replica: l, Layer: l, Memo: memo.New(nil, nil, nil), NodeName: "n1"})
	for _, name := range []string{"first", "bad", "last"} {
		if _, err := o.CreateEvent(eventsPath, event(name, 1)); err != nil {
			t.Fatal(err)
		}
	}
	c := newCloud(t)
	bad, _ := o.options.Memo.Get(bucketSpool, eventsPath+"/bad")
	send := func(ctx context.Context, w Write) (Answer, error) {
		if bytes.Equal(w.Body, bad) {
			return Answer{Code: http.StatusInternalServerError}, nil
		}
		return c.send(ctx, w)
	}
	if err := o.Drain(t.Context(), time.Now(), send); !errors.Is(err, errInternal) || !strings.Contains(err.Error(), "/bad") || o.Waiting() != 1 || c.events["last"] == nil {
		t.Errorf("%v, %d wait, %d sent", err, o.Waiting(), len(c.events))
	}
	if err := o.Drain(t.Context(), time.Now(), c.send); err != nil || o.Waiting() != 0 || c.events["bad"] == nil {
		t.Errorf("when it is well again: %v, %d wait", err, o.Waiting())
	}
}

// TestLostAnswer: an event whose sending was answered into a cut, and which then
// repeated, is neither there twice nor left as it was.
func TestLostAnswer(t *testing.T) {
	l := newLayered(t, "pod", "x")
	o := New(Options{Replica: l, Layer: l, Memo: memo.New(nil, nil, nil), NodeName: "n1"})
	if _, err := o.CreateEvent(eventsPath, event("e", 1)); err != nil {
		t.Fatal(err)
	}
	c := newCloud(t)
	c.lost = true
	if err := o.Drain(t.Context(), time.Now(), c.send); !errors.Is(err, errCut) || c.events["e"] == nil {
		t.Fatalf("%v, %v", err, c.events)
	}
	if _, err := o.PatchEvent(eventsPath+"/e", types.StrategicMergePatchType, []byte(`{"count":7}`)); err != nil {
		t.Fatal(err)
	}
	c.lost = false
	if err := o.Drain(t.Context(), time.Now(), c.send); err != nil || c.events["e"].Count != 7 || o.Waiting() != 0 {
		t.Errorf("%v, %+v, %d wait", err, c.events["e"], o.Waiting())
	}
}

// TestWrittenWhileSending: what is written while its last state is being sent is
// sent as well.
func TestWrittenWhileSending(t *testing.T) {
	l := newLayered(t, "pod", "x")
	o := New(Options{Replica: l, Layer: l, Memo: memo.New(nil, nil, nil), NodeName: "n1"})
	if _, err := o.CreateEvent(eventsPath, event("e", 1)); err != nil {
		t.Fatal(err)
	}
	c := newCloud(t)
	again := true
	err := o.Drain(t.Context(), time.Now(), func(ctx context.Context, w Write) (Answer, error) {
		answer, err := c.send(ctx, w)
		if again {
			again = false
			if _, err := o.PatchEvent(eventsPath+"/e", types.StrategicMergePatchType, []byte(`{"count":9}`)); err != nil {
				t.Error(err)
			}
		}
		return answer, err
	})
	if err != nil || c.events["e"].Count != 9 || o.Waiting() != 0 {
		t.Errorf("%v, %+v, %d wait", err, c.events["e"], o.Waiting())
	}
}

// TestCSINode: the cluster's becomes what the node said last, whatever it has been
// meanwhile, and events push none out.
func TestCSINode(t *testing.T) {
	const path = "/apis/storage.k8s.io/v1/csinodes/n1"
	node := func(version string, drivers ...string) *storagev1.CSINode {
		n := &storagev1.CSINode{TypeMeta: metav1.TypeMeta{APIVersion: "storage.k8s.io/v1", Kind: "CSINode"}, ObjectMeta: metav1.ObjectMeta{Name: "n1", ResourceVersion: version, UID: "u" + types.UID(version)}}
		for _, d := range drivers {
			n.Spec.Drivers = append(n.Spec.Drivers, storagev1.CSINodeDriver{Name: d, NodeID: "n1"})
		}
		return n
	}
	for _, c := range []struct {
		name  string
		there *storagev1.CSINode
		want  string
	}{
		{"none in the cluster", nil, "POST /apis/storage.k8s.io/v1/csinodes"},
		{"an older one", node("5"), "PUT " + path},
		{"a newer one than the node has seen", node("99", "other"), "PUT " + path},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLayered(t, "pod", "x")
			o := New(Options{Replica: l, Layer: l, Memo: memo.New(nil, nil, nil), NodeName: "n1"})
			for _, n := range []*storagev1.CSINode{node(""), node("5"), node("9223372036854775809", "a", "b")} {
				if _, err := o.DeclareCSINode(path, n); err != nil {
					t.Fatal(err)
				}
			}
			for i := range maxSpool + 1 {
				if _, err := o.CreateEvent(eventsPath, event(strings.Repeat("e", i+1), 1)); err != nil {
					t.Fatal(err)
				}
			}
			to := newCloud(t)
			to.csi = c.there
			if err := o.Drain(t.Context(), time.Now(), to.send); err != nil {
				t.Fatal(err)
			}
			if got := to.writes[1]; got != c.want || len(to.csi.Spec.Drivers) != 2 || o.Waiting() != 0 {
				t.Errorf("%s; the cluster has %+v; %d wait", got, to.csi.Spec, o.Waiting())
			}
		})
	}
}

// TestMetadata: labels and annotations that come with a status are kept through a
// restart of the hub and after the overlay is lifted, until they are handed back.
func TestMetadata(t *testing.T) {
	m := memo.New(nil, nil, nil)
	l := newLayered(t, "pod", "before")
	o := New(Options{Replica: l, Layer: l, Memo: m, NodeName: "n1"})
	for _, patch := range []string{
		`{"metadata":{"annotations":{"a":"1","b":"1"}},"status":{"phase":"Running"}}`,
		`{"metadata":{"annotations":{"a":null,"b":"2","had":null}}}`,
		`{"metadata":{"annotations":{"b":"2"}}}`,
	} {
		if _, err := o.PatchStatus(thePod, types.StrategicMergePatchType, []byte(patch)); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{"b": "2"}
	if got := l.pod(t).Annotations; !cmp.Equal(got, want) {
		t.Errorf("laid: %v", got)
	}
	for patch, refusal := range map[string]func(error) bool{
		`{"metadata":{"labels":{"cloud":"no"}}}`:      apierrors.IsForbidden,
		`{"metadata":{"resourceVersion":"1"}}`:        apierrors.IsConflict,
		`{"metadata":{"uid":"another"}}`:              apierrors.IsConflict,
		`{"metadata":{"name":"another"}}`:             apierrors.IsBadRequest,
		`{"metadata":{"finalizers":["x.example/y"]}}`: func(err error) bool { return err != nil },
	} {
		if _, err := o.PatchStatus(thePod, types.StrategicMergePatchType, []byte(patch)); !refusal(err) {
			t.Errorf("%s: %v", patch, err)
		}
	}

	l = newLayered(t, "pod", "later")
	o = New(Options{Replica: l, Layer: l, Memo: m, NodeName: "n1"})
	o.Restore()
	if got := l.pod(t); !cmp.Equal(got.Annotations, want) || got.Labels["cloud"] != "later" {
		t.Errorf("restored: %v %v", got.Annotations, got.Labels)
	}
	o.Lift() // and cut again before anything could be sent
	if _, err := o.PatchStatus(thePod, types.StrategicMergePatchType, []byte(`{"status":{"phase":"Running"}}`)); err != nil {
		t.Fatal(err)
	}
	if got := l.pod(t).Annotations; !cmp.Equal(got, want) {
		t.Errorf("laid again: %v", got)
	}
	c := newCloud(t)
	c.code = http.StatusOK
	if err := o.Drain(t.Context(), time.Now(), c.send); err != nil {
		t.Fatal(err)
	}
	const body = `{"metadata":{"uid":"pod","annotations":{"a":null,"b":"2"}}}`
	if !cmp.Equal(c.writes, []string{"PATCH /api/v1/namespaces/shop/pods/p/status"}) || !cmp.Equal(c.bodies, []string{body}) {
		t.Errorf("sent %v %v", c.writes, c.bodies)
	}
}

// FuzzPatch: no patch changes anything but the status and what is to be handed
// back.
func FuzzPatch(f *testing.F) {
	f.Add([]byte(`{"status":{"phase":"Failed"},"spec":{"nodeName":"x"},"metadata":{"labels":{"a":"b"}}}`))
	f.Add([]byte(`{"metadata":{"annotations":{"a":"b"}}}`))
	f.Add([]byte(`{"$patch":"replace","status":null}`))
	f.Add([]byte(`{"metadata":{"name":"other","namespace":"kube-system"}}`))
	f.Fuzz(func(t *testing.T, patch []byte) {
		l := newLayered(t, "pod", "before")
		before := l.pod(t)
		o := New(Options{Replica: l, Layer: l, Memo: memo.New(nil, nil, nil), NodeName: "n1"})
		if _, err := o.PatchStatus(thePod, types.StrategicMergePatchType, patch); err != nil {
			return
		}
		after := l.pod(t)
		pending, err := o.pending(thePod.Path())
		if err != nil {
			t.Fatal(err)
		}
		pending.applyTo(before) // what is to be handed back is what was changed
		after.Status, after.ResourceVersion = before.Status, before.ResourceVersion
		if d := cmp.Diff(before, after); d != "" {
			t.Fatalf("%s changed %s", patch, d)
		}
	})
}
