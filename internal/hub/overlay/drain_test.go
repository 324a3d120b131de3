package overlay

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
)

func eventsOf(namespace string) string { return "/api/v1/namespaces/" + namespace + "/events" }

// TestApiserverStarts: an apiserver that refuses everything while it starts is not
// asked for everything, and has it all in the end; what it refuses then is dropped.
func TestApiserverStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLayered(t, "pod", "x")
		o := New(Options{Replica: l, Layer: l, Memo: memo.New(nil, nil, nil), NodeName: "n1"})
		names := []string{"a", "b", "c", "d", "deleted"}
		for _, name := range names { // each of a namespace of its own
			if _, err := o.CreateEvent(eventsOf(name), event(name, 1)); err != nil {
				t.Fatal(err)
			}
		}
		c := newCloud(t)
		o.Returned()
		began := time.Now()
		refused := 0
		dropped, _ := o.options.Memo.Get(bucketSpool, eventsOf("deleted")+"/deleted")
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

// TestApiserverWithoutEtcd: one that fails at everything for hours is sent little each
// time, and has all of it soon after it is well again, whether or not it had taken
// something before.
func TestApiserverWithoutEtcd(t *testing.T) {
	const (
		events  = 40
		without = 5 * time.Hour
	)
	for _, before := range []int{0, 10} { // taken
		synctest.Test(t, func(t *testing.T) {
			l := newLayered(t, "pod", "x")
			o := New(Options{Replica: l, Layer: l, Memo: memo.New(nil, nil, nil), NodeName: "n1"})
			for i := range events {
				if _, err := o.CreateEvent(eventsPath, event(fmt.Sprint("e", i), 1)); err != nil {
					t.Fatal(err)
				}
			}
			c := newCloud(t)
			o.Returned()
			began := time.Now()
			rounds := map[time.Duration]int{} // failures in each
			o.HandBack(t.Context(), func(ctx context.Context, w Write) (Answer, error) {
				if at := time.Since(began); at < without && len(c.events) == before {
					rounds[at]++
					return Answer{Code: http.StatusInternalServerError}, nil
				}
				return c.send(ctx, w)
			})
			if took := time.Since(began); len(c.events) != events || o.Waiting() != 0 || took > without+drainLongest {
				t.Errorf("%d events are there after %s, %d wait", len(c.events), took, o.Waiting())
			}
			for at, n := range rounds {
				if n > refusalsInRow {
					t.Errorf("it failed %d times at %s", n, at)
				}
			}
		})
	}
}

// TestNamespacesAreDeleted: what namespaces refuse that are being deleted keeps nothing
// of others from being sent, and is dropped in the end, though the link comes and goes.
func TestNamespacesAreDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLayered(t, "pod", "x")
		o := New(Options{Replica: l, Layer: l, Memo: memo.New(nil, nil, nil), NodeName: "n1"})
		const each = 20
		for i := range each {
			for n := range refusalsInRow + 1 {
				if _, err := o.CreateEvent(eventsOf(fmt.Sprint("deleted", n)), event(fmt.Sprint("lost", n, ".", i), 1)); err != nil {
					t.Fatal(err)
				}
			}
		}
		c := newCloud(t)
		began := time.Now()
		refused := 0
		for i := 0; o.Waiting() > 0; i++ {
			for n := range 3 {
				if _, err := o.CreateEvent(eventsPath, event(fmt.Sprint("kept", i, ".", n), 1)); err != nil {
					t.Fatal(err)
				}
			}
			o.Returned()
			before := refused
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second) // two rounds
			o.HandBack(ctx, func(ctx context.Context, w Write) (Answer, error) {
				if strings.Contains(w.Path, "/deleted") {
					refused++
					return Answer{Code: http.StatusForbidden}, nil
				}
				return c.send(ctx, w)
			})
			cancel()
			if len(c.events) != 3*(i+1) {
				t.Fatalf("%d events of %d are there after the link was back for the %d. time", len(c.events), 3*(i+1), i+1)
			}
			if n := refused - before; n > 2*(refusalsInRow+1) && o.Waiting() > 0 {
				t.Errorf("refused %d times over one return of the link", n)
			}
			if took := time.Since(began); took > 2*RefusalsPass {
				t.Fatalf("%d wait after %s", o.Waiting(), took)
			}
			time.Sleep(time.Minute)
		}
		if took := time.Since(began); took < RefusalsPass {
			t.Errorf("what was refused is dropped after %s", took)
		}
	})
}

// TestApiserverStartsAgain: what an apiserver refuses that has taken nothing since the
// link is back is not dropped, however often that was.
func TestApiserverStartsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLayered(t, "pod", "x")
		o := New(Options{Replica: l, Layer: l, Memo: memo.New(nil, nil, nil), NodeName: "n1"})
		if _, err := o.CreateEvent(eventsPath, event("e", 1)); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			o.Returned()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			o.HandBack(ctx, func(context.Context, Write) (Answer, error) { return Answer{Code: http.StatusForbidden}, nil })
			cancel()
		}
		o.Returned()
		c := newCloud(t)
		o.HandBack(t.Context(), c.send)
		if c.events["e"] == nil || o.Waiting() != 0 {
			t.Errorf("%d events are there, %d wait", len(c.events), o.Waiting())
		}
	})
}
