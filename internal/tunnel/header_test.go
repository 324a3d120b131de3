package tunnel

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestHeaderBytes(t *testing.T) {
	h := Header{Kind: KindTCP, Flags: FlagOptimistic, Target: "10.1.2.3:80", Trace: 7, Deadline: 10 * time.Second}
	b, err := h.Append([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	// x, version, kind, flags, 11, target, 7, 10000 as a two-byte varint
	want := "x\x01\x01\x01\x0b10.1.2.3:80\x07\x67\x10"
	if string(b) != want {
		t.Fatalf("%q, want %q", b, want)
	}
	r := bytes.NewReader(append(b[1:], "payload"...))
	got, err := ReadHeader(r)
	if err != nil || got != h {
		t.Errorf("%+v, %v", got, err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "payload" {
		t.Errorf("left over: %q", rest)
	}
}

func TestHeaderRefused(t *testing.T) {
	for name, h := range map[string]Header{
		"no kind":                {},
		"kind not served":        {Kind: KindUDP, Target: "10.0.0.1:53"},
		"kubelet with a target":  {Kind: KindKubelet, Target: "10.0.0.1:22"},
		"apiserver with target":  {Kind: KindAPIServer, Target: "x"},
		"tcp without":            {Kind: KindTCP},
		"tcp by name":            {Kind: KindTCP, Target: "localhost:22"},
		"critical flag":          {Kind: KindKubelet, Flags: 0x10},
		"negative deadline":      {Kind: KindKubelet, Deadline: -time.Second},
		"trace that is too long": {Kind: KindKubelet, Trace: 1 << 63},
	} {
		if b, err := h.Append(nil); err == nil {
			t.Errorf("%s: %q", name, b)
		}
	}
	for name, b := range map[string]string{
		"empty":         "",
		"short":         "\x01\x03",
		"version":       "\x02\x03\x00\x00\x00\x00",
		"kind":          "\x01\x06\x00\x00\x00\x00",
		"flag":          "\x01\x03\x80\x00\x00\x00",
		"long target":   "\x01\x01\x00\x50\x01" + strings.Repeat("a", 4097),
		"not UTF-8":     "\x01\x01\x00\x01\xff\x00\x00",
		"cut in target": "\x01\x01\x00\x04ab",
	} {
		h, err := ReadHeader(strings.NewReader(b))
		if err == nil {
			t.Errorf("%s: %+v", name, h)
		}
		if want := name == "version" || name == "kind" || name == "flag"; errors.Is(err, ErrUnsupported) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An unknown flag of the lower half is ignored.
	if _, err := ReadHeader(strings.NewReader("\x01\x03\x08\x00\x00\x00")); err != nil {
		t.Error(err)
	}
}

func TestResponse(t *testing.T) {
	for _, r := range []Response{{}, {StatusDenied, "no"}, {Status(200), "from the future"}} {
		in := bytes.NewReader(append(r.Append(nil), 'x'))
		got, err := ReadResponse(in)
		if err != nil || got != r || in.Len() != 1 {
			t.Errorf("%+v, %v, %d left", got, err, in.Len())
		}
		if (got.Err() == nil) != (r.Status == StatusOK) {
			t.Errorf("%+v: %v", r, got.Err())
		}
	}
	// A long text is cut between characters.
	long := Response{StatusRefused, strings.Repeat("ä", 1000)}
	got, err := ReadResponse(bytes.NewReader(long.Append(nil)))
	if err != nil || len(got.Text) != 1024 {
		t.Errorf("%d bytes, %v", len(got.Text), err)
	}
}

func FuzzReadHeader(f *testing.F) {
	for _, h := range []Header{
		{Kind: KindKubelet}, {Kind: KindAPIServer, Trace: 1 << 61, Deadline: time.Hour},
		{Kind: KindTCP, Flags: FlagOptimistic, Target: "[fd00::1]:443", Deadline: time.Millisecond},
	} {
		b, err := h.Append(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\x01\x01\x00\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := ReadHeader(r)
		if used := len(b) - r.Len(); used > MaxHeader {
			t.Fatalf("read %d bytes", used)
		}
		if err != nil {
			return
		}
		again, err := h.Append(nil)
		if err != nil {
			t.Fatalf("%+v was read but cannot be written: %v", h, err)
		}
		h2, err := ReadHeader(bytes.NewReader(again))
		if err != nil || h2 != h {
			t.Fatalf("%+v became %+v, %v", h, h2, err)
		}
	})
}

func FuzzReadResponse(f *testing.F) {
	f.Add(Response{}.Append(nil))
	f.Add(Response{StatusTimeout, "took too long"}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ReadResponse(bytes.NewReader(b))
		if err != nil {
			return
		}
		r2, err := ReadResponse(bytes.NewReader(r.Append(nil)))
		if d := cmp.Diff(r, r2); err != nil || d != "" {
			t.Fatal(d, err)
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		const max = 1 << 10
		p, err := ReadFrame(bytes.NewReader(b), max)
		if err != nil {
			return
		}
		if len(p) > max {
			t.Fatalf("%d bytes", len(p))
		}
		var out bytes.Buffer
		if err := WriteFrame(&out, p, max); err != nil || !bytes.HasPrefix(b, out.Bytes()) {
			t.Fatalf("%q, %v", out.Bytes(), err)
		}
	})
}

func TestFrameLimits(t *testing.T) {
	if err := WriteFrame(io.Discard, make([]byte, 11), 10); err == nil {
		t.Error("written")
	}
	if _, err := ReadFrame(strings.NewReader("\x00\x00\x00\x0b12345678901"), 10); err == nil {
		t.Error("read")
	}
	if _, err := ReadFrame(strings.NewReader("\x00\x00\x00\x0a123"), 10); err == nil {
		t.Error("read what was cut short")
	}
}
