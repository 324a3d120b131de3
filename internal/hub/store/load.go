package store

import (
	"bytes"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

var metaKey = []byte("key")

// load reads every collection. A record that is wrong is damage of the whole: the
// disk that broke it may have broken more.
func (s *Store) load(keyDigest []byte) ([]Stored, error) {
	if err := s.adoptKey(keyDigest); err != nil {
		return nil, err
	}
	var found []Stored
	err := s.db.View(func(tx *bolt.Tx) error {
		known := map[string]int{}
		var promised, holds []*collectionRecord
		err := tx.Bucket(bucketCollections).ForEach(func(k, v []byte) error {
			c, err := parseCollectionKey(k)
			if err != nil {
				return err
			}
			record, err := decodeCollection(k, v)
			if err != nil {
				return err
			}
			known[string(k)] = len(found)
			found = append(found, Stored{Collection: c, State: record.State})
			promised, holds = append(promised, record), append(holds, &collectionRecord{State: record.State})
			return nil
		})
		if err != nil {
			return err
		}
		err = tx.Bucket(bucketObjects).ForEach(func(k, v []byte) error {
			o, err := decodeObject(k, v, s.seal)
			if err != nil {
				return err
			}
			collection, _, _ := bytes.Cut(k, []byte{0})
			i, ok := known[string(collection)]
			if !ok {
				return fmt.Errorf("%w: %q belongs to no collection", errRecord, k)
			}
			holds[i].add(k, v)
			found[i].Objects = append(found[i].Objects, o)
			return nil
		})
		if err != nil {
			return err
		}
		for i := range found {
			if *holds[i] != *promised[i] {
				return fmt.Errorf("%w: %s does not hold what it was written with", errRecord, found[i].Collection)
			}
		}
		return nil
	})
	if errors.Is(err, errRecord) {
		err = &damageError{err}
	}
	return found, err
}

// adoptKey forgets the collections that hold records sealed with another key,
// and notes the key in use.
func (s *Store) adoptKey(digest []byte) error {
	same := false
	err := s.db.View(func(tx *bolt.Tx) error {
		same = bytes.Equal(tx.Bucket(bucketMeta).Get(metaKey), digest)
		return nil
	})
	if err != nil || same {
		return err
	}
	return s.db.Update(func(tx *bolt.Tx) error {
		lost := map[replica.Collection]bool{}
		err := tx.Bucket(bucketObjects).ForEach(func(k, v []byte) error {
			flags, _, err := decodeRecord(k, v)
			if err != nil || flags&flagSealed == 0 {
				return err
			}
			collection, _, _ := bytes.Cut(k, []byte{0})
			c, err := parseCollectionKey(collection)
			lost[c] = true
			return err
		})
		if errors.Is(err, errRecord) {
			return &damageError{err}
		}
		if err != nil {
			return err
		}
		for c := range lost {
			s.log.Warn("forget a collection: it was sealed with a key that is gone", "collection", c.String())
			if err := s.put(tx, c, &pending{drop: true, replace: true}); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketMeta).Put(metaKey, digest)
	})
}
