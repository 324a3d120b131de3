//go:build linux

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// survivor is a process that was found by its command line: the daemon of a
// cluster directory, or its parent, whose records are lost.
type survivor struct {
	pid int
	fd  int // pidfd: what is signalled is what was looked at
}

// findSurvivors lists the daemons of dir and their parents by their command
// lines, which end in the daemon's own. dir need not exist any more.
func findSurvivors(dir string) ([]survivor, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("find daemons: %w", err)
	}
	dir = canonical(dir)
	var found []survivor
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !runs(pid, dir) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("find daemons: process %d: %w", pid, err)
		}
		// The pid may have become another's between the two looks; from here on
		// it cannot.
		if !runs(pid, dir) || ended(fd) {
			_ = unix.Close(fd) // nothing was done with it
			continue
		}
		found = append(found, survivor{pid, fd})
	}
	return found, nil
}

// runs says whether a process is the daemon of dir or its parent. A process
// that is gone, or a zombie, has no command line.
func runs(pid int, dir string) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
	return daemonOf(args) != "" && canonical(daemonOf(args)) == dir
}

// daemonOf is the cluster directory of a daemon's or its parent's command line,
// or empty.
func daemonOf(args []string) string {
	n := len(args)
	if n < 5 || !slices.Equal(args[n-4:n-1], []string{"control-plane", "run", "--dir"}) || !filepath.IsAbs(args[n-1]) {
		return ""
	}
	return args[n-1]
}

// canonical is a path without symbolic links as far as it exists.
func canonical(path string) string {
	path = filepath.Clean(path)
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		return real
	}
	if !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
		return path
	}
	return filepath.Join(canonical(filepath.Dir(path)), filepath.Base(path))
}

// ended says whether the process of a pidfd has ended.
func ended(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a file descriptor is a small number
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0
}

// stopSurvivors ends daemons and parents that no record tells of: SIGTERM, and
// SIGKILL after timeout. Each look finds anew, because a daemon starts another
// parent, and a parent another daemon, until both have been asked.
func stopSurvivors(ctx context.Context, dir string, timeout time.Duration) error {
	kill := time.NewTimer(timeout)
	defer kill.Stop()
	tick := time.NewTicker(2 * pollInterval)
	defer tick.Stop()
	asked := map[int]unix.Signal{}
	sig := unix.SIGTERM
	for {
		found, err := findSurvivors(dir)
		if err != nil || len(found) == 0 {
			return err
		}
		var errs []error
		for _, s := range found {
			if asked[s.pid] != sig {
				asked[s.pid] = sig
				if err := unix.PidfdSendSignal(s.fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
					errs = append(errs, fmt.Errorf("end process %d: %w", s.pid, err))
				}
			}
			errs = append(errs, unix.Close(s.fd))
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-kill.C:
			sig = unix.SIGKILL
		case <-tick.C:
		}
	}
}
