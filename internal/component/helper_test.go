//go:build unix

package component

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"
)

// TestMain lets a test start this binary as another process that fetches.
func TestMain(m *testing.M) {
	if dir := os.Getenv("COMPONENT_TEST_FETCH"); dir != "" {
		os.Exit(fetchProcess(dir))
	}
	os.Exit(m.Run())
}

// fetchProcess prints the kind of each event and, at the end, an error.
func fetchProcess(dir string) int {
	opts := fakeOptions(dir, fakeReleases())
	opts.Progress = func(e Event) { fmt.Println(e.Kind) }
	s, err := Open(opts)
	if err == nil {
		_, err = s.Ensure(context.Background(), "9.9.9", Node)
	}
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

// fakeRecipe is of a module that needs no other.
func fakeRecipe() Recipe {
	return Recipe{
		Module:  "tiny",
		Sources: map[string]string{"main.go": "tiny.go.txt"},
		Targets: []Target{{Package: ".", Output: "tiny", Links: []string{"one", "two"}, LDFlags: []string{"-X", "main.version=9.9.9"}}},
		files: fstest.MapFS{
			"recipes/tiny/go.mod.txt": {Data: []byte("module example.test/tiny\n\ngo 1.24\n")},
			"recipes/tiny/go.sum.txt": {},
			"tiny.go.txt":             {Data: []byte("package main\n\nimport \"os\"\n\nvar version string\n\nfunc main() { os.Stdout.WriteString(os.Args[0] + \" \" + version) }\n")},
		},
	}
}

func fakeReleases() []Release {
	return []Release{{Version: "9.9.9", Components: []Component{{
		Name: "tiny", Version: "9.9.9", Programs: map[Set][]string{Node: {"one", "two"}}, recipe: fakeRecipe(),
		OnlyOS: []string{runtime.GOOS},
	}}}}
}

// fakeGo is a go command that writes a line per build to dir/builds and waits
// while dir/gate exists, a named pipe. dir/fails holds what it prints before it
// fails.
const fakeGo = `#!/bin/sh
case $1 in
env) printf '%%s\nlocal\n%[1]s/mod\n%[1]s/cache\nhttps://proxy.test\n' "$(cat %[1]s/version)" ;;
list) echo stale ;;
build)
	echo build >> %[1]s/builds
	echo example.test/tiny >&2
	if [ -p %[1]s/gate ]; then echo $$ > %[1]s/pid; read line < %[1]s/gate; fi
	if [ -e %[1]s/fails ]; then cat %[1]s/fails >&2; exit 1; fi
	while [ "$1" != -o ]; do shift; done
	echo '#!/bin/sh' > "$2"
	echo 'echo made' >> "$2"
	chmod +x "$2"
	;;
esac
`

// fakeOptions are options for a cache in dir/cache and the fake go command in dir.
func fakeOptions(dir string, r []Release) Options {
	return Options{
		Cache: filepath.Join(dir, "cache"), Go: filepath.Join(dir, "go"), releases: r,
		Getenv: func(name string) string {
			if name == "PATH" {
				return os.Getenv("PATH")
			}
			return ""
		},
		pause: func(context.Context, time.Duration) error { return nil },
	}
}

// bench is a cache with a fake go command and the events that came.
type bench struct {
	t    *testing.T
	dir  string
	opts Options

	mu     sync.Mutex
	events []Event
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir()}
	b.write("go", fmt.Sprintf(fakeGo, b.dir))
	b.write("version", "go1.26.0")
	if err := os.Chmod(filepath.Join(b.dir, "go"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.opts = fakeOptions(b.dir, fakeReleases())
	b.opts.Progress = func(e Event) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.events = append(b.events, e)
	}
	return b
}

func (b *bench) write(name, content string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(content), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) open() *Store {
	b.t.Helper()
	s, err := Open(b.opts)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bench) ensure() (Paths, error) {
	b.t.Helper()
	return b.open().Ensure(b.t.Context(), "9.9.9", Node)
}

func (b *bench) mustEnsure() Paths {
	b.t.Helper()
	p, err := b.ensure()
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// builds returns how often the fake go command built.
func (b *bench) builds() int {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(b.dir, "builds"))
	if err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
	return strings.Count(string(data), "build")
}

// said reports whether a notice contains a text.
func (b *bench) said(text string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.events {
		if e.Kind == Notice && strings.Contains(e.Message, text) {
			return true
		}
	}
	return false
}

// leftovers lists what is under tmp.
func (b *bench) leftovers() []string {
	b.t.Helper()
	entries, err := os.ReadDir(filepath.Join(b.opts.Cache, "tmp"))
	if err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// state returns the state of the one component.
func (b *bench) state(verify bool) string {
	b.t.Helper()
	list := b.open().List
	if verify {
		list = b.open().Verify
	}
	st, err := list(b.t.Context(), "9.9.9")
	if err != nil {
		b.t.Fatal(err)
	}
	return st[0].State
}
