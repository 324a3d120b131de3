//go:build linux

package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"
)

const (
	daemonFile = "daemon.json"
	daemonLock = "daemon.lock"
	// ParentFile in a daemon's run directory is the usual --pidfile of its
	// parent; FindDaemon and StopDaemon look there.
	ParentFile = "supervise.json"
)

// ErrRunning means that another daemon, or another parent, holds the lock.
var ErrRunning = errors.New("already running")

// Daemon is the exclusive right to be the daemon of a run directory.
type Daemon struct {
	runDir string
	lock   *os.File
	rec    daemonRecord
}

type daemonRecord struct {
	Identity
	Started time.Time `json:"started"`
	// Done says that the daemon ended on purpose. A parent that adopted it
	// cannot read its exit code and goes by this.
	Done bool `json:"done"`
}

// AcquireDaemon makes the calling process the daemon of runDir. It fails with
// ErrRunning if there is one already. The right ends with the process. Call it
// before WatchParent and before a Supervisor runs.
func AcquireDaemon(runDir string) (*Daemon, error) {
	runDir, err := makeDir(runDir)
	if err != nil {
		return nil, fmt.Errorf("become the daemon: %w", err)
	}
	lock, err := awaitLock(filepath.Join(runDir, daemonLock))
	if err != nil {
		return nil, fmt.Errorf("become the daemon of %s: %w", runDir, err)
	}
	id, err := IdentityOf(os.Getpid())
	if err == nil {
		rec := daemonRecord{Identity: id, Started: time.Now()}
		if err = writeJSON(filepath.Join(runDir, daemonFile), rec); err == nil {
			return &Daemon{runDir: runDir, lock: lock, rec: rec}, nil
		}
	}
	return nil, fmt.Errorf("become the daemon of %s: %w", runDir, errors.Join(err, lock.Close()))
}

// Release ends the right and records that the daemon ended on purpose: its
// parent does not start it again. Call it last, and only on a clean end, just
// before exiting with code 0.
func (d *Daemon) Release() error {
	d.rec.Done = true
	err := writeJSON(filepath.Join(d.runDir, daemonFile), d.rec)
	return errors.Join(err, d.lock.Close())
}

// lockPatience is how long a lock is waited for that another holds. StopDaemon
// takes the daemon's for a moment to see whether it is free, and a parent that
// finds nothing to do holds its own for a moment.
const lockPatience = time.Second

func awaitLock(path string) (*os.File, error) {
	deadline := time.Now().Add(lockPatience)
	for {
		f, err := lockFile(path)
		if !errors.Is(err, ErrRunning) || time.Now().After(deadline) {
			return f, err
		}
		<-time.After(probeFirst)
	}
}

// lockFile opens and locks path for as long as the returned file is open. Go
// opens files close-on-exec, so children do not keep the lock.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrRunning
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// DaemonState says which of a daemon and its parent are alive. The zero
// Identity stands for one that is not.
type DaemonState struct {
	Parent  Identity
	Daemon  Identity
	Started time.Time // of Daemon, when it is known
}

// Running reports whether the daemon is alive.
func (s DaemonState) Running() bool { return s.Daemon.PID != 0 }

// Alive reports whether the daemon or its parent is alive. A parent without a
// daemon is about to start one.
func (s DaemonState) Alive() bool { return s.Daemon.PID != 0 || s.Parent.PID != 0 }

// FindDaemon reports who is alive for runDir. A directory that does not exist
// has no daemon.
func FindDaemon(runDir string) (DaemonState, error) {
	var state DaemonState
	parent, err := readJSON[parentRecord](filepath.Join(runDir, ParentFile))
	if err != nil {
		return state, fmt.Errorf("find daemon: %w", err)
	}
	if parent.Alive() {
		state.Parent = parent.Identity
	}
	daemon, err := readJSON[daemonRecord](filepath.Join(runDir, daemonFile))
	if err != nil {
		return state, fmt.Errorf("find daemon: %w", err)
	}
	switch {
	case daemon.Alive():
		state.Daemon, state.Started = daemon.Identity, daemon.Started
	case parent.Daemon.Alive(): // started, and has not yet called AcquireDaemon
		state.Daemon = parent.Daemon
	}
	return state, nil
}

