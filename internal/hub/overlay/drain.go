package overlay

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

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

var (
	// errInternal is an apiserver's 500, which may be one write's alone: a webhook
	// failed at it.
	errInternal = errors.New("the apiserver answered 500")
	// errForbidden is a 403 that may pass: see RefusalsPass.
	errForbidden = errors.New("the apiserver answered 403")
)

const (
	// RefusalsPass is for how long after the link is back a 403 is not final. An
	// apiserver answers so while it starts, before its admission is ready and before
	// it has read its roles, which takes it a minute or two on a small machine.
	RefusalsPass = 5 * time.Minute
	// returnsTogether is how soon after another a return of the link does not begin
	// these minutes anew, once the apiserver has taken a write: it is not starting,
	// and a link that comes and goes must not keep a refusal from being final.
	returnsTogether = 3 * time.Minute
	// refusalsInRow is how many namespaces refuse before it is taken to be starting,
	// and is not sent the rest for now, as long as it takes nothing. One that is being
	// deleted refuses what is written in it alone. As many failures one after another
	// end a round too: each of an apiserver without its etcd comes after a timeout.
	refusalsInRow = 3

	// drainAgain is the wait after what was kept could not all be sent though the
	// link is there; it doubles each time up to drainLongest: an apiserver that is
	// overloaded or still starting, which is asked for one write each time.
	drainAgain   = 10 * time.Second
	drainLongest = 5 * time.Minute
	// failingLongest is the longest wait where the apiserver fails at a few writes,
	// fewer than end a round, and has taken others since the link is back, which may
	// be for days: a webhook that is gone. None is dropped: what kubelet declares, it
	// does not say again. An apiserver that has taken nothing, or fails at more, may
	// be without its etcd, and is asked as often as one that is overloaded.
	failingLongest = time.Hour
)

// Returned says that the link is back, as of now: before anything is sent over it.
func (o *Overlay) Returned() {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.options.Clock.Now()
	if now.Sub(o.returned) >= returnsTogether {
		o.unsteady = now
	}
	o.returned, o.taken = now, 0
}

// back is when the link came back last.
func (o *Overlay) back() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.returned
}

// count is how many writes the apiserver has taken since the link came back.
func (o *Overlay) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.taken
}

