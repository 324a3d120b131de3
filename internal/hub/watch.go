package hub

import (
	"errors"
	"io"

	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
)

// injection is when a watch gets the synthetic slice as an ADDED event.
type injection int

const (
	// injectNever: the client has it already, or its selectors leave it out.
	injectNever injection = iota
	// injectFirst: before all else, with a resourceVersion known beforehand.
	injectFirst
	// injectLast: as the last of the initial events, before the bookmark that
	// ends them, with that bookmark's resourceVersion.
	injectLast
)

// watchRewriter turns an apiserver's stream of slice events into the client's.
//
//	injectFirst:  ADDED synthetic ─► events
//	injectLast:   initial events ─► ADDED synthetic ─► bookmark ─► events
//	injectNever:  events
//
// Events about a stored default/kubernetes never pass: see convert.
type watchRewriter struct {
	synthetic syntheticSlice
	encoding  codec.Encoding
	inject    injection
	// matches: the client's selectors show the synthetic slice.
	matches bool
	// firstVersion is the resourceVersion for injectFirst.
	firstVersion string
}

// run copies the stream until it ends; emit sends one or more whole events at
// once. The error is nil when the apiserver ended the stream between events.
func (wr *watchRewriter) run(upstream io.Reader, emit func([]byte) error) error {
	frames := codec.NewWatchCodec(wr.encoding, upstream)
	if wr.inject == injectFirst {
		event, err := wr.event(frames, "ADDED", wr.firstVersion)
		if err != nil {
			return err
		}
		if err := emit(event); err != nil {
			return err
		}
	}
	// waiting: the initial events are not over.
	waiting := wr.inject == injectLast
	for {
		frame, err := frames.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		event, err := frames.Parse(frame)
		if err != nil {
			return err
		}
		switch {
		case waiting && event.EndsInitialEvents():
			waiting = false
			added, err := wr.event(frames, "ADDED", event.Meta.ResourceVersion)
			if err != nil {
				return err
			}
			frame = append(added, frame...)
		case event.Kind != "ERROR" && isKubernetes(event.Meta):
			if frame, err = wr.convert(frames, event, waiting); err != nil {
				return err
			}
		}
		if len(frame) == 0 {
			continue
		}
		if err := emit(frame); err != nil {
			return err
		}
	}
}

// convert replaces an event about a stored default/kubernetes, whatever happened
// to it, by one that says what the client shall hold: the synthetic slice, at
// the event's resourceVersion. Among initial events it is left out, because the
// synthetic one is still to come, or was sent with a later version.
func (wr *watchRewriter) convert(frames codec.WatchCodec, event codec.Event, waiting bool) ([]byte, error) {
	if waiting || !wr.matches || wr.past(event.Meta.ResourceVersion) {
		return nil, nil
	}
	return wr.event(frames, "MODIFIED", event.Meta.ResourceVersion)
}

// past says whether the slice was sent first with this version or a later one:
// an object never goes back.
func (wr *watchRewriter) past(resourceVersion string) bool {
	if wr.inject != injectFirst {
		return false
	}
	order, err := resourceversion.CompareResourceVersion(resourceVersion, wr.firstVersion)
	return err == nil && order <= 0
}

func (wr *watchRewriter) event(frames codec.WatchCodec, kind, resourceVersion string) ([]byte, error) {
	object, err := wr.synthetic.encode(wr.encoding, resourceVersion)
	if err != nil {
		return nil, err
	}
	return frames.Frame(kind, object)
}
