// Package memo keeps what the hub must know while it is cut off and does not
// mirror: what it was last told about discovery, single objects, tokens and
// rights, and what it has promised to hand on. Values are bytes to it.
//
//	Put ──► memory ──► Backend (the replica's store, sealed)
//	Get ◄── memory ◄── what the store held when it was opened
//
// It is written as one collection a bucket, of a group that no apiserver has; see
// Owns. Every bucket is bounded: what was put longest ago goes first.
package memo

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// group marks the memo's collections in the store.
const group = "memo.hub.edgewright.dev"

// Bucket is a kind of fact.
type Bucket struct {
	Name string
	// Max is how many entries are kept.
	Max int
}

// Owns says whether a stored collection is the memo's and not the mirror's.
func Owns(c replica.Collection) bool { return c.Resource.Group == group }

func (b Bucket) collection() replica.Collection {
	return replica.Collection{Resource: schema.GroupVersionResource{Group: group, Version: "v1", Resource: b.Name}}
}

// Backend makes entries last. It must not block.
type Backend interface {
	// Keep writes and removes objects of a collection, sealed.
	Keep(c replica.Collection, put, remove []*replica.Object)
}

// Memo holds the entries of all buckets. Its methods may be called by any
// goroutine.
type Memo struct {
	backend Backend
	log     *slog.Logger

	mu      sync.Mutex // guards what follows
	last    uint64     // number of the entry put last
	buckets map[string]map[string]entry
}

// entry is one value, in the order it was put.
type entry struct {
	number uint64
	value  []byte
}

// record is an entry as it is stored.
type record struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Number   uint64            `json:"number"`
	Value    []byte            `json:"value"`
}

// New makes a memo of what the store held; what is not the memo's is passed over.
// backend may be nil: nothing outlives the process then.
func New(backend Backend, found map[replica.Collection][]*replica.Object, log *slog.Logger) *Memo {
	if log == nil {
		log = slog.Default()
	}
	m := &Memo{backend: backend, log: log, buckets: map[string]map[string]entry{}}
	for c, objects := range found {
		if !Owns(c) {
			continue
		}
		for _, o := range objects {
			var r record
			key, err := url.PathUnescape(o.Name)
			if err == nil {
				err = json.Unmarshal(o.Raw, &r)
			}
			if err != nil {
				log.Error("read what the hub remembers", "bucket", c.Resource.Resource, "error", err)
				continue
			}
			m.bucket(c.Resource.Resource)[key] = entry{r.Number, r.Value}
			m.last = max(m.last, r.Number)
		}
	}
	return m
}

// bucket: the caller holds mu, or is New.
func (m *Memo) bucket(name string) map[string]entry {
	b := m.buckets[name]
	if b == nil {
		b = map[string]entry{}
		m.buckets[name] = b
	}
	return b
}

// Get returns a value, which must not be changed.
func (m *Memo) Get(b Bucket, key string) ([]byte, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.buckets[b.Name][key]
	return e.value, ok
}

// Put keeps a value in the place of the key's last one, and forgets the oldest
// of the bucket if it is full. It returns how many those were.
func (m *Memo) Put(b Bucket, key string, value []byte) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last++
	entries := m.bucket(b.Name)
	entries[key] = entry{m.last, value}
	var forgotten []*replica.Object
	for len(entries) > b.Max {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(entries)), func(x, y string) int {
			return cmp.Compare(entries[x].number, entries[y].number)
		})
		delete(entries, oldest)
		forgotten = append(forgotten, named(oldest))
	}
	if m.backend == nil {
		return len(forgotten)
	}
	o, err := stored(key, record{Number: m.last, Value: value})
	if err != nil {
		m.log.Error("keep what the hub remembers", "bucket", b.Name, "error", err)
		return len(forgotten)
	}
	m.backend.Keep(b.collection(), []*replica.Object{o}, forgotten)
	return len(forgotten)
}

// Delete forgets values.
func (m *Memo) Delete(b Bucket, keys ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var forgotten []*replica.Object
	for _, key := range keys {
		if _, ok := m.buckets[b.Name][key]; ok {
			delete(m.buckets[b.Name], key)
			forgotten = append(forgotten, named(key))
		}
	}
	if m.backend != nil && len(forgotten) > 0 {
		m.backend.Keep(b.collection(), nil, forgotten)
	}
}

// Entry of a bucket.
type Entry struct {
	Key   string
	Value []byte
}

// All returns a bucket's entries in the order they were put.
func (m *Memo) All(b Bucket) []Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	entries := m.buckets[b.Name]
	keys := slices.SortedFunc(maps.Keys(entries), func(x, y string) int {
		return cmp.Compare(entries[x].number, entries[y].number)
	})
	out := make([]Entry, len(keys))
	for i, key := range keys {
		out[i] = Entry{key, entries[key].value}
	}
	return out
}

func named(key string) *replica.Object { return &replica.Object{Name: url.PathEscape(key)} }

func stored(key string, r record) (*replica.Object, error) {
	o := named(key)
	r.Metadata.Name = o.Name
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("entry %q: %w", key, err)
	}
	o.Media, o.Raw, o.Message = wire.MediaJSON, raw, raw
	return o, nil
}
