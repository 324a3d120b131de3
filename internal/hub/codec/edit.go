package codec

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// errNoMetadata: what was given is no object of the API.
var errNoMetadata = errors.New("an object without metadata")

// Metadata returns the bytes of an object's ObjectMeta, from its bare message.
func Metadata(message []byte) ([]byte, error) {
	var metadata []byte
	err := wire.EachField(message, func(f wire.Field) error {
		if f.Number == fieldObjectMetadata && f.Bytes != nil {
			metadata = f.Bytes
		}
		return nil
	})
	if err == nil && metadata == nil {
		err = errNoMetadata
	}
	return metadata, err
}

// AppendBytesField appends a length-delimited field.
func AppendBytesField(to []byte, number protowire.Number, value []byte) []byte {
	to = protowire.AppendTag(to, number, protowire.BytesType)
	return protowire.AppendBytes(to, value)
}

// SizeBytesField is how many bytes AppendBytesField appends.
func SizeBytesField(number protowire.Number, size int) int {
	return protowire.SizeTag(number) + protowire.SizeBytes(size)
}

// At returns the value of a string field, or of a boolean as "true" and "false",
// at a path of field numbers; absent fields are "" and "false". Of repeated
// fields the last counts.
func At(message []byte, boolean bool, path ...protowire.Number) (string, error) {
	value := ""
	if boolean {
		value = "false"
	}
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return "", protowire.ParseError(n)
		}
		m := protowire.ConsumeFieldValue(number, kind, message[n:])
		if m < 0 {
			return "", protowire.ParseError(m)
		}
		field := message[n : n+m]
		message = message[n+m:]
		if number != path[0] {
			continue
		}
		switch {
		case kind == protowire.BytesType:
			inner, _ := protowire.ConsumeBytes(field)
			if len(path) == 1 {
				value = string(inner)
				continue
			}
			var err error
			if value, err = At(inner, boolean, path[1:]...); err != nil {
				return "", err
			}
		case kind == protowire.VarintType && boolean && len(path) == 1:
			if v, _ := protowire.ConsumeVarint(field); v != 0 {
				value = "true"
			}
		}
	}
	return value, nil
}

// AppendBytesHeader appends what stands before a length-delimited field's value.
func AppendBytesHeader(to []byte, number protowire.Number, size int) []byte {
	to = protowire.AppendTag(to, number, protowire.BytesType)
	return protowire.AppendVarint(to, uint64(size))
}

// EnvelopeAround returns what stands before and after the size bytes of an
// object's message in its envelope, so that a long one can be written in pieces.
func EnvelopeAround(kind runtime.TypeMeta, size int) (before, after []byte, err error) {
	encoded, err := kind.Marshal()
	if err != nil {
		return nil, nil, fmt.Errorf("encode a %s: %w", kind.Kind, err)
	}
	before = append(before, wire.Prefix...)
	before = AppendBytesField(before, fieldUnknownType, encoded)
	before = AppendBytesHeader(before, fieldUnknownRaw, size)
	// An apiserver writes the two empty strings too.
	after = AppendBytesField(nil, fieldUnknownEncoding, nil)
	after = AppendBytesField(after, fieldUnknownContentType, nil)
	return before, after, nil
}
