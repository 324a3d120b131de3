package component

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// lockPoll is how often a held lock is tried again: short beside any fetch, long
// beside a system call.
const lockPoll = 100 * time.Millisecond

// lock takes the lock of an entry. Each call opens the lock file anew, so it
// excludes goroutines of this process as well as other processes, and a killed
// process holds nothing. waiting is called once if the lock is held.
func (s *Store) lock(ctx context.Context, name string, waiting func()) (unlock func(), err error) {
	dir := filepath.Join(s.opts.Cache, "locks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	l := flock.New(filepath.Join(dir, name+".lock"))
	ok, err := l.TryLock()
	if err != nil {
		return nil, err
	}
	if !ok {
		waiting()
		if _, err = l.TryLockContext(ctx, lockPoll); err != nil {
			return nil, err
		}
	}
	return func() {
		if err := l.Unlock(); err != nil {
			s.opts.Logger.Warn("unlock component", slog.String("lock", name), slog.Any("error", err))
		}
	}, nil
}

// lockBlocking is for locks that are held for the time of a small file's write.
func (s *Store) lockBlocking(name string) (func(), error) {
	l := flock.New(filepath.Join(s.opts.Cache, "locks", name+".lock"))
	if err := l.Lock(); err != nil {
		return nil, err
	}
	return func() {
		if err := l.Unlock(); err != nil {
			s.opts.Logger.Warn("unlock component cache", slog.String("lock", name), slog.Any("error", err))
		}
	}, nil
}

// workDir makes a temporary directory for an entry whose lock is held, and
// removes those that killed holders left.
func (s *Store) workDir(name string) (string, error) {
	tmp := filepath.Join(s.opts.Cache, "tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return "", err
	}
	old, err := os.ReadDir(tmp)
	if err != nil {
		return "", err
	}
	for _, e := range old {
		if !strings.HasPrefix(e.Name(), name+".") {
			continue
		}
		if err := os.RemoveAll(filepath.Join(tmp, e.Name())); err != nil {
			return "", fmt.Errorf("remove what a killed fetch left: %w", err)
		}
	}
	work, err := os.MkdirTemp(tmp, name+".*")
	if err != nil {
		return "", err
	}
	return work, os.Mkdir(filepath.Join(work, filesDir), 0o755)
}
