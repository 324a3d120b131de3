//go:build linux

package supervise

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"
)

// DetachOptions of StartDetached. Path is required.
type DetachOptions struct {
	Path string   // executable, absolute
	Args []string // without its own name
	Dir  string   // working directory; the caller's own when empty
	// Env is the whole environment; see MinimalEnv. Nothing is inherited.
	Env []string
	// LogFile receives standard output and error, appended to, 0600; the null
	// device when empty.
	LogFile string
	// OnThread runs on a thread of its own, which forks the process and ends
	// afterwards: it may enter namespaces (EnterNamespaces). The log file and
	// Dir: the log is opened before, Dir and Path are resolved after.
	OnThread func() error
}

// StartDetached starts a process that outlives the caller: own session, empty
// standard input, no other open file of the caller, exactly the given
// environment. It returns its pid once it runs. While the caller lives it reaps
// the process.
func StartDetached(opts DetachOptions) (int, error) {
	out := opts.LogFile
	if out == "" {
		out = os.DevNull
	} else if err := os.MkdirAll(filepath.Dir(out), 0o700); err != nil {
		return 0, fmt.Errorf("start %s: %w", opts.Path, err)
	}
	log, err := openLog(out)
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", opts.Path, err)
	}
	defer log.Close()
	// What the caller inherited and never knew (a lock of the script around it,
	// a pipe that a CI system reads to its end) would be held as long as the
	// daemon runs.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return 0, fmt.Errorf("start %s: keep open files to itself: %w", opts.Path, err)
	}
	proc, err := startProcess(command{
		path: opts.Path, argv: append([]string{opts.Path}, opts.Args...), dir: opts.Dir,
		env: append([]string{}, opts.Env...), output: log, onThread: opts.OnThread,
	}, clock.RealClock{})
	if err != nil {
		return 0, err
	}
	return proc.id.PID, nil
}

// ParentArgs are the arguments of an `edge supervise` that keeps command
// running as the daemon of runDir, with its output in logFile.
func ParentArgs(runDir, logFile string, command ...string) []string {
	args := []string{"supervise", "--pidfile", filepath.Join(runDir, ParentFile)}
	if logFile != "" {
		args = append(args, "--log", logFile)
	}
	return append(append(args, "--"), command...)
}

// defaultPath is used where the caller has no PATH: node daemons look up nft
// and mount helpers.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// MinimalEnv returns PATH and HOME and those of the named variables that are
// set; lookup is os.LookupEnv outside tests. A daemon gets nothing else, so that
// a face's credentials never reach it.
func MinimalEnv(lookup func(string) (string, bool), names ...string) []string {
	path, ok := lookup("PATH")
	if !ok || path == "" {
		path = defaultPath
	}
	env := []string{"PATH=" + path}
	for _, name := range append([]string{"HOME"}, names...) {
		if value, ok := lookup(name); ok && name != "PATH" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// EnterNamespaces returns an OnThread that joins the network and mount
// namespaces named by two files; an empty path keeps the caller's.
func EnterNamespaces(netPath, mountPath string) func() error {
	return func() error {
		// Both are opened first: after the mount namespace has changed, the
		// other path may mean something else.
		var fds []int
		defer func() {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}()
		var kinds []int
		for _, ns := range []struct {
			path string
			kind int
		}{{netPath, unix.CLONE_NEWNET}, {mountPath, unix.CLONE_NEWNS}} {
			if ns.path == "" {
				continue
			}
			fd, err := unix.Open(ns.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open namespace %s: %w", ns.path, err)
			}
			fds, kinds = append(fds, fd), append(kinds, ns.kind)
		}
		if mountPath != "" {
			// A thread that shares its root and working directory with others
			// may not change its mount namespace: setns(2).
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("enter mount namespace %s: %w", mountPath, err)
			}
		}
		for i, fd := range fds {
			if err := unix.Setns(fd, kinds[i]); err != nil {
				return fmt.Errorf("enter namespaces %s %s: %w", netPath, mountPath, err)
			}
		}
		return nil
	}
}

// withoutOwn drops the variables that this package sets, so that what a process
// starts is not taken for the process.
func withoutOwn(environ []string) []string {
	env := []string{}
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		if name != markerEnv && name != digestEnv && name != parentEnv {
			env = append(env, v)
		}
	}
	return env
}

// resolveProgram finds a program as a shell would and makes its path absolute,
// so that it stays the same in another working directory.
func resolveProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return "", err
	}
	return filepath.Abs(path)
}
