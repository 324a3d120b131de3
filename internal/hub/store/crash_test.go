//go:build unix

package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// childEnv makes this binary a process that writes to the store in a directory.
const childEnv = "EDGE_TEST_STORE_WRITER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := writeUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// crashWrites is how many writes the tests of crashes go through.
func crashWrites() replica.Version {
	if os.Getenv("EDGE_TEST_SCALE") == "full" {
		return 10_000
	}
	return 1_000
}

// change is the nth of an endless history of changes: of pods and a collection
// of sealed objects, put, deleted, replaced, dropped, and for a while incomplete.
func change(t testing.TB, n replica.Version) Change {
	random := rand.New(rand.NewPCG(uint64(n), 7))
	c := Change{Collection: pods, State: state(n)}
	if n%3 == 0 {
		c.Collection, c.Seal = secrets, true
	}
	some := func(k int) (objects []*replica.Object) {
		for range k {
			objects = append(objects, pod(t, fmt.Sprint("p", random.IntN(40)), n, strings.Repeat("s", random.IntN(6000))))
		}
		return objects
	}
	switch n % 100 {
	case 90, 91:
		c.Drop = true
	case 92, 93, 94:
		// It begins anew, and is not whole until it is replaced.
		c.State.Complete = false
		c.Put = some(3)
	case 95, 96:
		c.Replace, c.Put = true, some(20)
	default:
		c.Put, c.Delete = some(random.IntN(4)), some(random.IntN(2))
	}
	return c
}

// model is what a store that took every change so far holds.
type model map[replica.Collection]*Stored

func (m model) apply(c Change) {
	s := m[c.Collection]
	if c.Drop {
		delete(m, c.Collection)
		return
	}
	if s == nil {
		s = &Stored{Collection: c.Collection}
		m[c.Collection] = s
	}
	s.State = c.State
	if c.Replace {
		s.Objects = nil
	}
	remove := func(o *replica.Object) {
		for i, old := range s.Objects {
			if old.Name == o.Name {
				s.Objects = append(s.Objects[:i:i], s.Objects[i+1:]...)
				return
			}
		}
	}
	for _, o := range c.Put {
		remove(o)
		s.Objects = append(s.Objects, o)
	}
	for _, o := range c.Delete {
		remove(o)
	}
}

// place of a history: a collection that nothing else touches says how far it is.
var place = replica.Collection{Resource: pools.Resource, Name: "place"}

func placeOf(found []Stored) replica.Version {
	for _, f := range found {
		if f.Collection == place {
			return f.State.Version
		}
	}
	return 0
}

// writeUntilKilled is the child: it goes on with the history where the store is,
// and says which changes are on disk.
func writeUntilKilled(dir string) error {
	t := &childTB{}
	d := &disk{t: t, dir: dir}
	o := d.options()
	o.Clock = nil // real: batches come by themselves
	s, found, err := Open(o)
	if err != nil {
		return err
	}
	if len(d.damaged()) > 0 {
		return errors.New("the store was set aside after a kill")
	}
	random := rand.New(rand.NewPCG(uint64(os.Getpid()), 1))
	out := bufio.NewWriter(os.Stdout)
	for n := placeOf(found) + 1; ; n++ {
		// One transaction for both, or the place would lie.
		c := change(t, n)
		s.mu.Lock()
		s.add(c)
		s.add(Change{Collection: place, State: state(n)})
		s.mu.Unlock()
		if random.IntN(4) == 0 {
			if err := s.flush(false); err != nil {
				return err
			}
			fmt.Fprintln(out, n)
			if err := out.Flush(); err != nil {
				return err
			}
		}
	}
}

// childTB is what helpers need of a test in a process that is none.
type childTB struct{ testing.TB }

func (*childTB) Helper()           {}
func (*childTB) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// writer is a running child.
type writer struct {
	cmd   *exec.Cmd
	acked chan replica.Version
}

func startWriter(t *testing.T, dir string) *writer {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{cmd: exec.CommandContext(context.Background(), exe), acked: make(chan replica.Version, 1<<16)}
	w.cmd.Env = append(os.Environ(), childEnv+"="+dir)
	w.cmd.Stderr = os.Stderr
	stdout, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(w.acked)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			n, err := strconv.ParseUint(lines.Text(), 10, 64)
			if err != nil {
				return // the last line, cut off
			}
			w.acked <- replica.Version(n)
		}
	}()
	return w
}

// kill ends the child and returns the last change it said was on disk.
func (w *writer) kill(t *testing.T, last replica.Version) replica.Version {
	t.Helper()
	if err := w.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for n := range w.acked {
		last = n
	}
	err := w.cmd.Wait()
	if status, ok := w.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the writer ended by itself: %v", err)
	}
	return last
}

