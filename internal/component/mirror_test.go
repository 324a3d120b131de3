//go:build unix

package component

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// mirrorOf builds once and returns a copy of that cache as a mirror.
func mirrorOf(t *testing.T) string {
	t.Helper()
	b := newBench(t)
	b.mustEnsure()
	dir := t.TempDir()
	for _, part := range []string{indexName, layoutDir} {
		from, to := filepath.Join(b.opts.Cache, part), filepath.Join(dir, part)
		info, err := os.Stat(from)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			err = os.CopyFS(to, os.DirFS(from))
		} else {
			var data []byte
			if data, err = os.ReadFile(from); err == nil {
				err = os.WriteFile(to, data, 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func pinOf(t *testing.T, mirror string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(mirror, indexName))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return "#" + pinPrefix + hex.EncodeToString(sum[:])
}

func TestMirror(t *testing.T) {
	dir := mirrorOf(t)
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, filepath.Base(r.URL.Path))
		http.StripPrefix("/components", http.FileServer(http.Dir(dir))).ServeHTTP(w, r)
	}))
	defer server.Close()
	for name, address := range map[string]string{
		"directory":        dir,
		"pinned directory": dir + pinOf(t, dir),
		"pinned http":      server.URL + "/components" + pinOf(t, dir),
	} {
		t.Run(name, func(t *testing.T) {
			asked = nil
			b := newBench(t)
			b.opts.Mirror, b.opts.Source = address, SourceMirror
			p := b.mustEnsure()
			if b.builds() != 0 {
				t.Error("built what the mirror has")
			}
			if got := b.state(true); got != Present {
				t.Errorf("state %s", got)
			}
			one, err := os.Stat(p["one"])
			if err != nil {
				t.Fatal(err)
			}
			if one.Mode().Perm() != 0o755 {
				t.Errorf("mode %s", one.Mode())
			}
			if name == "pinned http" {
				if diff := cmp.Diff([]string{indexName, manifestName, "tiny"}, asked); diff != "" {
					t.Errorf("requests (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestMirrorWithWrongContentIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, mirror, entry string) (pin string){
		"file": func(t *testing.T, _, entry string) string {
			overwrite(t, filepath.Join(entry, "tiny"), "#!/bin/sh\necho evil\n")
			return ""
		},
		"longer file": func(t *testing.T, _, entry string) string {
			data, err := os.ReadFile(filepath.Join(entry, "tiny"))
			if err != nil {
				t.Fatal(err)
			}
			overwrite(t, filepath.Join(entry, "tiny"), string(data)+"echo evil\n")
			return ""
		},
		"manifest": func(t *testing.T, _, entry string) string {
			data, err := os.ReadFile(filepath.Join(entry, manifestName))
			if err != nil {
				t.Fatal(err)
			}
			overwrite(t, filepath.Join(entry, manifestName), strings.Replace(string(data), `"size"`, ` "size"`, 1))
			return ""
		},
		"index": func(t *testing.T, mirror, _ string) string {
			pin := pinOf(t, mirror)
			data, err := os.ReadFile(filepath.Join(mirror, indexName))
			if err != nil {
				t.Fatal(err)
			}
			overwrite(t, filepath.Join(mirror, indexName), string(data)+" ")
			return pin
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := mirrorOf(t)
			b := newBench(t)
			j, err := b.open().jobs(b.opts.releases[0], Node)
			if err != nil {
				t.Fatal(err)
			}
			entry := filepath.Join(dir, filepath.FromSlash(j[0].key))
			pin := spoil(t, dir, entry)
			b.opts.Mirror, b.opts.Source = dir+pin, SourceAuto
			if _, err := b.ensure(); !errors.Is(err, errDigest) {
				// "longer file" is of the manifest's size plus one when read.
				t.Errorf("error %v, want errDigest", err)
			}
			if b.builds() != 0 {
				t.Error("went on to build: someone should look at the mirror first")
			}
			if b.state(false) != Absent || len(b.leftovers()) > 0 {
				t.Errorf("left behind: %s, tmp %v", b.state(false), b.leftovers())
			}
		})
	}
}

func overwrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestMirrorThatLacksOrFails(t *testing.T) {
	empty := t.TempDir()
	overwrite(t, filepath.Join(empty, indexName), `{"schema": 1, "entries": {}}`)
	down := httptest.NewTLSServer(http.NotFoundHandler())
	down.Close()
	for name, address := range map[string]string{"lacks": empty, "unreachable": down.URL, "no index": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.opts.Mirror, b.opts.Source = address, SourceMirror
			if _, err := b.ensure(); err == nil {
				t.Error("no error although the mirror is the only source")
			}
			b.opts.Source = SourceAuto
			b.mustEnsure()
			if b.builds() != 1 {
				t.Errorf("built %d times, want 1", b.builds())
			}
			if name != "lacks" && !b.said("trying the Go module") {
				t.Error("nobody was told that the mirror cannot be read")
			}
		})
	}
}

func TestMirrorAddress(t *testing.T) {
	pin := "#" + pinPrefix + strings.Repeat("a", 64)
	for address, ok := range map[string]bool{
		"/srv/mirror":                     true,
		"/srv/mirror" + pin:               true,
		"https://host/path":               true,
		"http://host/path" + pin:          true,
		"http://host/path":                false,
		"ftp://host/path":                 false,
		"relative/path":                   false,
		"https://host/path#sha256=12":     false,
		"https://host/path#md5=" + pin:    false,
		"https://user:hunter2@host\x7f/":  false,
		"http://user:hunter2@host/plain/": false,
	} {
		_, err := openMirror(address, http.DefaultClient)
		if (err == nil) != ok {
			t.Errorf("openMirror(%q): %v", address, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("error shows a password: %v", err)
		}
	}
}
