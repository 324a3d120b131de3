package wire

import (
	"bytes"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The media types of objects.
const (
	MediaJSON     = "application/json"
	MediaProtobuf = "application/vnd.kubernetes.protobuf"
)

// Meta is the part of an object's metadata that the hub goes by.
type Meta struct {
	Namespace       string            `json:"namespace"`
	Name            string            `json:"name"`
	UID             string            `json:"uid"`
	ResourceVersion string            `json:"resourceVersion"`
	Labels          map[string]string `json:"labels"`
	Annotations     map[string]string `json:"annotations"`
}

// EndsInitialEvents says whether this is the bookmark after the last initial
// event of a watch.
func (m Meta) EndsInitialEvents() bool {
	return m.Annotations[metav1.InitialEventsAnnotationKey] == "true"
}

// ReadMeta reads the metadata of a message (of protobuf, without its envelope)
// or of an object in JSON.
func ReadMeta(media string, message []byte) (Meta, error) {
	switch media {
	case MediaJSON:
		var o struct {
			Metadata Meta `json:"metadata"`
		}
		if err := json.Unmarshal(message, &o); err != nil {
			return Meta{}, fmt.Errorf("metadata of an object: %w", err)
		}
		return o.Metadata, nil
	case MediaProtobuf:
		meta, err := protobufMeta(message)
		if err != nil {
			return Meta{}, fmt.Errorf("metadata of an object: %w", err)
		}
		return meta, nil
	}
	return Meta{}, unknownMedia(media)
}

func unknownMedia(media string) error {
	return fmt.Errorf("objects of media type %q are not understood", media)
}

// protobufMeta reads an object's metadata and skips all else.
func protobufMeta(message []byte) (Meta, error) {
	var meta Meta
	err := EachField(message, func(f Field) error {
		if f.Number != fieldObjectMeta {
			return nil
		}
		return EachField(f.Bytes, func(f Field) error {
			switch f.Number {
			case fieldName:
				meta.Name = string(f.Bytes)
			case fieldNamespace:
				meta.Namespace = string(f.Bytes)
			case fieldUID:
				meta.UID = string(f.Bytes)
			case fieldResourceVersion:
				meta.ResourceVersion = string(f.Bytes)
			case fieldLabels:
				return readEntry(&meta.Labels, f.Bytes)
			case fieldAnnotations:
				return readEntry(&meta.Annotations, f.Bytes)
			}
			return nil
		})
	})
	return meta, err
}

// readEntry adds one entry {key = 1, value = 2} of a map.
func readEntry(to *map[string]string, entry []byte) error {
	var key, value string
	err := EachField(entry, func(f Field) error {
		switch f.Number {
		case 1:
			key = string(f.Bytes)
		case 2:
			value = string(f.Bytes)
		}
		return nil
	})
	if *to == nil {
		*to = map[string]string{}
	}
	(*to)[key] = value
	return err
}

// SetResourceVersion returns the message (see ReadMeta) with another
// resourceVersion, and leaves the one it is given alone.
func SetResourceVersion(media string, message []byte, version string) ([]byte, error) {
	return editMeta(media, message, edit{
		json: func(meta map[string]json.RawMessage) error {
			b, err := json.Marshal(version)
			meta["resourceVersion"] = b
			return err
		},
		drop: fieldResourceVersion,
		add: func(meta []byte) []byte {
			return appendString(meta, fieldResourceVersion, version)
		},
	})
}

// DropManagedFields returns the message (see ReadMeta) without its
// managedFields: the same bytes where it has none. Whoever updates an object
// without them leaves them as they are (apiserver: fieldmanager).
func DropManagedFields(media string, message []byte) ([]byte, error) {
	if media == MediaJSON && !bytes.Contains(message, []byte(`"managedFields"`)) {
		return message, nil
	}
	return editMeta(media, message, edit{
		json: func(meta map[string]json.RawMessage) error {
			delete(meta, "managedFields")
			return nil
		},
		drop: fieldManagedFields,
		add:  func(meta []byte) []byte { return meta },
	})
}

// edit is a change of metadata, in both languages.
type edit struct {
	json func(map[string]json.RawMessage) error
	drop protowire.Number
	add  func([]byte) []byte
}

func editMeta(media string, message []byte, e edit) ([]byte, error) {
	var (
		out []byte
		err error
	)
	switch media {
	case MediaJSON:
		out, err = editJSON(message, e)
	case MediaProtobuf:
		out, err = editProtobuf(message, e)
	default:
		return nil, unknownMedia(media)
	}
	if err != nil {
		return nil, fmt.Errorf("change an object's metadata: %w", err)
	}
	return out, nil
}

func editJSON(message []byte, e edit) ([]byte, error) {
	var object, meta map[string]json.RawMessage
	if err := json.Unmarshal(message, &object); err != nil {
		return nil, err
	}
	if raw := object["metadata"]; len(raw) > 0 {
		if err := json.Unmarshal(raw, &meta); err != nil {
			return nil, err
		}
	}
	if meta == nil {
		meta = map[string]json.RawMessage{}
	}
	if object == nil {
		object = map[string]json.RawMessage{}
	}
	if err := e.json(meta); err != nil {
		return nil, err
	}
	raw, err := plainJSON(meta)
	if err != nil {
		return nil, err
	}
	object["metadata"] = raw
	return plainJSON(object)
}

// plainJSON encodes as apiservers do: json.Marshal would escape HTML inside of
// strings that were not escaped.
func plainJSON(v any) ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

func editProtobuf(message []byte, e edit) ([]byte, error) {
	var meta []byte
	metas, dropped := 0, false
	err := EachField(message, func(f Field) error {
		if f.Number != fieldObjectMeta {
			return nil
		}
		metas++
		return EachField(f.Bytes, func(f Field) error {
			if f.Number == e.drop {
				dropped = true
				return nil
			}
			meta = append(meta, f.Whole...)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	added := e.add(meta)
	if !dropped && len(added) == len(meta) && metas == 1 {
		return message, nil
	}
	// The metadata is the first field, as apiservers write it.
	out := make([]byte, 0, len(message)+32)
	out = appendBytes(out, fieldObjectMeta, added)
	err = EachField(message, func(f Field) error {
		if f.Number != fieldObjectMeta {
			out = append(out, f.Whole...)
		}
		return nil
	})
	return out, err
}

// SetKind returns an object in JSON with its kind, which items of a list lack,
// and memory of its own.
func SetKind(object []byte, apiVersion, kind string) ([]byte, error) {
	var of struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if err := json.Unmarshal(object, &of); err != nil {
		return nil, fmt.Errorf("kind of an object: %w", err)
	}
	if of.APIVersion == apiVersion && of.Kind == kind {
		return bytes.Clone(object), nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(object, &fields); err != nil {
		return nil, fmt.Errorf("kind of an object: %w", err)
	}
	for name, value := range map[string]string{"apiVersion": apiVersion, "kind": kind} {
		b, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("kind of an object: %w", err)
		}
		fields[name] = b
	}
	return plainJSON(fields)
}
