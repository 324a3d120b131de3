package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

var (
	secrets = replica.Collection{Resource: schema.GroupVersionResource{Version: "v1", Resource: "secrets"}, Namespace: "shop", Name: "key"}
	pods    = replica.Collection{Resource: schema.GroupVersionResource{Version: "v1", Resource: "pods"}, Node: "n1"}
	pools   = replica.Collection{Resource: schema.GroupVersionResource{Group: "edgewright.dev", Version: "v1alpha1", Resource: "nodepools"}}
)

func state(version replica.Version) State {
	return State{Kind: schema.GroupVersionKind{Version: "v1", Kind: "Pod"}, Version: version, Changed: version, Complete: true}
}

// pod is an object in protobuf with a payload.
func pod(t testing.TB, name string, version replica.Version, payload string) *replica.Object {
	t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("u-" + name), ResourceVersion: version.String()},
		Spec:       corev1.PodSpec{NodeName: "n1", SchedulerName: payload},
	}
	message, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	o, err := replica.NewObject(wire.MediaProtobuf, wire.Envelope{APIVersion: "v1", Kind: "Pod", Message: message}.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func pool(t testing.TB, name string) *replica.Object {
	t.Helper()
	o, err := replica.NewObject(wire.MediaJSON, fmt.Appendf(nil, `{"kind":"NodePool","metadata":{"name":%q,"resourceVersion":"4"}}`, name))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// disk is a directory with a store in it.
type disk struct {
	t     testing.TB
	dir   string
	clock *clocktesting.FakeClock
}

func newDisk(t testing.TB) *disk {
	return &disk{t: t, dir: t.TempDir(), clock: clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))}
}

func (d *disk) path() string { return filepath.Join(d.dir, "replica.db") }

func (d *disk) options() Options {
	return Options{
		Path: d.path(), KeyPath: filepath.Join(d.dir, "replica.key"), Clock: d.clock,
		Logger: slog.New(slog.DiscardHandler),
	}
}

func (d *disk) open() (*Store, []Stored) {
	d.t.Helper()
	s, found, err := Open(d.options())
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { s.Close() })
	return s, found
}

// reopen closes the store and opens it anew.
func (d *disk) reopen(s *Store) (*Store, []Stored) {
	d.t.Helper()
	if err := s.Close(); err != nil {
		d.t.Fatal(err)
	}
	return d.open()
}

func (d *disk) damaged() []string {
	d.t.Helper()
	found, err := filepath.Glob(d.path() + damagedMark + "*")
	if err != nil {
		d.t.Fatal(err)
	}
	return found
}

