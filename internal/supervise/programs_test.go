//go:build linux

package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also every program that the tests run: the first argument
// chooses.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if program, ok := map[string]func([]string) int{
			"supervise":   programSupervise,
			"prog:daemon": programDaemon,
			"prog:serve":  programServe,
			"prog:exit":   programExit,
			"prog:deaf":   programDeaf,
			"prog:env":    programEnv,
			"prog:spawn":  programSpawn,
			"prog:chat":   programChat,
		}[os.Args[1]]; ok {
			os.Exit(program(os.Args[2:]))
		}
	}
	os.Exit(m.Run())
}

// until blocks until one of the signals, SIGTERM when there is none.
func until(signals ...os.Signal) {
	if len(signals) == 0 {
		signals = []os.Signal{syscall.SIGTERM}
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, signals...)
	<-c
}

// programServe <socket> <journal> <name>: listens, and at SIGTERM appends its
// name to the journal.
func programServe(args []string) int {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	os.Remove(args[0])
	journal(args[1], "+"+args[2]) // before anyone can see that it is ready
	l, err := net.Listen("unix", args[0])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer l.Close()
	fmt.Println("serving as", args[2])
	<-terminated
	journal(args[1], "-"+args[2])
	return 0
}

func journal(path, line string) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintln(f, line)
}

// programExit <code> <line>...: prints the lines and exits.
func programExit(args []string) int {
	code, _ := strconv.Atoi(args[0])
	for _, line := range args[1:] {
		fmt.Fprintln(os.Stderr, line)
	}
	return code
}

// programDeaf <file>: makes the file and ignores SIGTERM.
func programDeaf(args []string) int {
	signal.Ignore(syscall.SIGTERM)
	os.WriteFile(args[0], nil, 0o600)
	until(syscall.SIGUSR1)
	return 0
}

// programEnv <file>: writes its environment and network namespace and waits.
func programEnv(args []string) int {
	ns, _ := os.Readlink("/proc/self/ns/net")
	data, _ := json.Marshal(map[string]any{"env": os.Environ(), "net": ns, "sid": getsid(), "argv0": os.Args[0]})
	os.WriteFile(args[0]+".tmp", data, 0o600)
	os.Rename(args[0]+".tmp", args[0])
	until()
	return 0
}

func getsid() int {
	sid, _ := unix.Getsid(0)
	return sid
}

// programSpawn <file>: starts a program of its own in another session, with its
// whole environment, and writes the pid, as a container runtime does.
func programSpawn(args []string) int {
	cmd := exec.Command("/proc/self/exe", "prog:deaf", args[0]+".ready")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		fmt.Println(err)
		return 1
	}
	os.WriteFile(args[0]+".tmp", []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
	os.Rename(args[0]+".tmp", args[0])
	until()
	return 0
}

// programChat: at each SIGUSR1 writes a line with its number.
func programChat(args []string) int {
	c := make(chan os.Signal, 16)
	signal.Notify(c, syscall.SIGUSR1, syscall.SIGTERM)
	os.WriteFile(args[0], nil, 0o600)
	for i := 0; ; i++ {
		if <-c == syscall.SIGTERM {
			return 0
		}
		fmt.Printf("line %d %s\n", i, strings.Repeat("x", 100))
	}
}

// daemonConfig is the first argument of prog:daemon, as JSON in a file.
type daemonConfig struct {
	RunDir, LogDir string
	Specs          []daemonSpec
}

// daemonSpec is the part of a Spec that survives JSON.
type daemonSpec struct {
	Name, Path, Socket string
	Args, After        []string
}

func (c daemonConfig) specs() []Spec {
	var specs []Spec
	for _, d := range c.Specs {
		s := Spec{Name: d.Name, Path: d.Path, Args: d.Args, After: d.After, StopTimeout: 10 * time.Second}
		if d.Socket != "" {
			s.Ready = UnixProbe(d.Socket)
		}
		specs = append(specs, s)
	}
	return specs
}

