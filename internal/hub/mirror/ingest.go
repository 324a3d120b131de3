package mirror

import (
	"bytes"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// Filter says what of an object the node shall know: the object, another in its
// place (same name and version), or nil. It must depend on nothing but the
// object. It is applied at ingest, so that lists and watches agree.
type Filter func(*replica.Object) (*replica.Object, error)

// Drop is a filter that leaves one object out.
func Drop(namespace, name string) Filter {
	return func(o *replica.Object) (*replica.Object, error) {
		if o.Namespace == namespace && o.Name == name {
			return nil, nil
		}
		return o, nil
	}
}

// understand makes an object of what came in a list or an event: message as
// wire.ReadMeta takes it.
func (r *rule) understand(message []byte) (*replica.Object, error) {
	lean, err := wire.DropManagedFields(r.media, message)
	if err != nil {
		return nil, fmt.Errorf("a %s: %w", r.kind, err)
	}
	return r.object(lean)
}

// envelopeRest is what an envelope has beside its message and kind, at most.
const envelopeRest = 32

// object makes an object that shares no memory with the message.
func (r *rule) object(message []byte) (*replica.Object, error) {
	var raw []byte
	if r.media == wire.MediaProtobuf {
		e := wire.Envelope{APIVersion: r.resource.GroupVersion().String(), Kind: r.kind, Message: message}
		raw = e.Append(make([]byte, 0, len(message)+len(e.APIVersion)+len(e.Kind)+envelopeRest))
	} else {
		var err error
		if raw, err = wire.SetKind(message, r.resource.GroupVersion().String(), r.kind); err != nil {
			return nil, fmt.Errorf("a %s: %w", r.kind, err)
		}
	}
	o, err := replica.NewObject(r.media, raw)
	if err != nil {
		return nil, fmt.Errorf("a %s: %w", r.kind, err)
	}
	return o, nil
}

// at returns the object with another version in its metadata.
func (r *rule) at(o *replica.Object, version replica.Version) (*replica.Object, error) {
	message, err := wire.SetResourceVersion(o.Media, o.Message, version.String())
	if err != nil {
		return nil, fmt.Errorf("%s %s/%s: %w", r.kind, o.Namespace, o.Name, err)
	}
	return r.object(message)
}

// unchanged says that two states differ in nothing that the node keeps.
func (r *rule) unchanged(old, new *replica.Object) bool {
	return old.UID == new.UID && r.same != nil && r.same(old, new)
}

// sameButHeartbeat says whether two states of a Node differ in the times of its
// heartbeats at most.
func sameButHeartbeat(old, new *replica.Object) bool {
	var a, b corev1.Node
	if a.Unmarshal(old.Message) != nil || b.Unmarshal(new.Message) != nil {
		return false
	}
	for _, n := range []*corev1.Node{&a, &b} {
		n.ResourceVersion, n.ManagedFields = "", nil
		for i := range n.Status.Conditions {
			n.Status.Conditions[i].LastHeartbeatTime.Reset()
		}
	}
	return equality.Semantic.DeepEqual(a, b)
}

// The fields of a Pod that make a kubelet start and kill (generated.proto).
const (
	fieldMetadata          = 1
	fieldSpec              = 2
	fieldDeletionTimestamp = 9 // in ObjectMeta
)

// matters says whether a change must be on disk before it is shown.
func (r *rule) matters(e *replica.Event) bool {
	if !r.durable {
		return false
	}
	if e.Previous == nil || e.Type == watch.Deleted || e.Object.UID != e.Previous.UID || r.kind != "Pod" {
		return true
	}
	return !bytes.Equal(wire.Find(e.Object.Message, fieldSpec), wire.Find(e.Previous.Message, fieldSpec)) ||
		!bytes.Equal(wire.Find(e.Object.Message, fieldMetadata, fieldDeletionTimestamp),
			wire.Find(e.Previous.Message, fieldMetadata, fieldDeletionTimestamp))
}
