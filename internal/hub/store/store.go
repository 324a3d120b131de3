package store

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

const (
	// CommitInterval is how long changes are gathered before they are written:
	// at most five fsyncs a second under churn, and little lost to a power cut.
	CommitInterval = 200 * time.Millisecond
	// retryInterval is how soon a failed write is tried again. Disks that are
	// full or gone do not come back at once.
	retryInterval = 5 * time.Second
	// lockTimeout bounds the wait for another process to let go of the file: a
	// daemon that is just ending.
	lockTimeout = 5 * time.Second
	// mapSize is the address space taken for the file, so that it need not be
	// mapped anew while it grows; it takes no memory.
	mapSize = 64 << 20
	// growStep is by how much the file grows. bbolt's own 16 MiB are several
	// times what a node keeps.
	growStep = 256 << 10
	// compactAbove is the size of file worth making smaller when half of it is
	// free.
	compactAbove = 4 << 20
	// fileMode of the store and its key.
	fileMode = 0o600
)

// Options of Open. Path and KeyPath are required.
type Options struct {
	// Path of the store; its directory exists.
	Path string
	// KeyPath of the sealing key, made where there is none.
	KeyPath string
	// Clock times the batches; real time where nil.
	Clock clock.WithDelayedExecution
	// Logger; slog.Default where nil.
	Logger *slog.Logger

	lockTimeout time.Duration      // other than the constant, in tests
	syncDir     func(string) error // other than the function, in tests
}

// State of a collection.
type State struct {
	Kind schema.GroupVersionKind `json:"kind"`
	// Version and Changed as in replica.Content.
	Version replica.Version `json:"version"`
	Changed replica.Version `json:"changed"`
	// Complete: all objects of Version are stored.
	Complete bool `json:"complete"`
}

// Stored is a collection as it was found.
type Stored struct {
	Collection replica.Collection
	State      State
	Objects    []*replica.Object
}

// Change of one collection. What it names is put into one transaction.
type Change struct {
	Collection replica.Collection
	State      State
	// Replace removes all objects first.
	Replace bool
	Put     []*replica.Object
	// Delete names objects of which only Namespace and Name count.
	Delete []*replica.Object
	// Seal the objects put.
	Seal bool
	// Drop the collection instead; all else is ignored.
	Drop bool
}

// Store is an open file. Its methods may be called by any goroutine.
type Store struct {
	path  string
	seal  cipher.AEAD
	clock clock.WithDelayedExecution
	log   *slog.Logger

	lockTimeout time.Duration
	syncDir     func(string) error

	flushing sync.Mutex // held while a batch is written; taken before mu
	db       *bolt.DB   // guarded by flushing

	mu      sync.Mutex // guards what follows
	pending map[replica.Collection]*pending
	// moved are versions without a change: written along with the next batch.
	moved  map[replica.Collection]State
	timer  clock.Timer // nil while nothing is due
	err    error       // of the last write
	closed bool
}

// Open opens the store, sets aside what is damaged, and hands over all it holds.
// An error is not about damage: the disk, or another process that holds it.
func Open(o Options) (*Store, []Stored, error) {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.lockTimeout == 0 {
		o.lockTimeout = lockTimeout
	}
	if o.syncDir == nil {
		o.syncDir = syncDir
	}
	key, err := loadKey(o.KeyPath)
	if err != nil {
		return nil, nil, err
	}
	s := &Store{
		path: o.Path, seal: key.aead, clock: o.Clock, log: o.Logger, lockTimeout: o.lockTimeout, syncDir: o.syncDir,
		pending: map[replica.Collection]*pending{}, moved: map[replica.Collection]State{},
	}
	found, err := s.open(key.digest)
	if damage, ok := errors.AsType[*damageError](err); ok {
		if err := s.setAside(damage); err != nil {
			return nil, nil, err
		}
		found, err = s.open(key.digest)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open the replica's store %s: %w", o.Path, err)
	}
	return s, found, nil
}

