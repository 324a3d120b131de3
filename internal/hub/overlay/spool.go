package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// maxSpool is how many events of a cut are kept, the newest: what tells most
// about its end. A restarting pod makes a few a minute, deduplicated by its
// recorder.
const maxSpool = 500

// bucketSpool holds events to be sent, in protobuf and in the order they were
// written last, by their own paths.
var bucketSpool = memo.Bucket{Name: "spool", Max: maxSpool}

// ErrNotSpooled: a patch of something that is not in the spool.
var ErrNotSpooled = errors.New("the node does not hold it while it is cut off")

// CreateEvent spools a new event of a collection's path and returns it as an
// apiserver would.
func (o *Overlay) CreateEvent(collection string, object Object) (runtime.Object, error) {
	m := object
	if m.GetName() == "" {
		if m.GetGenerateName() == "" {
			return nil, apierrors.NewBadRequest("the object has no name")
		}
		m.SetName(m.GetGenerateName() + string(uuid.NewUUID())[:8])
	}
	if why := content.IsPathSegmentName(m.GetName()); len(why) > 0 {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the name %q: %s", m.GetName(), strings.Join(why, ", ")))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	own := collection + "/" + m.GetName()
	if _, ok := o.options.Memo.Get(bucketSpool, own); ok {
		return nil, apierrors.NewAlreadyExists(schema.GroupResource{Group: object.GetObjectKind().GroupVersionKind().Group, Resource: "events"}, m.GetName())
	}
	if err := o.spool(own, object); err != nil {
		return nil, err
	}
	return o.acknowledged(object), nil
}

// PatchEvent changes an event, by its own path, that was created in the same cut.
func (o *Overlay) PatchEvent(own string, kind types.PatchType, patch []byte) (runtime.Object, error) {
	if kind != types.StrategicMergePatchType {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("a cut node takes patches as %s only", types.StrategicMergePatchType))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	value, ok := o.options.Memo.Get(bucketSpool, own)
	if !ok {
		return nil, ErrNotSpooled
	}
	old, _, err := scheme.Codecs.UniversalDeserializer().Decode(value, nil, nil)
	if err != nil {
		return nil, err
	}
	object, err := patched(old, patch)
	if err != nil {
		return nil, err
	}
	was, is := old.(metav1.Object), object.(metav1.Object)
	if was.GetName() != is.GetName() || was.GetNamespace() != is.GetNamespace() {
		return nil, apierrors.NewBadRequest("the patch makes it another object")
	}
	if err := o.spool(own, object); err != nil {
		return nil, err
	}
	return o.acknowledged(object), nil
}

// spool: the caller holds mu.
func (o *Overlay) spool(own string, object runtime.Object) error {
	body, err := encode(object)
	if err != nil {
		return err
	}
	o.forgotten += o.options.Memo.Put(bucketSpool, own, body)
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

// drainEvent sends one event, by its own path. Nil: nothing more is to be done for it.
func (o *Overlay) drainEvent(ctx context.Context, send Sender, own string, body []byte) error {
	answer, err := ask(ctx, send, Write{Method: http.MethodPost, Path: path.Dir(own), Type: wire.MediaProtobuf, Body: body})
	if err != nil {
		return err
	}
	if answer.Code != http.StatusConflict {
		o.refused(own, answer)
		return nil
	}
	// It is there from an attempt whose answer was lost, and may have been counted
	// up here since.
	patch, err := contentPatch(body)
	if err != nil {
		o.options.Logger.Error("read an event that is to be sent", "event", own, "error", err)
		return nil
	}
	answer, err = ask(ctx, send, Write{Method: http.MethodPatch, Path: own, Type: string(types.MergePatchType), Body: patch})
	if err == nil {
		o.refused(own, answer)
	}
	return err
}

// contentPatch is a merge patch that makes another object like this one, but for its
// metadata.
func contentPatch(body []byte) ([]byte, error) {
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		return nil, err
	}
	whole, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(whole, &fields); err != nil {
		return nil, err
	}
	delete(fields, "metadata")
	return json.Marshal(fields)
}
