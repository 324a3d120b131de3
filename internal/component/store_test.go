//go:build unix

package component

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBuildWithTheGoCommand(t *testing.T) {
	b := newBench(t)
	b.opts.Go = ""
	b.opts.Getenv = func(name string) string {
		if name == "GOFLAGS" {
			return "-mod=vendor -x" // must not matter
		}
		return os.Getenv(name)
	}
	p := b.mustEnsure()
	for _, name := range []string{"one", "two"} {
		out, err := exec.CommandContext(t.Context(), p[name]).Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := string(out), p[name]+" 9.9.9"; got != want {
			t.Errorf("%s printed %q, want %q", name, got, want)
		}
	}
	one, err := os.Stat(p["one"])
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.Stat(p["two"])
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(one, two) {
		t.Error("links are copies on a file system that has hard links")
	}
	var kinds []EventKind
	for _, e := range b.events {
		if e.Kind != Progress {
			kinds = append(kinds, e.Kind)
		}
	}
	if diff := cmp.Diff([]EventKind{Planned, Started, Installed}, kinds); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if l := b.leftovers(); len(l) > 0 {
		t.Errorf("left in tmp: %v", l)
	}
}

func TestEnsureTwiceBuildsOnce(t *testing.T) {
	b := newBench(t)
	if b.state(false) != Absent {
		t.Error("present before anything was built")
	}
	first := b.mustEnsure()
	b.opts.Go = "/nonexistent" // not even asked
	if diff := cmp.Diff(first, b.mustEnsure()); diff != "" {
		t.Errorf("paths changed (-first +second):\n%s", diff)
	}
	if got := b.builds(); got != 1 {
		t.Errorf("built %d times, want 1", got)
	}
	if b.state(true) != Present {
		t.Error("not present after it was built")
	}
}

