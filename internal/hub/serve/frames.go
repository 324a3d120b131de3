package serve

import (
	"encoding/json"
	"fmt"
	"io"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// frame puts an encoded object into the watch protocol.
func (e encoder) frame(kind watch.EventType, object []byte) ([]byte, error) {
	// Only writing: the codec reads nothing.
	return codec.NewWatchCodec(e.Encoding, eof{}).Frame(string(kind), object)
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// added frames an object of the initial state.
func (e encoder) added(o *replica.Object) ([]byte, error) {
	object, err := e.whole(o)
	if err != nil {
		return nil, err
	}
	return e.frame(watch.Added, object)
}

// event frames a change as a watch with this selection sees it; nil where it
// sees nothing of it. The bytes are shared by all watches that see the same, but for
// those of tables.
func (e encoder) event(s *selection, event *replica.Event) ([]byte, error) {
	kind, err := s.seen(event)
	if err != nil || kind == "" {
		return nil, err
	}
	encode := func() ([]byte, error) {
		object := event.Object
		if kind == watch.Deleted && event.Type != watch.Deleted {
			var err error
			if object, err = atVersion(event.Previous, event.Version()); err != nil {
				return nil, err
			}
		}
		encoded, err := e.whole(object)
		if err != nil {
			return nil, err
		}
		return e.frame(kind, encoded)
	}
	if e.Table {
		// It says what was how long ago, and the columns to whoever has not heard
		// them: for a person or two, made anew and not kept.
		return encode()
	}
	return event.Frame(replica.FrameKey{Type: kind, Form: e.form()}, encode)
}

// seen is what a change is to a watch with these selectors (apiserver's
// storage/cacher/cache_watcher.go, convertToWatchEvent); "" is nothing.
func (s *selection) seen(event *replica.Event) (watch.EventType, error) {
	before, err := s.matches(event.Previous)
	if err != nil {
		return "", err
	}
	after := false
	if event.Type != watch.Deleted {
		if after, err = s.matches(event.Object); err != nil {
			return "", err
		}
	}
	switch {
	case before && after:
		return watch.Modified, nil
	case after:
		return watch.Added, nil
	case before:
		return watch.Deleted, nil
	}
	return "", nil
}

// bookmark frames the collection's version, and with it that the initial events
// are over.
func (e encoder) bookmark(version replica.Version, endsInitialEvents bool) ([]byte, error) {
	partial := metav1.PartialObjectMetadata{}
	partial.GetObjectKind().SetGroupVersionKind(e.shown())
	partial.ResourceVersion = version.String()
	if endsInitialEvents {
		partial.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	var object []byte
	var err error
	switch {
	case e.Table:
		object, err = e.bookmarkTable(partial.ObjectMeta)
	case e.Protobuf:
		// Any object with nothing but metadata has this form.
		if object, err = partial.Marshal(); err == nil {
			object = envelope(e.shown(), object)
		}
	default:
		object, err = json.Marshal(&partial)
	}
	if err != nil {
		return nil, fmt.Errorf("encode a bookmark: %w", err)
	}
	return e.frame(watch.Bookmark, object)
}

// failure frames the Status that ends a watch.
func (e encoder) failure(status metav1.Status) ([]byte, error) {
	status.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	var object []byte
	var err error
	if e.Protobuf {
		if object, err = status.Marshal(); err == nil {
			object = envelope(metav1.Unversioned.WithKind("Status"), object)
		}
	} else {
		object, err = json.Marshal(status)
	}
	if err != nil {
		return nil, fmt.Errorf("encode a Status: %w", err)
	}
	return e.frame(watch.Error, object)
}
