package replica

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

var (
	services    = schema.GroupVersionResource{Version: "v1", Resource: "services"}
	pods        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	secrets     = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	serviceKind = schema.GroupVersionKind{Version: "v1", Kind: "Service"}
	all         = Collection{Resource: services}
)

func object(t testing.TB, name string, version Version) *Object {
	t.Helper()
	o, err := NewObject(wire.MediaJSON, fmt.Appendf(nil, `{"metadata":{"namespace":"shop","name":%q,"uid":"u","resourceVersion":"%d"}}`, name, version))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func added(t testing.TB, name string, version Version) *Event {
	return &Event{Type: watch.Added, Object: object(t, name, version)}
}

func removed(t testing.TB, name string, version Version) *Event {
	return &Event{Type: watch.Deleted, Object: object(t, name, version)}
}

// filled is a cache with the services a@5 and b@7, at version 10.
func filled(t testing.TB) *Cache {
	t.Helper()
	c := NewCache()
	c.Open(all, serviceKind)
	if err := c.Load(all, Content{Objects: []*Object{object(t, "b", 7), object(t, "a", 5)}, Version: 10}); err != nil {
		t.Fatal(err)
	}
	return c
}

func names(s *Snapshot) []string {
	var names []string
	for _, o := range s.Objects {
		names = append(names, o.Name+"@"+o.Version.String())
	}
	return names
}

func told(events []*Event) []string {
	var s []string
	for _, e := range events {
		s = append(s, fmt.Sprintf("%s %s@%s", e.Type, e.Object.Name, e.Version()))
	}
	return s
}

func TestReading(t *testing.T) {
	c := NewCache()
	if _, err := c.Snapshot(all); !errors.Is(err, ErrNotMirrored) {
		t.Errorf("of an unknown collection: %v", err)
	}
	c.Open(all, serviceKind)
	_, err := c.Snapshot(all)
	_, _, gerr := c.Get(all, "shop", "a")
	_, werr := c.Watch(all, 0)
	if !errors.Is(err, ErrIncomplete) || !errors.Is(gerr, ErrIncomplete) || !errors.Is(werr, ErrIncomplete) {
		t.Errorf("of an incomplete collection: %v, %v, %v", err, gerr, werr)
	}
	if err := c.Publish(all, []*Event{added(t, "a", 3)}, 3); !errors.Is(err, ErrIncomplete) {
		t.Errorf("an event before the collection is complete: %v", err)
	}

	c = filled(t)
	before, err := c.Snapshot(all)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Publish(all, []*Event{added(t, "c", 11), removed(t, "a", 12)}, 13); err != nil {
		t.Fatal(err)
	}
	after, err := c.Snapshot(all)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a@5", "b@7"}, names(before)); diff != "" {
		t.Errorf("a snapshot changed: %s", diff)
	}
	if diff := cmp.Diff([]string{"b@7", "c@11"}, names(after)); diff != "" || after.Version != 13 || after.Kind != serviceKind {
		t.Errorf("after changes, at %s: %s", after.Version, diff)
	}
	if o, v, err := c.Get(all, "shop", "c"); err != nil || o == nil || o.Version != 11 || v != 13 {
		t.Errorf("get c: %v at %s, %v", o, v, err)
	}
	if o, v, err := c.Get(all, "shop", "a"); err != nil || o != nil || v != 13 {
		t.Errorf("get of what was deleted: %v at %s, %v", o, v, err)
	}
}

// TestPublishRefuses what would break a client that resumes.
func TestPublishRefuses(t *testing.T) {
	for name, try := range map[string]struct {
		events  []*Event
		version Version
	}{
		"an event not above the collection":      {[]*Event{added(t, "c", 10)}, 10},
		"events out of order":                    {[]*Event{added(t, "c", 12), added(t, "d", 11)}, 12},
		"two events of one version":              {[]*Event{added(t, "c", 11), added(t, "d", 11)}, 11},
		"a collection's version below its event": {[]*Event{added(t, "c", 11)}, 10},
	} {
		c := filled(t)
		if err := c.Publish(all, try.events, try.version); err == nil {
			t.Errorf("%s passes", name)
		}
		if s, err := c.Snapshot(all); err != nil || s.Version != 10 || len(s.Objects) != 2 {
			t.Errorf("%s: left the collection at %s with %v (%v)", name, s.Version, names(s), err)
		}
	}
	c := filled(t)
	if err := c.Advance(all, 9); err == nil {
		if s, _ := c.Snapshot(all); s.Version != 10 {
			t.Errorf("went back to %s", s.Version)
		}
	}
}

