package wire

import (
	"bytes"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Prefix begins every object in protobuf.
const Prefix = "k8s\x00"

// Field numbers of the messages that are looked into (generated.proto of
// apimachinery).
const (
	fieldUnknownTypeMeta = 1
	fieldUnknownRaw      = 2
	fieldUnknownEncoding = 3
	fieldUnknownType     = 4
	fieldAPIVersion      = 1 // in TypeMeta
	fieldKind            = 2

	fieldListMeta            = 1
	fieldListItems           = 2
	fieldListResourceVersion = 2 // in ListMeta
	fieldListContinue        = 3

	fieldObjectMeta      = 1
	fieldName            = 1 // in ObjectMeta
	fieldNamespace       = 3
	fieldUID             = 5
	fieldResourceVersion = 6
	fieldLabels          = 11
	fieldAnnotations     = 12
	fieldManagedFields   = 17

	fieldEventType   = 1 // in WatchEvent
	fieldEventObject = 2
	fieldExtension   = 1 // in RawExtension
)

// Field is one field of a protobuf message.
type Field struct {
	Number protowire.Number
	// Bytes of a length-delimited field, never nil then; nil of any other.
	Bytes []byte
	// Whole is the field with its tag and length.
	Whole []byte
}

// EachField walks the fields of a message. Bytes are parts of it.
func EachField(message []byte, do func(Field) error) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		m := protowire.ConsumeFieldValue(number, kind, message[n:])
		if m < 0 {
			return protowire.ParseError(m)
		}
		f := Field{Number: number, Whole: message[:n+m]}
		if kind == protowire.BytesType {
			f.Bytes, _ = protowire.ConsumeBytes(message[n:])
			if f.Bytes == nil {
				f.Bytes = []byte{}
			}
		}
		if err := do(f); err != nil {
			return err
		}
		message = message[n+m:]
	}
	return nil
}

// Envelope is an object in protobuf, opened.
type Envelope struct {
	APIVersion, Kind string
	// Message is a part of what was parsed.
	Message []byte
}

// ParseEnvelope opens an object in protobuf.
func ParseEnvelope(object []byte) (Envelope, error) {
	rest, ok := bytes.CutPrefix(object, []byte(Prefix))
	if !ok {
		return Envelope{}, errors.New("not an object of the API in protobuf")
	}
	e := Envelope{Message: []byte{}}
	err := EachField(rest, func(f Field) error {
		switch f.Number {
		case fieldUnknownTypeMeta:
			return EachField(f.Bytes, func(f Field) error {
				switch f.Number {
				case fieldAPIVersion:
					e.APIVersion = string(f.Bytes)
				case fieldKind:
					e.Kind = string(f.Bytes)
				}
				return nil
			})
		case fieldUnknownRaw:
			e.Message = f.Bytes
			if f.Bytes == nil {
				return errors.New("its message is no message")
			}
		case fieldUnknownEncoding:
			if len(f.Bytes) > 0 {
				return fmt.Errorf("it is encoded with %q", f.Bytes)
			}
		}
		return nil
	})
	if err != nil {
		return Envelope{}, fmt.Errorf("envelope of an object: %w", err)
	}
	return e, nil
}

// Append adds the object in protobuf to dst, as apimachinery writes it.
func (e Envelope) Append(dst []byte) []byte {
	dst = append(dst, Prefix...)
	dst = protowire.AppendTag(dst, fieldUnknownTypeMeta, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(protowire.SizeTag(fieldAPIVersion)+protowire.SizeBytes(len(e.APIVersion))+
		protowire.SizeTag(fieldKind)+protowire.SizeBytes(len(e.Kind))))
	dst = appendString(dst, fieldAPIVersion, e.APIVersion)
	dst = appendString(dst, fieldKind, e.Kind)
	dst = appendBytes(dst, fieldUnknownRaw, e.Message)
	// gogo's generator writes empty strings of proto2 too.
	dst = appendString(dst, fieldUnknownEncoding, "")
	return appendString(dst, fieldUnknownType, "")
}

func appendString(dst []byte, n protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(dst, n, protowire.BytesType), s)
}

func appendBytes(dst []byte, n protowire.Number, b []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(dst, n, protowire.BytesType), b)
}

// Find returns the bytes of a field that is found along a path of numbers: the
// last of its kind at each step, nil where there is none or the message is broken.
func Find(message []byte, path ...protowire.Number) []byte {
	for _, number := range path {
		var found []byte
		err := EachField(message, func(f Field) error {
			if f.Number == number {
				found = f.Bytes
			}
			return nil
		})
		if err != nil || found == nil {
			return nil
		}
		message = found
	}
	return message
}
