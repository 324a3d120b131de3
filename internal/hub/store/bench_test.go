package store

import (
	"fmt"
	"strings"
	"testing"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// BenchmarkOpen is what a node waits for before it can serve: 5,000 objects of
// 1.5 KB, some of a large cluster's slices.
func BenchmarkOpen(b *testing.B) {
	d := newDisk(b)
	s, _ := d.open()
	var many []*replica.Object
	for i := range 5000 {
		many = append(many, pod(b, fmt.Sprint("p", i), 1, strings.Repeat("x", 1500)))
	}
	s.Write(Change{Collection: pods, State: state(1), Put: many})
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		s, found, err := Open(d.options())
		if err != nil || len(found[0].Objects) != len(many) {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
