//go:build linux

package supervise

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func itoa(i int) string { return strconv.Itoa(i) }

func TestBackoffBounds(t *testing.T) {
	for failures := 1; failures < 1000; failures++ {
		low, high := backoff(failures, 0), backoff(failures, 0.999999)
		if low < 75*time.Millisecond || high > backoffLast || low > high {
			t.Fatalf("after %d failures: %s to %s", failures, low, high)
		}
	}
}

func TestParseStat(t *testing.T) {
	const line = "42 (a b) c) S 7 42 41 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 10 11 12"
	st, err := parseStat([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	if want := (procStat{state: 'S', parent: 7, session: 41, startTime: 987654}); st != want {
		t.Errorf("got %+v, want %+v", st, want)
	}
	for _, bad := range []string{"", "42 (x", "42 (x) S 1 2 3", strings.Replace(line, "987654", "x", 1), strings.Replace(line, "S 7", "SS 7", 1)} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
	self, err := readStat(os.Getpid())
	if err != nil || self.parent != os.Getppid() || self.dead() {
		t.Errorf("self: %+v, %v", self, err)
	}
}

func TestIdentity(t *testing.T) {
	self := mustIdentity(t, os.Getpid())
	if !self.Alive() {
		t.Error("this test is not alive")
	}
	if (Identity{}).Alive() || (Identity{PID: -1}).Alive() {
		t.Error("nobody is alive")
	}
	if age := time.Since(self.startedAt(time.Now())); age < 0 || age > time.Hour {
		t.Errorf("this test runs for %s", age)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("42 (a b) c) S 7 42 41 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 10"))
	f.Add([]byte("1 (x)"))
	f.Add([]byte(")"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = parseStat(data) // only that it returns
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"pid":1,"startTime":2,"bootID":"x","name":"etcd","digest":"d","stopSignal":15,"stopTimeout":30000000000}`))
	f.Add([]byte(`{"name":"../x","pid":-1}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data)
		if err == nil && (r.PID <= 0 || strings.ContainsAny(r.Name, "/:") || r.StopSignal <= 0 || r.StopTimeout < 0) {
			t.Errorf("accepted %+v", r)
		}
	})
}

func FuzzParseMarker(f *testing.F) {
	argv := []string{"etcd", "--x"}
	environ := strings.Join(append([]string{"A=1"}, markers("/run/a:b", "etcd", "0123", argv)...), "\x00")
	cmdline := strings.Join(argv, "\x00") + "\x00"
	if m, ok := parseMarker([]byte(environ), []byte(cmdline)); !ok || m.RunDir != "/run/a:b" || m.Name != "etcd" || m.digest != "0123" {
		f.Fatalf("own marker is not read: %+v, %v", m, ok)
	}
	if _, ok := parseMarker([]byte(environ), []byte("other\x00")); ok {
		f.Fatal("the marker of another command line is accepted")
	}
	f.Add([]byte(environ), []byte(cmdline))
	f.Add([]byte("EDGE_SUPERVISED=x"), []byte{})
	f.Fuzz(func(t *testing.T, environ, cmdline []byte) {
		m, ok := parseMarker(environ, cmdline)
		if ok && (!filepath.IsAbs(m.RunDir) || !validName.MatchString(m.Name) || m.digest == "") {
			t.Errorf("accepted %+v", m)
		}
	})
}

func FuzzParseAdopt(f *testing.F) {
	f.Add("12:34")
	f.Add("-1:0")
	f.Add("99999999999999999999:1")
	f.Fuzz(func(t *testing.T, text string) {
		id, err := parseAdopt(text)
		if err == nil && id.PID <= 0 {
			t.Errorf("accepted %+v", id)
		}
	})
}

