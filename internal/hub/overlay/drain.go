package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
)

// Write is one request to the apiserver; a GET has neither type nor body.
type Write struct {
	Method, Path string
	Type         string // of Body
	Body         []byte
}

// Answer of the apiserver.
type Answer struct {
	Code int
	// Body of a success, an object in JSON or protobuf.
	Body []byte
}

// Sender asks the apiserver. An error is no answer.
type Sender func(context.Context, Write) (Answer, error)

// Waiting is how many writes the apiserver has yet to be sent.
func (o *Overlay) Waiting() int {
	return len(o.options.Memo.All(bucketDeclared)) + len(o.options.Memo.All(bucketSpool))
}

// errInternal is an apiserver's 500, which may be one write's alone: a webhook
// failed at it.
var errInternal = errors.New("the apiserver answered 500")

// Drain sends what the node declared of itself and the events, each in order. An
// error ends either: the rest stays for the next time. What is answered 500 stays too,
// and what comes after it is sent. It is called by one goroutine.
func (o *Overlay) Drain(ctx context.Context, send Sender) error {
	o.mu.Lock()
	forgotten := o.forgotten
	o.forgotten = 0
	o.mu.Unlock()
	if forgotten > 0 {
		o.options.Logger.Warn("the oldest events of the cut were not kept", "events", forgotten, "kept", maxSpool)
	}
	return errors.Join(o.drain(ctx, send, bucketDeclared, o.drainDeclared), o.drain(ctx, send, bucketSpool, o.drainEvent))
}

// drain sends what is in a bucket with one, up to an error that is not one write's.
func (o *Overlay) drain(ctx context.Context, send Sender, b memo.Bucket, one func(context.Context, Sender, string, []byte) error) error {
	var left error
	for _, e := range o.options.Memo.All(b) {
		err := o.drainOne(ctx, send, b, e, one)
		if err != nil && !errors.Is(err, errInternal) {
			return err
		}
		if left == nil {
			left = err // one tells enough
		}
	}
	return left
}

// drainOne sends one entry, until nothing newer is in its place.
func (o *Overlay) drainOne(ctx context.Context, send Sender, b memo.Bucket, e memo.Entry, one func(context.Context, Sender, string, []byte) error) error {
	for value := e.Value; value != nil; value = o.done(b, e.Key, value) {
		if err := one(ctx, send, e.Key, value); err != nil {
			return fmt.Errorf("hand back %s: %w", e.Key, err)
		}
	}
	return nil
}

// done forgets what was sent. It returns what was written in its place meanwhile,
// which is to be sent too; else nil.
func (o *Overlay) done(b memo.Bucket, key string, sent []byte) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	value, ok := o.options.Memo.Get(b, key)
	if !ok {
		return nil
	}
	if !bytes.Equal(value, sent) {
		return value
	}
	o.options.Memo.Delete(b, key)
	return nil
}

// ask sends a write. An answer that says nothing of the write itself, but of the
// apiserver's own state, is an error.
func ask(ctx context.Context, send Sender, w Write) (Answer, error) {
	answer, err := send(ctx, w)
	switch {
	case err != nil:
		return Answer{}, fmt.Errorf("%s %s: %w", w.Method, w.Path, err)
	case answer.Code == http.StatusInternalServerError:
		return Answer{}, fmt.Errorf("%s %s: %w", w.Method, w.Path, errInternal)
	case answer.Code == http.StatusTooManyRequests || answer.Code == http.StatusUnauthorized || answer.Code >= http.StatusInternalServerError:
		// Unauthorized: the node's certificate ended in the cut and is renewed first.
		return Answer{}, fmt.Errorf("%s %s: the apiserver answered %d", w.Method, w.Path, answer.Code)
	}
	return answer, nil
}

// refused tells of a write that the apiserver does not take: it is final.
func (o *Overlay) refused(key string, answer Answer) {
	if answer.Code >= http.StatusBadRequest {
		o.options.Logger.Warn("the apiserver refuses what the node wrote while it was cut off", "write", key, "code", answer.Code)
	}
}
