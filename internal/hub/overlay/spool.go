package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
)

// maxSpool is how many events of a cut are kept, the newest: what tells most
// about its end. A restarting pod makes a few a minute, deduplicated by its
// recorder.
const maxSpool = 500

// bucketSpool holds writes to be sent, in the order they came.
var bucketSpool = memo.Bucket{Name: "spool", Max: maxSpool}

// Write is one that the apiserver is to be sent.
type Write struct {
	Method string `json:"method"`
	// Path of the collection, or of the object for a PUT.
	Path string `json:"path"`
	// Body is the object in protobuf.
	Body []byte `json:"body"`
}

// ErrNotSpooled: a patch of something that is not in the spool.
var ErrNotSpooled = errors.New("the node does not hold it while it is cut off")

// Create spools a new object and returns it as an apiserver would.
func (o *Overlay) Create(path string, object runtime.Object) (runtime.Object, error) {
	m, ok := object.(metav1.Object)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("a %T has no name", object))
	}
	if m.GetName() == "" {
		if m.GetGenerateName() == "" {
			return nil, apierrors.NewBadRequest("the object has no name")
		}
		m.SetName(m.GetGenerateName() + string(uuid.NewUUID())[:8])
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	key := path + "/" + m.GetName()
	if _, ok := o.options.Memo.Get(bucketSpool, key); ok {
		return nil, apierrors.NewAlreadyExists(schema.GroupResource{}, m.GetName())
	}
	if err := o.spool(key, Write{Method: http.MethodPost, Path: path}, object); err != nil {
		return nil, err
	}
	return o.acknowledged(object), nil
}

// Update spools an object in the place of the one before.
func (o *Overlay) Update(path string, object runtime.Object) (runtime.Object, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.spool(path, Write{Method: http.MethodPut, Path: path}, object); err != nil {
		return nil, err
	}
	return o.acknowledged(object), nil
}

// Patch changes an object that was created in the same cut.
func (o *Overlay) Patch(path string, kind types.PatchType, patch []byte) (runtime.Object, error) {
	if kind != types.StrategicMergePatchType {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("a cut node takes patches as %s only", types.StrategicMergePatchType))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	value, ok := o.options.Memo.Get(bucketSpool, path)
	if !ok {
		return nil, ErrNotSpooled
	}
	var w Write
	if err := json.Unmarshal(value, &w); err != nil {
		return nil, err
	}
	old, _, err := scheme.Codecs.UniversalDeserializer().Decode(w.Body, nil, nil)
	if err != nil {
		return nil, err
	}
	original, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	merged, err := strategicpatch.StrategicMergePatch(original, patch, old)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(merged, nil, nil)
	if err != nil {
		return nil, apierrors.NewBadRequest("the patched object: " + err.Error())
	}
	if err := o.spool(path, w, object); err != nil {
		return nil, err
	}
	return o.acknowledged(object), nil
}

// spool: the caller holds mu.
func (o *Overlay) spool(key string, w Write, object runtime.Object) error {
	var err error
	if w.Body, err = encode(object); err != nil {
		return err
	}
	value, err := json.Marshal(w)
	if err != nil {
		return err
	}
	o.options.Memo.Put(bucketSpool, key, value)
	return nil
}

// acknowledged is the object as its writer is shown it. The caller holds mu.
func (o *Overlay) acknowledged(object runtime.Object) runtime.Object {
	object = object.DeepCopyObject()
	m := object.(metav1.Object)
	m.SetResourceVersion(o.next().String())
	if m.GetCreationTimestamp().Time.IsZero() {
		m.SetCreationTimestamp(metav1.NewTime(o.options.Clock.Now()))
	}
	return object
}

// Waiting is how many writes the apiserver has yet to be sent.
func (o *Overlay) Waiting() int { return len(o.options.Memo.All(bucketSpool)) }

// Drain sends what was spooled, in order. send returns the apiserver's code; an
// error is no answer, which ends the draining: the rest stays for the next time.
func (o *Overlay) Drain(ctx context.Context, send func(context.Context, Write) (int, error)) error {
	o.mu.Lock()
	if o.draining {
		o.mu.Unlock()
		return nil
	}
	o.draining = true
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		o.draining = false
		o.mu.Unlock()
	}()
	for _, e := range o.options.Memo.All(bucketSpool) {
		var w Write
		if err := json.Unmarshal(e.Value, &w); err != nil {
			o.options.Logger.Error("read what is to be sent", "write", e.Key, "error", err)
			o.options.Memo.Delete(bucketSpool, e.Key)
			continue
		}
		code, err := send(ctx, w)
		switch {
		case err != nil:
			return fmt.Errorf("send %s %s: %w", w.Method, e.Key, err)
		case code == http.StatusTooManyRequests || code >= http.StatusInternalServerError:
			return fmt.Errorf("send %s %s: the apiserver answered %d", w.Method, e.Key, code)
		case code >= http.StatusBadRequest && code != http.StatusConflict:
			o.options.Logger.Warn("the apiserver refuses what the node wrote while it was cut off", "write", e.Key, "code", code)
		}
		o.options.Memo.Delete(bucketSpool, e.Key)
	}
	return nil
}