// readJSON reads a record of a daemon or parent. One that is missing or damaged
// reads as zero, which is nobody: the locks, not the records, keep two from
// running.
func readJSON[T any](path string) (T, error) {
	var v T
	data, err := readSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(data, &v); err != nil {
		var zero T
		return zero, nil
	}
	return v, nil
}

// stopPoll is the distance between two looks at who is still alive: a parent
// may start a daemon, or a daemon a parent, while they are being stopped.
const stopPoll = 50 * time.Millisecond

// StopDaemon ends the parent and the daemon of runDir: SIGTERM, and SIGKILL
// after timeout. It does not stop the daemon's children; that is the daemon's
// own decision, or StopRecorded's. It succeeds when both are gone, also if they
// never ran.
func StopDaemon(ctx context.Context, runDir string, timeout time.Duration) error {
	clk := clock.RealClock{}
	deadline := clk.Now().Add(timeout)
	asked := map[Identity]bool{}
	killed := map[Identity]time.Time{}
	for {
		state, err := FindDaemon(runDir)
		if err != nil {
			return fmt.Errorf("stop daemon: %w", err)
		}
		if !state.Alive() {
			free, err := lockIsFree(filepath.Join(runDir, daemonLock))
			if err != nil {
				return fmt.Errorf("stop daemon: %w", err)
			}
			if free {
				// Told also to a parent that a daemon has just started in its
				// last moment: it has recorded itself, and is seen here, or it
				// will read this mark.
				marked, err := markDone(runDir)
				if err != nil {
					return fmt.Errorf("stop daemon: %w", err)
				}
				if !marked {
					return nil
				}
				continue
			}
		}
		late := clk.Now().After(deadline)
		for _, id := range []Identity{state.Parent, state.Daemon} {
			// The parent passes SIGTERM on, starts nothing new after it, and ends
			// last. A daemon that got the signal twice might take the second for
			// impatience.
			if id.PID == 0 || (id == state.Daemon && state.Parent.PID != 0 && !late) {
				continue
			}
			sig := unix.SIGTERM
			switch {
			case late && killed[id].IsZero():
				killed[id], sig = clk.Now(), unix.SIGKILL
			case late && clk.Since(killed[id]) > killWait:
				return fmt.Errorf("stop daemon: process %d is still there %s after SIGKILL", id.PID, killWait)
			case late || asked[id]:
				continue
			}
			asked[id] = true
			if err := signalIdentity(id, sig); err != nil {
				return fmt.Errorf("stop daemon: %w", err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("stop daemon of %s: %w", runDir, context.Cause(ctx))
		case <-clk.After(stopPoll):
		}
	}
}

// markDone notes that the dead daemon on record is not to be started again. It
// reports whether that had to be noted.
func markDone(runDir string) (bool, error) {
	path := filepath.Join(runDir, daemonFile)
	rec, err := readJSON[daemonRecord](path)
	if err != nil || rec.PID == 0 || rec.Done {
		return false, err
	}
	rec.Done = true
	return true, writeJSON(path, rec)
}

func lockIsFree(path string) (bool, error) {
	lock, err := lockFile(path)
	switch {
	case err == nil:
		return true, lock.Close()
	case errors.Is(err, ErrRunning):
		return false, nil
	case errors.Is(err, fs.ErrNotExist):
		return true, nil // not even a directory
	default:
		return false, err
	}
}

// signalIdentity signals that very process, if it still runs.
func signalIdentity(id Identity, sig unix.Signal) error {
	fd, err := id.open()
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.PidfdSendSignal(fd, sig, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %s to process %d: %w", unix.SignalName(sig), id.PID, err)
	}
	return nil
}