func TestRotation(t *testing.T) {
	b := newBench(t)
	ready := b.file("ready")
	s, _ := b.supervisor(Options{}, Spec{Name: "chat", Path: b.exe, Args: []string{"prog:chat", ready}, Ready: FileProbe(ready)})
	b.waitReady(s)
	log := s.LogFile("chat")
	id := mustIdentity(t, status(t, s, "chat").PID)
	const limit = 100 // less than one line
	for i := range 6 {
		if err := signalIdentity(id, syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the line is written", func() bool {
			info, err := os.Stat(log)
			return err == nil && info.Size() > limit
		})
		if err := rotateLog(log, limit, 3); err != nil {
			t.Fatal(err)
		}
		lines, err := LastLines(log, 1)
		if err != nil || len(lines) != 1 || !strings.HasPrefix(lines[0], fmt.Sprintf("line %d ", i)) {
			t.Errorf("last line after rotation %d: %q, %v", i, lines, err)
		}
	}
	files, err := filepath.Glob(log + "*")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{log, log + ".1", log + ".2", log + ".3"}, files); diff != "" {
		t.Error(diff)
	}
	for i, want := range []string{1: "line 5", 2: "line 4", 3: "line 3"} {
		if i == 0 {
			continue
		}
		data, err := os.ReadFile(numbered(log, i))
		if err != nil || !strings.HasPrefix(string(data), want) || strings.Count(string(data), "\n") != 1 {
			t.Errorf("%s: %q, %v", numbered(log, i), data, err)
		}
	}
	if err := rotateLog(log, limit, 3); err != nil { // empty: stays
		t.Error(err)
	}
	if info, err := os.Stat(log); err != nil || info.Size() != 0 {
		t.Errorf("%v, %v", info, err)
	}
	b.stop(s)
}

func TestLastLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	if lines, err := LastLines(path, 5); err != nil || lines != nil {
		t.Errorf("missing file: %v, %v", lines, err)
	}
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a\nb\nc")
	lines, err := LastLines(path, 2)
	if diff := cmp.Diff([]string{"b", "c"}, lines); diff != "" || err != nil {
		t.Error(diff, err)
	}
	write(strings.Repeat("x", 2*lastLinesBytes) + "\nend\n")
	lines, err = LastLines(path, 5)
	if diff := cmp.Diff([]string{"end"}, lines); diff != "" || err != nil {
		t.Error(diff, err)
	}
	write(strings.Repeat("y", 2*lastLinesBytes))
	lines, err = LastLines(path, 5)
	if err != nil || len(lines) != 1 || len(lines[0]) > lastLineBytes+10 {
		t.Errorf("one long line: %d lines, %v", len(lines), err)
	}
}

func FuzzLastLines(f *testing.F) {
	f.Add([]byte("a\nb\n\xff\n"), 2)
	f.Add([]byte(""), 0)
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		lines := lastLines(data, n)
		if len(lines) > max(0, n) {
			t.Errorf("%d lines of %d", len(lines), n)
		}
		for _, l := range lines {
			if !bytes.Equal([]byte(strings.ToValidUTF8(l, "")), []byte(l)) {
				t.Errorf("not UTF-8: %q", l)
			}
		}
	})
}

func TestProbes(t *testing.T) {
	dir := t.TempDir()
	healthy := false
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !healthy {
			http.Error(w, "[-]etcd failed", http.StatusInternalServerError)
		}
	}))
	defer server.Close()
	ctx := t.Context()
	cfg := server.Client().Transport.(*http.Transport).TLSClientConfig
	probe := HTTPProbe(server.URL+"/readyz?verbose", cfg)
	if err := probe(ctx); err == nil || !strings.Contains(err.Error(), "[-]etcd failed") {
		t.Errorf("unhealthy: %v", err)
	}
	healthy = true
	if err := probe(ctx); err != nil {
		t.Errorf("healthy: %v", err)
	}
	if err := HTTPProbe(server.URL, &tls.Config{})(ctx); err == nil {
		t.Error("an unknown authority is trusted")
	}
	addr := server.Listener.Addr().String()
	if err := TCPProbe(addr)(ctx); err != nil {
		t.Error(err)
	}
	server.Close()
	if err := TCPProbe(addr)(ctx); err == nil {
		t.Error("a closed port is ready")
	}

	sock := filepath.Join(dir, "s")
	if err := UnixProbe(sock)(ctx); err == nil {
		t.Error("a missing socket is ready")
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := AllProbes(UnixProbe(sock), FileProbe(sock))(ctx); err != nil {
		t.Error(err)
	}
	if err := AllProbes(UnixProbe(sock), FileProbe(sock+"x"))(ctx); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := UnixProbe(sock)(cancelled); err == nil {
		t.Error("a cancelled probe is ready")
	}
}

// No file that root writes or reads for a user may be a link to another's.
func TestNoLinkIsFollowed(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	if err := os.WriteFile(target, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	for what, try := range map[string]func() error{
		"append to a log": func() error { _, err := openLog(link); return err },
		"rotate a log":    func() error { return rotateLog(link, 1, 1) },
		"read a log":      func() error { _, err := LastLines(link, 1); return err },
		"take a lock":     func() error { _, err := lockFile(link); return err },
		"read a record":   func() error { _, err := readSmall(link); return err },
	} {
		if err := try(); !errors.Is(err, unix.ELOOP) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
