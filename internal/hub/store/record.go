package store

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	bolt "go.etcd.io/bbolt"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

var (
	bucketMeta        = []byte("meta")
	bucketCollections = []byte("collections")
	bucketObjects     = []byte("objects")
)

const (
	// recordFormat is the first byte of every record.
	recordFormat = 1
	// recordHeader is format, flags and checksum.
	recordHeader = 6

	flagSealed = 1
	flagJSON   = 2
)

// castagnoli is the polynomial of CRC-32C, which processors compute themselves.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errRecord = errors.New("a damaged record")

// sum is over everything of a record but itself.
func sum(key []byte, flags byte, payload []byte) uint32 {
	s := crc32.Update(0, castagnoli, key)
	s = crc32.Update(s, castagnoli, []byte{flags})
	return crc32.Update(s, castagnoli, payload)
}

func encodeRecord(key []byte, flags byte, payload []byte) []byte {
	record := make([]byte, 0, recordHeader+len(payload))
	record = append(record, recordFormat, flags)
	record = binary.BigEndian.AppendUint32(record, sum(key, flags, payload))
	return append(record, payload...)
}

// decodeRecord returns flags and payload, a part of the record.
func decodeRecord(key, record []byte) (byte, []byte, error) {
	if len(record) < recordHeader || record[0] != recordFormat {
		return 0, nil, fmt.Errorf("%w: %q", errRecord, key)
	}
	flags, payload := record[1], record[recordHeader:]
	if binary.BigEndian.Uint32(record[2:recordHeader]) != sum(key, flags, payload) {
		return 0, nil, fmt.Errorf("%w: the checksum of %q is wrong", errRecord, key)
	}
	return flags, payload, nil
}

func encodeObject(key []byte, o *replica.Object, seal bool, aead cipher.AEAD) []byte {
	var flags byte
	if o.Media == wire.MediaJSON {
		flags |= flagJSON
	}
	payload := o.Raw
	if seal {
		flags |= flagSealed
		payload = sealBytes(aead, key, o.Raw)
	}
	return encodeRecord(key, flags, payload)
}

// sealBytes returns nonce and ciphertext, bound to a key of the store.
func sealBytes(aead cipher.AEAD, key, plain []byte) []byte {
	sealed := make([]byte, aead.NonceSize(), aead.NonceSize()+len(plain)+aead.Overhead())
	// A random nonce of 96 bits: one key may seal 2^32 records (NIST SP 800-38D),
	// more than a disk of a node takes writes. It never fails (crypto/rand).
	_, _ = rand.Read(sealed)
	return aead.Seal(sealed, sealed, plain, key)
}

func openBytes(aead cipher.AEAD, key, sealed []byte) ([]byte, error) {
	if len(sealed) < aead.NonceSize() {
		return nil, fmt.Errorf("%w: %q is too short", errRecord, key)
	}
	plain, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], key)
	if err != nil {
		// The error says no more than that.
		return nil, fmt.Errorf("%w: %q was not sealed with this key", errRecord, key)
	}
	return plain, nil
}

// decodeObject returns an object with memory of its own.
func decodeObject(key, record []byte, aead cipher.AEAD) (*replica.Object, error) {
	flags, payload, err := decodeRecord(key, record)
	if err != nil {
		return nil, err
	}
	raw := bytes.Clone(payload) // what bbolt gives is good for its transaction only
	if flags&flagSealed != 0 {
		if raw, err = openBytes(aead, key, payload); err != nil {
			return nil, err
		}
	}
	media := wire.MediaProtobuf
	if flags&flagJSON != 0 {
		media = wire.MediaJSON
	}
	o, err := replica.NewObject(media, raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", errRecord, key, err)
	}
	if !strings.HasSuffix(string(key), "\x00"+objectKey(o)) {
		return nil, fmt.Errorf("%w: %q holds %s/%s", errRecord, key, o.Namespace, o.Name)
	}
	return o, nil
}

// objectKey is the part of an object's key that follows its collection's. No
// name of the API holds a slash.
func objectKey(o *replica.Object) string { return o.Namespace + "/" + o.Name }

func collectionKey(c replica.Collection) []byte {
	return []byte(strings.Join([]string{c.Resource.Resource, c.Resource.Version, c.Resource.Group, c.Namespace, c.Name, c.Node}, "/"))
}

func objectPrefix(c replica.Collection) []byte { return append(collectionKey(c), 0) }

func parseCollectionKey(key []byte) (replica.Collection, error) {
	p := strings.Split(string(key), "/")
	if len(p) != 6 || p[0] == "" || p[1] == "" {
		return replica.Collection{}, fmt.Errorf("%w: %q names no collection", errRecord, key)
	}
	return replica.Collection{
		Resource:  schema.GroupVersionResource{Resource: p[0], Version: p[1], Group: p[2]},
		Namespace: p[3], Name: p[4], Node: p[5],
	}, nil
}

// collectionRecord is a collection as it is stored: its State, and what its
// objects come to, so that a page of objects that is not of the same transaction
// is found out.
type collectionRecord struct {
	State
	Objects int `json:"objects"`
	// Digest is the sum of the objects' digests.
	Digest uint64 `json:"digest"`
}

func (c *collectionRecord) add(key, record []byte) {
	c.Objects++
	c.Digest += digest(key, record)
}

func (c *collectionRecord) remove(key, record []byte) {
	c.Objects--
	c.Digest -= digest(key, record)
}

func digest(key, record []byte) uint64 {
	h := sha256.New()
	h.Write(key) // a hash takes everything
	h.Write(record)
	return binary.BigEndian.Uint64(h.Sum(nil))
}

func decodeCollection(key, record []byte) (*collectionRecord, error) {
	_, payload, err := decodeRecord(key, record)
	if err != nil {
		return nil, err
	}
	c := &collectionRecord{}
	if err := json.Unmarshal(payload, c); err != nil {
		return nil, fmt.Errorf("%w: %q: %w", errRecord, key, err)
	}
	return c, nil
}

// getCollection returns nil where the collection is not stored.
func getCollection(tx *bolt.Tx, c replica.Collection) (*collectionRecord, error) {
	key := collectionKey(c)
	record := tx.Bucket(bucketCollections).Get(key)
	if record == nil {
		return nil, nil
	}
	return decodeCollection(key, record)
}

func putCollection(tx *bolt.Tx, c replica.Collection, record *collectionRecord) error {
	payload, err := json.Marshal(record)
	if err != nil {
		return err
	}
	key := collectionKey(c)
	return tx.Bucket(bucketCollections).Put(key, encodeRecord(key, 0, payload))
}
