package main

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// tree makes some files and returns their directory.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"etc/one": "1", "etc/sub/two": "22", "run.sh": "#!/bin/sh\n"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Unix(1e9, 0), time.Unix(1e9, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "run.sh"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("one", filepath.Join(dir, "etc/link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// show lists a tree as text.
func show(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || rel == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := info.Mode().String() + " " + rel
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += " " + string(data) + " " + info.ModTime().UTC().Format(time.DateOnly)
		case info.Mode()&os.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " " + to
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// parse is parseTar for arguments that are right.
func parse(t *testing.T, args ...string) tarOptions {
	t.Helper()
	o, err := parseTar(args)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestRoundTrip(t *testing.T) {
	from, to := tree(t), t.TempDir()
	var archive bytes.Buffer
	// As `kubectl cp` from a pod: tar cf - <path>.
	if err := create(&archive, parse(t, "cf", "-", "-C", from, "etc", "run.sh")); err != nil {
		t.Fatal(err)
	}
	// As `kubectl cp` to a pod: tar -xmf - -C <dir>.
	if err := read(bytes.NewReader(archive.Bytes()), parse(t, "-xpf", "-", "-C", to)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(show(t, from), show(t, to)); diff != "" {
		t.Errorf("tree (-made +extracted):\n%s", diff)
	}
	some := t.TempDir()
	if err := read(bytes.NewReader(archive.Bytes()), parse(t, "-xmof", "-", "-C", some, "etc/sub")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(some, "etc/sub/two")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(some, "run.sh")); !os.IsNotExist(err) {
		t.Errorf("extracted what was not asked for: %v", err)
	}
}

// TestSystemTar reads our archives with the system's tar, and the reverse.
func TestSystemTar(t *testing.T) {
	system, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("no tar on this system")
	}
	from, ours, theirs := tree(t), t.TempDir(), t.TempDir()
	var archive bytes.Buffer
	if err := create(&archive, parse(t, "cf", "-", "-C", from, ".")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), system, "xpf", "-", "-C", theirs)
	cmd.Stdin = &archive
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if diff := cmp.Diff(show(t, from), show(t, theirs)); diff != "" {
		t.Errorf("extracted by the system's tar (-made +extracted):\n%s", diff)
	}
	out, err := exec.CommandContext(t.Context(), system, "cf", "-", "-C", from, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := read(bytes.NewReader(out), parse(t, "xpf", "-", "-C", ours)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(show(t, from), show(t, ours)); diff != "" {
		t.Errorf("extracted from the system's tar (-made +extracted):\n%s", diff)
	}
}

func TestExtractStaysInside(t *testing.T) {
	for name, headers := range map[string][]tar.Header{
		"dots":     {{Typeflag: tar.TypeReg, Name: "../escaped", Size: 1, Mode: 0o644}},
		"link":     {{Typeflag: tar.TypeSymlink, Name: "out", Linkname: ".."}, {Typeflag: tar.TypeReg, Name: "out/escaped", Size: 1, Mode: 0o644}},
		"hard":     {{Typeflag: tar.TypeLink, Name: "in", Linkname: "../secret"}},
		"absolute": {{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "/tmp"}, {Typeflag: tar.TypeReg, Name: "out/escaped", Size: 1, Mode: 0o644}},
	} {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			inside := filepath.Join(top, "inside")
			if err := os.Mkdir(inside, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(top, "secret"), []byte("s"), 0o600); err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			tw := tar.NewWriter(&b)
			for _, h := range headers {
				if err := tw.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
				if h.Size > 0 {
					if _, err := tw.Write(make([]byte, h.Size)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := tw.Close(); err != nil {
				t.Fatal(err)
			}
			if err := read(&b, parse(t, "xf", "-", "-C", inside)); err == nil {
				t.Error("no error")
			}
			if _, err := os.Stat(filepath.Join(top, "escaped")); !os.IsNotExist(err) {
				t.Errorf("wrote outside: %v", err)
			}
		})
	}
}

func TestParseTar(t *testing.T) {
	for text, want := range map[string]tarOptions{
		"cf - a b":     {mode: 'c', file: "-", dir: ".", paths: []string{"a", "b"}},
		"-xmf - -C /x": {mode: 'x', file: "-", dir: "/x", touch: true},
		"--no-same-permissions --no-same-owner -xmf -": {mode: 'x', file: "-", dir: ".", touch: true, noOwner: true},
		"xf f -- -odd":      {mode: 'x', file: "f", dir: ".", paths: []string{"-odd"}},
		"-t --directory=/x": {mode: 't', file: "-", dir: "/x"},
	} {
		got, err := parseTar(strings.Fields(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(tarOptions{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
	for _, text := range []string{"", "f -", "cx", "czf -", "cf", "--gzip -c a"} {
		if _, err := parseTar(strings.Fields(text)); err == nil {
			t.Errorf("%q accepted", text)
		}
	}
}

func FuzzRead(f *testing.F) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	if err := tw.WriteHeader(&tar.Header{Name: "a/../../b", Size: 1, Mode: 0o644}); err != nil {
		f.Fatal(err)
	}
	if _, err := tw.Write([]byte("x")); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		// Only that it ends and stays inside, which os.Root sees to.
		if err := read(io.LimitReader(bytes.NewReader(data), 1<<20), tarOptions{mode: 'x', dir: t.TempDir(), noOwner: true}); err != nil {
			t.Skip(err)
		}
	})
}
