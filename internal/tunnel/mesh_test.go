package tunnel

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
)

func TestForward(t *testing.T) {
	h := Header{Kind: KindTCP, Target: "10.0.0.1:80", Trace: 5}
	b, err := Forward{Hops: 1, Node: "berlin-1"}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = h.Append(b); err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(append(b, "payload"...))
	if f, err := ReadForward(r); err != nil || f != (Forward{Hops: 1, Node: "berlin-1"}) {
		t.Errorf("%+v, %v", f, err)
	}
	if got, err := ReadHeader(r); err != nil || got != h {
		t.Errorf("%+v, %v", got, err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "payload" {
		t.Errorf("%q", rest)
	}
	for _, f := range []Forward{{}, {Node: strings.Repeat("n", 254)}, {Node: "n", Hops: 9}, {Node: "\xff"}} {
		if _, err := f.Append(nil); err == nil {
			t.Errorf("%+v was written", f)
		}
	}
	for _, text := range []string{"", "\x01", "\x02\x00\x01n", "\x01\x09\x01n", "\x01\x00\x00", "\x01\x00\x05n", "\x01\x00\x41\x00"} {
		if f, err := ReadForward(strings.NewReader(text)); err == nil {
			t.Errorf("%q: %+v", text, f)
		}
	}
}

func TestRetryReason(t *testing.T) {
	if d, ok := ParseRetry(RetryReason(1500*time.Millisecond, "too many: really")); d != 1500*time.Millisecond || !ok {
		t.Error(d, ok)
	}
	if d, ok := ParseRetry("retry within 24h: x"); d != maxRetry || !ok {
		t.Error(d, ok)
	}
	for _, text := range []string{"", "gateway stops", "retry within 5s", "retry within x: y", "retry within -5s: y"} {
		if d, ok := ParseRetry(text); ok {
			t.Error(text, d)
		}
	}
}

func FuzzForward(f *testing.F) {
	f.Add([]byte("\x01\x01\x08berlin-1\x01\x03\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		fwd, err := ReadForward(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := fwd.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ReadForward(bytes.NewReader(again)); err != nil || got != fwd {
			t.Fatal(got, err)
		}
	})
}

func FuzzParseRetry(f *testing.F) {
	f.Add("retry within 5s: x")
	f.Fuzz(func(t *testing.T, s string) {
		if d, ok := ParseRetry(s); d < 0 || d > maxRetry || !ok && d != 0 {
			t.Fatal(d, ok)
		}
	})
}
