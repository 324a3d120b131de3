package tunnel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"
	"github.com/quic-go/quic-go/qlogwriter/jsontext"
)

// qlogPending is how much may wait for a slow writer, in bytes: some thousand
// events. More is dropped, and how many is said: the session waits for nobody.
const qlogPending = 1 << 20

var (
	// ErrNoQlog is a session that has no QUIC to record, or one with quic-go's own
	// congestion control, beside which there is no way in.
	ErrNoQlog = errors.New("only a session over QUIC with the default congestion control can be recorded")
	// ErrQlogFull is a recording that has reached its limit.
	ErrQlogFull = errors.New("the recording has reached its limit of bytes")
)

// QlogOptions are those of Qlog.
type QlogOptions struct {
	// Limit is how many bytes are written at most, some events more or less.
	Limit int64
	// Begun is called when events count from now on. The first that is recorded
	// comes with an acknowledgement: whoever sends something now gets one.
	Begun func()
}

// Qlog writes what happens in a session's connection to w until ctx or the session
// ends: qlog as JSON text sequences (draft-ietf-quic-qlog-main-schema, media type
// application/qlog+json-seq), which qvis reads. What is carried is not in it, nor
// a token by which somebody could end the connection; addresses and the sizes and
// times of packets are. The error is nil then, ErrNoQlog, ErrQlogFull, that a
// recording is being made already (quichook.ErrRecorded), or w's.
func Qlog(ctx context.Context, s Session, w io.Writer, o QlogOptions) error {
	q, ok := s.(*quicSession)
	if !ok || q.hook == nil {
		return ErrNoQlog
	}
	r := newQlogRecorder(time.Now())
	stop, err := q.hook.Record(r)
	if err != nil {
		return err
	}
	defer stop()
	if o.Begun != nil {
		o.Begun()
	}
	var written int64
	for ended := false; ; {
		select {
		case <-r.more:
		case <-ctx.Done():
			ended = true
		case <-s.Done():
			ended = true
		}
		if ended {
			stop()
		}
		b, err := r.take()
		n, werr := w.Write(b)
		written += int64(n)
		switch {
		case werr != nil:
			return fmt.Errorf("write the recording: %w", werr)
		case err != nil:
			return fmt.Errorf("record: %w", err)
		case ended:
			return nil
		case written >= o.Limit:
			return ErrQlogFull
		}
	}
}

// qlogRecorder encodes events as they come: what they point to is quic-go's own a
// moment later.
type qlogRecorder struct {
	begin time.Time
	more  chan struct{} // holds one when there is something to take

	mu      sync.Mutex // guards all below
	buf     bytes.Buffer
	enc     *jsontext.Encoder // to buf
	dropped int
	err     error
}

func newQlogRecorder(now time.Time) *qlogRecorder {
	r := &qlogRecorder{begin: now, more: make(chan struct{}, 1)}
	r.enc = jsontext.NewEncoder(&r.buf)
	r.record(map[string]any{
		"file_schema": "urn:ietf:params:qlog:file:sequential", "serialization_format": "application/qlog+json-seq",
		"title": "edge tunnel",
		"trace": map[string]any{
			"event_schemas": []string{qlog.EventSchema},
			"vantage_point": map[string]string{"type": "server"},
			"common_fields": map[string]any{
				"reference_time": map[string]string{"clock_type": "monotonic", "epoch": "unknown", "wall_clock_time": now.Format(time.RFC3339Nano)},
			},
		},
		// qvis asks for these two, which newer drafts have not.
		"qlog_format": "JSON-SEQ", "qlog_version": "0.3",
	})
	return r
}

// record writes one record of the sequence (RFC 7464).
func (r *qlogRecorder) record(v any) {
	r.buf.WriteByte(qlogwriter.RecordSeparator)
	if err := json.NewEncoder(&r.buf).Encode(v); err != nil {
		r.err = errors.Join(r.err, err)
	}
	r.wake()
}

func (r *qlogRecorder) wake() {
	select {
	case r.more <- struct{}{}:
	default:
	}
}

func (r *qlogRecorder) since(now time.Time) float64 {
	return float64(now.Sub(r.begin).Nanoseconds()) / 1e6
}

// RecordEvent implements qlogwriter.Recorder.
func (r *qlogRecorder) RecordEvent(e qlogwriter.Event) {
	e = withoutTokens(e)
	if e == nil {
		return
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.err != nil:
		return
	case r.buf.Len() >= qlogPending:
		r.dropped++
		return
	}
	r.buf.WriteByte(qlogwriter.RecordSeparator)
	for _, write := range []func() error{
		func() error { return r.enc.WriteToken(jsontext.BeginObject) },
		func() error { return r.enc.WriteToken(jsontext.String("time")) },
		func() error { return r.enc.WriteToken(jsontext.Float(r.since(now))) },
		func() error { return r.enc.WriteToken(jsontext.String("name")) },
		func() error { return r.enc.WriteToken(jsontext.String(e.Name())) },
		func() error { return r.enc.WriteToken(jsontext.String("data")) },
		func() error { return e.Encode(r.enc, now) },
		func() error { return r.enc.WriteToken(jsontext.EndObject) },
	} {
		if err := write(); err != nil {
			r.err = errors.Join(r.err, fmt.Errorf("event %s: %w", e.Name(), err))
			break
		}
	}
	r.wake()
}

// Close implements io.Closer.
func (r *qlogRecorder) Close() error { return nil }

// take returns what has been recorded since the last time, and the error that
// keeps the rest from being so.
func (r *qlogRecorder) take() ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dropped > 0 {
		r.record(map[string]any{
			"time": r.since(time.Now()), "name": "loglevel:warning",
			"data": map[string]string{"message": fmt.Sprintf("%d events are missing here: they came faster than they were read", r.dropped)},
		})
		r.dropped = 0
	}
	b := bytes.Clone(r.buf.Bytes())
	r.buf.Reset()
	return b, r.err
}

// withoutTokens returns e without what lets its reader end or take over paths of
// the connection; nil for an event that is not to be shown.
func withoutTokens(e qlogwriter.Event) qlogwriter.Event {
	switch e := e.(type) {
	case qlog.PacketSent:
		e.Frames, e.Header.Token = framesWithoutTokens(e.Frames), nil
		return e
	case qlog.PacketReceived:
		e.Frames, e.Header.Token = framesWithoutTokens(e.Frames), nil
		return e
	case qlog.ParametersSet, qlog.ParametersRestored: // of a handshake, which is over
		return nil
	}
	return e
}

func framesWithoutTokens(frames []qlog.Frame) []qlog.Frame {
	frames = slices.Clone(frames)
	for i, f := range frames {
		switch f := f.Frame.(type) {
		case *qlog.NewConnectionIDFrame:
			frames[i].Frame = &qlog.NewConnectionIDFrame{SequenceNumber: f.SequenceNumber, RetirePriorTo: f.RetirePriorTo, ConnectionID: f.ConnectionID}
		case *qlog.NewTokenFrame:
			frames[i].Frame = &qlog.NewTokenFrame{}
		case *qlog.PathChallengeFrame:
			frames[i].Frame = &qlog.PathChallengeFrame{}
		case *qlog.PathResponseFrame:
			frames[i].Frame = &qlog.PathResponseFrame{}
		}
	}
	return frames
}