func TestWatch(t *testing.T) {
	c := filled(t)
	w, err := c.Watch(all, 10)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := w.Take(10); len(got) != 0 || err != nil {
		t.Errorf("before anything: %v, %v", told(got), err)
	}
	ready := w.Ready()
	select {
	case <-ready:
		t.Error("ready before anything")
	default:
	}
	if err := c.Publish(all, []*Event{added(t, "c", 11), removed(t, "a", 12)}, 12); err != nil {
		t.Fatal(err)
	}
	<-ready
	if err := c.Advance(all, 15); err != nil {
		t.Fatal(err)
	}
	if v := w.Version(); v != 10 {
		t.Errorf("a bookmark would say %s with events to take", v)
	}
	one, err := w.Take(1)
	if diff := cmp.Diff([]string{"ADDED c@11"}, told(one)); diff != "" || err != nil {
		t.Errorf("%s (%v)", diff, err)
	}
	if v := w.Version(); v != 11 {
		t.Errorf("a bookmark would say %s after the event of 11", v)
	}
	<-w.Ready()
	rest, err := w.Take(10)
	if diff := cmp.Diff([]string{"DELETED a@12"}, told(rest)); diff != "" || err != nil {
		t.Errorf("%s (%v)", diff, err)
	}
	if v := w.Version(); v != 15 {
		t.Errorf("a bookmark would say %s after all events", v)
	}
	for from, want := range map[Version][]string{
		10: {"ADDED c@11", "DELETED a@12"}, 11: {"DELETED a@12"}, 12: nil, 15: nil,
	} {
		w, err := c.Watch(all, from)
		if err != nil {
			t.Errorf("resume from %s: %v", from, err)
			continue
		}
		got, err := w.Take(10)
		if diff := cmp.Diff(want, told(got)); diff != "" || err != nil {
			t.Errorf("resumed from %s: %s (%v)", from, diff, err)
		}
	}
	for from, want := range map[Version]error{9: ErrExpired, 16: ErrFuture, OverlayBase + 1: ErrExpired} {
		if _, err := c.Watch(all, from); !errors.Is(err, want) {
			t.Errorf("resume from %s: %v", from, err)
		}
	}
}

