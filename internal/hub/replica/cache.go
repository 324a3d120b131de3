package replica

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	// RingEvents is how many changes of a collection are kept for watches to
	// resume from. A component that was away for a restart misses a handful; a
	// roll of the largest deployments some hundreds within a minute.
	RingEvents = 1024
	// ringBytes bounds them where objects are large, but for the newest
	// framedEvents: a Node of 8 KB changes every few minutes while the node is cut
	// off, and for days. Who misses more lists anew, from this machine's memory.
	ringBytes = 256 << 10
	// framedEvents is how many of the newest events keep their frames. Watches
	// take events as they come, so those further behind are rare.
	framedEvents = 32
)

// Cache is a Replica in memory: objects and recent events of every collection.
// Its writer is the mirror; for one collection the writing methods must not be
// called at the same time.
type Cache struct {
	mu     sync.RWMutex // guards what follows
	tables map[Collection]*table
	link   Link
}

// NewCache makes an empty one, with the link cut.
func NewCache() *Cache {
	return &Cache{tables: map[Collection]*table{}}
}

var _ Replica = (*Cache)(nil)

// Open adds a collection, incomplete, unless it is there.
func (c *Cache) Open(id Collection, kind schema.GroupVersionKind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tables[id] == nil {
		c.tables[id] = newTable(id, kind)
	}
}

// Content is a whole collection as it was stored or listed.
type Content struct {
	Objects []*Object
	// Version of the whole.
	Version Version
	// Changed is the version of the last change, where that is known: clients
	// that hold it, or a later one, lack nothing. 0 means Version.
	Changed Version
}

// Load makes an opened collection complete. It makes no events: whoever watched
// before (there is nobody, of one that was incomplete) is expired.
func (c *Cache) Load(id Collection, content Content) error {
	t, err := c.table(id)
	if err != nil {
		return err
	}
	t.load(content)
	return nil
}

// Publish applies events, in order, and moves the collection to a version no
// lower than theirs. The events' versions must be above all before: if one is
// not, or the collection is not complete, nothing is applied.
func (c *Cache) Publish(id Collection, events []*Event, version Version) error {
	t, err := c.table(id)
	if err != nil {
		return err
	}
	return t.publish(events, version)
}

// Advance moves a collection to a version without a change. A lower version
// than the present one does nothing.
func (c *Cache) Advance(id Collection, version Version) error {
	return c.Publish(id, nil, version)
}

// Reset replaces a collection's content without events: every watch expires.
func (c *Cache) Reset(id Collection, content Content) error { return c.Load(id, content) }

// Drop removes a collection; its watches expire.
func (c *Cache) Drop(id Collection) {
	c.mu.Lock()
	t := c.tables[id]
	delete(c.tables, id)
	c.mu.Unlock()
	if t != nil {
		t.drop()
	}
}

// SetLink says whether the apiserver can be reached, since when.
func (c *Cache) SetLink(online bool, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link.Online != online || c.link.Since.IsZero() {
		c.link = Link{Online: online, Since: now}
	}
}

// Link implements Replica.
func (c *Cache) Link() Link {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.link
}

// Cover implements Replica: it finds among the opened collections the narrowest
// that holds most of the query.
func (c *Cache) Cover(q Query) (Collection, Coverage) {
	// Most collections are of one name, and found at once.
	byName := Collection(q)
	byName.Node = ""
	c.mu.RLock()
	defer c.mu.RUnlock()
	if _, ok := c.tables[byName]; ok {
		return byName, CoverWhole
	}
	var best Collection
	most := CoverNone
	for id := range c.tables {
		if got := id.covers(q); got > most {
			best, most = id, got
		}
	}
	return best, most
}

// Snapshot implements Replica.
func (c *Cache) Snapshot(id Collection) (*Snapshot, error) {
	t, err := c.table(id)
	if err != nil {
		return nil, err
	}
	return t.snapshot()
}

// Get implements Replica.
func (c *Cache) Get(id Collection, namespace, name string) (*Object, Version, error) {
	t, err := c.table(id)
	if err != nil {
		return nil, 0, err
	}
	return t.get(key{namespace, name})
}

// Watch implements Replica.
func (c *Cache) Watch(id Collection, from Version) (*Watch, error) {
	t, err := c.table(id)
	if err != nil {
		return nil, err
	}
	return t.watch(from)
}

// Wait implements Replica.
func (c *Cache) Wait(ctx context.Context, id Collection, atLeast Version) error {
	t, err := c.table(id)
	if err != nil {
		return err
	}
	return t.wait(ctx, atLeast)
}

func (c *Cache) table(id Collection) (*table, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if t := c.tables[id]; t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("%s: %w", id, ErrNotMirrored)
}
