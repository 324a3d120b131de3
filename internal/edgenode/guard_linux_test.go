//go:build linux

package edgenode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tree makes <state>/clusters/lab-<uid>/nodes/n with a subdirectory.
func tree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state", "clusters", "lab-"+testUID, nodesDir, "n")
	if err := os.MkdirAll(filepath.Join(dir, pkiDir), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestCheckTree(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	// user gives the whole tree to a user, as the engine makes it.
	user := func(dir string, uid int) error {
		for _, d := range []string{stateDir(dir), filepath.Dir(clusterDir(dir)), clusterDir(dir), filepath.Dir(dir), dir, filepath.Join(dir, pkiDir)} {
			if err := os.Chown(d, uid, uid); err != nil {
				return err
			}
		}
		return nil
	}
	link := func(path string) error {
		return errors.Join(os.RemoveAll(path), os.Symlink("/etc", path))
	}
	tests := map[string]struct {
		change func(dir string) error
		sudo   string
		owner  int
		want   string // in the error; empty: accepted
	}{
		"root's":                 {func(string) error { return nil }, "", 0, ""},
		"root's, by sudo":        {func(string) error { return nil }, "1000", 0, ""},
		"a user's":               {func(d string) error { return user(d, 1000) }, "", 1000, ""},
		"a user's, by sudo":      {func(d string) error { return user(d, 1000) }, "1000", 1000, ""},
		"another user's by sudo": {func(d string) error { return user(d, 1001) }, "1000", 0, "user 1001, and user 1000 asks"},
		"two users'":             {func(d string) error { return errors.Join(user(d, 1000), os.Chown(clusterDir(d), 1001, 1001)) }, "", 0, "one user at a time"},
		"open to all":            {func(d string) error { return os.Chmod(filepath.Dir(d), 0o777) }, "", 0, "written by others"},
		"open to a group":        {func(d string) error { return os.Chmod(stateDir(d), 0o770) }, "", 0, "written by others"},
		"a link for keys":        {func(d string) error { return link(filepath.Join(d, pkiDir)) }, "", 0, "is not a directory"},
		"a link for sites":       {func(d string) error { return link(filepath.Join(clusterDir(d), sitesDir)) }, "", 0, "is not a directory"},
		"a link for data":        {func(d string) error { return link(filepath.Join(d, dataDir)) }, "", 0, "is not a directory"},
		"a link for the node":    {func(d string) error { return link(d) }, "", 0, "is not a directory"},
		"a link for the cluster": {func(d string) error { return link(clusterDir(d)) }, "", 0, "is not a directory"},
		"nothing left":           {func(d string) error { return os.RemoveAll(clusterDir(d)) }, "", 0, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := tree(t)
			if err := tt.change(dir); err != nil {
				t.Fatal(err)
			}
			owner, err := checkTree(dir, tt.sudo)
			if tt.want == "" && (err != nil || owner != tt.owner) {
				t.Errorf("user %d (%v), want %d", owner, err, tt.owner)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := checkTree(filepath.Join(t.TempDir(), "other", "n"), ""); err == nil {
		t.Error("a directory that is not below nodes is accepted")
	}
}

func TestCheckOwner(t *testing.T) {
	spec := testSpec()
	spec.OwnerUID = 1000
	for name, tt := range map[string]struct {
		dir   string
		owner int
		ok    bool
	}{
		"its own":        {"/s/nodes/b-1", 1000, true},
		"root's":         {"/s/nodes/b-1", 0, true},
		"somebody's":     {"/s/nodes/b-1", 1001, false},
		"another node's": {"/s/nodes/b-2", 1000, false},
	} {
		if err := checkOwner(spec, tt.dir, tt.owner); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A state directory may be reached through a link; what is below it may not.
func TestLocate(t *testing.T) {
	dir := tree(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(stateDir(dir), link); err != nil {
		t.Fatal(err)
	}
	through := filepath.Join(link, "clusters", "lab-"+testUID, nodesDir, "n")
	if got := locate(through); got != dir {
		t.Errorf("%s is %s, want %s", through, got, dir)
	}
}

// Whoever waited for a node that is purged meanwhile must not start it, and the
// lock of a node that is gone is no lock.
func TestUpAfterPurge(t *testing.T) {
	realCgroups(t)
	dir, _ := nodeDir(t, "t-purged")
	lock, err := lockNode(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	up := make(chan error, 1)
	go func() {
		up <- Up(t.Context(), UpOptions{Dir: dir, Edge: "/bin/true", Preflight: func(context.Context, string) error {
			return errors.New("the purged node is made again")
		}})
	}()
	waiting := func() bool { // it has opened the lock's file
		fds, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && to == lockPath(dir) {
				n++
			}
		}
		return n > 1
	}
	for !waiting() {
		select {
		case err := <-up:
			t.Fatalf("it has not waited: %v", err)
		default:
		}
	}
	if err := errors.Join(purge(dir), lock.discard()); err != nil {
		t.Fatal(err)
	}
	lock.unlock()
	if err := <-up; err == nil || !strings.Contains(err.Error(), "is not a node's directory") {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) > 0 {
		t.Errorf("left: %v (%v)", left, err)
	}
}

func TestLockEndsWithItsContext(t *testing.T) {
	dir := tree(t)
	lock, err := lockNode(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.unlock()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, errors.New("interrupted"))
	defer cancel()
	if _, err := lockNode(ctx, dir); err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("got %v", err)
	}
}

// A run that fails leaves nothing of root's in the user's directory, and no
// token that nobody will use.
func TestFailedUpLeavesNothingOfRoots(t *testing.T) {
	realCgroups(t)
	dir, spec := nodeDir(t, "t-failed")
	spec.OwnerUID, spec.OwnerGID = 12345, 12345
	if err := WriteSpec(dir, spec); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		edge string
		pre  error
		want string
	}{
		{"before anything is made", "/bin/true", errors.New("no machine for it"), "no machine for it"},
		{"after", filepath.Join(dir, "none"), nil, "program " + filepath.Join(dir, "none")},
	} {
		err := Up(t.Context(), UpOptions{Dir: dir, Edge: tt.edge, Token: "secret", Preflight: func(context.Context, string) error { return tt.pre }})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if _, err := os.Stat(tokenPath(dir)); !os.IsNotExist(err) {
			t.Errorf("%s: the token is left (%v)", tt.name, err)
		}
		err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if d.Name() == dataDir {
				return filepath.SkipDir
			}
			if owner := fmt.Sprint(info.Sys()); !strings.Contains(owner, " 12345 12345 ") {
				t.Errorf("%s: %s is of %s", tt.name, path, owner)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if err := Down(t.Context(), DownOptions{Dir: dir, Purge: true}); err != nil {
		t.Error(err)
	}
}
