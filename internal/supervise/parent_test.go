//go:build linux

package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// pair starts a parent with a daemon that has one child, and returns who they
// are once all run.
func (b *bench) pair() (parent, daemon, child Identity) {
	b.t.Helper()
	config := b.config(b.serving("a"))
	_, err := StartDetached(DetachOptions{
		Path: b.exe, Args: ParentArgs(b.runDir, b.file("logs/daemon.log"), b.exe, "prog:daemon", config),
		Env: MinimalEnv(os.LookupEnv), LogFile: b.file("logs/daemon.log"),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return b.awaitPair(Identity{}, Identity{}, Identity{})
}

// awaitPair waits until parent, daemon and child all run and none is the one
// given.
func (b *bench) awaitPair(notParent, notDaemon, notChild Identity) (parent, daemon, child Identity) {
	b.t.Helper()
	eventually(b.t, "parent, daemon and child run", func() bool {
		state, err := FindDaemon(b.runDir)
		if err != nil {
			b.t.Fatal(err)
		}
		rec, err := readRecord(b.runDir, "a")
		if err != nil || !rec.Alive() {
			return false
		}
		own, err := readJSON[daemonRecord](filepath.Join(b.runDir, daemonFile))
		if err != nil || own.Identity != state.Daemon {
			return false // it has not yet called AcquireDaemon
		}
		seen, err := readJSON[parentRecord](filepath.Join(b.runDir, ParentFile))
		if err != nil || seen.Daemon != state.Daemon {
			return false // the parent has not yet found it
		}
		parent, daemon, child = state.Parent, state.Daemon, rec.Identity
		return parent.PID != 0 && daemon.PID != 0 &&
			parent != notParent && daemon != notDaemon && child != notChild
	})
	return parent, daemon, child
}

func (b *bench) kill(ids ...Identity) {
	b.t.Helper()
	// Frozen first, so that none of them sees another die.
	for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGKILL} {
		for _, id := range ids {
			if err := signalIdentity(id, sig); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	for _, id := range ids {
		eventually(b.t, "the killed process is gone", func() bool { return !id.Alive() })
	}
}

func TestEitherMayBeKilled(t *testing.T) {
	b := newBench(t)
	parent, daemon, child := b.pair()

	b.kill(parent)
	parent2, daemon2, child2 := b.awaitPair(parent, Identity{}, Identity{})
	if daemon2 != daemon || child2 != child {
		t.Errorf("parent killed: daemon %d became %d, child %d became %d", daemon.PID, daemon2.PID, child.PID, child2.PID)
	}

	b.kill(daemon)
	parent3, daemon3, child3 := b.awaitPair(Identity{}, daemon, Identity{})
	if parent3 != parent2 || child3 != child {
		t.Errorf("daemon killed: parent %d became %d, child %d became %d", parent2.PID, parent3.PID, child.PID, child3.PID)
	}

	// The daemon that the second parent has started watches it like the first.
	b.kill(parent3)
	parent4, daemon4, _ := b.awaitPair(parent3, Identity{}, Identity{})
	if daemon4 != daemon3 {
		t.Errorf("parent killed again: daemon %d became %d", daemon3.PID, daemon4.PID)
	}

	b.kill(child)
	_, daemon5, child5 := b.awaitPair(Identity{}, Identity{}, child)
	if daemon5 != daemon4 {
		t.Errorf("child killed: daemon %d became %d", daemon4.PID, daemon5.PID)
	}

	b.kill(parent4, daemon4)
	if !child5.Alive() {
		t.Fatal("the child has not survived both")
	}
	if state, err := FindDaemon(b.runDir); err != nil || state.Alive() {
		t.Fatalf("daemon: %+v, %v", state, err)
	}
	_, daemon6, child6 := b.pair()
	if child6 != child5 {
		t.Errorf("both killed: child %d became %d", child5.PID, child6.PID)
	}

	if err := StopDaemon(t.Context(), b.runDir, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if state, err := FindDaemon(b.runDir); err != nil || state.Alive() || daemon6.Alive() {
		t.Errorf("after StopDaemon: %+v, %v", state, err)
	}
	if !child6.Alive() {
		t.Error("StopDaemon has stopped the child")
	}
	if rec, err := readJSON[daemonRecord](filepath.Join(b.runDir, daemonFile)); err != nil || !rec.Done {
		t.Errorf("the daemon was not given the time to end: %+v, %v", rec, err)
	}
	if err := StopRecorded(t.Context(), b.runDir, nil, StopRecordedOptions{}); err != nil || child6.Alive() {
		t.Errorf("StopRecorded: %v, child alive: %v", err, child6.Alive())
	}
}

// Also when the parent has adopted it, a daemon that ends on purpose is not
// started again.
func TestDaemonThatIsDone(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		b := newBench(t)
		parent, daemon, _ := b.pair()
		if adopted {
			b.kill(parent)
			parent, _, _ = b.awaitPair(parent, Identity{}, Identity{})
		}
		if err := signalIdentity(daemon, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the parent ends too", func() bool { return !parent.Alive() })
		if state, err := FindDaemon(b.runDir); err != nil || state.Alive() {
			t.Errorf("adopted %v: %+v, %v", adopted, state, err)
		}
	}
}

func TestDaemonThatFailsIsStartedAgain(t *testing.T) {
	b := newBench(t)
	log := b.file("logs/daemon.log")
	// Fails twice, then is done.
	script := `echo x >>"$0"; test "$(wc -l <"$0")" -ge 3`
	err := RunParent(t.Context(), ParentOptions{
		Command: []string{"sh", "-c", script, b.file("tries")}, LogFile: log, PIDFile: filepath.Join(b.runDir, ParentFile),
	})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(b.file("tries"))
	if err != nil || strings.Count(string(data), "x") != 3 {
		t.Errorf("tries: %q, %v", data, err)
	}
}

func TestOnlyOneOfEach(t *testing.T) {
	b := newBench(t)
	d, err := AcquireDaemon(b.runDir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := AcquireDaemon(b.runDir); !errors.Is(err, ErrRunning) {
		t.Errorf("second daemon: %v", err)
	}
	state, err := FindDaemon(b.runDir)
	if err != nil || state.Daemon.PID != os.Getpid() || !state.Running() {
		t.Errorf("state: %+v, %v", state, err)
	}
	info, err := os.Stat(filepath.Join(b.runDir, daemonFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("record: %v, %v", info, err)
	}
	// This test is the daemon on record; it must not be stopped by the cleanup.
	if err := os.Remove(filepath.Join(b.runDir, daemonFile)); err != nil {
		t.Fatal(err)
	}
	if err := d.lock.Close(); err != nil {
		t.Fatal(err)
	}

	b.pair()
	err = RunParent(t.Context(), ParentOptions{Command: []string{"sh", "-c", "exit 0"}, PIDFile: filepath.Join(b.runDir, ParentFile)})
	if !errors.Is(err, ErrRunning) {
		t.Errorf("second parent: %v", err)
	}
}

// A parent that is started while its predecessor's daemon still runs must not
// start a second one.
func TestParentFindsTheRunningDaemon(t *testing.T) {
	b := newBench(t)
	parent, daemon, _ := b.pair()
	// Frozen: it cannot start a parent of its own.
	if err := signalIdentity(daemon, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.kill(parent)
	_, err := StartDetached(DetachOptions{
		Path: b.exe, Args: ParentArgs(b.runDir, "", b.exe, "prog:daemon", b.file("daemon-config.json")), Env: []string{},
		LogFile: b.file("logs/daemon.log"),
	})
	if err != nil {
		t.Fatal(err)
	}
	parent2, daemon2, _ := b.awaitPair(parent, Identity{}, Identity{})
	if daemon2 != daemon {
		t.Errorf("daemon %d became %d", daemon.PID, daemon2.PID)
	}
	if err := signalIdentity(daemon, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if !parent2.Alive() {
		t.Error("the parent is gone")
	}
}

// A daemon may start a parent in the moment in which it is being stopped. That
// parent must not bring it back, nor its directory.
func TestParentThatComesTooLate(t *testing.T) {
	late := func(b *bench, daemon Identity) error {
		return RunParent(t.Context(), ParentOptions{
			Command: []string{"sh", "-c", "echo x >" + b.file("started")},
			Adopt:   itoa(daemon.PID) + ":" + strconv.FormatUint(daemon.StartTime, 10),
			PIDFile: filepath.Join(b.runDir, ParentFile),
		})
	}
	for name, end := range map[string]func(b *bench, parent, daemon Identity){
		"ended": func(b *bench, _, daemon Identity) {
			if err := StopDaemon(t.Context(), b.runDir, 20*time.Second); err != nil {
				t.Fatal(err)
			}
		},
		"killed": func(b *bench, parent, daemon Identity) {
			b.kill(parent, daemon)
			if err := StopDaemon(t.Context(), b.runDir, 20*time.Second); err != nil {
				t.Fatal(err)
			}
		},
		"removed": func(b *bench, parent, daemon Identity) {
			b.kill(parent, daemon)
			if err := StopRecorded(t.Context(), b.runDir, nil, StopRecordedOptions{}); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(b.runDir); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			parent, daemon, _ := b.pair()
			end(b, parent, daemon)
			err := late(b, daemon)
			if name == "removed" {
				if !errors.Is(err, os.ErrNotExist) || exists(b.runDir) {
					t.Errorf("error: %v; directory is there: %v", err, exists(b.runDir))
				}
			} else if err != nil {
				t.Error(err)
			}
			if exists(b.file("started")) {
				t.Error("it has started a daemon")
			}
		})
	}
	t.Run("crashed", func(t *testing.T) {
		b := newBench(t)
		parent, daemon, _ := b.pair()
		b.kill(parent, daemon)
		if err := late(b, daemon); err != nil || !exists(b.file("started")) {
			t.Errorf("a daemon that has crashed was not started again: %v", err)
		}
	})
}

func TestStopDaemonKillsAfterItsTime(t *testing.T) {
	b := newBench(t)
	ready := b.file("ready")
	_, err := StartDetached(DetachOptions{
		Path: b.exe, Args: ParentArgs(b.runDir, "", b.exe, "prog:deaf", ready), Env: []string{},
	})
	if err != nil {
		t.Fatal(err)
	}
	var state DaemonState
	eventually(t, "the daemon runs", func() bool {
		if state, err = FindDaemon(b.runDir); err != nil {
			t.Fatal(err)
		}
		return exists(ready) && state.Running()
	})
	if err := StopDaemon(t.Context(), b.runDir, 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if state.Daemon.Alive() || state.Parent.Alive() {
		t.Error("still alive")
	}
}

func TestStartDetached(t *testing.T) {
	t.Setenv("TF_VAR_secret", "hunter2")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
	t.Setenv("EDGE_STATE_DIR", "/state")
	b := newBench(t)
	out := b.file("env")
	opts := DetachOptions{
		Path: b.exe, Args: []string{"prog:env", out}, Dir: b.dir,
		Env: MinimalEnv(os.LookupEnv, "EDGE_STATE_DIR", "EDGE_UNSET"), LogFile: b.file("deep/log"),
	}
	ownNet, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	root := os.Geteuid() == 0
	if root {
		opts.OnThread = func() error { return unix.Unshare(unix.CLONE_NEWNET) }
	}
	inherited := inheritable(t, b.file("inherited"))
	pid, err := StartDetached(opts)
	if err != nil {
		t.Fatal(err)
	}
	id := mustIdentity(t, pid)
	defer signalIdentity(id, syscall.SIGKILL)
	eventually(t, "it runs", func() bool { return exists(out) })
	for _, file := range openFiles(t, pid) {
		if file == inherited {
			t.Errorf("%s of the caller is still open in the process", file)
		}
	}
	var got struct {
		Env []string
		Net string
		SID int
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, v := range got.Env {
		name, _, _ := strings.Cut(v, "=")
		names = append(names, name)
	}
	slices.Sort(names)
	want := []string{"EDGE_STATE_DIR", "HOME", "PATH"}
	if os.Getenv("HOME") == "" {
		want = []string{"EDGE_STATE_DIR", "PATH"}
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	if got.SID != pid {
		t.Errorf("session %d of process %d", got.SID, pid)
	}
	info, err := os.Stat(b.file("deep/log"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("log: %v, %v", info, err)
	}
	if !root {
		return
	}
	if got.Net == ownNet {
		t.Error("OnThread had no effect")
	}
	if now, err := os.Readlink("/proc/self/ns/net"); err != nil || now != ownNet {
		t.Errorf("the caller itself was moved: %s, %v", now, err)
	}
	// Into the namespaces of the first.
	out2 := b.file("env2")
	opts.Args = []string{"prog:env", out2}
	opts.OnThread = EnterNamespaces("/proc/"+itoa(pid)+"/ns/net", "/proc/"+itoa(pid)+"/ns/mnt")
	pid2, err := StartDetached(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer signalIdentity(mustIdentity(t, pid2), syscall.SIGKILL)
	eventually(t, "it runs", func() bool { return exists(out2) })
	if data, err = os.ReadFile(out2); err != nil || !strings.Contains(string(data), got.Net) {
		t.Errorf("not in %s: %s, %v", got.Net, data, err)
	}
}

// inheritable opens a file that a child would inherit, as a shell's redirection
// does, and returns its path.
func inheritable(t *testing.T, path string) string {
	t.Helper()
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return path
}

func openFiles(t *testing.T, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, entry := range entries {
		// One that was closed since is open no more.
		if file, err := os.Readlink(filepath.Join(dir, entry.Name())); err == nil {
			files = append(files, file)
		}
	}
	return files
}

func TestStartDetachedErrors(t *testing.T) {
	b := newBench(t)
	if _, err := StartDetached(DetachOptions{Path: b.file("nothing")}); err == nil {
		t.Error("a missing program is not an error")
	}
	boom := errors.New("no such namespace")
	if _, err := StartDetached(DetachOptions{Path: b.exe, OnThread: func() error { return boom }}); !errors.Is(err, boom) {
		t.Errorf("OnThread: %v", err)
	}
	if err := EnterNamespaces(b.file("nothing"), "")(); err == nil {
		t.Error("a missing namespace is not an error")
	}
}

func TestWatchParentWithoutParent(t *testing.T) {
	t.Setenv(parentEnv, "")
	if err := WatchParent(t.Context(), nil, nil); err != nil {
		t.Error(err)
	}
}

func TestParentIsNotRunByTheWrongProgram(t *testing.T) {
	b := newBench(t)
	if err := RunParent(t.Context(), ParentOptions{}); err == nil {
		t.Error("no command is not an error")
	}
	if err := RunParent(t.Context(), ParentOptions{Command: []string{b.file("nothing")}}); !errors.Is(err, exec.ErrNotFound) && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing program: %v", err)
	}
	if err := RunParent(t.Context(), ParentOptions{Command: []string{"sh"}, Adopt: "x"}); err == nil {
		t.Error("a wrong --adopt is not an error")
	}
}
