//go:build linux

package edgenode

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// nodeLock holds a node dir against other runs of up, down and reboot.
type nodeLock struct {
	path string
	f    *os.File
}

// lockPath is beside the node dir, so that it outlives its removal: who waits
// for it must not go on with the lock of a directory that is gone.
func lockPath(dir string) string {
	return filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir)+".lock")
}

// lockNode waits for the lock of a node dir as long as ctx lasts. Whatever is
// known of the node must be read after it.
func lockNode(ctx context.Context, dir string) (*nodeLock, error) {
	path := lockPath(dir)
	for {
		l, err := tryLock(path)
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if l != nil {
			return l, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another command works on %s: %w", dir, context.Cause(ctx))
		case <-time.After(statusPoll):
		}
	}
}

// tryLock returns nil if another has the lock, or had it and removed the file.
func tryLock(path string) (*nodeLock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	var parent unix.Stat_t
	if err := unix.Lstat(filepath.Dir(path), &parent); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := f.Chown(int(parent.Uid), int(parent.Gid)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
		return nil, f.Close()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	mine, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	now, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(mine, now) {
		return nil, f.Close() // removed by discard; the next try makes another
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &nodeLock{path: path, f: f}, nil
}

// unlock ends the lock; closing is what does it.
func (l *nodeLock) unlock() { l.f.Close() }

// discard removes the lock's file while it is held: nothing is left of a purged
// node. Who waits for it makes a new one.
func (l *nodeLock) discard() error { return removeFile(l.path) }