// TestResumeAfterRestart: a client holds the version of the last event it saw,
// which is below what bookmarks have brought the collection to.
func TestResumeAfterRestart(t *testing.T) {
	c := NewCache()
	c.Open(all, serviceKind)
	if err := c.Load(all, Content{Objects: []*Object{object(t, "a", 5)}, Version: 10, Changed: 7}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Watch(all, 7); err != nil {
		t.Errorf("from the last change: %v", err)
	}
	if _, err := c.Watch(all, 6); !errors.Is(err, ErrExpired) {
		t.Errorf("from before it: %v", err)
	}
	if err := c.Publish(all, []*Event{added(t, "b", 9)}, 10); err == nil {
		t.Error("an event below what bookmarks have promised passes")
	}
}

func TestWatchesEnd(t *testing.T) {
	for name, end := range map[string]func(*Cache) error{
		"reset": func(c *Cache) error { return c.Reset(all, Content{Version: 4}) },
		"drop":  func(c *Cache) error { c.Drop(all); return nil },
		"overrun by large events": func(c *Cache) error {
			large := strings.Repeat("x", ringBytes/framedEvents)
			for v := Version(11); v < 12+framedEvents; v++ {
				e := added(t, "c", v)
				e.Object.Raw = fmt.Appendf(nil, `{"payload":%q}`, large)
				if err := c.Publish(all, []*Event{e}, v); err != nil {
					return err
				}
			}
			return nil
		},
		"overrun": func(c *Cache) error {
			for v := Version(11); v < 12+RingEvents; v++ {
				if err := c.Publish(all, []*Event{added(t, "c", v)}, v); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		c := filled(t)
		w, err := c.Watch(all, 10)
		if err != nil {
			t.Fatal(err)
		}
		ready := w.Ready()
		if err := end(c); err != nil {
			t.Fatal(err)
		}
		<-ready
		<-w.Ready()
		if _, err := w.Take(1); !errors.Is(err, ErrExpired) {
			t.Errorf("%s: %v", name, err)
		}
		if v := w.Version(); v != 10 {
			t.Errorf("%s: a bookmark would say %s", name, v)
		}
	}
}

// TestRing: whoever asks from within the ring gets all that follows, however often it
// has gone round, and whoever asks from before it begins anew.
func TestRing(t *testing.T) {
	c := filled(t)
	for v := Version(11); v < 11+3*RingEvents; v++ {
		if err := c.Publish(all, []*Event{added(t, "c", v)}, v); err != nil {
			t.Fatal(err)
		}
		oldest := max(10, int(v)-RingEvents)
		if _, err := c.Watch(all, Version(oldest-1)); oldest > 10 && !errors.Is(err, ErrExpired) {
			t.Fatalf("at %s, from %d: %v", v, oldest-1, err)
		}
		w, err := c.Watch(all, Version(oldest))
		if err != nil {
			t.Fatalf("at %s, from %d: %v", v, oldest, err)
		}
		events, err := w.Take(RingEvents + 1)
		if err != nil || len(events) != int(v)-oldest || events[0].Version() != Version(oldest)+1 || w.Version() != v {
			t.Fatalf("at %s, from %d: %d events, %v", v, oldest, len(events), err)
		}
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCache()
		c.Open(all, serviceKind)
		limited := func(atLeast Version) error {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			return c.Wait(ctx, all, atLeast)
		}
		if err := limited(0); !errors.Is(err, ErrIncomplete) {
			t.Errorf("of an incomplete collection: %v", err)
		}
		done := make(chan error)
		go func() { done <- limited(12) }()
		synctest.Wait()
		if err := c.Load(all, Content{Version: 10}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := c.Advance(all, 12); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("of a version that came: %v", err)
		}
		if err := limited(13); !errors.Is(err, ErrFuture) {
			t.Errorf("of a version that did not come: %v", err)
		}
		go func() { done <- limited(13) }()
		synctest.Wait()
		c.Drop(all)
		if err := <-done; !errors.Is(err, ErrNotMirrored) {
			t.Errorf("of a collection that was dropped: %v", err)
		}
	})
}

func TestCover(t *testing.T) {
	c := NewCache()
	own := Collection{Resource: pods, Node: "n1"}
	secret := Collection{Resource: secrets, Namespace: "shop", Name: "key"}
	for _, id := range []Collection{all, own, secret} {
		c.Open(id, schema.GroupVersionKind{})
	}
	for _, test := range []struct {
		query Query
		want  Collection
		cover Coverage
	}{
		{Query{Resource: services}, all, CoverWhole},
		{Query{Resource: services, Namespace: "shop", Name: "till"}, all, CoverWhole},
		{Query{Resource: services, Node: "n1"}, all, CoverWhole},
		{Query{Resource: pods, Node: "n1"}, own, CoverWhole},
		{Query{Resource: pods, Namespace: "shop", Node: "n1"}, own, CoverWhole},
		{Query{Resource: pods, Namespace: "shop", Name: "till"}, own, CoverPart},
		{Query{Resource: pods, Namespace: "shop"}, Collection{}, CoverNone},
		{Query{Resource: pods, Node: "n2"}, Collection{}, CoverNone},
		{Query{Resource: pods, Namespace: "shop", Name: "till", Node: "n2"}, Collection{}, CoverNone},
		{Query{Resource: secrets, Namespace: "shop", Name: "key"}, secret, CoverWhole},
		{Query{Resource: secrets, Namespace: "shop"}, Collection{}, CoverNone},
		{Query{Resource: secrets, Namespace: "bank", Name: "key"}, Collection{}, CoverNone},
		{Query{Resource: secrets, Name: "key"}, Collection{}, CoverNone},
	} {
		got, cover := c.Cover(test.query)
		if cover != test.cover || cover != CoverNone && got != test.want {
			t.Errorf("%v is covered by %v (%d)", test.query, got, cover)
		}
	}
}

func TestFrame(t *testing.T) {
	e := added(t, "a", 1)
	calls := 0
	frame := func(key FrameKey) string {
		b, err := e.Frame(key, func() ([]byte, error) { calls++; return []byte(key.Form), nil })
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for range 3 {
		if frame(FrameKey{watch.Added, "json"}) != "json" || frame(FrameKey{watch.Added, "protobuf"}) != "protobuf" {
			t.Error("frames are mixed up")
		}
	}
	if calls != 2 {
		t.Errorf("encoded %d times", calls)
	}
	failed := errors.New("no")
	if _, err := e.Frame(FrameKey{watch.Deleted, "json"}, func() ([]byte, error) { return nil, failed }); !errors.Is(err, failed) {
		t.Errorf("an error of encoding became %v", err)
	}
	c := filled(t)
	if err := c.Publish(all, []*Event{{Type: watch.Added, Object: object(t, "x", 11)}}, 11); err != nil {
		t.Fatal(err)
	}
	w, _ := c.Watch(all, 10)
	events, _ := w.Take(1)
	old := events[0]
	if _, err := old.Frame(FrameKey{Form: "json"}, func() ([]byte, error) { return []byte("1"), nil }); err != nil {
		t.Fatal(err)
	}
	for v := Version(12); v < 12+framedEvents; v++ {
		if err := c.Publish(all, []*Event{added(t, "y", v)}, v); err != nil {
			t.Fatal(err)
		}
	}
	if len(old.frames) != 0 {
		t.Error("an old event keeps its frames")
	}
}

// TestFollowers: whoever lists and watches, at any pace and through any number
// of beginnings anew, comes to hold exactly what the cache holds.
func TestFollowers(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	c := filled(t)
	type follower struct {
		held map[string]Version
		at   Version
		w    *Watch
	}
	followers := make([]*follower, 8)
	begins := 0
	begin := func(f *follower) {
		begins++
		s, err := c.Snapshot(all)
		if err != nil {
			t.Fatal(err)
		}
		f.held, f.at = map[string]Version{}, s.Version
		for _, o := range s.Objects {
			f.held[o.Name] = o.Version
		}
		if f.w, err = c.Watch(all, f.at); err != nil {
			t.Fatal(err)
		}
	}
	drain := func(f *follower, limit int) bool {
		events, err := f.w.Take(limit)
		if errors.Is(err, ErrExpired) {
			begin(f)
			return true
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.Version() <= f.at {
				t.Fatalf("event of %s after %s", e.Version(), f.at)
			}
			f.at = e.Version()
			if e.Type == watch.Deleted {
				delete(f.held, e.Object.Name)
			} else {
				f.held[e.Object.Name] = e.Version()
			}
		}
		return len(events) > 0
	}
	for i := range followers {
		followers[i] = &follower{}
		begin(followers[i])
	}
	version := Version(10)
	for range 20000 {
		version += 1 + Version(random.IntN(3))
		name := string(rune('a' + random.IntN(20)))
		e := added(t, name, version)
		if random.IntN(3) == 0 {
			e = removed(t, name, version)
		}
		if random.IntN(5000) == 0 {
			if err := c.Reset(all, Content{Objects: []*Object{object(t, "z", version)}, Version: version}); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := c.Publish(all, []*Event{e}, version+Version(random.IntN(2))); err != nil {
			t.Fatal(err)
		}
		if s, _ := c.Snapshot(all); s.Version > version {
			version = s.Version
		}
		f := followers[random.IntN(len(followers))]
		switch random.IntN(400) {
		case 0: // comes back with what it holds
			w, err := c.Watch(all, f.at)
			if errors.Is(err, ErrExpired) || errors.Is(err, ErrFuture) {
				begin(f)
			} else if err != nil {
				t.Fatal(err)
			} else {
				f.w = w
			}
		case 1, 2, 3, 4, 5, 6, 7, 8, 9, 10:
			drain(f, 1+random.IntN(40))
		case 11:
			drain(f, 2*RingEvents)
		}
	}
	s, err := c.Snapshot(all)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Version{}
	for _, o := range s.Objects {
		want[o.Name] = o.Version
	}
	for _, f := range followers {
		for drain(f, 100) {
		}
		if diff := cmp.Diff(want, f.held); diff != "" {
			t.Error(diff)
		}
	}
	if begins == len(followers) {
		t.Error("nobody ever had to begin anew")
	}
}