// HandBack sends what is kept until nothing is left or ctx ends: that of the time in
// which the link is there, of whose begin Returned has told. It is called by one
// goroutine.
func (o *Overlay) HandBack(ctx context.Context, send Sender) {
	for wait := drainAgain; ; wait *= 2 {
		whole, err := o.round(ctx, o.back(), send)
		if err == nil || ctx.Err() != nil {
			return
		}
		longest := drainLongest
		if errors.Is(err, errInternal) && whole && o.count() > 0 {
			longest = failingLongest
		}
		wait = min(wait, longest)
		o.options.Logger.Warn("send what the node wrote while it was cut off", "waiting", o.Waiting(), "again_in", wait, "error", err)
		timer := o.options.Clock.NewTimer(wait)
		select {
		case <-timer.C():
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// Drain sends what the node declared of itself and the events once, each in order.
// An error ends either: the rest stays for the next time. What is answered 500 stays
// too, and what comes after it is sent, unless refusalsInRow are one after another; so
// it is with what is answered 403 soon after back, when the link came back, but for
// what is of the same namespace. What stayed so comes last the next time, and keeps
// nothing from being sent for long. It is called by one goroutine.
func (o *Overlay) Drain(ctx context.Context, back time.Time, send Sender) error {
	_, err := o.round(ctx, back, send)
	return err
}

// round is Drain. It returns whether it came to the end of what there was.
func (o *Overlay) round(ctx context.Context, back time.Time, send Sender) (whole bool, _ error) {
	o.mu.Lock()
	forgotten := o.forgotten
	o.forgotten = 0
	o.mu.Unlock()
	if forgotten > 0 {
		o.options.Logger.Warn("the oldest events of the cut were not kept", "events", forgotten, "kept", maxSpool)
	}
	send = o.patient(back, send)
	wholeDeclared, declaredErr := o.drain(ctx, send, bucketDeclared, o.drainDeclared)
	wholeSpool, spoolErr := o.drain(ctx, send, bucketSpool, o.drainEvent)
	return wholeDeclared && wholeSpool, errors.Join(declaredErr, spoolErr)
}

// Settle sends what the node declared at a path and has yet to hand back, so that
// what it reads or writes there next comes after it; an error, and that is still to be
// sent. It may be called by any goroutine, once Returned was told of the link.
func (o *Overlay) Settle(ctx context.Context, path string, send Sender) error {
	if _, ok := o.options.Memo.Get(bucketDeclared, path); !ok {
		return nil
	}
	return o.drainOne(ctx, o.patient(o.back(), send), bucketDeclared, path, o.drainDeclared)
}

// mayPass says whether a 403 to what is sent over a link that came back at back may
// be that of an apiserver that starts.
func (o *Overlay) mayPass(back time.Time) bool {
	now := o.options.Clock.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	return now.Sub(back) < RefusalsPass && (o.taken == 0 || now.Sub(o.unsteady) < RefusalsPass)
}

// patient takes a 403 for no answer as long as it may pass, and counts what is taken.
func (o *Overlay) patient(back time.Time, send Sender) Sender {
	return func(ctx context.Context, w Write) (Answer, error) {
		answer, err := send(ctx, w)
		switch {
		case err != nil:
		case answer.Code == http.StatusForbidden && o.mayPass(back):
			err = errForbidden
		case answer.Code < http.StatusMultipleChoices && w.Method != http.MethodGet:
			o.mu.Lock()
			o.taken++
			o.mu.Unlock()
		}
		return answer, err
	}
}

// drain sends what is in a bucket with one, up to an error that is not one write's.
// It returns whether it came to the end of it.
func (o *Overlay) drain(ctx context.Context, send Sender, b memo.Bucket, one func(context.Context, Sender, string, []byte) error) (whole bool, _ error) {
	var left error
	taken, failures := o.count(), 0 // before; in a row
	refused := map[string]bool{}    // places
	entries, failed := o.leastFailed(b)
	for _, e := range entries {
		at := place(e.Key)
		if refused[at] {
			continue
		}
		err := o.drainOne(ctx, send, b, e.Key, one)
		o.attempts++
		switch {
		case err == nil:
			failures = 0
			delete(failed, e.Key)
			delete(failed, at)
		case errors.Is(err, errForbidden):
			refused[at] = true
			failed[e.Key], failed[at] = o.attempts, o.attempts
			if len(refused) >= refusalsInRow && o.count() == taken {
				return false, err
			}
		case errors.Is(err, errInternal):
			failed[e.Key] = o.attempts
			if failures++; failures == refusalsInRow {
				return false, err
			}
		default:
			return false, err
		}
		if left == nil {
			left = err // one tells enough
		}
	}
	return true, left
}

// leastFailed is a bucket in order, but for what has failed: that comes last, what did
// so longest ago first. With it comes what is known of that.
func (o *Overlay) leastFailed(b memo.Bucket) ([]memo.Entry, map[string]int) {
	entries, failed := o.options.Memo.All(b), map[string]int{}
	for _, e := range entries {
		for _, key := range []string{e.Key, place(e.Key)} {
			if n, ok := o.failed[b.Name][key]; ok {
				failed[key] = n // others are there no more
			}
		}
	}
	o.failed[b.Name] = failed
	last := func(e memo.Entry) int { return max(failed[e.Key], failed[place(e.Key)]) }
	slices.SortStableFunc(entries, func(x, y memo.Entry) int { return cmp.Compare(last(x), last(y)) })
	return entries, failed
}

// place is what a refusal of a write at a path is taken to be of: its namespace, or
// itself.
func place(path string) string {
	_, in, ok := strings.Cut(path, "/namespaces/")
	if !ok {
		return path
	}
	namespace, _, _ := strings.Cut(in, "/")
	return namespace
}

// drainOne sends what is kept by a key now, until nothing newer is in its place. No
// other entry is sent meanwhile: what Settle has sent must not be sent again behind it,
// over what kubelet has written since.
func (o *Overlay) drainOne(ctx context.Context, send Sender, b memo.Bucket, key string, one func(context.Context, Sender, string, []byte) error) error {
	select {
	case o.sending <- struct{}{}:
		defer func() { <-o.sending }()
	case <-ctx.Done():
		return fmt.Errorf("hand back %s: %w", key, context.Cause(ctx))
	}
	for value, _ := o.options.Memo.Get(b, key); value != nil; value = o.done(b, key, value) {
		if err := one(ctx, send, key, value); err != nil {
			return fmt.Errorf("hand back %s: %w", key, err)
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
