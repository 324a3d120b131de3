package edgenode

import (
	"bytes"
	"testing"
	"time"
)

func TestReporter(t *testing.T) {
	at := time.Unix(0, 0)
	now := func() time.Time { at = at.Add(900 * time.Millisecond); return at }
	for name, tt := range map[string]struct {
		make func(b *bytes.Buffer) *Reporter
		want string
	}{
		"for programs": {func(b *bytes.Buffer) *Reporter { return NewReporter(b, now) }, `{"phase":"running","message":"the node is up","elapsed_ms":900}` + "\n"},
		"for people":   {func(b *bytes.Buffer) *Reporter { return NewTextReporter(b, now) }, "     0.9s  running         the node is up\n"},
	} {
		var b bytes.Buffer
		tt.make(&b).Say("running", "the node is up")
		if b.String() != tt.want {
			t.Errorf("%s: %q", name, b.String())
		}
	}
}
