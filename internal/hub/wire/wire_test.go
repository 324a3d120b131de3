package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
)

// service is one of everything that matters.
func service() *corev1.Service {
	return &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "till", UID: "u-1", ResourceVersion: "71",
			Labels:      map[string]string{"app": "till", "": "empty key"},
			Annotations: map[string]string{"note": "<b>&</b>"},
			ManagedFields: []metav1.ManagedFieldsEntry{
				{Manager: "kubectl", Operation: "Apply", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{}}`)},
			},
		},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9", Selector: map[string]string{"app": "till"}},
	}
}

// encode is apimachinery's own encoding: the oracle of these tests.
func encode(t testing.TB, media string, o runtime.Object) []byte {
	t.Helper()
	if media == MediaJSON {
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var b bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(o, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func decode(t *testing.T, object []byte) runtime.Object {
	t.Helper()
	o, _, err := scheme.Codecs.UniversalDeserializer().Decode(object, nil, nil)
	if err != nil {
		t.Fatalf("apimachinery cannot decode %q: %v", object, err)
	}
	return o
}

// message is what ReadMeta and its like take.
func message(t testing.TB, media string, object []byte) []byte {
	t.Helper()
	if media == MediaJSON {
		return object
	}
	e, err := ParseEnvelope(object)
	if err != nil {
		t.Fatal(err)
	}
	return e.Message
}

// whole is the reverse of message.
func whole(media string, message []byte) []byte {
	if media == MediaJSON {
		return message
	}
	return Envelope{APIVersion: "v1", Kind: "Service", Message: message}.Append(nil)
}

var medias = []string{MediaJSON, MediaProtobuf}

func TestEnvelopeIsApimachinerys(t *testing.T) {
	object := encode(t, MediaProtobuf, service())
	e, err := ParseEnvelope(object)
	if err != nil {
		t.Fatal(err)
	}
	if e.APIVersion != "v1" || e.Kind != "Service" {
		t.Errorf("it is a %s %s", e.APIVersion, e.Kind)
	}
	if again := e.Append(nil); !bytes.Equal(again, object) {
		t.Errorf("written anew:\n%q\nwas\n%q", again, object)
	}
}

func TestMeta(t *testing.T) {
	for _, media := range medias {
		t.Run(media, func(t *testing.T) {
			s := service()
			m := message(t, media, encode(t, media, s))
			meta, err := ReadMeta(media, m)
			if err != nil {
				t.Fatal(err)
			}
			want := Meta{Namespace: "shop", Name: "till", UID: "u-1", ResourceVersion: "71", Labels: s.Labels, Annotations: s.Annotations}
			if diff := cmp.Diff(want, meta); diff != "" {
				t.Error(diff)
			}
			before := bytes.Clone(m)
			for _, version := range []string{"72", "", "4611686018427387905"} {
				changed, err := SetResourceVersion(media, m, version)
				if err != nil {
					t.Fatal(err)
				}
				s.ResourceVersion = version
				if diff := cmp.Diff(runtime.Object(s), decode(t, whole(media, changed))); diff != "" {
					t.Errorf("version %q: %s", version, diff)
				}
			}
			if !bytes.Equal(m, before) {
				t.Error("the message itself was changed")
			}
			s.ResourceVersion, s.ManagedFields = "71", nil
			lean, err := DropManagedFields(media, m)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(runtime.Object(s), decode(t, whole(media, lean))); diff != "" {
				t.Error(diff)
			}
			again, err := DropManagedFields(media, lean)
			if err != nil || &again[0] != &lean[0] {
				t.Errorf("what has no managedFields was copied (%v)", err)
			}
		})
	}
}

func TestList(t *testing.T) {
	a, b := service(), service()
	b.Name, b.ManagedFields = "scale", nil
	for _, media := range medias {
		t.Run(media, func(t *testing.T) {
			list := &corev1.ServiceList{
				TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceList"},
				ListMeta: metav1.ListMeta{ResourceVersion: "80", Continue: "next"},
				Items:    []corev1.Service{*a, *b},
			}
			got, err := ParseList(media, encode(t, media, list))
			if err != nil {
				t.Fatal(err)
			}
			if got.Kind != "ServiceList" || got.APIVersion != "v1" || got.ResourceVersion != "80" || got.Continue != "next" || len(got.Items) != 2 {
				t.Errorf("got %+v", got)
			}
			for i, want := range []*corev1.Service{a, b} {
				if diff := cmp.Diff(runtime.Object(want), decode(t, whole(media, got.Items[i]))); diff != "" {
					t.Error(diff)
				}
			}
			list.Items = nil
			if got, err = ParseList(media, encode(t, media, list)); err != nil || len(got.Items) != 0 {
				t.Errorf("of an empty list: %v, %v", got, err)
			}
			if _, err := ParseList(media, encode(t, media, service())); err == nil {
				t.Error("a Service passes for a list")
			}
			list.ResourceVersion = ""
			if _, err := ParseList(media, encode(t, media, list)); err == nil {
				t.Error("a list without resourceVersion passes")
			}
		})
	}
}

func TestEvents(t *testing.T) {
	for _, media := range medias {
		t.Run(media, func(t *testing.T) {
			events := []Event{
				{Type: "ADDED", Object: encode(t, media, service())},
				{Type: "BOOKMARK", Object: encode(t, media, &corev1.Service{
					TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
					ObjectMeta: metav1.ObjectMeta{ResourceVersion: "90", Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}},
				})},
			}
			var stream []byte
			for _, e := range events {
				var err error
				if stream, err = AppendEvent(media, stream, e); err != nil {
					t.Fatal(err)
				}
			}
			if media == MediaProtobuf {
				// The first frame, by apimachinery's own type.
				size := int(stream[2])<<8 | int(stream[3])
				var w metav1.WatchEvent
				if err := w.Unmarshal(stream[4 : 4+size]); err != nil || w.Type != "ADDED" || !bytes.Equal(w.Object.Raw, events[0].Object) {
					t.Errorf("the frame is %+v, %v", w, err)
				}
			}
			r, err := NewEventReader(media, iotest.OneByteReader(bytes.NewReader(stream)))
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range events {
				got, err := r.Next()
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
			}
			if _, err := r.Next(); err != io.EOF {
				t.Errorf("at the end: %v", err)
			}
			for cut := 1; cut < len(stream); cut++ {
				r, err := NewEventReader(media, bytes.NewReader(stream[:cut]))
				if err != nil {
					t.Fatal(err)
				}
				n := 0
				for err == nil {
					if _, err = r.Next(); err == nil {
						n++
					}
				}
				if (err == io.EOF) != atBoundary(media, stream, cut) {
					t.Fatalf("cut at %d after %d events: %v", cut, n, err)
				}
			}
		})
	}
}

// atBoundary says whether the stream cut there holds whole events only. A JSON
// event is whole without the end of its line.
func atBoundary(media string, stream []byte, cut int) bool {
	for len(stream) > 0 && cut > 0 {
		n := bytes.IndexByte(stream, '\n') + 1
		if media == MediaProtobuf {
			n = 4 + int(stream[2])<<8 + int(stream[3])
		}
		if cut < n {
			return media == MediaJSON && cut == n-1
		}
		stream, cut = stream[n:], cut-n
	}
	return cut == 0
}

func TestBounds(t *testing.T) {
	r, _ := NewEventReader(MediaProtobuf, strings.NewReader("\xff\xff\xff\xffabc"))
	if _, err := r.Next(); !errors.Is(err, ErrFrameTooLarge) {
		t.Errorf("a frame of 4 GiB: %v", err)
	}
	r, _ = NewEventReader(MediaProtobuf, strings.NewReader("\x00\xf0\x00\x00abc"))
	if _, err := r.Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a frame cut off: %v", err)
	}
	r, _ = NewEventReader(MediaJSON, io.MultiReader(strings.NewReader(`{"type":"ADDED","object":"`), &endless{}))
	if _, err := r.Next(); !errors.Is(err, ErrFrameTooLarge) {
		t.Errorf("an endless event: %v", err)
	}
	if _, err := NewEventReader("application/cbor", nil); err == nil {
		t.Error("CBOR passes")
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

// FuzzEvents: no stream makes the reader fail otherwise than by an error, and
// what it reads can be written and read again.
func FuzzEvents(f *testing.F) {
	for _, media := range medias {
		b, err := AppendEvent(media, nil, Event{Type: "ADDED", Object: encode(f, media, service())})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(media == MediaProtobuf, b)
		f.Add(media == MediaProtobuf, append(b, b[:len(b)/2]...))
	}
	f.Fuzz(func(t *testing.T, proto bool, stream []byte) {
		media := medias[0]
		if proto {
			media = medias[1]
		}
		r, err := NewEventReader(media, bytes.NewReader(stream))
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			e, err := r.Next()
			if err != nil {
				return
			}
			again, err := AppendEvent(media, nil, e)
			if err != nil {
				t.Fatal(err)
			}
			r2, _ := NewEventReader(media, bytes.NewReader(again))
			e2, err := r2.Next()
			if err != nil || e2.Type != e.Type || !bytes.Equal(e2.Object, e.Object) {
				t.Fatalf("%q became %q (%v)", e, e2, err)
			}
		}
	})
}

// FuzzObject: nothing that is no object makes the readers of objects fail
// otherwise than by an error, and what is changed stays readable.
func FuzzObject(f *testing.F) {
	for _, media := range medias {
		object := encode(f, media, service())
		f.Add(media == MediaProtobuf, message(f, media, object))
		f.Add(media == MediaProtobuf, object)
		f.Add(media == MediaProtobuf, encode(f, media, &corev1.ServiceList{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceList"},
			ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []corev1.Service{*service()},
		}))
	}
	f.Fuzz(func(t *testing.T, proto bool, b []byte) {
		media := medias[0]
		if proto {
			media = medias[1]
		}
		if e, err := ParseEnvelope(b); err == nil {
			e2, err := ParseEnvelope(e.Append(nil))
			if err != nil || fmt.Sprint(e2) != fmt.Sprint(e) {
				t.Fatalf("%v became %v (%v)", e, e2, err)
			}
		}
		if l, err := ParseList(media, b); err == nil && !strings.HasSuffix(l.Kind, "List") {
			t.Fatalf("a %q passes for a list", l.Kind)
		}
		meta, err := ReadMeta(media, b)
		if err != nil {
			return
		}
		changed, err := SetResourceVersion(media, b, "7")
		if err != nil {
			return // such as JSON whose metadata is no object
		}
		got, err := ReadMeta(media, changed)
		meta.ResourceVersion = "7"
		if err != nil {
			t.Fatalf("%q became unreadable: %v", b, err)
		}
		if proto && cmp.Diff(meta, got) != "" {
			t.Fatal(cmp.Diff(meta, got))
		}
	})
}
