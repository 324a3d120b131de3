//go:build linux

package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"
)

// killWait bounds the wait for a process to go after SIGKILL. Longer than that
// means it hangs in the kernel (a dead disk or network file system).
const killWait = 10 * time.Second

// process is one running process, ours or adopted. Its pidfd pins it: a signal
// can never reach another process that was given the same pid.
type process struct {
	id      Identity
	adopted bool // another process is, or was, its parent
	fd      *os.File
	clock   clock.PassiveClock
	done    chan struct{} // closed when it has ended
	exit    Exit          // valid once done is closed
}

// command is what startProcess starts.
type command struct {
	path    string
	argv    []string
	env     []string // never nil: nil would mean the caller's own
	dir     string
	output  *os.File // stdout and stderr
	cgroups []string
	// onThread runs on the thread that forks, just before; the thread is thrown
	// away afterwards, so it may change namespaces.
	onThread func() error
}

// startProcess starts cmd in a session of its own, with an empty standard input.
func startProcess(cmd command, clk clock.PassiveClock) (*process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("open the null device: %w", err)
	}
	defer null.Close()
	v1, v2, err := sortCgroups(cmd.cgroups)
	if err != nil {
		return nil, err
	}
	pidfd := -1
	sys := &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd}
	if v2 != "" {
		dir, err := os.Open(v2)
		if err != nil {
			return nil, fmt.Errorf("open cgroup: %w", err)
		}
		defer dir.Close()
		sys.UseCgroupFD, sys.CgroupFD = true, int(dir.Fd())
	}
	attr := &syscall.ProcAttr{
		Dir:   cmd.dir,
		Env:   cmd.env,
		Files: []uintptr{null.Fd(), cmd.output.Fd(), cmd.output.Fd()},
		Sys:   sys,
	}
	var pid int
	fork := func() error {
		var err error
		pid, err = syscall.ForkExec(cmd.path, cmd.argv, attr)
		if err != nil {
			return fmt.Errorf("start %s: %w", cmd.path, err)
		}
		return nil
	}
	if len(v1) == 0 && cmd.onThread == nil {
		err = fork()
	} else {
		err = onThrowAwayThread(func() error {
			for _, dir := range v1 {
				// A child starts in the cgroups of the thread that forks it, and
				// in v1 a single thread can be moved: "0" is the writing thread.
				if err := os.WriteFile(filepath.Join(dir, "tasks"), []byte("0"), 0o600); err != nil {
					return fmt.Errorf("enter cgroup %s: %w", dir, err)
				}
			}
			if cmd.onThread != nil {
				if err := cmd.onThread(); err != nil {
					return err
				}
			}
			return fork()
		})
	}
	if err != nil {
		return nil, err
	}
	// The child is not reaped before watch runs, so its pid and its /proc entry
	// stay valid even if it has already ended.
	if pidfd < 0 {
		if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
			return nil, fmt.Errorf("watch %s (pid %d): %w", cmd.path, pid, errors.Join(err, killUnwatched(pid)))
		}
	}
	id, err := IdentityOf(pid)
	if err != nil {
		unix.Close(pidfd)
		return nil, errors.Join(err, killUnwatched(pid))
	}
	return newProcess(id, pidfd, false, clk), nil
}

// killUnwatched ends a child of ours that cannot be watched. It is not yet
// reaped, so the pid is still its own.
func killUnwatched(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return err
	}
	_, err := unix.Wait4(pid, nil, 0, nil)
	return err
}

// openProcess opens a process that another process started. It returns errGone
// if that very process does not run any more.
func openProcess(id Identity, clk clock.PassiveClock) (*process, error) {
	pidfd, err := id.open()
	if err != nil {
		return nil, err
	}
	return newProcess(id, pidfd, true, clk), nil
}