// open verifies, opens and reads the file. Damage is a *damageError. With an error the
// file is closed.
func (s *Store) open(keyDigest []byte) ([]Stored, error) {
	used, err := verifyFile(s.path, s.lockTimeout)
	if err != nil {
		return nil, err
	}
	if err := s.openFile(); err != nil {
		return nil, err
	}
	var found []Stored
	err = guard("read", func() error {
		if err := migrate(s.db); err != nil {
			return err
		}
		if err := check(s.db); err != nil {
			return err
		}
		var err error
		found, err = s.load(keyDigest)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	if used.size >= compactAbove && used.free*2 >= used.pages && !s.db.IsReadOnly() {
		err = s.compact()
	}
	// Of what can only be read no name is new, and a file system that has given up
	// (ext4's errors=remount-ro) takes no sync.
	if err == nil && !s.db.IsReadOnly() {
		err = s.syncDir(filepath.Dir(s.path))
	}
	if err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	return found, nil
}

// openFile opens the file to write, or, where the file system lets nobody, to read:
// what the node knew is worth more than an error. Err says so then.
func (s *Store) openFile() error {
	err := openBolt(s.path, s.lockTimeout, false, &s.db)
	if !errors.Is(err, syscall.EROFS) && !errors.Is(err, os.ErrPermission) {
		return err
	}
	if openBolt(s.path, s.lockTimeout, true, &s.db) != nil {
		return err
	}
	s.log.Error("the replica's store can be read and not written", "store", s.path, "error", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = fmt.Errorf("open the replica's store %s to write: %w", s.path, err)
	return nil
}

// writable opens a file anew that could only be read. The caller holds flushing.
func (s *Store) writable() error {
	if !s.db.IsReadOnly() {
		return nil
	}
	// bbolt's lock is on the file: it must be let go of first.
	if err := s.db.Close(); err != nil {
		return err
	}
	err := openBolt(s.path, s.lockTimeout, false, &s.db)
	if err == nil {
		s.log.Info("the replica's store can be written again", "store", s.path)
		return nil
	}
	return errors.Join(err, openBolt(s.path, s.lockTimeout, true, &s.db))
}

// openBolt opens the file as bbolt's. db is left as it is where that fails.
func openBolt(path string, timeout time.Duration, readOnly bool, db **bolt.DB) error {
	err := guard("open", func() error {
		opened, err := bolt.Open(path, fileMode, &bolt.Options{
			Timeout: timeout, InitialMmapSize: mapSize, FreelistType: bolt.FreelistMapType, NoStatistics: true, ReadOnly: readOnly,
		})
		if err == nil {
			opened.AllocSize = growStep
			*db = opened
		}
		return err
	})
	for _, damage := range []error{bolterrors.ErrInvalid, bolterrors.ErrChecksum, bolterrors.ErrVersionMismatch} {
		if errors.Is(err, damage) {
			return &damageError{err}
		}
	}
	if errors.Is(err, bolterrors.ErrTimeout) {
		return errors.New("another process holds it")
	}
	return err
}

// compact rewrites a file that is mostly free: one that once held a much larger
// cluster, or many pages' worth of churn. It only saves space: where it cannot be
// done, as on a disk that is full, the file stays in use as it is. An error is of
// opening the file again.
func (s *Store) compact() error {
	smaller := s.path + ".compact"
	err := s.copyTo(smaller)
	if err == nil {
		if err := s.db.Close(); err != nil {
			return err
		}
		if err = os.Rename(smaller, s.path); err == nil {
			return s.openFile()
		}
		if err := s.openFile(); err != nil {
			return err
		}
	}
	s.log.Warn("the replica's store stays as large as it is", "store", s.path, "error", err)
	if err := os.Remove(smaller); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Warn("remove what was made of the replica's store", "file", smaller, "error", err)
	}
	return nil
}

// copyTo writes what the store holds into a new file.
func (s *Store) copyTo(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	to, err := bolt.Open(path, fileMode, &bolt.Options{NoStatistics: true})
	if err != nil {
		return err
	}
	// Every transaction syncs: what replaces the file is whole.
	err = guard("copy", func() error { return bolt.Compact(to, s.db, 1<<20) })
	return errors.Join(err, to.Close())
}

// Err returns why the last write failed, nil once one has succeeded again.
func (s *Store) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close writes what is left and closes the file.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	s.mu.Unlock()
	err := s.flush(true)
	s.flushing.Lock()
	defer s.flushing.Unlock()
	if err := errors.Join(err, s.db.Close()); err != nil {
		return fmt.Errorf("close the replica's store %s: %w", s.path, err)
	}
	return nil
}

// Write takes a change; it is on disk within CommitInterval, if the disk takes
// it. Changes of one collection are written in the order they came.
func (s *Store) Write(c Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(c)
}

// Move notes a State whose Version alone has changed: see the package's doc.
func (s *Store) Move(c replica.Collection, state State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pending[c]; p != nil && !p.drop {
		p.state = state
		return
	}
	s.moved[c] = state
}

// Commit takes a change and returns once it is on disk, or why it is not: it is
// tried again then, as after Write.
func (s *Store) Commit(ctx context.Context, c Change) error {
	s.Write(c)
	done := make(chan error, 1)
	go func() { done <- s.flush(false) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
