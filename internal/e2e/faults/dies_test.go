//go:build linux

package faults

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

// TestProgramThatDiesAtOnce shows that a broken program is told by its name, its
// exit and its last words, soon, and that the next apply finishes once it is
// repaired.
func TestProgramThatDiesAtOnce(t *testing.T) {
	r := rig.New(t)
	cache := brokenCache(t, "etcd", "flag provided but not defined: -impossible", 2)
	r.Config(t, header+cluster("dies", ""))
	began := time.Now()
	res := r.Run(t.Context(), []string{"EDGE_COMPONENT_CACHE=" + cache}, r.TerraformPath(), applyArgs...)
	took := time.Since(began)
	t.Logf("a program that dies at once is told after %.1f s", took.Seconds())
	if res.Err == nil {
		t.Fatal("apply succeeded with a broken program")
	}
	said := plain(res.Stderr)
	for _, want := range []string{"etcd", "exited with code 2", "flag provided but not defined: -impossible", "edge logs local/dies-"} {
		contains(t, said, want)
	}
	if took > 30*time.Second {
		t.Errorf("it took %s to say so", took)
	}
	began = time.Now()
	r.Apply(t)
	t.Logf("apply after the repair: %.1f s", time.Since(began).Seconds())
	r.ExpectNoChanges(t)
	id := output(t, r, "dies")
	dirs, err := filepath.Glob(filepath.Join(r.StateDir, "clusters", "dies-*"))
	if err != nil || len(dirs) != 1 || dirs[0] != dirOf(r, id) {
		t.Errorf("clusters %v, %v; want that of %s alone", dirs, err, id)
	}
	r.Destroy(t)
	expectNothingLeft(t, r, id)
}

// brokenCache is the component cache with one program replaced by one that
// prints a line and ends. It keeps size and time, so that it is not taken for
// damage, which would be repaired.
func brokenCache(t *testing.T, program, says string, code int) string {
	t.Helper()
	real := os.Getenv("EDGE_COMPONENT_CACHE")
	if real == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		real = filepath.Join(dir, "edge", "components")
	}
	// Beside the real one, so that files can be links.
	fake, err := os.MkdirTemp(filepath.Dir(real), "broken-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(fake); err != nil {
			t.Error(err)
		}
	})
	broken := false
	err = fs.WalkDir(os.DirFS(real), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == "tmp" || path == "logs" || path == "locks" {
			return fs.SkipDir
		}
		to := filepath.Join(fake, path)
		if d.IsDir() {
			return os.MkdirAll(to, 0o700)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.Name() != program {
			return os.Link(filepath.Join(real, path), to)
		}
		broken = true
		body := "#!/bin/sh\necho '" + says + "' >&2\nexit " + string(rune('0'+code)) + "\n"
		f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o700)
		if err != nil {
			return err
		}
		_, err = f.WriteString(body + strings.Repeat("\n", 16))
		return errors.Join(err, f.Truncate(info.Size()), f.Close(), os.Chtimes(to, info.ModTime(), info.ModTime()))
	})
	if err != nil || !broken {
		t.Fatalf("copy the cache: %v; %s found: %v", err, program, broken)
	}
	return fake
}
