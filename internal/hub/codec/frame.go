package codec

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// maxFrame bounds one watch event. The largest object an apiserver takes is
// 3 MiB, and JSON of it is not larger.
const maxFrame = 16 << 20

// frameBuffer is how much memory a frame's length alone takes. Watch events are
// mostly smaller.
const frameBuffer = 32 << 10

// errFrameTooLarge: the stream is not one of watch events.
var errFrameTooLarge = errors.New("a watch event is too large")

// Event is what rewriting needs to know of an event.
type Event struct {
	Kind string
	Meta wire.Meta
}

// EndsInitialEvents: the bookmark that follows the last initial event.
func (e Event) EndsInitialEvents() bool {
	return e.Kind == "BOOKMARK" && e.Meta.EndsInitialEvents()
}

// WatchCodec is one protocol of a watch stream.
type WatchCodec interface {
	// Read returns the next event as it came, framing included. io.EOF only
	// between events.
	Read() ([]byte, error)
	// Parse understands an event that Read returned.
	Parse(frame []byte) (Event, error)
	// Frame frames an event about an encoded object.
	Frame(kind string, object []byte) ([]byte, error)
}

// NewWatchCodec reads and writes a stream of watch events.
func NewWatchCodec(e Encoding, r io.Reader) WatchCodec {
	if e.Protobuf {
		return &protobufFrames{r: r}
	}
	bounded := &boundedReader{r: r}
	return &jsonFrames{r: bounded, decoder: json.NewDecoder(bounded)}
}

// protobufFrames: a big-endian uint32 length, then a WatchEvent, bare.
type protobufFrames struct{ r io.Reader }

const frameHeader = 4

func (p *protobufFrames) Read() ([]byte, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(p.r, header[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(header[:])
	if size > maxFrame {
		return nil, fmt.Errorf("%w: %d bytes", errFrameTooLarge, size)
	}
	// Grown as bytes come, so that a length alone takes no memory.
	var frame bytes.Buffer
	frame.Grow(frameHeader + min(int(size), frameBuffer))
	frame.Write(header[:])
	if _, err := io.CopyN(&frame, p.r, int64(size)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return frame.Bytes(), nil
}

func (p *protobufFrames) Parse(frame []byte) (Event, error) {
	var event Event
	var object []byte
	// WatchEvent{type = 1, object = 2}, and object is RawExtension{raw = 1}.
	err := wire.EachField(frame[frameHeader:], func(f wire.Field) error {
		switch f.Number {
		case 1:
			event.Kind = string(f.Bytes)
		case 2:
			return wire.EachField(f.Bytes, func(f wire.Field) error {
				if f.Number == 1 {
					object = f.Bytes
				}
				return nil
			})
		}
		return nil
	})
	if err != nil {
		return event, fmt.Errorf("decode a watch event: %w", err)
	}
	if event.Kind == "" {
		return event, errors.New("decode a watch event: it has no type")
	}
	if event.Kind == "ERROR" {
		return event, nil
	}
	envelope, err := wire.ParseEnvelope(object)
	if err != nil {
		return event, fmt.Errorf("decode a watch event: %w", err)
	}
	if event.Meta, err = wire.ReadMeta(wire.MediaProtobuf, envelope.Message); err != nil {
		return event, fmt.Errorf("decode a watch event: %w", err)
	}
	return event, nil
}

func (p *protobufFrames) Frame(kind string, object []byte) ([]byte, error) {
	message, err := (&metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Raw: object}}).Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode a watch event: %w", err)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, frameHeader+len(message)), uint32(len(message)))
	return append(frame, message...), nil
}

// jsonFrames: one JSON object after the other, each on its line.
type jsonFrames struct {
	r       *boundedReader
	decoder *json.Decoder
}

func (j *jsonFrames) Read() ([]byte, error) {
	j.r.left = maxFrame
	var object json.RawMessage
	if err := j.decoder.Decode(&object); err != nil {
		return nil, err
	}
	return append(object, '\n'), nil
}

func (j *jsonFrames) Parse(frame []byte) (Event, error) {
	var event struct {
		Type   string          `json:"type"`
		Object json.RawMessage `json:"object"`
	}
	if err := json.Unmarshal(frame, &event); err != nil {
		return Event{}, fmt.Errorf("decode a watch event: %w", err)
	}
	if event.Type == "" {
		return Event{}, errors.New("decode a watch event: it has no type")
	}
	if event.Type == "ERROR" {
		return Event{Kind: event.Type}, nil
	}
	meta, err := wire.ReadMeta(wire.MediaJSON, event.Object)
	if err != nil {
		return Event{}, fmt.Errorf("decode the object of a watch event: %w", err)
	}
	return Event{Kind: event.Type, Meta: meta}, nil
}

func (j *jsonFrames) Frame(kind string, object []byte) ([]byte, error) {
	frame, err := json.Marshal(metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Raw: object}})
	if err != nil {
		return nil, fmt.Errorf("encode a watch event: %w", err)
	}
	return append(frame, '\n'), nil
}

// boundedReader fails once more than left bytes were read since left was set, so
// that a stream without an end to its object cannot fill the memory.
type boundedReader struct {
	r    io.Reader
	left int
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errFrameTooLarge
	}
	if len(p) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= n
	return n, err
}
