package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sort"
	"strconv"
	"strings"

	bolt "go.etcd.io/bbolt"
)

// keepDamaged is how many damaged files are kept for whoever looks into it. A
// disk that breaks each file it gets must not fill up with them.
const keepDamaged = 2

// damagedMark stands between the name of a store and the time it was set aside.
const damagedMark = ".bad-"

// damageError: the file cannot be trusted.
type damageError struct{ err error }

func (e *damageError) Error() string { return "the file is damaged: " + e.err.Error() }
func (e *damageError) Unwrap() error { return e.err }

// guard runs what reads pages of the file. bbolt panics where a page makes no
// sense, and reading a mapped page that the disk cannot give is a fault.
func guard(action string, do func() error) (err error) {
	before := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(before)
	defer func() {
		if r := recover(); r != nil {
			err = &damageError{fmt.Errorf("%s: %v", action, r)}
		}
	}()
	return do()
}

// check has bbolt look for pages that are lost or used twice.
func check(db *bolt.DB) error {
	err := db.View(func(tx *bolt.Tx) error {
		var first error
		for err := range tx.Check() {
			if first == nil {
				first = err
			}
		}
		return first
	})
	if err != nil {
		return &damageError{err}
	}
	return nil
}

// setAside renames the file and forgets the oldest of those set aside before.
func (s *Store) setAside(damage *damageError) error {
	to := s.path + damagedMark + strconv.FormatInt(s.clock.Now().Unix(), 10)
	s.log.Error("the replica's store is set aside; the node mirrors anew", "store", s.path, "kept", to, "error", damage)
	if err := os.Rename(s.path, to); err != nil {
		return fmt.Errorf("set the damaged store %s aside: %w", s.path, err)
	}
	kept, err := filepath.Glob(s.path + damagedMark + "*")
	if err != nil {
		return fmt.Errorf("look for damaged stores: %w", err)
	}
	age := func(path string) int64 {
		// What has no time in its name is not ours, and goes first.
		t, _ := strconv.ParseInt(strings.TrimPrefix(path, s.path+damagedMark), 10, 64)
		return t
	}
	sort.Slice(kept, func(i, j int) bool { return age(kept[i]) > age(kept[j]) })
	for _, old := range kept[min(len(kept), keepDamaged):] {
		if err := os.Remove(old); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove an old damaged store: %w", err)
		}
	}
	return nil
}