// commits is how many transactions the file has seen.
func commits(t *testing.T, s *Store) int {
	t.Helper()
	n := 0
	if err := s.db.View(func(tx *bolt.Tx) error { n = tx.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// lines tells what a store holds, a line for each collection and object.
func lines(found []Stored) []string {
	var lines []string
	for _, f := range found {
		lines = append(lines, fmt.Sprintf("%s %+v", f.Collection, f.State))
		for _, o := range f.Objects {
			lines = append(lines, fmt.Sprintf("%s %s/%s@%s %s %s %x", f.Collection, o.Namespace, o.Name, o.Version, o.UID, o.Media, sha256.Sum256(o.Raw)))
		}
	}
	slices.Sort(lines)
	return lines
}

func TestRoundTrip(t *testing.T) {
	d := newDisk(t)
	s, found := d.open()
	if len(found) != 0 {
		t.Errorf("a new store holds %v", found)
	}
	a, b, c := pod(t, "a", 5, ""), pod(t, "b", 6, strings.Repeat("x", 20000)), pod(t, "c", 7, "")
	key, p := pod(t, "key", 3, "hunter2"), pool(t, "berlin")
	s.Write(Change{Collection: pods, State: state(6), Put: []*replica.Object{a, b}})
	s.Write(Change{Collection: pods, State: state(8), Put: []*replica.Object{c}, Delete: []*replica.Object{a}})
	s.Write(Change{Collection: secrets, State: state(3), Put: []*replica.Object{key}, Seal: true})
	s.Write(Change{Collection: pools, State: state(4), Put: []*replica.Object{p}})
	s, found = d.reopen(s)
	want := []Stored{
		{pods, state(8), []*replica.Object{b, c}},
		{secrets, state(3), []*replica.Object{key}},
		{pools, state(4), []*replica.Object{p}},
	}
	if diff := cmp.Diff(lines(want), lines(found)); diff != "" {
		t.Fatal(diff)
	}

	// Replaced, dropped, and moved to a version only.
	s.Write(Change{Collection: pods, State: state(9), Replace: true, Put: []*replica.Object{a}})
	s.Write(Change{Collection: secrets, Drop: true})
	s.Move(pools, state(20))
	s.Move(secrets, state(20)) // too late: nothing may come back
	s, found = d.reopen(s)
	want = []Stored{{pods, state(9), []*replica.Object{a}}, {pools, state(20), []*replica.Object{p}}}
	if diff := cmp.Diff(lines(want), lines(found)); diff != "" {
		t.Fatal(diff)
	}

	// Dropped and begun anew within one batch.
	s.Write(Change{Collection: pods, Drop: true})
	s.Write(Change{Collection: pods, State: state(11), Put: []*replica.Object{c}})
	_, found = d.reopen(s)
	want[0] = Stored{pods, state(11), []*replica.Object{c}}
	if diff := cmp.Diff(lines(want), lines(found)); diff != "" {
		t.Fatal(diff)
	}
	for _, name := range []string{"replica.db", "replica.key"} {
		info, err := os.Stat(filepath.Join(d.dir, name))
		if err != nil || info.Mode() != fileMode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestBatches(t *testing.T) {
	d := newDisk(t)
	s, _ := d.open()
	before := commits(t, s)
	for v := replica.Version(1); v <= 50; v++ {
		s.Write(Change{Collection: pods, State: state(v), Put: []*replica.Object{pod(t, "a", v, "")}})
	}
	d.clock.Step(CommitInterval - time.Millisecond)
	if n := commits(t, s) - before; n != 0 {
		t.Errorf("%d transactions before the interval was over", n)
	}
	d.clock.Step(time.Millisecond)
	for commits(t, s) == before {
		// The batch is written by the clock's own goroutine.
		time.Sleep(time.Millisecond)
	}
	if n := commits(t, s) - before; n != 1 {
		t.Errorf("%d transactions for one batch", n)
	}

	before = commits(t, s)
	if err := s.Commit(t.Context(), Change{Collection: pods, State: state(51), Put: []*replica.Object{pod(t, "b", 51, "")}}); err != nil {
		t.Fatal(err)
	}
	if n := commits(t, s) - before; n != 1 {
		t.Errorf("%d transactions for a commit", n)
	}

	// At rest nothing is written, however long it lasts and bookmarks come.
	info, err := os.Stat(d.path())
	if err != nil {
		t.Fatal(err)
	}
	before = commits(t, s)
	for v := replica.Version(52); v < 152; v++ {
		s.Move(pods, state(v))
		d.clock.Step(time.Minute)
	}
	if d.clock.HasWaiters() {
		t.Error("a write is due")
	}
	later, err := os.Stat(d.path())
	if err != nil {
		t.Fatal(err)
	}
	if n := commits(t, s) - before; n != 0 || later.ModTime() != info.ModTime() {
		t.Errorf("%d transactions at rest", n)
	}
	// They go along with the next change of anything.
	if err := s.Commit(t.Context(), Change{Collection: pools, State: state(4)}); err != nil {
		t.Fatal(err)
	}
	_, found := d.reopen(s)
	for _, f := range found {
		if f.Collection == pods && f.State.Version != 151 {
			t.Errorf("pods are at %s", f.State.Version)
		}
	}
}

func TestSecretsAreSealed(t *testing.T) {
	d := newDisk(t)
	s, _ := d.open()
	const plain = "the-plaintext-of-a-secret"
	s.Write(Change{Collection: secrets, State: state(3), Put: []*replica.Object{pod(t, "key", 3, plain)}, Seal: true})
	s.Write(Change{Collection: pods, State: state(3), Put: []*replica.Object{pod(t, "a", 3, "no secret at all")}})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(d.path())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, []byte(plain)) {
		t.Error("the secret is readable in the file")
	}
	if !bytes.Contains(raw, []byte("no secret at all")) {
		t.Error("the test would not find a readable secret")
	}
	key, err := os.ReadFile(filepath.Join(d.dir, "replica.key"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, key) {
		t.Error("the key lies in the file")
	}

	// With another key they are gone, and the rest is there.
	if err := os.Remove(filepath.Join(d.dir, "replica.key")); err != nil {
		t.Fatal(err)
	}
	s, found := d.open()
	if len(found) != 1 || found[0].Collection != pods || len(d.damaged()) != 0 {
		t.Errorf("with another key: %v", found)
	}
	_, found = d.reopen(s)
	if len(found) != 1 {
		t.Errorf("and again: %v", found)
	}

	if err := os.WriteFile(filepath.Join(d.dir, "replica.key"), []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, _, err := Open(d.options()); err == nil || strings.Contains(err.Error(), "short") {
		t.Errorf("with a file that is no key: %v", err)
	}
}

// TestSealedRecordsStay where they were written: a record under another name
// does not open.
func TestSealedRecordsStay(t *testing.T) {
	d := newDisk(t)
	s, _ := d.open()
	record := encodeObject([]byte("k1\x00shop/a"), pod(t, "a", 1, "x"), true, s.seal)
	if _, err := decodeObject([]byte("k1\x00shop/a"), record, s.seal); err != nil {
		t.Error(err)
	}
	moved := encodeRecord([]byte("k2\x00shop/a"), flagSealed, record[recordHeader:])
	if _, err := decodeObject([]byte("k2\x00shop/a"), moved, s.seal); err == nil {
		t.Error("a record sealed for one place opens in another")
	}
}

func TestDiskFails(t *testing.T) {
	d := newDisk(t)
	s, _ := d.open()
	s.Write(Change{Collection: pods, State: state(1), Put: []*replica.Object{pod(t, "a", 1, ""), pod(t, "b", 1, "")}})
	s.Write(Change{Collection: secrets, State: state(1), Put: []*replica.Object{pod(t, "key", 1, "")}})
	if err := s.flush(false); err != nil {
		t.Fatal(err)
	}
	// The disk goes: every transaction fails.
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	s.Move(pods, state(2))
	if err := s.Commit(t.Context(), Change{Collection: pods, State: state(3), Put: []*replica.Object{pod(t, "c", 3, "")}}); err == nil || s.Err() == nil {
		t.Error("a commit to a failed disk succeeded")
	}
	s.Write(Change{Collection: pods, State: state(4), Delete: []*replica.Object{pod(t, "a", 1, "")}})
	s.Write(Change{Collection: secrets, Drop: true})
	if err := s.flush(false); err == nil {
		t.Error("a flush to a failed disk succeeded")
	}
	s.Move(pods, state(5))
	if !d.clock.HasWaiters() {
		t.Error("it is not tried again")
	}
	// It comes back.
	s.flushing.Lock()
	err := openBolt(d.path(), lockTimeout, false, &s.db)
	s.flushing.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	d.clock.Step(retryInterval)
	for s.Err() != nil {
		time.Sleep(time.Millisecond) // the clock's own goroutine writes
	}
	_, found := d.reopen(s)
	want := []Stored{{pods, state(5), []*replica.Object{pod(t, "b", 1, ""), pod(t, "c", 3, "")}}}
	if diff := cmp.Diff(lines(want), lines(found)); diff != "" {
		t.Error(diff)
	}
}

func TestHeldByAnother(t *testing.T) {
	d := newDisk(t)
	d.open()
	o := d.options()
	o.lockTimeout = 100 * time.Millisecond
	if _, _, err := Open(o); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	if len(d.damaged()) != 0 {
		t.Error("a store in use was set aside")
	}
}

func TestNewerSchema(t *testing.T) {
	d := newDisk(t)
	s, _ := d.open()
	err := s.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(metaSchema, []byte{0, 0, 0, byte(len(migrations) + 1)})
	})
	if err != nil {
		t.Fatal(err)
	}
	_, found := d.reopen(s)
	if len(found) != 0 || len(d.damaged()) != 1 {
		t.Errorf("a store of a newer program gave %v, set aside %v", found, d.damaged())
	}
}

func TestDamagedFilesAreBounded(t *testing.T) {
	d := newDisk(t)
	for i := range 5 {
		if err := os.WriteFile(d.path(), fmt.Appendf(nil, "no store, the %dth", i), 0o600); err != nil {
			t.Fatal(err)
		}
		s, _ := d.open()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		d.clock.Step(time.Hour)
	}
	kept := d.damaged()
	if len(kept) != keepDamaged {
		t.Fatalf("kept %v", kept)
	}
	for i, path := range kept {
		b, err := os.ReadFile(path)
		if err != nil || string(b) != fmt.Sprintf("no store, the %dth", 5-keepDamaged+i) {
			t.Errorf("kept %q (%v)", b, err)
		}
	}
}

// mostlyFree leaves a file of which most is free, and returns what it holds.
func (d *disk) mostlyFree() []Stored {
	d.t.Helper()
	s, _ := d.open()
	var many []*replica.Object
	for i := range 600 {
		many = append(many, pod(d.t, fmt.Sprint("p", i), 1, strings.Repeat("x", 10000)))
	}
	few := many[:3]
	s.Write(Change{Collection: pods, State: state(1), Put: many})
	if err := s.flush(false); err != nil {
		d.t.Fatal(err)
	}
	s.Write(Change{Collection: pods, State: state(2), Replace: true, Put: few})
	if err := s.Close(); err != nil {
		d.t.Fatal(err)
	}
	return []Stored{{pods, state(2), few}}
}

func TestCompaction(t *testing.T) {
	d := newDisk(t)
	want := d.mostlyFree()
	before, err := os.Stat(d.path())
	if err != nil {
		t.Fatal(err)
	}
	_, found := d.open()
	after, err := os.Stat(d.path())
	if err != nil {
		t.Fatal(err)
	}
	if before.Size() < compactAbove || after.Size()*4 > before.Size() || after.Mode() != fileMode {
		t.Errorf("%d bytes became %d, mode %v", before.Size(), after.Size(), after.Mode())
	}
	if diff := cmp.Diff(lines(want), lines(found)); diff != "" {
		t.Error(diff)
	}
}

// TestCompactionInTheWay: a store whose smaller copy cannot be made, or cannot take
// its place, is used as it is.
func TestCompactionInTheWay(t *testing.T) {
	d := newDisk(t)
	want := d.mostlyFree()
	// What is in the way of the copy cannot be removed, for it is not empty.
	if err := os.MkdirAll(filepath.Join(d.path()+".compact", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, found := d.open()
	if diff := cmp.Diff(lines(want), lines(found)); diff != "" {
		t.Error(diff)
	}
	if err := s.Commit(t.Context(), Change{Collection: pools, State: state(4), Put: []*replica.Object{pool(t, "berlin")}}); err != nil {
		t.Error(err)
	}
}

// TestOpenFailsLate: a store that cannot be opened to its end lets go of the file.
func TestOpenFailsLate(t *testing.T) {
	d := newDisk(t)
	o := d.options()
	o.syncDir = func(string) error { return syscall.EIO }
	if _, _, err := Open(o); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	s, _ := d.open()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