// history replays changes as far as it is asked, forwards only.
type history struct {
	t     testing.TB
	model model
	at    replica.Version
}

// check opens the store and compares it with the history at its own place, which
// must not be before what was said to be on disk.
func (h *history) check(t *testing.T, dir string, durable replica.Version) replica.Version {
	t.Helper()
	d := &disk{t: t, dir: dir}
	o := d.options()
	o.Clock = nil
	s, found, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if len(d.damaged()) > 0 {
		t.Fatal("the store was set aside")
	}
	at := placeOf(found)
	if at < durable {
		t.Fatalf("change %s was on disk; the store is at %s", durable, at)
	}
	h.compare(t, found)
	return at
}

func (h *history) compare(t *testing.T, found []Stored) {
	t.Helper()
	at := placeOf(found)
	if at < h.at {
		h.at, h.model = 0, model{}
	}
	for h.at < at {
		h.at++
		h.model.apply(change(h.t, h.at))
	}
	var want, got []Stored
	for _, s := range h.model {
		want = append(want, *s)
	}
	for _, s := range found {
		if s.Collection != place {
			got = append(got, s)
		}
	}
	if diff := cmp.Diff(lines(want), lines(got)); diff != "" {
		t.Fatalf("at %s: %s", at, diff)
	}
}

// TestKill: a process that is killed anywhere in its writing leaves a store that
// holds one moment of its history, no earlier than it said was on disk.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	random := rand.New(rand.NewPCG(5, 6))
	h := &history{t: t, model: model{}}
	var at replica.Version
	kills := 0
	for at < crashWrites() {
		w := startWriter(t, dir)
		durable := at
		for range 1 + random.IntN(20) {
			n, ok := <-w.acked
			if !ok {
				t.Fatal("the writer ended by itself")
			}
			durable = n
		}
		// Anywhere between two acknowledgements.
		time.Sleep(time.Duration(random.IntN(4000)) * time.Microsecond)
		durable = w.kill(t, durable)
		at = h.check(t, dir, durable)
		kills++
	}
	t.Logf("%d changes, %d kills", at, kills)
}

// TestPowerCut: the file as the disk may hold it at any moment between two
// fsyncs, and mixtures of two such moments that no disk should leave, open to one
// moment of the history or are set aside.
func TestPowerCut(t *testing.T) {
	dir := t.TempDir()
	random := rand.New(rand.NewPCG(8, 9))
	h := &history{t: t, model: model{}}
	w := startWriter(t, dir)
	defer func() { w.kill(t, 0) }()
	var before []byte
	whole, aside := 0, 0
	for i := 0; i < int(crashWrites()/20); i++ {
		for range 1 + random.IntN(5) {
			if _, ok := <-w.acked; !ok {
				t.Fatal("the writer ended by itself")
			}
		}
		time.Sleep(time.Duration(random.IntN(3000)) * time.Microsecond)
		image := freeze(t, w.cmd.Process, filepath.Join(dir, "replica.db"))
		h.check(t, imageDir(t, dir, image), 0)

		// Some pages of then, some of now.
		if len(before) > 0 {
			torn := append([]byte(nil), image...)
			few := 2 + random.IntN(200)
			for at := 0; at+4096 <= min(len(before), len(torn)); at += 4096 {
				if random.IntN(few) == 0 {
					copy(torn[at:at+4096], before[at:])
				}
			}
			if random.IntN(4) == 0 {
				torn = torn[:random.IntN(len(torn))]
			}
			d := &disk{t: t, dir: imageDir(t, dir, torn)}
			o := d.options()
			o.Clock = nil
			s, found, err := Open(o)
			if err != nil {
				t.Fatal(err)
			}
			if bad, err := filepath.Glob(d.path() + damagedMark + "*"); err != nil || len(bad) == 0 {
				if len(found) > 0 {
					h.compare(t, found)
				}
				whole++
			} else {
				aside++
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		before = image
	}
	t.Logf("torn images: %d whole, %d set aside", whole, aside)
	if whole == 0 || aside == 0 {
		t.Error("the torn images are all alike")
	}
}

// freeze copies a file while the process that writes it stands still.
func freeze(t *testing.T, p *os.Process, path string) []byte {
	t.Helper()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// The signal is sent; every thread stands still once the parent is told.
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(p.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("the writer did not stop: %v, %v", status, err)
	}
	defer func() {
		if err := p.Signal(syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// imageDir is a directory with an image of the store and its key.
func imageDir(t *testing.T, from string, image []byte) string {
	t.Helper()
	dir := t.TempDir()
	key, err := os.ReadFile(filepath.Join(from, "replica.key"))
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"replica.db": image, "replica.key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
