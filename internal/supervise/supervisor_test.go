//go:build linux

package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
)

func TestStartsInOrderAndStopsInReverse(t *testing.T) {
	b := newBench(t)
	s, _ := b.supervisor(Options{}, b.serve("c", "b"), b.serve("a"), b.serve("b", "a"))
	b.waitReady(s)
	pids := map[int]bool{}
	for _, st := range s.Status() {
		if st.State != StateReady || st.Adopted || st.Restarts != 0 {
			t.Errorf("status of %s: %+v", st.Name, st)
		}
		pids[st.PID] = true
		info, err := os.Stat(recordPath(b.runDir, st.Name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("record of %s: %v, %v", st.Name, info, err)
		}
	}
	if len(pids) != 3 {
		t.Errorf("pids: %v", pids)
	}
	b.stop(s)
	if diff := cmp.Diff([]string{"+a", "+b", "+c", "-c", "-b", "-a"}, b.journal()); diff != "" {
		t.Error(diff)
	}
	for _, st := range s.Status() {
		if st.State != StateStopped || st.PID != 0 || exists(recordPath(b.runDir, st.Name)) {
			t.Errorf("after stop: %+v", st)
		}
	}
}

func TestStopAfterRunHasEnded(t *testing.T) {
	b := newBench(t)
	s, leave := b.supervisor(Options{}, b.serve("a"))
	b.waitReady(s)
	id := mustIdentity(t, status(t, s, "a").PID)
	leave()
	if !id.Alive() {
		t.Fatal("the end of Run's context has stopped the program")
	}
	b.stop(s)
	if id.Alive() {
		t.Error("Stop has left the program running")
	}
}

func TestStopKillsWhatDoesNotListen(t *testing.T) {
	b := newBench(t)
	ready := b.file("ready")
	s, _ := b.supervisor(Options{}, Spec{
		Name: "deaf", Path: b.exe, Args: []string{"prog:deaf", ready},
		Ready: FileProbe(ready), StopTimeout: 100 * time.Millisecond,
	})
	b.waitReady(s)
	b.stop(s)
	if exit := status(t, s, "deaf").LastExit; exit == nil || exit.Signal != "SIGKILL" {
		t.Errorf("exit: %v", exit)
	}
}

func TestStopGivesUpWithItsContext(t *testing.T) {
	b := newBench(t)
	ready := b.file("ready")
	s, _ := b.supervisor(Options{}, Spec{
		Name: "deaf", Path: b.exe, Args: []string{"prog:deaf", ready},
		Ready: FileProbe(ready), StopTimeout: time.Hour,
	})
	b.waitReady(s)
	id := mustIdentity(t, status(t, s, "deaf").PID)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Stop(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Stop: %v", err)
	}
	if !id.Alive() || !exists(recordPath(b.runDir, "deaf")) {
		t.Error("the program or its record is gone")
	}
	if err := signalIdentity(id, syscall.SIGKILL); err != nil { // StopTimeout is an hour
		t.Fatal(err)
	}
}

func TestDiesAtOnce(t *testing.T) {
	b := newBench(t)
	s, _ := b.supervisor(Options{},
		Spec{Name: "etcd", Path: b.exe, Args: []string{"prog:exit", "2", "first line", "cannot open the data directory"}, Ready: TCPProbe("127.0.0.1:1")},
		b.serve("apiserver", "etcd"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begin := time.Now()
	err := s.WaitReady(ctx, "apiserver")
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("noticed after %s", took)
	}
	var unready *NotReadyError
	if !errors.As(err, &unready) || !errors.Is(err, ErrCrashLoop) {
		t.Fatalf("error: %v", err)
	}
	for _, want := range []string{"etcd is not ready", "exited with code 2", "5 times in a row", "last lines of", "cannot open the data directory"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q: %v", want, err)
		}
	}
	st := status(t, s, "etcd")
	if !st.CrashLoop || st.Failures < crashLoopFailures || st.LastExit == nil {
		t.Errorf("status: %+v", st)
	}
	if st := status(t, s, "apiserver"); st.State != StateWaiting {
		t.Errorf("apiserver: %+v", st)
	}
}

func TestProgramThatIsMissing(t *testing.T) {
	b := newBench(t)
	s, _ := b.supervisor(Options{}, Spec{Name: "a", Path: b.file("nothing")})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := s.WaitReady(ctx)
	if !errors.Is(err, ErrCrashLoop) || !strings.Contains(err.Error(), "could not be started") || !strings.Contains(err.Error(), b.file("nothing")) {
		t.Errorf("error: %v", err)
	}
}

func TestWaitReadyTellsWhyNot(t *testing.T) {
	b := newBench(t)
	seen := make(chan struct{})
	var once sync.Once
	s, _ := b.supervisor(Options{}, Spec{
		Name: "slow", Path: b.exe, Args: []string{"prog:serve", b.file("s"), b.file("journal"), "slow"},
		Ready: func(context.Context) error {
			if exists(b.file("journal")) {
				once.Do(func() { close(seen) })
			}
			return errors.New("readyz: [-]etcd failed")
		},
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-seen
		lines := func() bool { l, _ := LastLines(s.LogFile("slow"), 1); return len(l) == 1 }
		eventually(t, "it has written", lines)
		cancel(errors.New("create timeout"))
	}()
	err := s.WaitReady(ctx)
	for _, want := range []string{"slow is not ready", "create timeout", "[-]etcd failed", "serving as slow"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q: %v", want, err)
		}
	}
	if err := s.WaitReady(t.Context(), "other"); err == nil {
		t.Error("an unknown name is not an error")
	}
}

// backoffClock records the delays before restarts, which are the only timers a
// Supervisor makes for specs without ReadyTimeout.
type backoffClock struct {
	*clocktesting.FakeClock
	delays chan time.Duration
}

// After is real: probes poll with it.
func (c backoffClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

func (c backoffClock) NewTimer(d time.Duration) clock.Timer {
	t := c.FakeClock.NewTimer(d)
	c.delays <- d
	return t
}

func TestBackoffGrowsAndIsForgotten(t *testing.T) {
	b := newBench(t)
	clk := backoffClock{clocktesting.NewFakeClock(time.Now()), make(chan time.Duration, 1)}
	crash := b.file("crash")
	if err := os.WriteFile(crash, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// Exits as long as the file is there.
	spec := b.serve("a")
	good := spec.Args
	spec.Args = []string{"-c", `test -e "$0" && exit 3; exec "$@"`, crash, b.exe}
	spec.Args = append(spec.Args, good...)
	spec.Path = "/bin/sh"
	s, _ := b.supervisor(Options{Clock: clk, Rand: func() float64 { return 0.5 }}, spec)
	want := []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000}
	for i, ms := range want {
		delay := <-clk.delays
		if delay != ms*time.Millisecond {
			t.Errorf("delay %d is %s, want %s", i, delay, ms*time.Millisecond)
		}
		if i == len(want)-1 {
			os.Remove(crash)
		}
		clk.Step(delay)
	}
	b.waitReady(s)
	if st := status(t, s, "a"); st.Failures != len(want) || st.Restarts != len(want) || !st.CrashLoop {
		t.Errorf("status: %+v", st)
	}
	clk.Step(healthyAfter)
	st := status(t, s, "a")
	if st.Failures != 0 || st.CrashLoop {
		t.Errorf("status after health: %+v", st)
	}
	if err := signalIdentity(mustIdentity(t, st.PID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if delay := <-clk.delays; delay != backoffFirst {
		t.Errorf("delay after health: %s", delay)
	}
	if st := status(t, s, "a"); st.State != StateBackoff || st.LastExit.Signal != "SIGKILL" || st.Failures != 1 {
		t.Errorf("status: %+v", st)
	}
	clk.Step(backoffFirst)
	b.waitReady(s)
}

func TestNotReadyInTimeIsRestarted(t *testing.T) {
	b := newBench(t)
	failed := make(chan Status, 16)
	s, _ := b.supervisor(Options{OnEvent: func(e Event) {
		if e.Status.State == StateBackoff {
			failed <- e.Status
		}
	}}, Spec{
		Name: "a", Path: b.exe, Args: []string{"prog:serve", b.file("s"), b.file("journal"), "a"},
		Ready:        func(context.Context) error { return errors.New("not yet") },
		ReadyTimeout: 300 * time.Millisecond,
	})
	st := <-failed
	if st.LastExit == nil || !strings.Contains(st.LastExit.Reason, "not ready within 300ms (not yet)") {
		t.Errorf("exit: %v", st.LastExit)
	}
	b.stop(s)
}

// A program that says it will never serve is not waited for.
func TestBrokenIsRestarted(t *testing.T) {
	b := newBench(t)
	spec := b.serve("a")
	var tries atomic.Int32
	spec.ReadyTimeout = time.Hour
	spec.Ready = func(context.Context) error {
		if tries.Add(1) == 1 {
			return &BrokenError{Err: errors.New("a part of it failed to load")}
		}
		return nil
	}
	s, _ := b.supervisor(Options{}, spec)
	b.waitReady(s)
	st := status(t, s, "a")
	if st.Restarts != 1 || st.LastExit == nil || !strings.Contains(st.LastExit.Reason, "a part of it failed to load") {
		t.Errorf("status %+v, last exit %v", st, st.LastExit)
	}
}

func TestRestart(t *testing.T) {
	b := newBench(t)
	s, _ := b.supervisor(Options{}, b.serve("a"), b.serve("b", "a"))
	b.waitReady(s)
	before := status(t, s, "a").PID
	other := status(t, s, "b").PID
	if err := s.Restart(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	b.waitReady(s)
	st := status(t, s, "a")
	if st.PID == before || st.Restarts != 1 || st.Failures != 0 {
		t.Errorf("status: %+v", st)
	}
	if status(t, s, "b").PID != other {
		t.Error("its dependent was restarted too")
	}
	if err := s.Restart(t.Context(), "nobody"); err == nil {
		t.Error("restart of nobody is not an error")
	}
	b.stop(s)
	if err := s.Restart(t.Context(), "a"); err == nil {
		t.Error("restart after Stop is not an error")
	}
}

func TestChildEnvironment(t *testing.T) {
	t.Setenv("TF_VAR_secret", "hunter2")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
	b := newBench(t)
	out := b.file("env")
	score := 500
	s, _ := b.supervisor(Options{}, Spec{
		Name: "a", Path: b.exe, Argv0: "other-name", Args: []string{"prog:env", out},
		Env: []string{"PATH=/bin", "X=1"}, Ready: FileProbe(out), OOMScoreAdj: &score,
	}, Spec{Name: "none", Path: b.exe, Args: []string{"prog:env", out + "2"}, Ready: FileProbe(out + "2")})
	b.waitReady(s)
	read := func(path string) (got struct {
		Env   []string
		SID   int
		Argv0 string
	}) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatal(err)
		}
		return got
	}
	got := read(out)
	names := func(env []string) []string {
		for i, v := range env {
			env[i], _, _ = strings.Cut(v, "=")
		}
		slices.Sort(env)
		return env
	}
	if diff := cmp.Diff([]string{"EDGE_SUPERVISED", "EDGE_SUPERVISED_DIGEST", "PATH", "X"}, names(got.Env)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"EDGE_SUPERVISED", "EDGE_SUPERVISED_DIGEST"}, names(read(out+"2").Env)); diff != "" {
		t.Error(diff)
	}
	pid := status(t, s, "a").PID
	if got.SID != pid || got.Argv0 != "other-name" {
		t.Errorf("session %d of process %d, argv0 %q", got.SID, pid, got.Argv0)
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/oom_score_adj")
	if err != nil || strings.TrimSpace(string(data)) != "500" {
		t.Errorf("oom_score_adj: %q, %v", data, err)
	}
}

func TestCgroupBeforeExec(t *testing.T) {
	dirs := testCgroups(t)
	b := newBench(t)
	out := b.file("env")
	s, _ := b.supervisor(Options{}, Spec{
		Name: "a", Path: b.exe, Args: []string{"prog:env", out}, Ready: FileProbe(out), CgroupPaths: dirs,
	})
	b.waitReady(s)
	pid := status(t, s, "a").PID
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(dirs[0])
	if got := strings.Count(string(data), name); got != len(dirs) {
		t.Errorf("in %d of %d cgroups:\n%s", got, len(dirs), data)
	}
	if strings.Contains(string(own), name) {
		t.Errorf("the supervisor itself was moved:\n%s", own)
	}
	b.stop(s)
}

// testCgroups makes a directory in each hierarchy that is writable here.
func testCgroups(t *testing.T) []string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 4 || (f[2] != "cgroup" && f[2] != "cgroup2") || strings.Contains(f[3], "cpuset") {
			continue
		}
		dir := filepath.Join(f[1], "edge-supervise-test-"+strconv.Itoa(os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			continue
		}
		t.Cleanup(func() {
			eventually(t, "the cgroup is empty", func() bool { return os.Remove(dir) == nil })
		})
		t.Logf("%s at %s", f[2], f[1])
		dirs = append(dirs, dir)
	}
	if len(dirs) == 0 {
		t.Skip("no cgroup can be made here (not root, or read-only)")
	}
	return dirs
}

func TestCheckSpecs(t *testing.T) {
	for name, specs := range map[string][]Spec{
		"empty name":   {{Path: "/x"}},
		"bad name":     {{Name: "a/b", Path: "/x"}},
		"reserved":     {{Name: "daemon", Path: "/x"}},
		"no path":      {{Name: "a"}},
		"twice":        {{Name: "a", Path: "/x"}, {Name: "a", Path: "/x"}},
		"unknown":      {{Name: "a", Path: "/x", After: []string{"b"}}},
		"cycle":        {{Name: "a", Path: "/x", After: []string{"b"}}, {Name: "b", Path: "/x", After: []string{"a"}}},
		"self":         {{Name: "a", Path: "/x", After: []string{"a"}}},
		"colon":        {{Name: "a:b", Path: "/x"}},
		"parent's own": {{Name: "supervise", Path: "/x"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			s, err := New(Options{RunDir: b.runDir, LogDir: b.logDir})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Run(t.Context(), specs); err == nil {
				t.Error("accepted")
			}
			if err := s.WaitReady(t.Context()); err == nil {
				t.Error("waiting for it is no error")
			}
		})
	}
}

func TestDigest(t *testing.T) {
	base := Spec{Name: "a", Path: "/x", Args: []string{"1"}, Env: []string{"A=1", "B=2"}}
	digest := func(change func(*Spec)) string {
		s := base
		change(&s)
		d, err := s.digest()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	same := digest(func(*Spec) {})
	for name, change := range map[string]func(*Spec){
		"env order":    func(s *Spec) { s.Env = []string{"B=2", "A=1"} },
		"stop timeout": func(s *Spec) { s.StopTimeout = time.Second },
		"after":        func(s *Spec) { s.After = []string{"b"} },
	} {
		if digest(change) != same {
			t.Errorf("%s changes the digest", name)
		}
	}
	for name, change := range map[string]func(*Spec){
		"path":     func(s *Spec) { s.Path = "/y" },
		"args":     func(s *Spec) { s.Args = []string{"2"} },
		"argv0":    func(s *Spec) { s.Argv0 = "y" },
		"env":      func(s *Spec) { s.Env = []string{"A=1"} },
		"dir":      func(s *Spec) { s.Dir = "/" },
		"revision": func(s *Spec) { s.Revision = "2" },
	} {
		if digest(change) == same {
			t.Errorf("%s does not change the digest", name)
		}
	}
}
