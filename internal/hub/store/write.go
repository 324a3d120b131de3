package store

import (
	"bytes"
	"fmt"
	"maps"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// pending is what is to be written of one collection: changes folded into one.
type pending struct {
	drop    bool
	replace bool
	state   State
	// objects by their key within the collection; a nil object is a deletion.
	objects map[string]sealable
}

type sealable struct {
	object *replica.Object
	seal   bool
}

// add folds a change into what is pending. The caller holds mu.
func (s *Store) add(c Change) {
	p := s.pending[c.Collection]
	if p == nil {
		p = &pending{objects: map[string]sealable{}}
		s.pending[c.Collection] = p
	}
	delete(s.moved, c.Collection)
	p.fold(c)
	s.due(CommitInterval)
}

func (p *pending) fold(c Change) {
	if c.Drop || c.Replace {
		p.drop, p.replace = c.Drop, true
		clear(p.objects)
	}
	if c.Drop {
		return
	}
	p.drop, p.state = false, c.State
	for _, o := range c.Put {
		p.objects[objectKey(o)] = sealable{o, c.Seal}
	}
	for _, o := range c.Delete {
		p.objects[objectKey(o)] = sealable{}
	}
}

// due has the batch written after a while, if nothing is due yet. The caller
// holds mu.
func (s *Store) due(after time.Duration) {
	if s.timer != nil || s.closed {
		return
	}
	s.timer = s.clock.AfterFunc(after, func() {
		// On a goroutine of its own: a clock may call while it holds its lock.
		go func() {
			if err := s.flush(false); err != nil {
				s.log.Error("write the replica's store; it will be tried again", "error", err)
			}
		}()
	})
}

// flush writes all that is pending in one transaction. Nothing pending writes
// nothing, unless versions that have moved are wanted too.
func (s *Store) flush(moved bool) error {
	s.flushing.Lock()
	defer s.flushing.Unlock()

	s.mu.Lock()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if len(s.pending) == 0 && (!moved || len(s.moved) == 0) {
		err := s.err
		s.mu.Unlock()
		return err
	}
	batch, states := s.pending, s.moved
	s.pending, s.moved = map[replica.Collection]*pending{}, map[replica.Collection]State{}
	s.mu.Unlock()

	err := s.update(func(tx *bolt.Tx) error {
		for c, p := range batch {
			if err := s.put(tx, c, p); err != nil {
				return fmt.Errorf("%s: %w", c, err)
			}
		}
		for c, state := range states {
			// Only of what is stored: it may have been dropped since.
			kept, err := getCollection(tx, c)
			if err == nil && kept != nil {
				kept.State = state
				err = putCollection(tx, c, kept)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", c, err)
			}
		}
		return nil
	})

	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.err = nil
		return nil
	}
	s.err = fmt.Errorf("write the replica's store %s: %w", s.path, err)
	s.restore(batch, states)
	s.due(retryInterval)
	return s.err
}

// update is bbolt's, of a file that may have to be opened anew for it. The caller
// holds flushing.
func (s *Store) update(do func(*bolt.Tx) error) error {
	if err := s.writable(); err != nil {
		return err
	}
	return s.db.Update(do)
}

// restore puts a batch that was not written under what has come since. The
// caller holds mu.
func (s *Store) restore(batch map[replica.Collection]*pending, states map[replica.Collection]State) {
	for c, later := range s.pending {
		earlier := batch[c]
		switch {
		case earlier == nil:
			delete(states, c)
		case later.replace:
			delete(batch, c)
		default:
			maps.Copy(earlier.objects, later.objects)
			earlier.drop, earlier.state = false, later.state
		}
		if batch[c] == nil {
			batch[c] = later
		}
	}
	s.pending = batch
	for c, state := range s.moved {
		if p := s.pending[c]; p != nil && !p.drop {
			p.state = state
		} else {
			states[c] = state
		}
	}
	s.moved = states
}

// put writes what is pending of one collection.
func (s *Store) put(tx *bolt.Tx, c replica.Collection, p *pending) error {
	objects := tx.Bucket(bucketObjects)
	kept, err := getCollection(tx, c)
	if err != nil {
		return err
	}
	if p.replace {
		if err := removeObjects(objects, c); err != nil {
			return err
		}
		kept = nil
	}
	if p.drop {
		return tx.Bucket(bucketCollections).Delete(collectionKey(c))
	}
	if kept == nil {
		kept = &collectionRecord{}
	}
	kept.State = p.state
	prefix := objectPrefix(c)
	for name, o := range p.objects {
		key := append(bytes.Clone(prefix), name...)
		if old := objects.Get(key); old != nil {
			kept.remove(key, old)
		}
		if o.object == nil {
			if err := objects.Delete(key); err != nil {
				return err
			}
			continue
		}
		record := encodeObject(key, o.object, o.seal, s.seal)
		kept.add(key, record)
		if err := objects.Put(key, record); err != nil {
			return err
		}
	}
	return putCollection(tx, c, kept)
}

// removeObjects removes all objects of a collection.
func removeObjects(objects *bolt.Bucket, c replica.Collection) error {
	prefix := objectPrefix(c)
	// Keys are gathered first: a cursor may skip after its Delete.
	var keys [][]byte
	cursor := objects.Cursor()
	for k, _ := cursor.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = cursor.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		if err := objects.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// Keep puts and removes objects of a collection that is not a copy of anything,
// sealed, within CommitInterval.
func (s *Store) Keep(c replica.Collection, put, remove []*replica.Object) {
	s.Write(Change{Collection: c, State: State{Complete: true}, Put: put, Delete: remove, Seal: true})
}