func TestTwoGoroutinesShareOneBuild(t *testing.T) {
	b := newBench(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := b.ensure(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := b.builds(); got != 1 {
		t.Errorf("built %d times, want 1", got)
	}
}

// process is this binary, fetching.
type process struct {
	*exec.Cmd
	lines *bufio.Scanner
}

func (b *bench) process() process {
	b.t.Helper()
	cmd := exec.CommandContext(b.t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "COMPONENT_TEST_FETCH="+b.dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	return process{cmd, bufio.NewScanner(out)}
}

// until reads events until one of a kind.
func (p process) until(t *testing.T, kind EventKind) {
	t.Helper()
	for p.lines.Scan() {
		if p.lines.Text() == string(kind) {
			return
		}
	}
	t.Fatalf("process ended without event %q", kind)
}

// gate makes builds wait; the returned function lets one go on.
func (b *bench) gate() (release func()) {
	b.t.Helper()
	path := filepath.Join(b.dir, "gate")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		b.t.Fatal(err)
	}
	// Held open for both ends, so that neither side's open blocks or fails.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { f.Close() })
	return func() {
		if _, err := f.WriteString("go\n"); err != nil {
			b.t.Error(err)
		}
	}
}

func TestTwoProcessesShareOneBuild(t *testing.T) {
	b := newBench(t)
	release := b.gate()
	first := b.process()
	first.until(t, Started)
	second := b.process()
	second.until(t, Waiting)
	release()
	for _, p := range []process{first, second} {
		p.until(t, Installed)
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
	}
	if got := b.builds(); got != 1 {
		t.Errorf("built %d times, want 1", got)
	}
}

func TestKilledFetchLeavesNothingThatCounts(t *testing.T) {
	b := newBench(t)
	b.gate()
	p := b.process()
	p.until(t, Progress) // in the midst of it
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err == nil {
		t.Fatal("was not killed")
	}
	if got := b.state(false); got != Absent {
		t.Errorf("state %s after a kill, want %s", got, Absent)
	}
	if len(b.leftovers()) != 1 {
		t.Errorf("tmp has %v, want the killed fetch's directory", b.leftovers())
	}
	if err := os.Remove(filepath.Join(b.dir, "gate")); err != nil {
		t.Fatal(err)
	}
	b.mustEnsure()
	if l := b.leftovers(); len(l) > 0 {
		t.Errorf("left in tmp: %v", l)
	}
}

func TestCancelStopsTheBuild(t *testing.T) {
	b := newBench(t)
	b.gate()
	ctx, cancel := context.WithCancel(t.Context())
	opts := b.opts
	opts.Progress = func(e Event) {
		if e.Kind == Progress && e.Done > 0 {
			cancel()
		}
	}
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ensure(ctx, "9.9.9", Node); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	if b.state(false) != Absent || len(b.leftovers()) > 0 {
		t.Errorf("left behind: %s, tmp %v", b.state(false), b.leftovers())
	}
}

func TestDamagedEntryIsBuiltAgain(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"removed":        os.Remove,
		"truncated":      func(path string) error { return os.Truncate(path, 3) },
		"changed":        func(path string) error { return os.WriteFile(path, []byte("#!/bin/sh\necho evil\n"), 0o755) },
		"not executable": func(path string) error { return os.Chmod(path, 0o644) },
		"a link":         func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/bin/sh", path)) },
		"no manifest":    func(path string) error { return os.Remove(filepath.Join(filepath.Dir(path), manifestName)) },
		"bad manifest": func(path string) error {
			return os.WriteFile(filepath.Join(filepath.Dir(path), manifestName), []byte("{"), 0o644)
		},
		"other manifest": func(path string) error {
			m := filepath.Join(filepath.Dir(path), manifestName)
			data, err := os.ReadFile(m)
			if err != nil {
				return err
			}
			return os.WriteFile(m, []byte(strings.ReplaceAll(string(data), `"version": "9.9.9"`, `"version": "9.9.8"`)), 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			p := b.mustEnsure()
			if err := damage(p["one"]); err != nil {
				t.Fatal(err)
			}
			if got := b.state(true); got == Present {
				t.Error("damage was not seen")
			}
			p = b.mustEnsure()
			out, err := exec.CommandContext(t.Context(), p["one"]).Output()
			if err != nil || string(out) != "made\n" {
				t.Errorf("after repair: %q, %v", out, err)
			}
			if got := b.builds(); got != 2 {
				t.Errorf("built %d times, want 2", got)
			}
			if name != "no manifest" && !b.said("damaged") {
				t.Error("nobody was told")
			}
		})
	}
}

func TestVerifyFindsWhatTimeAndSizeHide(t *testing.T) {
	b := newBench(t)
	p := b.mustEnsure()
	info, err := os.Stat(p["one"])
	if err != nil {
		t.Fatal(err)
	}
	content := strings.Repeat("x", int(info.Size()))
	if err := os.WriteFile(p["one"], []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(p["one"], info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if got := b.state(true); got != Damaged {
		t.Errorf("state %s, want %s", got, Damaged)
	}
}

func TestSourceCacheNamesWhatIsMissing(t *testing.T) {
	b := newBench(t)
	b.opts.Source = SourceCache
	_, err := b.ensure()
	if err == nil || !strings.Contains(err.Error(), "lacks tiny 9.9.9") || !strings.Contains(err.Error(), "edge component fetch --kubernetes 9.9.9 --set node") {
		t.Errorf("error %v", err)
	}
	if b.builds() != 0 {
		t.Error("built although only the cache is allowed")
	}
}

// TestFindGetsNothing: what is there is found, damage and absence are told with
// what to do, and no source is asked.
func TestFindGetsNothing(t *testing.T) {
	b := newBench(t)
	const next = "edge component fetch --kubernetes 9.9.9 --set node"
	if _, err := b.open().Find("9.9.9", Node); err == nil || !strings.Contains(err.Error(), "tiny 9.9.9") || !strings.Contains(err.Error(), next) {
		t.Errorf("an empty cache: %v", err)
	}
	if b.builds() != 0 {
		t.Error("built what was only looked for")
	}
	want := b.mustEnsure()
	got, err := b.open().Find("9.9.9", Node)
	if err != nil || got["one"] == "" || got["one"] != want["one"] {
		t.Errorf("found %v, %v; want %v", got, err, want)
	}
	if err := os.Truncate(want["one"], 1); err != nil {
		t.Fatal(err)
	}
	if _, err := b.open().Find("9.9.9", Node); err == nil || !strings.Contains(err.Error(), "the manifest says") || !strings.Contains(err.Error(), next) {
		t.Errorf("a damaged cache: %v", err)
	}
	if got := b.builds(); got != 1 {
		t.Errorf("built %d times, want 1", got)
	}
	if _, err := b.open().Find("1.2.3", Node); err == nil {
		t.Error("an unknown version is found")
	}
}

func TestBuildFailureShowsTheEndOfTheLog(t *testing.T) {
	b := newBench(t)
	b.write("fails", "main.go:3:1: syntax error\n")
	_, err := b.ensure()
	if err == nil || !strings.Contains(err.Error(), "build tiny 9.9.9") || !strings.Contains(err.Error(), "main.go:3:1: syntax error") || !strings.Contains(err.Error(), filepath.Join("cache", "logs")) {
		t.Errorf("error %v", err)
	}
	if got := b.builds(); got != 1 {
		t.Errorf("tried %d times what cannot succeed", got)
	}
	if b.state(false) != Absent || len(b.leftovers()) > 0 {
		t.Errorf("left behind: %s, tmp %v", b.state(false), b.leftovers())
	}
}

func TestNetworkFailureIsTriedAgainAndNamed(t *testing.T) {
	b := newBench(t)
	b.write("fails", "go: example.test/x@v1.0.0: Get \"https://proxy.test/x\": dial tcp: lookup proxy.test: no such host\n")
	_, err := b.ensure()
	if err == nil || !strings.Contains(err.Error(), "could not be downloaded from GOPROXY=https://proxy.test") || !strings.Contains(err.Error(), "EDGE_COMPONENT_MIRROR") {
		t.Errorf("error %v", err)
	}
	if got := b.builds(); got != downloadTries {
		t.Errorf("tried %d times, want %d", got, downloadTries)
	}
}

func TestUnknownVersionListsTheKnown(t *testing.T) {
	b := newBench(t)
	_, err := b.open().Ensure(t.Context(), "1.0.0", Node)
	if !errors.Is(err, ErrUnknownVersion) || !strings.Contains(err.Error(), "9.9.9") {
		t.Errorf("error %v", err)
	}
}