func newProcess(id Identity, pidfd int, adopted bool, clk clock.PassiveClock) *process {
	unix.CloseOnExec(pidfd)
	// Not blocking, so that the runtime's poller waits on it and no thread is
	// held for each process.
	_ = unix.SetNonblock(pidfd, true) // otherwise watch falls back to a thread
	p := &process{
		id:      id,
		adopted: adopted,
		fd:      os.NewFile(uintptr(pidfd), fmt.Sprintf("pidfd:%d", id.PID)),
		clock:   clk,
		done:    make(chan struct{}),
	}
	go p.watch()
	return p
}

// watch waits for the end of the process; a pidfd becomes readable then.
func (p *process) watch() {
	defer close(p.done)
	conn, err := p.fd.SyscallConn()
	if err == nil {
		err = conn.Read(func(fd uintptr) bool { return ended(int(fd), 0) })
	}
	if err != nil {
		for !ended(int(p.fd.Fd()), -1) {
			continue // interrupted by a signal
		}
	}
	p.exit = Exit{Time: p.clock.Now()}
	if p.adopted {
		p.exit.Reason = "ended (its exit status is not known, because an earlier daemon had started it)"
	} else {
		p.reap()
	}
	p.fd.Close()
}

func (p *process) reap() {
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(p.id.PID, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			p.exit.Reason = fmt.Sprintf("ended (its exit status cannot be read: %v)", err)
			return
		}
		break
	}
	if ws.Signaled() {
		p.exit.Signal = unix.SignalName(ws.Signal())
		return
	}
	p.exit.Code = ws.ExitStatus()
}

// signal sends sig; that the process has ended already is not an error.
func (p *process) signal(sig syscall.Signal) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	if err := conn.Control(func(fd uintptr) {
		sendErr = unix.PidfdSendSignal(int(fd), sig, nil, 0)
	}); err != nil {
		// The file is closed only once the process has ended.
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		return err
	}
	if sendErr == nil || errors.Is(sendErr, unix.ESRCH) {
		return nil
	}
	return fmt.Errorf("send %s to process %d: %w", unix.SignalName(sig), p.id.PID, sendErr)
}

// stop asks the process to end, kills it after timeout, and returns when it has
// ended. When ctx ends first the process is left as it is.
func (p *process) stop(ctx context.Context, sig syscall.Signal, timeout time.Duration, clk clock.Clock) error {
	if err := p.signal(sig); err != nil {
		return err
	}
	timer := clk.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d has not ended yet: %w", p.id.PID, context.Cause(ctx))
	case <-timer.C():
	}
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	kill := clk.NewTimer(killWait)
	defer kill.Stop()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d has not ended yet: %w", p.id.PID, context.Cause(ctx))
	case <-kill.C():
		return fmt.Errorf("process %d is still there %s after SIGKILL", p.id.PID, killWait)
	}
}

// sortCgroups tells v1 directories from the v2 one.
func sortCgroups(paths []string) (v1 []string, v2 string, err error) {
	for _, path := range paths {
		var fs unix.Statfs_t
		if err := unix.Statfs(path, &fs); err != nil {
			return nil, "", fmt.Errorf("cgroup %s: %w", path, err)
		}
		switch int64(fs.Type) { //nolint:unconvert // 32 bits wide on some architectures
		case unix.CGROUP_SUPER_MAGIC:
			v1 = append(v1, path)
		case unix.CGROUP2_SUPER_MAGIC:
			if v2 != "" {
				return nil, "", fmt.Errorf("cgroups %s and %s: a process is in one cgroup of version 2", v2, path)
			}
			v2 = path
		default:
			return nil, "", fmt.Errorf("%s is not a cgroup directory", path)
		}
	}
	return v1, v2, nil
}

// onThrowAwayThread runs f on a thread that ends afterwards, so that what f
// changes about its thread (cgroups, namespaces) reaches nothing else.
func onThrowAwayThread(f func() error) error {
	result := make(chan error, 1)
	started := make(chan struct{})
	inner := func() {
		runtime.LockOSThread() // and never unlocked: the runtime ends the thread
		close(started)
		result <- f()
	}
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			inner()
			return
		}
		// The main thread cannot be thrown away. While it is held here, another
		// goroutine runs on another thread.
		go inner()
		<-started
		runtime.UnlockOSThread()
	}()
	return <-result
}
