package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/runtime"
)

// Field numbers of the messages the hub looks into (generated.proto of
// apimachinery; every List of the API is {metadata = 1, repeated items = 2} and
// every object has its ObjectMeta at 1).
const (
	FieldListMetadata        = 1
	FieldListItems           = 2
	FieldListResourceVersion = 2 // in ListMeta

	fieldUnknownType        = 1 // of the envelope
	fieldUnknownRaw         = 2
	fieldUnknownEncoding    = 3
	fieldUnknownContentType = 4

	fieldObjectMetadata  = 1
	fieldName            = 1 // in ObjectMeta
	fieldNamespace       = 3
	fieldResourceVersion = 6
	fieldLabels          = 11
	fieldAnnotations     = 12
)

// ProtobufPrefix begins every Kubernetes object in protobuf.
const ProtobufPrefix = "k8s\x00"

// ParseEnvelope reads the envelope of an object in protobuf.
func ParseEnvelope(body []byte) (*runtime.Unknown, error) {
	rest, ok := bytes.CutPrefix(body, []byte(ProtobufPrefix))
	if !ok {
		return nil, errors.New("not an object of the API in protobuf")
	}
	var unknown runtime.Unknown
	if err := unknown.Unmarshal(rest); err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	if unknown.ContentEncoding != "" {
		return nil, fmt.Errorf("envelope with content encoding %q", unknown.ContentEncoding)
	}
	return &unknown, nil
}

// Envelope marshals an object's envelope with its prefix.
func Envelope(unknown *runtime.Unknown) ([]byte, error) {
	body := make([]byte, len(ProtobufPrefix)+unknown.Size())
	n := copy(body, ProtobufPrefix)
	written, err := unknown.MarshalTo(body[n:])
	if err != nil {
		return nil, fmt.Errorf("encode a %s: %w", unknown.Kind, err)
	}
	return body[:n+written], nil
}

// Meta is the part of an ObjectMeta that rewriting goes by.
type Meta struct {
	Namespace       string            `json:"namespace"`
	Name            string            `json:"name"`
	ResourceVersion string            `json:"resourceVersion"`
	Labels          map[string]string `json:"labels"`
	Annotations     map[string]string `json:"annotations"`
}

// JSONMeta reads an object's metadata.
func JSONMeta(object []byte) (Meta, error) {
	var o struct {
		Metadata Meta `json:"metadata"`
	}
	err := json.Unmarshal(object, &o)
	return o.Metadata, err
}

// ProtobufMeta reads an object's metadata and skips all else.
func ProtobufMeta(object []byte) (Meta, error) {
	var meta Meta
	err := EachField(object, func(f Field) error {
		if f.Number != fieldObjectMetadata {
			return nil
		}
		return EachField(f.Bytes, func(f Field) error {
			switch f.Number {
			case fieldName:
				meta.Name = string(f.Bytes)
			case fieldNamespace:
				meta.Namespace = string(f.Bytes)
			case fieldResourceVersion:
				meta.ResourceVersion = string(f.Bytes)
			case fieldLabels:
				return addEntry(&meta.Labels, f.Bytes)
			case fieldAnnotations:
				return addEntry(&meta.Annotations, f.Bytes)
			}
			return nil
		})
	})
	return meta, err
}

// addEntry adds an entry of a map, which is a message {key = 1, value = 2}.
func addEntry(to *map[string]string, entry []byte) error {
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

// Field is one field of a message.
type Field struct {
	Number protowire.Number
	// Bytes of a length-delimited field, never nil then; nil of any other.
	Bytes []byte
	// Size of the whole field, tag and length included.
	Size int
}

// EachField walks the fields of a protobuf message.
func EachField(message []byte, do func(Field) error) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		f := Field{Number: number}
		m := protowire.ConsumeFieldValue(number, kind, message[n:])
		if m < 0 {
			return protowire.ParseError(m)
		}
		f.Size = n + m
		if kind == protowire.BytesType {
			f.Bytes, _ = protowire.ConsumeBytes(message[n:])
			if f.Bytes == nil {
				f.Bytes = []byte{}
			}
		}
		if err := do(f); err != nil {
			return err
		}
		message = message[f.Size:]
	}
	return nil
}
