package replica

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Replica is what the serving side reads from. Every method may be called by any
// goroutine, and none but Wait blocks.
type Replica interface {
	// Cover finds the collection that answers a query. It may begin to mirror
	// one that is mirrored by name on first use: that one is incomplete at
	// first, and worth a Wait.
	Cover(Query) (Collection, Coverage)
	// Snapshot returns all objects of one moment. ErrNotMirrored, ErrIncomplete.
	Snapshot(Collection) (*Snapshot, error)
	// Get returns one object, nil where the collection does not hold it, and the
	// collection's Version. ErrNotMirrored, ErrIncomplete.
	Get(c Collection, namespace, name string) (*Object, Version, error)
	// Watch returns a place in the ring from which all events above a version
	// are read: that of a Snapshot, or what a client resumes from. ErrExpired
	// and ErrFuture beside the others. There is nothing to close.
	Watch(c Collection, from Version) (*Watch, error)
	// Wait returns nil once the collection is complete and no older than a
	// version, or why it is not when ctx ends: ErrNotMirrored, ErrIncomplete,
	// ErrFuture.
	Wait(ctx context.Context, c Collection, atLeast Version) error
	// Link tells whether the apiserver can be reached.
	Link() Link
}

// Link is the state of the way to the apiserver.
type Link struct {
	Online bool
	// Since when it is so.
	Since time.Time
}

// Snapshot is a collection at one moment. It is immutable, and shared: a pager
// may hold on to one.
type Snapshot struct {
	Collection Collection
	// Kind of the objects; that of the list is Kind+"List".
	Kind schema.GroupVersionKind
	// Version the objects are at.
	Version Version
	// Objects in the order of their keys (namespace, then name), as an apiserver
	// lists them.
	Objects []*Object
}
