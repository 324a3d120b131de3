package replica

import (
	"sync"

	"k8s.io/apimachinery/pkg/watch"
)

// Event is one change of a collection. It is immutable but for its frames, and
// shared by all watches.
type Event struct {
	// Type is Added, Modified or Deleted.
	Type watch.EventType
	// Object after the change; of a deletion the last state, with the deletion's
	// version in its metadata.
	Object *Object
	// Previous state; nil for Added. A watch whose selectors the change moves an
	// object into or out of sees ADDED, or DELETED of the previous state at this
	// event's version.
	Previous *Object

	mu     sync.Mutex // guards frames
	frames []frame
}

// FrameKey is what a frame depends on beside the event.
type FrameKey struct {
	// Type shown, which a selector may change.
	Type watch.EventType
	// Form is the encoding, by whatever name the server has for it.
	Form string
}

type frame struct {
	key   FrameKey
	bytes []byte
}

// Version of the event: what a client that saw it holds.
func (e *Event) Version() Version { return e.Object.Version }

// Frame returns the event as it goes over the wire. It is encoded the first time
// one of its kind is asked for, and kept while the event is recent; whoever gets
// it must not change it. An error of encode is returned and not kept.
func (e *Event) Frame(key FrameKey, encode func() ([]byte, error)) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range e.frames {
		if f.key == key {
			return f.bytes, nil
		}
	}
	b, err := encode()
	if err != nil {
		return nil, err
	}
	e.frames = append(e.frames, frame{key, b})
	return b, nil
}

// forget drops the frames: those who still want them encode again.
func (e *Event) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.frames = nil
}
