package overlay

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"

	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// bucketDeclared holds what kubelet writes of its node once, when it starts or a
// driver comes, and not again: it must be handed back, the last of each path. One
// CSINode, one node and the pods that a node can have.
var bucketDeclared = memo.Bucket{Name: "declared", Max: 1024}

// declared is one of them: a CSINode whole, or the change of a node's or pod's
// metadata.
type declared struct {
	// CSINode in protobuf.
	CSINode []byte `json:"csiNode,omitempty"`
	// Metadata is what was changed, as a merge patch.
	Metadata *metadata `json:"metadata,omitempty"`
}

// metadata is what a write of a status may change beside the status.
type metadata struct {
	UID         types.UID          `json:"uid,omitempty"` // a precondition
	Labels      map[string]*string `json:"labels,omitempty"`
	Annotations map[string]*string `json:"annotations,omitempty"`
}

// DeclareCSINode keeps the node's CSINode, by its own path, and returns it as an
// apiserver would.
func (o *Overlay) DeclareCSINode(path string, object *storagev1.CSINode) (runtime.Object, error) {
	raw, err := encode(object)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.declare(path, declared{CSINode: raw}); err != nil {
		return nil, err
	}
	return o.acknowledged(object), nil
}

// declare: the caller holds mu.
func (o *Overlay) declare(path string, d declared) error {
	value, err := json.Marshal(d)
	if err != nil {
		return err
	}
	o.options.Memo.Put(bucketDeclared, path, value)
	return nil
}

// pending is the metadata of an object that the apiserver has yet to be told. The
// caller holds mu.
func (o *Overlay) pending(path string) (metadata, error) {
	value, ok := o.options.Memo.Get(bucketDeclared, path)
	if !ok {
		return metadata{}, nil
	}
	var d declared
	if err := json.Unmarshal(value, &d); err != nil {
		return metadata{}, fmt.Errorf("read what was declared of %s: %w", path, err)
	}
	if d.Metadata == nil {
		return metadata{}, nil
	}
	return *d.Metadata, nil
}

// applyTo changes an object, unless it is another of the name.
func (m metadata) applyTo(object metav1.Object) {
	if m.UID != object.GetUID() {
		return
	}
	object.SetLabels(merged(object.GetLabels(), m.Labels))
	object.SetAnnotations(merged(object.GetAnnotations(), m.Annotations))
}

// and adds the difference between two states of an object.
func (m metadata) and(before, after metav1.Object) metadata {
	if m.UID != after.GetUID() {
		m = metadata{UID: after.GetUID()}
	}
	m.Labels = changes(m.Labels, before.GetLabels(), after.GetLabels())
	m.Annotations = changes(m.Annotations, before.GetAnnotations(), after.GetAnnotations())
	return m
}

func merged(to map[string]string, patch map[string]*string) map[string]string {
	if len(patch) == 0 {
		return to
	}
	out := maps.Clone(to)
	if out == nil {
		out = map[string]string{}
	}
	for key, value := range patch {
		if value == nil {
			delete(out, key)
		} else {
			out[key] = *value
		}
	}
	return out
}

func changes(to map[string]*string, before, after map[string]string) map[string]*string {
	out := maps.Clone(to)
	if out == nil {
		out = map[string]*string{}
	}
	for key, value := range after {
		if was, ok := before[key]; !ok || was != value {
			out[key] = &value
		}
	}
	for key := range before {
		if _, ok := after[key]; !ok {
			out[key] = nil
		}
	}
	return out
}

// Path is where the status is written.
func (t Target) Path() string {
	at := "/api/v1/"
	if t.Namespace != "" {
		at += "namespaces/" + t.Namespace + "/"
	}
	return at + t.Resource.Resource + "/" + t.Name + "/status"
}

