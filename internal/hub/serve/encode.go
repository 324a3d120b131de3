package serve

import (
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/table"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// encoder writes the objects of one kind in one encoding.
type encoder struct {
	codec.Encoding
	kind schema.GroupVersionKind
	// printer where it is Table.
	printer *table.Printer
	// headed: the client knows the columns of its tables.
	headed bool
}

// form names the encoding among an event's frames. Tables are not among them.
func (e encoder) form() string {
	form := "json"
	if e.Protobuf {
		form = "protobuf"
	}
	if e.Partial {
		form += "/metadata"
	}
	return form
}

// shown is the kind a client sees.
func (e encoder) shown() schema.GroupVersionKind {
	if e.Partial {
		return metav1.SchemeGroupVersion.WithKind(codec.PartialKind(false))
	}
	return e.kind
}

// protobufObject is what the generated types of the API have.
type protobufObject interface {
	runtime.Object
	Marshal() ([]byte, error)
}

// whole returns an object as it stands alone.
func (e encoder) whole(o *replica.Object) ([]byte, error) {
	if e.Table {
		return e.tableOf(o)
	}
	if !e.Partial && o.Media == e.Media() {
		return o.Raw, nil
	}
	if e.Protobuf {
		message, err := e.message(o)
		if err != nil {
			return nil, err
		}
		return envelope(e.shown(), message), nil
	}
	if e.Partial {
		return e.partialJSON(o)
	}
	object, err := decode(o)
	if err != nil {
		return nil, err
	}
	return json.Marshal(object)
}

// item returns an object as it stands in a list.
func (e encoder) item(o *replica.Object) ([]byte, error) {
	if e.Table {
		return e.row(o)
	}
	if e.Protobuf {
		return e.message(o)
	}
	if e.Partial || o.Media == wire.MediaJSON {
		// Items of lists of custom resources carry their kind, as do partial ones.
		return e.whole(o)
	}
	object, err := decode(o)
	if err != nil {
		return nil, err
	}
	// The list says it for them.
	object.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	return json.Marshal(object)
}

// message returns an object as a bare protobuf message.
func (e encoder) message(o *replica.Object) ([]byte, error) {
	message := o.Message
	if o.Media != wire.MediaProtobuf {
		object, err := e.typed(o)
		if err != nil {
			return nil, err
		}
		if message, err = object.Marshal(); err != nil {
			return nil, fmt.Errorf("encode %s %s/%s: %w", e.kind.Kind, o.Namespace, o.Name, err)
		}
	}
	if !e.Partial {
		return message, nil
	}
	metadata, err := codec.Metadata(message)
	if err != nil {
		return nil, fmt.Errorf("metadata of %s %s/%s: %w", e.kind.Kind, o.Namespace, o.Name, err)
	}
	return codec.AppendBytesField(make([]byte, 0, len(metadata)+8), 1, metadata), nil
}

// typed decodes an object in JSON for protobuf.
func (e encoder) typed(o *replica.Object) (protobufObject, error) {
	if e.Partial {
		var partial metav1.PartialObjectMetadata
		if err := json.Unmarshal(o.Raw, &partial); err != nil {
			return nil, fmt.Errorf("metadata of %s %s/%s: %w", e.kind.Kind, o.Namespace, o.Name, err)
		}
		return &partial, nil
	}
	object, err := decode(o)
	if err != nil {
		return nil, err
	}
	typed, ok := object.(protobufObject)
	if !ok {
		return nil, fmt.Errorf("%s has no protobuf form", e.kind)
	}
	return typed, nil
}

func (e encoder) partialJSON(o *replica.Object) ([]byte, error) {
	var partial metav1.PartialObjectMetadata
	var err error
	if o.Media == wire.MediaProtobuf {
		// Fields it does not have are skipped.
		err = partial.Unmarshal(o.Message)
	} else {
		err = json.Unmarshal(o.Raw, &partial)
	}
	if err != nil {
		return nil, fmt.Errorf("metadata of %s %s/%s: %w", e.kind.Kind, o.Namespace, o.Name, err)
	}
	partial.GetObjectKind().SetGroupVersionKind(e.shown())
	return json.Marshal(&partial)
}

// decode makes a Go object of one of Kubernetes' own kinds.
func decode(o *replica.Object) (runtime.Object, error) {
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(o.Raw, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("decode %s/%s: %w", o.Namespace, o.Name, err)
	}
	return object, nil
}

func envelope(kind schema.GroupVersionKind, message []byte) []byte {
	e := wire.Envelope{Message: message}
	e.APIVersion, e.Kind = kind.ToAPIVersionAndKind()
	return e.Append(nil)
}

// atVersion is an object with another resourceVersion: what a client is shown
// when a change has moved the object out of its selection.
func atVersion(o *replica.Object, version replica.Version) (*replica.Object, error) {
	changed := *o
	changed.Version = version
	var err error
	if changed.Message, err = wire.SetResourceVersion(o.Media, o.Message, version.String()); err != nil {
		return nil, err
	}
	changed.Raw = changed.Message
	if o.Media == wire.MediaProtobuf {
		e, err := wire.ParseEnvelope(o.Raw)
		if err != nil {
			return nil, err
		}
		e.Message = changed.Message
		changed.Raw = e.Append(nil)
	}
	return &changed, nil
}
