package serve

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

func newCodecs(s *runtime.Scheme) serializer.CodecFactory { return serializer.NewCodecFactory(s) }

var accepts = []string{
	"application/json", "application/vnd.kubernetes.protobuf;stream=watch,application/vnd.kubernetes.protobuf",
	"application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
}

const streaming = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"

func TestWatchBegins(t *testing.T) {
	for _, accept := range accepts {
		r := newRig(t, nil)
		r.load(4)
		a, b := service("shop", "a", "10.0.0.1", 6, nil), service("shop", "b", "None", 8, nil)
		r.publish(nil, a)
		r.publish(nil, b)
		if err := r.cache.Advance(services, 20); err != nil {
			t.Fatal(err)
		}
		initial := []string{"ADDED shop/a@6", "ADDED shop/b@8"}
		for _, c := range []struct {
			query string
			want  []string
		}{
			{streaming, append(initial, "END @20")},
			{streaming + "&resourceVersion=7", append(initial, "END @20")},
			{streaming + "&fieldSelector=spec.clusterIP!%3DNone", []string{"ADDED shop/a@6", "END @20"}},
			{"watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", initial},
			{"watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", nil},
			{"watch=1", initial},
			{"watch=1&resourceVersion=0&allowWatchBookmarks=true", initial},
			{"watch=1&resourceVersion=6", []string{"ADDED shop/b@8"}},
			{"watch=1&resourceVersion=20", nil},
		} {
			w := r.watch("/api/v1/services?"+c.query, accept)
			w.expect(c.want...)
			defer func() { w.expect("ADDED shop/later@30") }()
		}
		r.publish(nil, service("shop", "later", "10.0.0.3", 30, nil))
	}
}

// TestWatchSelects: a change that moves an object into or out of a selection is
// an ADDED, or a DELETED of the state before at the change's version.
func TestWatchSelects(t *testing.T) {
	for _, accept := range accepts {
		r := newRig(t, nil)
		r.load(1)
		watches := map[string]*watching{}
		for _, selector := range []string{"", "labelSelector=in", "labelSelector=!in", "fieldSelector=spec.clusterIP%3DNone", "fieldSelector=metadata.name%3Da"} {
			watches[selector] = r.watch("/api/v1/services?watch=1&resourceVersion=1&"+selector, accept)
		}
		elsewhere := r.watch("/api/v1/namespaces/other/services?watch=1&resourceVersion=1", accept)
		in := map[string]string{"in": ""}
		s1 := service("shop", "a", "10.0.0.1", 2, nil)
		s2 := service("shop", "a", "10.0.0.1", 3, in)
		s3 := service("shop", "a", "None", 4, in)
		s4 := service("shop", "a", "10.0.0.1", 5, nil)
		s5 := service("shop", "a", "10.0.0.1", 6, in)
		r.publish(nil, s1)
		r.publish(s1, s2)
		r.publish(s2, s3)
		r.publish(s3, s4)
		r.publish(s4, s5)
		r.publish(s5, gone(s5, 7))
		r.publish(nil, service("other", "b", "None", 8, in))
		watches[""].expect("ADDED shop/a@2", "MODIFIED shop/a@3", "MODIFIED shop/a@4", "MODIFIED shop/a@5", "MODIFIED shop/a@6", "DELETED shop/a@7", "ADDED other/b@8")
		watches["labelSelector=in"].expect("ADDED shop/a@3", "MODIFIED shop/a@4", "DELETED shop/a@5", "ADDED shop/a@6", "DELETED shop/a@7", "ADDED other/b@8")
		watches["labelSelector=!in"].expect("ADDED shop/a@2", "DELETED shop/a@3", "ADDED shop/a@5", "DELETED shop/a@6")
		watches["fieldSelector=spec.clusterIP%3DNone"].expect("ADDED shop/a@4", "DELETED shop/a@5", "ADDED other/b@8")
		watches["fieldSelector=metadata.name%3Da"].expect("ADDED shop/a@2", "MODIFIED shop/a@3", "MODIFIED shop/a@4", "MODIFIED shop/a@5", "MODIFIED shop/a@6", "DELETED shop/a@7")
		elsewhere.expect("ADDED other/b@8")
	}
}

// TestDeletedBySelection: the state before is shown, whole, at the new version.
func TestDeletedBySelection(t *testing.T) {
	before := service("shop", "a", "10.0.0.1", 2, map[string]string{"in": ""})
	after := service("shop", "a", "10.0.0.2", 3, nil)
	for _, media := range []string{wire.MediaJSON, wire.MediaProtobuf} {
		o, err := atVersion(stored(t, media, before), 3)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decode(o)
		if err != nil {
			t.Fatal(err)
		}
		s := got.(*corev1.Service)
		if s.ResourceVersion != "3" || s.Spec.ClusterIP != "10.0.0.1" || s.Labels["in"] != "" || s.Annotations["html"] != "<&>" || len(s.Labels) != 1 {
			t.Errorf("%s: %+v", media, s)
		}
	}
	_ = after
}