// drainDeclared hands one back. Nil: nothing more is to be done for it.
func (o *Overlay) drainDeclared(ctx context.Context, send Sender, path string, value []byte) error {
	var d declared
	err := json.Unmarshal(value, &d)
	switch {
	case err != nil:
		o.options.Logger.Error("read what is to be handed back", "write", path, "error", err)
		return nil
	case d.CSINode != nil:
		return o.drainCSINode(ctx, send, path, d.CSINode)
	}
	body, err := json.Marshal(map[string]any{"metadata": d.Metadata})
	if err != nil {
		return err
	}
	answer, err := ask(ctx, send, Write{Method: http.MethodPatch, Path: path, Type: string(types.MergePatchType), Body: body})
	if err == nil {
		o.refused(path, answer) // a conflict, too: it is another object by now
	}
	return err
}

// drainCSINode makes the cluster's CSINode what the node says: kubelet is its only
// writer. What the node read before the cut may be older than the cluster's.
func (o *Overlay) drainCSINode(ctx context.Context, send Sender, path string, raw []byte) error {
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(raw, nil, nil)
	if err != nil {
		o.options.Logger.Error("read what is to be handed back", "write", path, "error", err)
		return nil
	}
	ours := object.(metav1.Object)
	ours.SetManagedFields(nil) // nil leaves the cluster's as they are
	ours.SetCreationTimestamp(metav1.Time{})
	answer, err := ask(ctx, send, Write{Method: http.MethodGet, Path: path})
	if err != nil {
		return err
	}
	write := Write{Method: http.MethodPut, Path: path, Type: wire.MediaProtobuf}
	switch answer.Code {
	case http.StatusOK:
		object, _, err := scheme.Codecs.UniversalDeserializer().Decode(answer.Body, nil, nil)
		theirs, ok := object.(*storagev1.CSINode)
		if err != nil || !ok {
			return fmt.Errorf("GET %s: the apiserver answered with a %T: %w", path, object, err)
		}
		ours.SetUID(theirs.UID)
		ours.SetResourceVersion(theirs.ResourceVersion)
	case http.StatusNotFound:
		ours.SetUID("")
		ours.SetResourceVersion("")
		write.Method, write.Path = http.MethodPost, path[:strings.LastIndexByte(path, '/')]
	default:
		o.refused(path, answer)
		return nil
	}
	if write.Body, err = encode(object); err != nil {
		return err
	}
	answer, err = ask(ctx, send, write)
	switch {
	case err != nil:
		return err
	case answer.Code == http.StatusConflict:
		return fmt.Errorf("%s %s: it changed meanwhile", write.Method, path)
	}
	o.refused(path, answer)
	return nil
}

// checkMetadata refuses what a status write changes of an object's metadata and
// the node cannot keep. What the apiserver ignores is ignored.
func checkMetadata(target Target, before, after metav1.Object) error {
	resource := target.Resource.GroupResource()
	switch {
	case after.GetName() != before.GetName() || after.GetNamespace() != before.GetNamespace():
		return apierrors.NewBadRequest("the patch makes it another object")
	case after.GetUID() != before.GetUID():
		return apierrors.NewConflict(resource, target.Name, fmt.Errorf("it has uid %s, not %s", before.GetUID(), after.GetUID()))
	case after.GetResourceVersion() != before.GetResourceVersion():
		return apierrors.NewConflict(resource, target.Name, fmt.Errorf("it is at version %s, not %s", before.GetResourceVersion(), after.GetResourceVersion()))
	case target.Resource.Resource == "pods" && !maps.Equal(after.GetLabels(), before.GetLabels()):
		// As the apiserver's admission plugin NodeRestriction has it.
		return apierrors.NewForbidden(resource, target.Name, fmt.Errorf("a node does not change labels through a pod's status"))
	case strings.Join(after.GetFinalizers(), ",") != strings.Join(before.GetFinalizers(), ","):
		return fmt.Errorf("it keeps labels and annotations of %s %s beside its status, not finalizers", target.Resource.Resource, target.Name)
	}
	return nil
}
