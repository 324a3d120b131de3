package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseClusterID(t *testing.T) {
	for _, tc := range []struct {
		id   string
		want clusterID
		ok   bool
	}{
		{"local/quickstart-1f2e3d4c", clusterID{"local", "quickstart", "1f2e3d4c", ""}, true},
		{"ssh/a-b-1f2e3d4c@root@10.0.0.1:22", clusterID{"ssh", "a-b", "1f2e3d4c", "root@10.0.0.1:22"}, true},
		{"existing/x-00000000", clusterID{"existing", "x", "00000000", ""}, true},
		{"local/quickstart", clusterID{}, false},
		{"local/quickstart-1F2E3D4C", clusterID{}, false},
		{"cloud/quickstart-1f2e3d4c", clusterID{}, false},
		{"local/../../etc-1f2e3d4c", clusterID{}, false},
		{"local/a-1f2e3d4c@", clusterID{}, false},
		{"local/-a-1f2e3d4c", clusterID{}, false},
		{"", clusterID{}, false},
		{"local/a-1f2e3d4c@" + strings.Repeat("x", 600), clusterID{}, false},
	} {
		got, err := parseClusterID(tc.id)
		if (err == nil) != tc.ok {
			t.Errorf("%q: %v", tc.id, err)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%q: %s", tc.id, diff)
		}
	}
}

func FuzzParseClusterID(f *testing.F) {
	for _, s := range []string{"local/quickstart-1f2e3d4c", "ssh/a-1f2e3d4c@b", "local/../x-1f2e3d4c", "//", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := parseClusterID(s)
		if err != nil {
			return
		}
		if strings.ContainsAny(id.Name+id.UID, "/.\x00") {
			t.Errorf("%q: a name or uid leads out of the state directory: %+v", s, id)
		}
		again, err := parseClusterID(id.String())
		if err != nil || again.Name != id.Name || again.UID != id.UID {
			t.Errorf("%q: read again it is %+v, %v", s, again, err)
		}
	})
}

func newState(t *testing.T) stateDir {
	t.Helper()
	s := stateDir{t.TempDir()}
	if err := os.MkdirAll(s.clusters(), 0o700); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRecords(t *testing.T) {
	s := newState(t)
	ids := []clusterID{{"local", "b", "00000002", ""}, {"local", "a", "00000001", ""}}
	for _, id := range ids {
		if err := s.save(&record{ID: id.String(), UID: id.UID, Spec: ClusterSpec{Name: id.Name}, Phase: phaseComponents}); err != nil {
			t.Fatal(err)
		}
	}
	// What is not a record does not count: a directory that was never recorded.
	if err := os.MkdirAll(filepath.Join(s.clusters(), "c-00000003"), 0o700); err != nil {
		t.Fatal(err)
	}
	list, err := s.list()
	if err != nil || len(list) != 2 || list[0].Spec.Name != "a" {
		t.Fatalf("%v, %v", list, err)
	}
	if got := list[0].status(); got != "incomplete: components" {
		t.Errorf("status %q", got)
	}
	r, err := s.byName("b")
	if err != nil || r == nil || r.UID != "00000002" {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := s.byName("nobody"); r != nil || err != nil {
		t.Errorf("%v, %v", r, err)
	}
	info, err := os.Stat(filepath.Join(s.dir(ids[0]), "cluster.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}

	// Only a tombstone proves that a cluster is gone.
	if s.destroyed(ids[0]) {
		t.Error("destroyed before it was")
	}
	if err := s.bury(ids[0], time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.load(ids[0]); !errors.Is(err, fs.ErrNotExist) || !s.destroyed(ids[0]) {
		t.Errorf("load: %v, destroyed: %v", err, s.destroyed(ids[0]))
	}
	if err := s.bury(ids[0], time.Now()); err != nil {
		t.Errorf("burying it again: %v", err)
	}

	// A damaged record is an error that names it, never "there is none".
	if err := os.WriteFile(filepath.Join(s.dir(ids[1]), "cluster.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.byName("a"); err == nil || !strings.Contains(err.Error(), "a-00000001") {
		t.Errorf("a damaged record: %v", err)
	}
}

func TestLockIsExclusive(t *testing.T) {
	s := newState(t)
	unlock, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if second, err := s.lock(ctx); err == nil {
		second()
		t.Error("locked twice")
	}
	unlock()
	third, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	third()
}

func TestUnwritableStateDirectoryNamesTheVariable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := stateDir{filepath.Join(file, "state")}.lock(t.Context())
	if err == nil || !strings.Contains(err.Error(), "EDGE_STATE_DIR") {
		t.Errorf("%v", err)
	}
}

func TestDefaultStateDir(t *testing.T) {
	dir, err := DefaultStateDir(func(string) string { return "/somewhere" })
	if err != nil || dir != "/somewhere" {
		t.Errorf("%q, %v", dir, err)
	}
	t.Setenv("HOME", "/home/u")
	dir, err = DefaultStateDir(func(string) string { return "" })
	if err != nil || dir != "/home/u/.edge" {
		t.Errorf("%q, %v", dir, err)
	}
}
