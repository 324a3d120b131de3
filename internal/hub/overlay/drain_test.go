package overlay

import (
	"bytes"
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
)

// TestApiserverStarts: an apiserver that refuses everything while it starts is not
// asked for everything, and has it all in the end; what it refuses then is dropped.
func TestApiserverStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLayered(t, "pod", "x")
		o := New(Options{Replica: l, Layer: l, Memo: memo.New(nil, nil, nil), NodeName: "n1"})
		names := []string{"a", "b", "c", "d", "deleted"}
		for _, name := range names {
			if _, err := o.CreateEvent(eventsPath, event(name, 1)); err != nil {
				t.Fatal(err)
			}
		}
		c := newCloud(t)
		o.Returned()
		began := time.Now()
		refused := 0
		dropped, _ := o.options.Memo.Get(bucketSpool, eventsPath+"/deleted")
		o.HandBack(t.Context(), func(ctx context.Context, w Write) (Answer, error) {
			if time.Since(began) < 2*time.Minute || bytes.Equal(w.Body, dropped) {
				refused++
				return Answer{Code: http.StatusForbidden}, nil
			}
			return c.send(ctx, w)
		})
		if len(c.events) != len(names)-1 || o.Waiting() != 0 {
			t.Errorf("%d events of %d are there, %d wait", len(c.events), len(names), o.Waiting())
		}
		// At 0, 10, 30 and 70 s; what is refused for good at 150 s and 5 min 10 s.
		if took := time.Since(began); refused != 4*refusalsInRow+2 || took < RefusalsPass || took > RefusalsPass+drainLongest {
			t.Errorf("refused %d times in %s", refused, took)
		}
	})
}

// TestWriteThatAlwaysFails: what the apiserver fails at for days is not dropped, and
// costs few attempts; it is sent when it is well again.
func TestWriteThatAlwaysFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLayered(t, "pod", "x")
		o := New(Options{Replica: l, Layer: l, Memo: memo.New(nil, nil, nil), NodeName: "n1"})
		for _, name := range []string{"bad", "good"} {
			if _, err := o.CreateEvent(eventsPath, event(name, 1)); err != nil {
				t.Fatal(err)
			}
		}
		c := newCloud(t)
		bad, _ := o.options.Memo.Get(bucketSpool, eventsPath+"/bad")
		const days = 3
		o.Returned()
		began, attempts := time.Now(), 0
		o.HandBack(t.Context(), func(ctx context.Context, w Write) (Answer, error) {
			if bytes.Equal(w.Body, bad) {
				if attempts++; time.Since(began) < days*24*time.Hour {
					return Answer{Code: http.StatusInternalServerError}, nil
				}
			}
			return c.send(ctx, w)
		})
		if c.events["bad"] == nil || c.events["good"] == nil || o.Waiting() != 0 {
			t.Errorf("%d events are there, %d wait", len(c.events), o.Waiting())
		}
		if attempts > 30*days {
			t.Errorf("it was sent %d times in %d days", attempts, days)
		}
		// It ends with the link.
		if _, err := o.CreateEvent(eventsPath, event("last", 1)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Hour)
		defer cancel()
		o.HandBack(ctx, func(context.Context, Write) (Answer, error) { return Answer{Code: http.StatusInternalServerError}, nil })
		if o.Waiting() != 1 {
			t.Errorf("%d wait", o.Waiting())
		}
	})
}

// TestSettle: what is settled while others are handed back is sent once: not again
// behind what kubelet writes next.
func TestSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLayered(t, "pod", "x")
		o := New(Options{Replica: l, Layer: l, Memo: memo.New(nil, nil, nil), NodeName: "n1"})
		var paths []string
		for _, label := range []string{"first", "second"} {
			path := "/api/v1/nodes/" + label + "/status"
			if err := o.declare(path, declared{Metadata: &metadata{Labels: map[string]*string{label: nil}}}); err != nil {
				t.Fatal(err)
			}
			paths = append(paths, path)
		}
		o.Returned()
		c := newCloud(t)
		c.code = http.StatusOK
		settled := make(chan error, 1)
		err := o.Drain(t.Context(), time.Now(), func(ctx context.Context, w Write) (Answer, error) {
			if w.Path == paths[0] {
				go func() { settled <- o.Settle(t.Context(), paths[1], c.send) }()
				synctest.Wait()
			}
			return c.send(ctx, w)
		})
		if settling := <-settled; err != nil || settling != nil || o.Waiting() != 0 {
			t.Errorf("%v, %v, %d wait", err, settling, o.Waiting())
		}
		if want := []string{"PATCH " + paths[0], "PATCH " + paths[1]}; !cmp.Equal(c.writes, want) {
			t.Errorf("sent %v", c.writes)
		}
		if err := o.Settle(t.Context(), paths[1], c.send); err != nil || len(c.writes) != 2 {
			t.Errorf("settled again: %v, %v", err, c.writes)
		}
		// What is not answered for is still to be sent.
		if err := o.declare(paths[0], declared{Metadata: &metadata{}}); err != nil {
			t.Fatal(err)
		}
		c.code = http.StatusForbidden
		if err := o.Settle(t.Context(), paths[0], c.send); err == nil || o.Waiting() != 1 {
			t.Errorf("an apiserver that may be starting: %v, %d wait", err, o.Waiting())
		}
	})
}
