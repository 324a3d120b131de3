package hub

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// errNotList: an answer of another kind, such as a Status.
var errNotList = errors.New("not a list")

// rewriteList leaves a stored default/kubernetes out of a list and, where add is
// true, puts the synthetic slice in with the list's resourceVersion.
func (s syntheticSlice) rewriteList(e codec.Encoding, body []byte, add bool) ([]byte, error) {
	if e.Protobuf {
		return s.rewriteProtobufList(e, body, add)
	}
	return s.rewriteJSONList(e, body, add)
}

func (s syntheticSlice) rewriteJSONList(e codec.Encoding, body []byte, add bool) ([]byte, error) {
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
		meta, err := wire.ReadMeta(wire.MediaJSON, item)
		if err != nil {
			return nil, fmt.Errorf("decode item %d of a list: %w", i, err)
		}
		if !isKubernetes(meta) {
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

func (s syntheticSlice) rewriteProtobufList(e codec.Encoding, body []byte, add bool) ([]byte, error) {
	unknown, err := wire.ParseEnvelope(body)
	if err != nil {
		return nil, fmt.Errorf("decode a list: %w", err)
	}
	if !strings.HasSuffix(unknown.Kind, "List") {
		return nil, fmt.Errorf("%w but %q", errNotList, unknown.Kind)
	}
	var resourceVersion string
	out := make([]byte, 0, len(unknown.Message)+512)
	// from is where the bytes begin that are to be kept and not yet copied.
	from, at := 0, 0
	err = wire.EachField(unknown.Message, func(f wire.Field) error {
		begin := at
		at += len(f.Whole)
		switch {
		case f.Number == codec.FieldListMetadata && f.Bytes != nil:
			return wire.EachField(f.Bytes, func(f wire.Field) error {
				if f.Number == codec.FieldListResourceVersion {
					resourceVersion = string(f.Bytes)
				}
				return nil
			})
		case f.Number == codec.FieldListItems && f.Bytes != nil:
			meta, err := wire.ReadMeta(wire.MediaProtobuf, f.Bytes)
			if err != nil {
				return fmt.Errorf("an item: %w", err)
			}
			if isKubernetes(meta) {
				out = append(out, unknown.Message[from:begin]...)
				from = at
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("decode a list: %w", err)
	}
	out = append(out, unknown.Message[from:]...)
	if add {
		item, err := s.encodeItem(e, resourceVersion)
		if err != nil {
			return nil, err
		}
		out = protowire.AppendTag(out, codec.FieldListItems, protowire.BytesType)
		out = protowire.AppendBytes(out, item)
	}
	unknown.Message = out
	return unknown.Append(nil), nil
}

// isKubernetes: a stored slice that the synthetic one stands for.
func isKubernetes(m wire.Meta) bool {
	return m.Namespace == sliceNamespace && m.Name == sliceName
}