// programDaemon <config>: a daemon as the project's are. At SIGTERM it ends and
// leaves its children.
func programDaemon(args []string) int {
	err := func() error {
		data, err := os.ReadFile(args[0])
		if err != nil {
			return err
		}
		var cfg daemonConfig
		if err := json.Unmarshal(data, &cfg); err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		daemon, err := AcquireDaemon(cfg.RunDir)
		if err != nil {
			return err
		}
		logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
		watch := make(chan error, 1)
		go func() { watch <- WatchParent(ctx, logger, nil) }()
		s, err := New(Options{RunDir: cfg.RunDir, LogDir: cfg.LogDir, Logger: logger})
		if err != nil {
			return err
		}
		err = s.Run(ctx, cfg.specs())
		return errors.Join(err, <-watch, daemon.Release())
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "daemon:", err)
		return 1
	}
	return 0
}

// programSupervise is what `edge supervise` does with its flags.
func programSupervise(args []string) int {
	opts := ParentOptions{Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	for len(args) > 0 && args[0] != "--" {
		switch args[0] {
		case "--pidfile":
			opts.PIDFile = args[1]
		case "--log":
			opts.LogFile = args[1]
		case "--adopt":
			opts.Adopt = args[1]
		}
		args = args[2:]
	}
	opts.Command = args[1:]
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := RunParent(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, "supervise:", err)
		return 1
	}
	return 0
}

// bench is a run directory and a log directory whose processes end with the
// test.
type bench struct {
	t      *testing.T
	dir    string
	runDir string
	logDir string
	exe    string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: dir, runDir: filepath.Join(dir, "run"), logDir: filepath.Join(dir, "logs"), exe: exe}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := StopDaemon(ctx, b.runDir, 5*time.Second); err != nil {
			t.Error(err)
		}
		if err := StopRecorded(ctx, b.runDir, nil, StopRecordedOptions{}); err != nil {
			t.Error(err)
		}
		if !t.Failed() {
			return
		}
		logs, err := filepath.Glob(filepath.Join(b.logDir, "*"))
		if err != nil {
			t.Error(err)
		}
		for _, log := range logs {
			lines, err := LastLines(log, 100)
			t.Logf("%s (%v):\n%s", log, err, strings.Join(lines, "\n"))
		}
	})
	return b
}

func (b *bench) file(name string) string { return filepath.Join(b.dir, name) }

// supervisor runs a Supervisor; leave ends it as a dying daemon would.
func (b *bench) supervisor(opts Options, specs ...Spec) (s *Supervisor, leave func()) {
	b.t.Helper()
	opts.RunDir, opts.LogDir = b.runDir, b.logDir
	s, err := New(opts)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, specs) }()
	left := false
	leave = func() {
		cancel()
		if !left {
			left = true
			if err := <-done; err != nil {
				b.t.Errorf("Run: %v", err)
			}
		}
	}
	b.t.Cleanup(leave)
	return s, leave
}

// serve is a spec of prog:serve.
func (b *bench) serve(name string, after ...string) Spec {
	socket := b.file(name + ".sock")
	return Spec{
		Name: name, Path: b.exe, Args: []string{"prog:serve", socket, b.file("journal"), name},
		After: after, Ready: UnixProbe(socket), StopTimeout: 10 * time.Second,
	}
}

func (b *bench) journal() []string {
	data, err := os.ReadFile(b.file("journal"))
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.Fields(string(data))
}

func (b *bench) waitReady(s *Supervisor, names ...string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	if err := s.WaitReady(ctx, names...); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) stop(s *Supervisor) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		b.t.Fatal(err)
	}
}

func status(t *testing.T, s *Supervisor, name string) Status {
	t.Helper()
	for _, st := range s.Status() {
		if st.Name == name {
			return st
		}
	}
	t.Fatalf("no status of %s", name)
	return Status{}
}

// eventually asks until the condition holds; for what happens in another
// process and cannot be waited for otherwise.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// mustIdentity of a process that runs.
func mustIdentity(t *testing.T, pid int) Identity {
	t.Helper()
	id, err := IdentityOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// innocent starts a process that no supervisor may touch.
func (b *bench) innocent() Identity {
	b.t.Helper()
	ready := b.file("innocent")
	cmd := exec.Command(b.exe, "prog:deaf", ready)
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	b.t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
	eventually(b.t, "innocent runs", func() bool { return exists(ready) })
	return mustIdentity(b.t, cmd.Process.Pid)
}
