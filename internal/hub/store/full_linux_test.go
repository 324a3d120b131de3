package store

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// newSmallDisk is a disk of its own, of so many bytes. It needs root.
func newSmallDisk(t *testing.T, options string) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a disk of its own needs root")
	}
	d := newDisk(t)
	if err := unix.Mount("tmpfs", d.dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Whatever a test that fails has left open.
		if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return d
}

// TestFullDisk: a store that would be made smaller is opened all the same where
// nothing is left to write the smaller one, and leaves nothing of it behind.
func TestFullDisk(t *testing.T) {
	d := newSmallDisk(t, "size=16m,mode=0700")
	want := d.mostlyFree()
	if err := os.WriteFile(filepath.Join(d.dir, "log"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	filler, err := os.OpenFile(filepath.Join(d.dir, "log"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}

	var log bytes.Buffer
	o := d.options()
	o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	s, found, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if diff := cmp.Diff(lines(want), lines(found)); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(log.String(), "stays as large as it is") || !strings.Contains(log.String(), "no space left") {
		t.Errorf("it said: %s", &log)
	}
	if _, err := os.Stat(d.path() + ".compact"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the copy: %v", err)
	}
	// There is room in the file itself.
	if err := s.Commit(t.Context(), Change{Collection: pools, State: state(4), Put: []*replica.Object{pool(t, "berlin")}}); err != nil {
		t.Error(err)
	}
}

// TestReadOnlyDisk: a store on a disk that nobody can write is read; Err says that
// it is not written, and it is again as soon as it can be.
func TestReadOnlyDisk(t *testing.T) {
	d := newSmallDisk(t, "size=32m,mode=0700")
	want := d.mostlyFree()
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", d.dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	o := d.options()
	o.syncDir = func(string) error { return unix.EROFS } // as of one that gave up because of errors
	s, found, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(lines(want), lines(found)); diff != "" {
		t.Error(diff)
	}
	if !errors.Is(s.Err(), unix.EROFS) {
		t.Errorf("before a write: %v", s.Err())
	}
	berlin := pool(t, "berlin")
	if err := s.Commit(t.Context(), Change{Collection: pools, State: state(4), Put: []*replica.Object{berlin}}); !errors.Is(err, unix.EROFS) || !errors.Is(s.Err(), unix.EROFS) {
		t.Errorf("a write: %v, and then %v", err, s.Err())
	}
	remount(0)
	d.clock.Step(retryInterval)
	for s.Err() != nil {
		time.Sleep(time.Millisecond) // the clock's own goroutine writes
	}
	_, found = d.reopen(s)
	want = append(want, Stored{pools, state(4), []*replica.Object{berlin}})
	if diff := cmp.Diff(lines(want), lines(found)); diff != "" {
		t.Error(diff)
	}
}
