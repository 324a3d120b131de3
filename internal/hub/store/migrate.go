package store

import (
	"encoding/binary"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// migrations bring a store from each schema version to the next: the first makes
// an empty file version 1. They are never changed once released, only added to.
var migrations = []func(*bolt.Tx) error{
	createBuckets,
}

var metaSchema = []byte("schema")

func createBuckets(tx *bolt.Tx) error {
	for _, b := range [][]byte{bucketMeta, bucketCollections, bucketObjects} {
		if _, err := tx.CreateBucketIfNotExists(b); err != nil {
			return err
		}
	}
	return nil
}

// migrate brings the store to the schema of this program, all steps in one
// transaction. A store of a newer program cannot be read and counts as damaged:
// it is set aside, and whoever goes forward again finds it.
func migrate(db *bolt.DB) error {
	version := uint32(0)
	err := db.View(func(tx *bolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if meta == nil {
			return nil
		}
		v := meta.Get(metaSchema)
		if len(v) != 4 {
			return &damageError{fmt.Errorf("the schema version is %q", v)}
		}
		version = binary.BigEndian.Uint32(v)
		for _, b := range [][]byte{bucketCollections, bucketObjects} {
			if tx.Bucket(b) == nil {
				return &damageError{fmt.Errorf("there is no bucket %q", b)}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	last := uint32(len(migrations))
	switch {
	case version == last:
		return nil
	case version > last:
		return &damageError{fmt.Errorf("its schema version is %d, and this program knows %d", version, last)}
	}
	return db.Update(func(tx *bolt.Tx) error {
		for n := version; n < last; n++ {
			if err := migrations[n](tx); err != nil {
				return fmt.Errorf("migrate from schema version %d: %w", n, err)
			}
		}
		return tx.Bucket(bucketMeta).Put(metaSchema, binary.BigEndian.AppendUint32(nil, last))
	})
}
