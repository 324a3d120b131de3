package hub

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/runtime"
)

// Field numbers of the messages the hub looks into (generated.proto of
// apimachinery; every List of the API is {metadata = 1, repeated items = 2} and
// every object has its ObjectMeta at 1).
const (
	fieldListMetadata        = 1
	fieldListItems           = 2
	fieldListResourceVersion = 2 // in ListMeta

	fieldObjectMetadata  = 1
	fieldName            = 1 // in ObjectMeta
	fieldNamespace       = 3
	fieldResourceVersion = 6
	fieldAnnotations     = 12
)

// errNotList: an answer of another kind, such as a Status.
var errNotList = errors.New("not a list")

// rewriteList leaves a stored default/kubernetes out of a list and, where add is
// true, puts the synthetic slice in with the list's resourceVersion.
func (s syntheticSlice) rewriteList(e encoding, body []byte, add bool) ([]byte, error) {
	if e.protobuf {
		return s.rewriteProtobufList(e, body, add)
	}
	return s.rewriteJSONList(e, body, add)
}

func (s syntheticSlice) rewriteJSONList(e encoding, body []byte, add bool) ([]byte, error) {
	var list struct {
		Kind       string            `json:"kind"`
		APIVersion string            `json:"apiVersion"`
		Metadata   json.RawMessage   `json:"metadata"`
		Items      []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("decode a list: %w", err)
	}
	if !strings.HasSuffix(list.Kind, "List") {
		return nil, fmt.Errorf("%w but %q", errNotList, list.Kind)
	}
	var metadata struct {
		ResourceVersion string `json:"resourceVersion"`
	}
	if len(list.Metadata) == 0 {
		return nil, errors.New("a list without metadata")
	}
	if err := json.Unmarshal(list.Metadata, &metadata); err != nil {
		return nil, fmt.Errorf("decode a list's metadata: %w", err)
	}
	items := make([]json.RawMessage, 0, len(list.Items)+1)
	for i, item := range list.Items {
		meta, err := jsonMeta(item)
		if err != nil {
			return nil, fmt.Errorf("decode item %d of a list: %w", i, err)
		}
		if !meta.isKubernetes() {
			items = append(items, item)
		}
	}
	if add {
		item, err := s.encodeItem(e, metadata.ResourceVersion)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	list.Items = items
	// Not json.Marshal: that would escape HTML inside of strings.
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(list); err != nil {
		return nil, fmt.Errorf("encode a list: %w", err)
	}
	return out.Bytes(), nil
}

func (s syntheticSlice) rewriteProtobufList(e encoding, body []byte, add bool) ([]byte, error) {
	unknown, err := parseEnvelope(body)
	if err != nil {
		return nil, fmt.Errorf("decode a list: %w", err)
	}
	if !strings.HasSuffix(unknown.Kind, "List") {
		return nil, fmt.Errorf("%w but %q", errNotList, unknown.Kind)
	}
	var resourceVersion string
	out := make([]byte, 0, len(unknown.Raw)+512)
	// from is where the bytes begin that are to be kept and not yet copied.
	from, at := 0, 0
	err = eachField(unknown.Raw, func(f protoField) error {
		begin := at
		at += f.size
		switch {
		case f.number == fieldListMetadata && f.bytes != nil:
			return eachField(f.bytes, func(f protoField) error {
				if f.number == fieldListResourceVersion {
					resourceVersion = string(f.bytes)
				}
				return nil
			})
		case f.number == fieldListItems && f.bytes != nil:
			meta, err := protobufMeta(f.bytes)
			if err != nil {
				return fmt.Errorf("an item: %w", err)
			}
			if meta.isKubernetes() {
				out = append(out, unknown.Raw[from:begin]...)
				from = at
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("decode a list: %w", err)
	}
	out = append(out, unknown.Raw[from:]...)
	if add {
		item, err := s.encodeItem(e, resourceVersion)
		if err != nil {
			return nil, err
		}
		out = protowire.AppendTag(out, fieldListItems, protowire.BytesType)
		out = protowire.AppendBytes(out, item)
	}
	unknown.Raw = out
	return envelope(unknown)
}

// parseEnvelope reads the envelope of an object in protobuf.
func parseEnvelope(body []byte) (*runtime.Unknown, error) {
	rest, ok := bytes.CutPrefix(body, []byte(protobufPrefix))
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

// objectMeta is the part of an ObjectMeta that rewriting goes by.
type objectMeta struct {
	Namespace       string            `json:"namespace"`
	Name            string            `json:"name"`
	ResourceVersion string            `json:"resourceVersion"`
	Annotations     map[string]string `json:"annotations"`
}

// isKubernetes: a stored slice that the synthetic one stands for.
func (m objectMeta) isKubernetes() bool {
	return m.Namespace == sliceNamespace && m.Name == sliceName
}

func jsonMeta(object []byte) (objectMeta, error) {
	var o struct {
		Metadata objectMeta `json:"metadata"`
	}
	err := json.Unmarshal(object, &o)
	return o.Metadata, err
}

// protobufMeta reads an object's metadata and skips all else.
func protobufMeta(object []byte) (objectMeta, error) {
	var meta objectMeta
	err := eachField(object, func(f protoField) error {
		if f.number != fieldObjectMetadata {
			return nil
		}
		return eachField(f.bytes, func(f protoField) error {
			switch f.number {
			case fieldName:
				meta.Name = string(f.bytes)
			case fieldNamespace:
				meta.Namespace = string(f.bytes)
			case fieldResourceVersion:
				meta.ResourceVersion = string(f.bytes)
			case fieldAnnotations:
				// A map is repeated entries of {key = 1, value = 2}.
				var key, value string
				err := eachField(f.bytes, func(f protoField) error {
					switch f.number {
					case 1:
						key = string(f.bytes)
					case 2:
						value = string(f.bytes)
					}
					return nil
				})
				if meta.Annotations == nil {
					meta.Annotations = map[string]string{}
				}
				meta.Annotations[key] = value
				return err
			}
			return nil
		})
	})
	return meta, err
}

// protoField is one field of a message.
type protoField struct {
	number protowire.Number
	// bytes of a length-delimited field, never nil then; nil of any other.
	bytes []byte
	// size of the whole field, tag and length included.
	size int
}

// eachField walks the fields of a protobuf message.
func eachField(message []byte, do func(protoField) error) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		f := protoField{number: number}
		m := protowire.ConsumeFieldValue(number, kind, message[n:])
		if m < 0 {
			return protowire.ParseError(m)
		}
		f.size = n + m
		if kind == protowire.BytesType {
			f.bytes, _ = protowire.ConsumeBytes(message[n:])
			if f.bytes == nil {
				f.bytes = []byte{}
			}
		}
		if err := do(f); err != nil {
			return err
		}
		message = message[f.size:]
	}
	return nil
}
