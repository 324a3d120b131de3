package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// versionStep is added when the overlay is opened: versions given just before a
// power cut may not have been written down.
const versionStep = 1 << 16

var (
	// bucketLaid holds the objects as they are laid over the replica, in protobuf:
	// a node and its pods.
	bucketLaid = memo.Bucket{Name: "overlay", Max: 1024}
	// bucketVersion holds the last version given.
	bucketVersion = memo.Bucket{Name: "overlay-version", Max: 1}
)

// Layer is the keeper of the replica.
type Layer interface {
	// Lay publishes an event with a version of the overlay over a collection.
	Lay(c replica.Collection, e *replica.Event) error
	// Lift makes the collections the apiserver's again: what was laid over them
	// is gone, and every watch that may have seen it expires.
	Lift(collections []replica.Collection)
}

// Options of New. Logger and Clock may be left out.
type Options struct {
	Replica  replica.Replica
	Layer    Layer
	Memo     *memo.Memo
	NodeName string
	Clock    clock.WithDelayedExecution
	Logger   *slog.Logger
}

// Overlay is a node's. Its methods may be called by any goroutine.
type Overlay struct {
	options Options
	// sending has an element while an entry is being handed back: one at a time.
	sending chan struct{}

	mu   sync.Mutex // guards what follows, and the order of what is laid
	n    uint64     // of the version given last
	laid map[replica.Collection]bool
	// forgotten counts the events that had to make room, since the last drain.
	forgotten int
	returned  time.Time // the link, last
	// unsteady is since when the link has come back every few minutes.
	unsteady time.Time
	taken    int // writes, by the apiserver, since the link returned

	// failed is by which attempt an entry of a bucket failed last, or what was of a
	// place (see place) was refused. Only Drain uses it, and attempts.
	failed   map[string]map[string]int
	attempts int
}

// New opens the overlay of a node.
func New(o Options) *Overlay {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	v := &Overlay{options: o, sending: make(chan struct{}, 1), unsteady: o.Clock.Now(), failed: map[string]map[string]int{}, laid: map[replica.Collection]bool{}}
	if b, ok := o.Memo.Get(bucketVersion, "n"); ok {
		n, err := strconv.ParseUint(string(b), 10, 64)
		if err != nil {
			o.Logger.Error("read the overlay's last version", "error", err)
		}
		v.n = n + versionStep
	}
	return v
}

// next gives a version. The caller holds mu.
func (o *Overlay) next() replica.Version {
	o.n++
	o.options.Memo.Put(bucketVersion, "n", strconv.AppendUint(nil, o.n, 10))
	return replica.OverlayBase + replica.Version(o.n)
}

// Version gives a version to what else is laid over the replica than by the overlay.
func (o *Overlay) Version() replica.Version {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.next()
}

// Object is one of Kubernetes' own.
type Object interface {
	runtime.Object
	metav1.Object
}

// Target is a status that the node writes.
type Target struct {
	Resource        schema.GroupVersionResource
	Namespace, Name string
}

// targetOf is where the status of an object is written.
func targetOf(object runtime.Object) (Target, error) {
	switch object := object.(type) {
	case *corev1.Node:
		return Target{Resource: corev1.SchemeGroupVersion.WithResource("nodes"), Name: object.Name}, nil
	case *corev1.Pod:
		return Target{Resource: corev1.SchemeGroupVersion.WithResource("pods"), Namespace: object.Namespace, Name: object.Name}, nil
	}
	return Target{}, fmt.Errorf("a cut node keeps the status of nodes and pods, not that of a %T", object)
}

// PatchStatus applies a patch to the status of an object of the replica, and to
// its labels and annotations as far as a write of the status changes those at an
// apiserver. It returns the object after it. Errors are of apimachinery's kinds,
// or the replica's: the write was not accepted.
func (o *Overlay) PatchStatus(target Target, kind types.PatchType, patch []byte) (runtime.Object, error) {
	if kind != types.StrategicMergePatchType {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("a cut node takes patches of its status as %s only", types.StrategicMergePatchType))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	collection, before, err := o.find(target)
	if err != nil {
		return nil, err
	}
	shown, err := decode(before)
	if err != nil {
		return nil, err
	}
	pending, err := o.pending(target.Path())
	if err != nil {
		return nil, err
	}
	old := shown.DeepCopyObject()
	pending.applyTo(old.(metav1.Object))
	after, err := apply(target, old, patch)
	if err != nil {
		return nil, err
	}
	changed, err := encode(after)
	if err != nil {
		return nil, err
	}
	if unchanged, err := encode(shown); err == nil && bytes.Equal(unchanged, changed) {
		return shown, nil
	}
	if now := pending.and(old.(metav1.Object), after.(metav1.Object)); len(now.Labels)+len(now.Annotations) > 0 {
		if err := o.declare(target.Path(), declared{Metadata: &now}); err != nil {
			return nil, err
		}
	}
	if err := o.lay(collection, before, after); err != nil {
		return nil, err
	}
	return after, nil
}

// find returns the object a write is about. The caller holds mu.
func (o *Overlay) find(target Target) (replica.Collection, *replica.Object, error) {
	collection, coverage := o.options.Replica.Cover(replica.Query{Resource: target.Resource, Namespace: target.Namespace, Name: target.Name})
	if coverage == replica.CoverNone {
		return collection, nil, fmt.Errorf("%s %s: %w", target.Resource.Resource, target.Name, replica.ErrNotMirrored)
	}
	object, _, err := o.options.Replica.Get(collection, target.Namespace, target.Name)
	if err != nil {
		return collection, nil, err
	}
	if object == nil {
		return collection, nil, apierrors.NewNotFound(target.Resource.GroupResource(), target.Name)
	}
	return collection, object, nil
}

