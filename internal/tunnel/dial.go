package tunnel

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"
)

// Dialed is a dial stream as its opener has it. Await must return nil before
// the first Read; writing before that is what FlagOptimistic is for.
type Dialed struct{ Stream }

// OpenDial opens a stream on s and sends h. It does not wait for the response.
func OpenDial(s Session, h Header) (*Dialed, error) {
	return OpenDialContext(context.Background(), s, h)
}

// OpenDialContext is OpenDial that gives up opening the stream and sending h when
// ctx ends; ctx's cause is then the error.
func OpenDialContext(ctx context.Context, s Session, h Header) (*Dialed, error) {
	return openDial(ctx, s, nil, h)
}

// OpenForward is OpenDialContext on a session between gateways: for a node that the
// other one holds.
func OpenForward(ctx context.Context, s Session, f Forward, h Header) (*Dialed, error) {
	b, err := f.Append(nil)
	if err != nil {
		return nil, err
	}
	return openDial(ctx, s, b, h)
}

func openDial(ctx context.Context, s Session, prefix []byte, h Header) (*Dialed, error) {
	b, err := h.Append(prefix)
	if err != nil {
		return nil, err
	}
	st, err := openStream(ctx, s)
	if err != nil {
		return nil, err
	}
	st.SetUrgency(h.Kind.urgency())
	if err := sendHeader(ctx, st, b); err != nil {
		st.Reset(ResetAborted)
		return nil, fmt.Errorf("send dial header: %w", err)
	}
	return &Dialed{st}, nil
}

// openStream is s.Open until ctx ends. Only a multiplexer waits there.
func openStream(ctx context.Context, s Session) (Stream, error) {
	m, ok := s.(*MuxSession)
	if !ok {
		return s.Open()
	}
	st, err := m.openUntil(ctx)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("open stream: %w", context.Cause(ctx))
	}
	return st, err
}

// sendHeader writes b, within HelloTimeout and until ctx ends.
func sendHeader(ctx context.Context, st Stream, b []byte) error {
	if err := st.SetWriteDeadline(time.Now().Add(HelloTimeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = st.SetWriteDeadline(time.Unix(1, 0)) })
	_, err := st.Write(b)
	if !stop() {
		return context.Cause(ctx) // as in Await, the stream is not handed out
	}
	if err != nil {
		return err
	}
	return st.SetWriteDeadline(time.Time{})
}

// Await reads the response. A dial the other end refused is a *StatusError; the
// stream is then reset, as it is when ctx ends first.
func (d *Dialed) Await(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = d.SetReadDeadline(time.Unix(1, 0)) })
	resp, err := ReadResponse(d.Stream)
	if !stop() {
		// ctx ended: its function may still run and would set a deadline on a
		// stream that we hand out, so the stream is not handed out.
		d.Reset(ResetAborted)
		return context.Cause(ctx)
	}
	if err == nil {
		err = resp.Err()
	}
	if err != nil {
		d.Reset(ResetAborted)
	}
	return err
}

// AcceptDial reads the header of a stream that the other end opened, within
// HelloTimeout. Where the header is well formed but unknown here, the answer has
// been given; in every error case the stream is closed.
func AcceptDial(st Stream) (Header, error) {
	_ = st.SetReadDeadline(time.Now().Add(HelloTimeout))
	h, err := ReadHeader(st)
	if err != nil {
		if errors.Is(err, ErrUnsupported) {
			Refuse(st, Response{Status: StatusUnsupported, Text: err.Error()})
		} else {
			st.Reset(ResetProtocol)
		}
		return h, err
	}
	if err := st.SetReadDeadline(time.Time{}); err != nil {
		st.Reset(ResetAborted)
		return h, fmt.Errorf("dial stream: %w", err)
	}
	st.SetUrgency(h.Kind.urgency())
	return h, nil
}

// Respond answers a dial header.
func Respond(st Stream, r Response) error {
	_ = st.SetWriteDeadline(time.Now().Add(HelloTimeout))
	if _, err := st.Write(r.Append(nil)); err != nil {
		return fmt.Errorf("send dial response: %w", err)
	}
	if err := st.SetWriteDeadline(time.Time{}); err != nil {
		return fmt.Errorf("send dial response: %w", err)
	}
	return nil
}

// Refuse answers a dial header with a failure and closes the stream. Close ends
// with FIN after the text, so that the opener reads it; an opener that is gone
// needs no answer.
func Refuse(st Stream, r Response) {
	if err := Respond(st, r); err != nil {
		st.Reset(ResetAborted)
		return
	}
	_ = st.Close()
}

// DialFailure is the response for an error of a dialer: which status it is, and
// its text.
func DialFailure(err error) Response {
	r := Response{Status: StatusUnreachable, Text: err.Error()}
	if se, ok := errors.AsType[*StatusError](err); ok {
		return Response{Status: se.Status, Text: se.Text}
	}
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		r.Status = StatusRefused
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		r.Status = StatusTimeout
	}
	return r
}
