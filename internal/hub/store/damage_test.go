package store

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// sample is the file of a store of some pages, with what it holds.
func sample(t testing.TB) ([]byte, []Stored) {
	t.Helper()
	d := newDisk(t)
	s, _ := d.open()
	var objects []*replica.Object
	for i := range 60 {
		objects = append(objects, pod(t, fmt.Sprint("p", i), replica.Version(i+1), string(bytes.Repeat([]byte{'x'}, 20*i))))
	}
	for i, o := range objects {
		s.Write(Change{Collection: pods, State: state(replica.Version(i + 1)), Put: []*replica.Object{o}})
		if i%20 == 0 {
			if err := s.flush(false); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.Write(Change{Collection: pools, State: state(4), Put: []*replica.Object{pool(t, "berlin")}})
	s, found := d.reopen(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(d.path())
	if err != nil {
		t.Fatal(err)
	}
	return raw, found
}

// tryDamaged opens a file and says whether it gave all there was; anything less
// must have been set aside and given nothing.
func tryDamaged(t *testing.T, raw []byte, want []Stored) bool {
	t.Helper()
	d := newDisk(t)
	if err := os.WriteFile(d.path(), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	s, found := d.open()
	defer s.Close()
	if len(d.damaged()) > 0 {
		if len(found) != 0 {
			t.Errorf("a damaged store gave %d collections", len(found))
		}
		return false
	}
	if len(raw) > 0 {
		if diff := cmp.Diff(lines(want), lines(found)); diff != "" {
			t.Errorf("a damaged store was served: %s", diff)
		}
	}
	// It can be written.
	if err := s.Commit(t.Context(), Change{Collection: pods, State: state(200), Put: []*replica.Object{pod(t, "new", 200, "")}}); err != nil {
		t.Error(err)
	}
	return true
}

// TestDamage: bits flipped, blocks zeroed or taken from elsewhere, files cut off,
// anywhere.
func TestDamage(t *testing.T) {
	raw, want := sample(t)
	if !tryDamaged(t, raw, want) {
		t.Fatal("a whole store was set aside")
	}
	random := rand.New(rand.NewPCG(3, 4))
	whole, aside := 0, 0
	for range 300 {
		b := bytes.Clone(raw)
		switch random.IntN(4) {
		case 0:
			b[random.IntN(len(b))] ^= 1 << random.IntN(8)
		case 1:
			from := random.IntN(len(b)/512) * 512
			clear(b[from:min(from+512<<random.IntN(4), len(b))])
		case 2:
			copy(b[random.IntN(len(b)/512)*512:], b[random.IntN(len(b)/512)*512:][:512])
		case 3:
			b = b[:random.IntN(len(b))]
		}
		if tryDamaged(t, b, want) {
			whole++
		} else {
			aside++
		}
	}
	// Most of the file is in use; some of it is free, or the older meta page.
	t.Logf("%d set aside, %d whole", aside, whole)
	if aside < 40 || whole < 40 {
		t.Errorf("%d set aside, %d whole: the test does not test", aside, whole)
	}
}

// FuzzFile: whatever the file holds, opening it neither fails nor panics.
func FuzzFile(f *testing.F) {
	raw, _ := sample(f)
	f.Add(raw[:16<<10], uint32(0), byte(0))
	f.Add(raw, uint32(5000), byte(1))
	f.Add([]byte{}, uint32(0), byte(0))
	f.Fuzz(func(t *testing.T, b []byte, at uint32, flip byte) {
		if len(b) > 0 {
			b = bytes.Clone(b)
			b[int(at)%len(b)] ^= flip
		}
		d := newDisk(t)
		if err := os.WriteFile(d.path(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, _ := d.open()
		if err := s.Commit(t.Context(), Change{Collection: pools, State: state(1), Put: []*replica.Object{pool(t, "x")}}); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// FuzzRecord: no record opens as anything but what was written under that key.
func FuzzRecord(f *testing.F) {
	d := newDisk(f)
	s, _ := d.open()
	key := []byte("pods/v1////n1\x00shop/a")
	for _, seal := range []bool{true, false} {
		f.Add(key, encodeObject(key, pod(f, "a", 1, "x"), seal, s.seal))
	}
	f.Add([]byte("nodepools/v1alpha1/edgewright.dev///\x00/berlin"), encodeRecord([]byte("k"), flagJSON, pool(f, "berlin").Raw))
	f.Fuzz(func(t *testing.T, key, record []byte) {
		o, err := decodeObject(key, record, s.seal)
		if err != nil {
			return
		}
		if !bytes.HasSuffix(key, []byte("\x00"+objectKey(o))) {
			t.Fatalf("%q holds %s", key, objectKey(o))
		}
		if c, err := parseCollectionKey(key); err == nil && string(collectionKey(c)) != string(key) {
			t.Fatalf("%q became %q", key, collectionKey(c))
		}
	})
}