func TestBookmarks(t *testing.T) {
	for _, cut := range []bool{false, true} {
		clk := testingclock.NewFakeClock(time.Now())
		r := newRig(t, clk)
		r.load(20, objects(shop())...)
		r.cache.SetLink(!cut, time.Now())
		w := r.watch("/api/v1/services?watch=1&resourceVersion=20&allowWatchBookmarks=true&timeoutSeconds=600", "")
		without := r.watch("/api/v1/services?watch=1&resourceVersion=20&timeoutSeconds=600", "")
		waiting := func(n int) {
			t.Helper()
			for limit := time.Now().Add(patience); clk.Waiters() != n; {
				if time.Now().After(limit) {
					t.Fatalf("%d wait on the clock, not %d", clk.Waiters(), n)
				}
			}
		}
		waiting(3)
		for _, version := range []replica.Version{20, 25, 25} {
			if err := r.cache.Advance(services, version); err != nil {
				t.Fatal(err)
			}
			clk.Step(bookmarkEvery)
			w.expect(fmt.Sprintf("BOOKMARK /@%s", version))
			waiting(3)
		}
		clk.Step(600 * time.Second)
		for e := w.next(); e != ""; e = w.next() {
			if e != "BOOKMARK /@25" {
				t.Errorf("got %q at the end", e)
			}
		}
		without.expect("")
	}
}

// TestWatchEnds: doubtful watches are told to begin anew, never left silent.
func TestWatchEnds(t *testing.T) {
	for _, accept := range accepts[:2] {
		r := newRig(t, nil)
		r.load(4)
		old := r.watch("/api/v1/services?watch=1&resourceVersion=3", accept)
		old.expect("ERROR 410", "")
		w := r.watch("/api/v1/services?watch=1&resourceVersion=4", accept)
		r.publish(nil, service("shop", "a", "", 5, nil))
		w.expect("ADDED shop/a@5")
		if err := r.cache.Reset(services, replica.Content{Version: 3}); err != nil {
			t.Fatal(err)
		}
		w.expect("ERROR 410", "")
		dropped := r.watch("/api/v1/services?watch=1&resourceVersion=3", accept)
		r.cache.Drop(services)
		dropped.expect("ERROR 410", "")
	}
}

// TestSlowWatch: a client that reads too slowly gets every event or is told.
func TestSlowWatch(t *testing.T) {
	r := newRig(t, nil)
	r.load(1)
	response := r.open("/api/v1/services?watch=1&resourceVersion=1", "application/json")
	// Nothing is read while more changes than the ring holds pass by, each large.
	version := replica.Version(1)
	big := map[string]string{}
	for i := range 20 {
		big[fmt.Sprintf("label-%d", i)] = strings.Repeat("x", 60)
	}
	for range replica.RingEvents * 3 {
		version++
		r.publish(nil, service("shop", fmt.Sprintf("s%s", version), "", version, big))
	}
	frames := codec.NewWatchCodec(codec.Encoding{}, response.Body)
	seen := replica.Version(1)
	for {
		frame, err := frames.Read()
		if err != nil {
			t.Fatalf("after %s: %v", seen, err)
		}
		event, err := frames.Parse(frame)
		if err != nil {
			t.Fatal(err)
		}
		if event.Kind == "ERROR" {
			if seen == version {
				t.Error("told to begin anew with nothing missed")
			}
			return
		}
		if want := (seen + 1).String(); event.Meta.ResourceVersion != want {
			t.Fatalf("%s follows %s", event.Meta.ResourceVersion, seen)
		}
		if seen++; seen == version {
			return // fast enough after all
		}
	}
}

// TestSharedFrames: the second watch that sees the same gets the same bytes.
func TestSharedFrames(t *testing.T) {
	o := pb(t, service("shop", "a", "", 2, nil))
	e := encoder{Encoding: codec.Encoding{}, kind: serviceKind}
	event := &replica.Event{Type: watch.Added, Object: o}
	first, err := e.event(&selection{}, event)
	if err != nil {
		t.Fatal(err)
	}
	second, err := e.event(&selection{namespace: "shop"}, event)
	if err != nil || &first[0] != &second[0] {
		t.Errorf("encoded twice: %v", err)
	}
}

// FuzzFrames: whatever an object's bytes are, framing neither panics nor makes
// an event that cannot be read back.
func FuzzFrames(f *testing.F) {
	for _, s := range shop() {
		f.Add(pb(f, s).Message, true, true)
		f.Add(stored(f, wire.MediaJSON, s).Raw, false, false)
	}
	f.Fuzz(func(t *testing.T, raw []byte, protobuf, partial bool) {
		o := &replica.Object{Namespace: "shop", Name: "a", Version: 2, Media: wire.MediaJSON, Raw: raw, Message: raw}
		if protobuf {
			o.Media = wire.MediaProtobuf
			o.Raw = envelope(serviceKind, raw)
		}
		for _, as := range []bool{true, false} {
			e := encoder{Encoding: codec.Encoding{Protobuf: as, Partial: partial}, kind: serviceKind}
			if before, err := metaOf(o); err == nil {
				moved, err := atVersion(o, 9)
				if err != nil {
					t.Fatalf("cannot be moved to another version: %v", err)
				}
				before.ResourceVersion = "9"
				if after, err := metaOf(moved); err != nil || cmp.Diff(before, after) != "" {
					t.Fatalf("moved to another version it is %+v, not %+v: %v", after, before, err)
				}
			}
			if protobuf == false && !partial && as == false {
				continue // passed on as it is
			}
			frame, err := e.added(o)
			if err != nil {
				continue
			}
			frames := codec.NewWatchCodec(e.Encoding, strings.NewReader(string(frame)))
			if _, err := frames.Read(); err != nil {
				t.Fatalf("a frame that cannot be read: %v", err)
			}
		}
	})
}
