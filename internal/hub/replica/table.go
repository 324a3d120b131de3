package replica

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
)

// key of an object in its collection.
type key struct{ namespace, name string }

func (o *Object) key() key { return key{o.Namespace, o.Name} }

// Compare orders objects as an apiserver lists them.
func Compare(a, b *Object) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

// table is one collection.
type table struct {
	id   Collection
	kind schema.GroupVersionKind

	mu       sync.Mutex // guards what follows
	complete bool
	dropped  bool
	objects  map[key]*Object
	version  Version
	// listed is the snapshot of the present version; nil until one is asked for.
	listed *Snapshot
	// ring holds events first..first+len-1 by number, and bytes is what they hold.
	ring  []*Event
	first uint64
	bytes int
	// floor is the version before the first event of the ring: a client that
	// holds it or a later one lacks nothing that is not in the ring.
	floor Version
	// changed is closed when anything does.
	changed chan struct{}
}

func newTable(id Collection, kind schema.GroupVersionKind) *table {
	return &table{id: id, kind: kind, changed: make(chan struct{})}
}

// wake tells those who wait. The caller holds mu.
func (t *table) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// end is the number after the last event. The caller holds mu.
func (t *table) end() uint64 { return t.first + uint64(len(t.ring)) }

// at returns an event of the ring. The caller holds mu.
func (t *table) at(n uint64) *Event { return t.ring[n-t.first] }

// append adds to the ring. The caller holds mu.
func (t *table) append(e *Event) {
	t.ring = append(t.ring, e)
	t.bytes += len(e.Object.Raw)
	for len(t.ring) > RingEvents || t.bytes > ringBytes && len(t.ring) > framedEvents {
		oldest := t.ring[0]
		t.floor = oldest.Version()
		t.bytes -= len(oldest.Object.Raw)
		// The next growth of the slice leaves the place behind.
		t.ring[0], t.ring = nil, t.ring[1:]
		t.first++
	}
	if n := t.end(); n-t.first > framedEvents {
		t.at(n - 1 - framedEvents).forget()
	}
}

func (t *table) load(content Content) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.complete = true
	t.objects = make(map[key]*Object, len(content.Objects))
	for _, o := range content.Objects {
		t.objects[o.key()] = o
	}
	t.version, t.listed = content.Version, nil
	t.floor = content.Version
	if content.Changed != 0 {
		t.floor = content.Changed
	}
	// The numbers go on, past one that no watch has: all of them are expired.
	t.first = t.end() + 1
	t.ring, t.bytes = nil, 0
	t.wake()
}

func (t *table) publish(events []*Event, version Version) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.complete {
		return fmt.Errorf("publish changes of %s: %w", t.id, ErrIncomplete)
	}
	last := t.version
	for _, e := range events {
		if e.Version() <= last {
			return fmt.Errorf("publish changes of %s: version %s follows %s", t.id, e.Version(), last)
		}
		last = e.Version()
	}
	if version < last {
		return fmt.Errorf("publish changes of %s: the collection's version %s is below its last event's, %s", t.id, version, last)
	}
	for _, e := range events {
		if e.Type == watch.Deleted {
			delete(t.objects, e.Object.key())
		} else {
			t.objects[e.Object.key()] = e.Object
		}
		t.append(e)
	}
	if version > t.version {
		t.version = version
	}
	t.listed = nil
	t.wake()
	return nil
}

func (t *table) drop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropped, t.complete = true, false
	t.objects, t.listed, t.ring = nil, nil, nil
	t.wake()
}

// readable says why nothing can be read. The caller holds mu.
func (t *table) readable() error {
	switch {
	case t.dropped:
		return fmt.Errorf("%s: %w", t.id, ErrNotMirrored)
	case !t.complete:
		return fmt.Errorf("%s: %w", t.id, ErrIncomplete)
	}
	return nil
}

func (t *table) snapshot() (*Snapshot, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.readable(); err != nil {
		return nil, err
	}
	if t.listed == nil {
		objects := make([]*Object, 0, len(t.objects))
		for _, o := range t.objects {
			objects = append(objects, o)
		}
		slices.SortFunc(objects, Compare)
		t.listed = &Snapshot{Collection: t.id, Kind: t.kind, Version: t.version, Objects: objects}
	}
	return t.listed, nil
}

func (t *table) get(k key) (*Object, Version, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.readable(); err != nil {
		return nil, 0, err
	}
	return t.objects[k], t.version, nil
}

func (t *table) watch(from Version) (*Watch, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.readable(); err != nil {
		return nil, err
	}
	switch {
	case from < t.floor, from > t.version && from.Overlay():
		return nil, fmt.Errorf("watch %s from %s: %w", t.id, from, ErrExpired)
	case from > t.version:
		return nil, fmt.Errorf("watch %s from %s, which is at %s: %w", t.id, from, t.version, ErrFuture)
	}
	n := sort.Search(len(t.ring), func(i int) bool { return t.at(t.first+uint64(i)).Version() > from })
	return &Watch{table: t, next: t.first + uint64(n), taken: from}, nil
}

// closed is a channel that is ready at once.
var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (t *table) ready(next uint64) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dropped || next < t.first || next < t.end() {
		return closed
	}
	return t.changed
}

func (t *table) take(next uint64, limit int) ([]*Event, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dropped || next < t.first {
		return nil, fmt.Errorf("watch %s: %w", t.id, ErrExpired)
	}
	n := min(uint64(max(limit, 0)), t.end()-next)
	if n == 0 {
		return nil, nil
	}
	events := make([]*Event, n)
	for i := range events {
		events[i] = t.at(next + uint64(i))
	}
	return events, nil
}

func (t *table) bookmark(next uint64, taken Version) Version {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.dropped && next == t.end() {
		return t.version
	}
	return taken
}

func (t *table) wait(ctx context.Context, atLeast Version) error {
	for {
		t.mu.Lock()
		err := t.readable()
		if err == nil && t.version < atLeast {
			err = fmt.Errorf("%s is at %s, not at %s: %w", t.id, t.version, atLeast, ErrFuture)
		}
		dropped, changed := t.dropped, t.changed
		t.mu.Unlock()
		if err == nil || dropped {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return err
		}
	}
}