// lay puts an object over the replica at a version of its own. The caller holds
// mu.
func (o *Overlay) lay(collection replica.Collection, before *replica.Object, after runtime.Object) error {
	after.(metav1.Object).SetResourceVersion(o.next().String())
	raw, err := encode(after)
	if err != nil {
		return err
	}
	object, err := replica.NewObject(wire.MediaProtobuf, raw)
	if err != nil {
		return err
	}
	// The replica has the same bytes.
	o.options.Memo.Put(bucketLaid, collection.String()+" "+object.Namespace+"/"+object.Name, object.Raw)
	if err := o.options.Layer.Lay(collection, &replica.Event{Type: watch.Modified, Object: object, Previous: before}); err != nil {
		return err
	}
	o.laid[collection] = true
	return nil
}

// Restore lays what a hub before this one had accepted over the replica again.
// It is called once, when the replica has been loaded.
func (o *Overlay) Restore() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.options.Memo.All(bucketLaid) {
		if err := o.restore(e.Value); err != nil {
			// Its object was deleted, or is another by now: nothing to lay it on.
			o.options.Logger.Info("what the node wrote before is not laid over its replica again", "object", e.Key, "error", err)
			o.options.Memo.Delete(bucketLaid, e.Key)
		}
	}
}

func (o *Overlay) restore(value []byte) error {
	after, _, err := scheme.Codecs.UniversalDeserializer().Decode(value, nil, nil)
	if err != nil {
		return err
	}
	target, err := targetOf(after)
	if err != nil {
		return err
	}
	collection, before, err := o.find(target)
	switch {
	case err != nil:
		return err
	case before.UID != after.(metav1.Object).GetUID():
		return errors.New("it is another one")
	}
	// What the apiserver had said meanwhile stays, but for the status.
	base, err := decode(before)
	if err != nil {
		return err
	}
	if err := copyStatus(base, after); err != nil {
		return err
	}
	pending, err := o.pending(target.Path())
	if err != nil {
		return err
	}
	pending.applyTo(base.(metav1.Object))
	return o.lay(collection, before, base)
}

// Lift ends the overlay: the replica is the apiserver's again.
func (o *Overlay) Lift() {
	o.mu.Lock()
	defer o.mu.Unlock()
	var keys []string
	for _, e := range o.options.Memo.All(bucketLaid) {
		keys = append(keys, e.Key)
	}
	o.options.Memo.Delete(bucketLaid, keys...)
	var collections []replica.Collection
	for c := range o.laid {
		collections = append(collections, c)
	}
	clear(o.laid)
	if len(collections) > 0 {
		o.options.Layer.Lift(collections)
	}
}

// apply patches an object and keeps of the result what a write of the status may
// change: the status, labels and annotations. The specification is passed over, as
// the apiserver does it.
func apply(target Target, old runtime.Object, patch []byte) (runtime.Object, error) {
	object, err := patched(old, patch)
	if err != nil {
		return nil, err
	}
	after := old.DeepCopyObject()
	if err := copyStatus(after, object); err != nil {
		return nil, err
	}
	to, from := after.(metav1.Object), object.(metav1.Object)
	if err := checkMetadata(target, to, from); err != nil {
		return nil, err
	}
	to.SetLabels(from.GetLabels())
	to.SetAnnotations(from.GetAnnotations())
	return after, nil
}

// patched applies a strategic merge patch as the apiserver does it
// (k8s.io/apiserver/pkg/endpoints/handlers/patch.go, applyPatchToObject): without JSON
// of the object, whose encoder and decoder would remember half a megabyte about its
// types.
func patched(old runtime.Object, patch []byte) (runtime.Object, error) {
	original, err := runtime.DefaultUnstructuredConverter.ToUnstructured(old)
	if err != nil {
		return nil, err
	}
	changes := map[string]any{}
	if err := json.Unmarshal(patch, &changes); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	merged, err := strategicpatch.StrategicMergeMapPatch(original, changes, old)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	kinds, _, err := scheme.Scheme.ObjectKinds(old)
	if err != nil {
		return nil, err
	}
	object, err := scheme.Scheme.New(kinds[0])
	if err != nil {
		return nil, err
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(merged, object); err != nil {
		return nil, apierrors.NewBadRequest("the patched object: " + err.Error())
	}
	object.GetObjectKind().SetGroupVersionKind(kinds[0]) // whatever the patch says
	return object, nil
}

func copyStatus(to, from runtime.Object) error {
	switch to := to.(type) {
	case *corev1.Node:
		if from, ok := from.(*corev1.Node); ok {
			to.Status = from.Status
			return nil
		}
	case *corev1.Pod:
		if from, ok := from.(*corev1.Pod); ok {
			to.Status = from.Status
			return nil
		}
	}
	return fmt.Errorf("a cut node keeps the status of nodes and pods, not that of a %T", to)
}

func decode(o *replica.Object) (runtime.Object, error) {
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(o.Raw, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("decode %s/%s: %w", o.Namespace, o.Name, err)
	}
	return object, nil
}

// encode returns bytes without the room that the buffer has grown: they are kept.
func encode(o runtime.Object) ([]byte, error) {
	var b bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(o, &b); err != nil {
		return nil, err
	}
	return bytes.Clone(b.Bytes()), nil
}
