//go:build linux

package supervise

import (
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// crashedDaemon runs a daemon with the programs, kills it once they are ready,
// and returns the identities of what it has left.
func (b *bench) crashedDaemon(specs ...daemonSpec) map[string]Identity {
	b.t.Helper()
	cfg := b.config(specs...)
	cmd := exec.Command(b.exe, "prog:daemon", cfg)
	cmd.Env = []string{}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	left := map[string]Identity{}
	for _, s := range specs {
		eventually(b.t, s.Name+" runs", func() bool {
			rec, err := readRecord(b.runDir, s.Name)
			left[s.Name] = rec.Identity
			return err == nil && (s.Socket == "" || exists(s.Socket))
		})
	}
	cmd.Process.Kill()
	cmd.Wait()
	for name, id := range left {
		if !id.Alive() {
			b.t.Fatalf("%s has not survived its daemon", name)
		}
	}
	return left
}

func (b *bench) config(specs ...daemonSpec) string {
	b.t.Helper()
	data, err := json.Marshal(daemonConfig{RunDir: b.runDir, LogDir: b.logDir, Specs: specs})
	if err != nil {
		b.t.Fatal(err)
	}
	path := b.file("daemon-config.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// serving is prog:serve for a daemon.
func (b *bench) serving(name string, after ...string) daemonSpec {
	s := b.serve(name)
	return daemonSpec{Name: name, Path: s.Path, Args: s.Args, After: after, Socket: b.file(name + ".sock")}
}

func (b *bench) specs(ds ...daemonSpec) []Spec { return daemonConfig{Specs: ds}.specs() }

func TestAdoptsAfterCrash(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, b *bench){
		"records intact": func(*testing.T, *bench) {},
		"records lost": func(t *testing.T, b *bench) {
			if err := os.RemoveAll(b.runDir); err != nil {
				t.Fatal(err)
			}
		},
		"record damaged": func(t *testing.T, b *bench) {
			if err := os.WriteFile(recordPath(b.runDir, "a"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			programs := []daemonSpec{b.serving("a"), b.serving("b", "a")}
			left := b.crashedDaemon(programs...)
			damage(t, b)
			s, _ := b.supervisor(Options{}, b.specs(programs...)...)
			b.waitReady(s)
			for _, st := range s.Status() {
				if st.PID != left[st.Name].PID || !st.Adopted || st.Restarts != 0 || st.Started.IsZero() {
					t.Errorf("%s was %d and is %+v", st.Name, left[st.Name].PID, st)
				}
				if time.Since(st.Started).Abs() > time.Minute {
					t.Errorf("%s started at %s", st.Name, st.Started)
				}
			}
			// An adopted process is watched like any other.
			if err := signalIdentity(left["a"], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "a runs again", func() bool {
				st := status(t, s, "a")
				return st.State == StateReady && st.PID != left["a"].PID && !st.Adopted
			})
			b.stop(s)
			if diff := cmp.Diff([]string{"+a", "+b", "+a", "-b", "-a"}, b.journal()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestChangedAndRemovedProgramsAreStopped(t *testing.T) {
	b := newBench(t)
	a, x := b.serving("a"), b.serving("x")
	left := b.crashedDaemon(a, x)
	changed := b.specs(a)[0]
	changed.Revision = "2"
	s, _ := b.supervisor(Options{}, changed)
	b.waitReady(s)
	if left["a"].Alive() || left["x"].Alive() {
		t.Error("a process of another declaration runs on")
	}
	if st := status(t, s, "a"); st.Adopted {
		t.Errorf("status: %+v", st)
	}
	if exists(recordPath(b.runDir, "x")) {
		t.Error("the record of a removed program is still there")
	}
	b.stop(s)
}

func TestStopRecorded(t *testing.T) {
	b := newBench(t)
	left := b.crashedDaemon(b.serving("a"), b.serving("b", "a"), b.serving("x"))
	if err := os.Remove(recordPath(b.runDir, "b")); err != nil { // found by its marker
		t.Fatal(err)
	}
	if err := StopRecorded(t.Context(), b.runDir, []string{"a", "b"}, StopRecordedOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, id := range left {
		if id.Alive() {
			t.Errorf("%s still runs", name)
		}
	}
	lines := b.journal()
	if diff := cmp.Diff([]string{"-x", "-b", "-a"}, lines[len(lines)-3:]); diff != "" {
		t.Error(diff)
	}
	if names, err := recordedNames(b.runDir); err != nil || len(names) != 0 {
		t.Errorf("records: %v, %v", names, err)
	}
	if err := StopRecorded(t.Context(), b.file("never"), nil, StopRecordedOptions{}); err != nil {
		t.Error(err)
	}
}

func TestReusedPidIsNeverTouched(t *testing.T) {
	for name, change := range map[string]func(*Identity){
		"another start time": func(id *Identity) { id.StartTime-- },
		"another boot":       func(id *Identity) { id.BootID = "00000000-0000-0000-0000-000000000000" },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			innocent := b.innocent()
			spec := b.serve("a")
			digest, err := spec.digest()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := makeDir(b.runDir); err != nil {
				t.Fatal(err)
			}
			old := innocent
			change(&old)
			plant := func() {
				rec := record{Identity: old, Name: "a", Digest: digest, StopSignal: syscall.SIGKILL}
				if err := writeJSON(recordPath(b.runDir, "a"), rec); err != nil {
					t.Fatal(err)
				}
				for _, file := range []string{ParentFile, daemonFile} {
					if err := writeJSON(b.runDir+"/"+file, parentRecord{Identity: old, Daemon: old}); err != nil {
						t.Fatal(err)
					}
				}
			}
			plant()
			if err := StopRecorded(t.Context(), b.runDir, []string{"a"}, StopRecordedOptions{}); err != nil {
				t.Fatal(err)
			}
			plant()
			if state, err := FindDaemon(b.runDir); err != nil || state.Alive() {
				t.Errorf("daemon: %+v, %v", state, err)
			}
			if err := StopDaemon(t.Context(), b.runDir, 0); err != nil {
				t.Fatal(err)
			}
			s, _ := b.supervisor(Options{}, spec)
			b.waitReady(s)
			if st := status(t, s, "a"); st.PID == innocent.PID || st.Adopted {
				t.Errorf("status: %+v", st)
			}
			b.stop(s)
			if !innocent.Alive() {
				t.Error("a process that only has the pid was killed")
			}
		})
	}
}

// What a program starts inherits its marker, and must be neither adopted nor
// stopped in its place.
func TestGrandchildrenAreNotChildren(t *testing.T) {
	b := newBench(t)
	out := b.file("grandchild")
	spec := daemonSpec{Name: "runtime", Path: b.exe, Args: []string{"prog:spawn", out}}
	left := b.crashedDaemon(spec)
	eventually(t, "it has started its own", func() bool { return exists(out) && exists(out+".ready") })
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil {
		t.Fatal(err)
	}
	grandchild := mustIdentity(t, pid)
	t.Cleanup(func() {
		if err := signalIdentity(grandchild, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	})
	environ, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil || !strings.Contains(string(environ), markerEnv) {
		t.Fatalf("the test is void: %q, %v", environ, err)
	}
	found, err := FindMarked(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Identity != left["runtime"] || found[0].Name != "runtime" || found[0].RunDir != b.runDir {
		t.Errorf("marked: %+v, want only %+v", found, left)
	}
	if err := os.RemoveAll(b.runDir); err != nil {
		t.Fatal(err)
	}
	if err := StopRecorded(t.Context(), b.runDir, nil, StopRecordedOptions{}); err != nil {
		t.Fatal(err)
	}
	if left["runtime"].Alive() || !grandchild.Alive() {
		t.Errorf("runtime alive: %v, what it started alive: %v", left["runtime"].Alive(), grandchild.Alive())
	}
}

// A process that appears after the take-over, because its daemon died between
// fork and exec, would hold the socket of its successor for ever.
func TestLostProcessIsFoundBeforeARestart(t *testing.T) {
	b := newBench(t)
	spec := b.serve("a")
	s, leave := b.supervisor(Options{}, spec)
	b.waitReady(s)
	first := mustIdentity(t, status(t, s, "a").PID)
	leave()
	// The lost one: started by the first, unknown to the second, whose own
	// process is another.
	if err := os.Rename(recordPath(b.runDir, "a"), b.file("kept")); err != nil {
		t.Fatal(err)
	}
	u, err := newUnit(s, spec)
	if err != nil {
		t.Fatal(err)
	}
	u.lookForLost(t.Context())
	if u.process() == nil || u.process().id != first || !exists(recordPath(b.runDir, "a")) {
		t.Errorf("not adopted: %+v", u.process())
	}
	// With another declaration it is stopped instead.
	spec.Revision = "2"
	if u, err = newUnit(s, spec); err != nil {
		t.Fatal(err)
	}
	u.lookForLost(t.Context())
	if u.process() != nil || first.Alive() {
		t.Error("neither adopted nor stopped")
	}
}
