package overlay

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
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
	patch := []byte(`{"metadata":{"uid":"pod","labels":{"cloud":"no"}},"spec":{"nodeName":"n2"},"status":{"phase":"Running","podIP":"10.1.1.1"}}`)
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

func TestSpool(t *testing.T) {
	const path = "/api/v1/namespaces/shop/events"
	m := memo.New(nil, nil, nil)
	l := newLayered(t, "pod", "x")
	o := New(Options{Replica: l, Layer: l, Memo: m, NodeName: "n1"})
	for i := range maxSpool + 10 {
		if _, err := o.Create(path, event("e"+strings.Repeat("x", i), 1)); err != nil {
			t.Fatal(err)
		}
	}
	if n := o.Waiting(); n != maxSpool {
		t.Errorf("%d wait", n)
	}
	newest := path + "/e" + strings.Repeat("x", maxSpool+9)
	if _, err := o.Patch(newest, types.StrategicMergePatchType, []byte(`{"count":5}`)); err != nil {
		t.Error(err)
	}
	if _, err := o.Patch(path+"/e", types.StrategicMergePatchType, []byte(`{"count":5}`)); !errors.Is(err, ErrNotSpooled) {
		t.Errorf("a patch of what is spooled no more: %v", err)
	}

	// A cut in the middle of it: the rest is sent the next time, nothing twice.
	sent := map[string]int{}
	counts := map[string]int32{}
	cut := errors.New("cut")
	take := func(limit int, code int) func(context.Context, Write) (int, error) {
		n := 0
		return func(_ context.Context, w Write) (int, error) {
			if n++; n > limit {
				return 0, cut
			}
			object, _, err := scheme.Codecs.UniversalDeserializer().Decode(w.Body, nil, nil)
			if err != nil {
				return 0, err
			}
			e := object.(*corev1.Event)
			sent[e.Name]++
			counts[e.Name] = e.Count
			return code, nil
		}
	}
	if err := o.Drain(t.Context(), take(200, http.StatusCreated)); !errors.Is(err, cut) {
		t.Errorf("a cut: %v", err)
	}
	if err := o.Drain(t.Context(), func(context.Context, Write) (int, error) { return http.StatusServiceUnavailable, nil }); err == nil {
		t.Error("an apiserver that is not well has taken everything")
	}
	o = New(Options{Replica: l, Layer: l, Memo: m, NodeName: "n1"}) // the hub starts anew
	if err := o.Drain(t.Context(), take(1000, http.StatusForbidden)); err != nil {
		t.Error(err)
	}
	if len(sent) != maxSpool || o.Waiting() != 0 || counts["e"+strings.Repeat("x", maxSpool+9)] != 5 {
		t.Errorf("%d of %d sent, %d wait", len(sent), maxSpool, o.Waiting())
	}
	for name, n := range sent {
		if n != 1 {
			t.Errorf("%s was sent %d times", name, n)
		}
	}
}

// FuzzPatch: no patch changes anything but the status.
func FuzzPatch(f *testing.F) {
	f.Add([]byte(`{"status":{"phase":"Failed"},"spec":{"nodeName":"x"},"metadata":{"labels":{"a":"b"}}}`))
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
		after.Status, after.ResourceVersion = before.Status, before.ResourceVersion
		if d := cmp.Diff(before, after); d != "" {
			t.Fatalf("%s changed %s", patch, d)
		}
	})
}
