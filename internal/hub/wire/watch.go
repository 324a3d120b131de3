package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	// maxFrame bounds one watch event. The largest object an apiserver takes is
	// 3 MiB, and JSON of it is not much larger.
	maxFrame = 16 << 20
	// frameHeader is the length before a protobuf frame.
	frameHeader = 4
	// growStep is how much memory a frame gets ahead of its bytes.
	growStep = 32 << 10
)

// ErrFrameTooLarge: the stream is not one of watch events.
var ErrFrameTooLarge = errors.New("a watch event is too large")

// Event of a watch stream.
type Event struct {
	// Type is ADDED, MODIFIED, DELETED, BOOKMARK or ERROR.
	Type string
	// Object in full: JSON, or protobuf in its envelope. It is the reader's own.
	Object []byte
}

// EventReader reads the events of a stream.
type EventReader interface {
	// Next returns an event; io.EOF only where the stream ended between two.
	Next() (Event, error)
}

// NewEventReader reads a stream of a media type, without its parameters.
func NewEventReader(media string, r io.Reader) (EventReader, error) {
	switch media {
	case MediaJSON:
		bounded := &boundedReader{r: r}
		return &jsonEvents{r: bounded, decoder: json.NewDecoder(bounded)}, nil
	case MediaProtobuf:
		return &protobufEvents{r: r}, nil
	}
	return nil, unknownMedia(media)
}

type protobufEvents struct{ r io.Reader }

func (p *protobufEvents) Next() (Event, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(p.r, header[:]); err != nil {
		return Event{}, err
	}
	size := binary.BigEndian.Uint32(header[:])
	if size > maxFrame {
		return Event{}, fmt.Errorf("%w: %d bytes", ErrFrameTooLarge, size)
	}
	// Grown as bytes come, so that a length alone takes no memory.
	var frame bytes.Buffer
	frame.Grow(min(int(size), growStep))
	if _, err := io.CopyN(&frame, p.r, int64(size)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Event{}, err
	}
	var event Event
	err := EachField(frame.Bytes(), func(f Field) error {
		switch f.Number {
		case fieldEventType:
			event.Type = string(f.Bytes)
		case fieldEventObject:
			return EachField(f.Bytes, func(f Field) error {
				if f.Number == fieldExtension {
					event.Object = f.Bytes
				}
				return nil
			})
		}
		return nil
	})
	return event, checkEvent(event, err)
}

type jsonEvents struct {
	r       *boundedReader
	decoder *json.Decoder
}

func (j *jsonEvents) Next() (Event, error) {
	j.r.left = maxFrame
	var event struct {
		Type   string          `json:"type"`
		Object json.RawMessage `json:"object"`
	}
	err := j.decoder.Decode(&event)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrFrameTooLarge) {
		return Event{}, err
	}
	e := Event{Type: event.Type, Object: event.Object}
	return e, checkEvent(e, err)
}

func checkEvent(e Event, err error) error {
	if err == nil && e.Type == "" {
		err = errors.New("it has no type")
	}
	if err == nil && len(e.Object) == 0 {
		err = errors.New("it has no object")
	}
	if err != nil {
		return fmt.Errorf("decode a watch event: %w", err)
	}
	return nil
}

// AppendEvent adds an event to dst, framed. The object is in full (see Event).
func AppendEvent(media string, dst []byte, e Event) ([]byte, error) {
	switch media {
	case MediaJSON:
		dst = append(dst, `{"type":`...)
		kind, err := json.Marshal(e.Type)
		if err != nil {
			return nil, fmt.Errorf("encode a watch event: %w", err)
		}
		dst = append(dst, kind...)
		dst = append(dst, `,"object":`...)
		dst = append(dst, e.Object...)
		return append(dst, "}\n"...), nil
	case MediaProtobuf:
		extension := protowire.SizeTag(fieldExtension) + protowire.SizeBytes(len(e.Object))
		size := protowire.SizeTag(fieldEventType) + protowire.SizeBytes(len(e.Type)) +
			protowire.SizeTag(fieldEventObject) + protowire.SizeBytes(extension)
		dst = binary.BigEndian.AppendUint32(dst, uint32(size))
		dst = appendString(dst, fieldEventType, e.Type)
		dst = protowire.AppendTag(dst, fieldEventObject, protowire.BytesType)
		dst = protowire.AppendVarint(dst, uint64(extension))
		return appendBytes(dst, fieldExtension, e.Object), nil
	}
	return nil, unknownMedia(media)
}

// boundedReader fails once more than left bytes were read since left was set, so
// that a stream without an end to its object cannot fill the memory.
type boundedReader struct {
	r    io.Reader
	left int
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, ErrFrameTooLarge
	}
	if len(p) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= n
	return n, err
}
