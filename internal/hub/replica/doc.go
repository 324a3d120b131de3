// Package replica is the node's copy of the API as it is in memory, and the
// contract between those that keep it and those that serve from it. It speaks
// no HTTP and touches no disk. Package wire knows how objects look.
//
//	apiserver ══► mirror ──commit──► store          clients of the node
//	                │                                      ▲
//	                │ Load, Publish, Advance, Reset, Drop  │ frames
//	                ▼                                      │
//	            ┌────────────── Cache ─────────────┐     serve
//	            │ objects by namespace and name    │       │
//	            │ ring of the last changes         │◄──────┘
//	            └──────────────────────────────────┘  Cover, Snapshot, Get, Watch, Wait, Link
//
// The serving side uses the interface Replica only. In the daemon the mirror
// implements it, by way of a Cache; tests may feed a Cache by hand.
//
// # Collections
//
// A Collection is one stream of the apiserver: a resource, narrowed at most by
// namespace, name or spec.nodeName. Requests do not name collections: Cover
// finds the one that holds all a request may see, and whatever selectors the
// request has beyond that are the server's to apply.
//
//	           Load (from the store) or first Publish
//	unknown ─────────────► incomplete ───────────────► complete ──┐
//	   ▲                       │  initial events over     │   ▲    │ Publish, Advance
//	   └───────────────────────┴────────── Drop ──────────┘   └────┘
//
// A collection is complete once every object of one moment is in it. Nothing of
// one that is not complete can be read: ErrIncomplete, which is a 503 and never
// an empty list. It stays complete while the link is cut, and over restarts.
//
// # Versions
//
// Version is a resourceVersion. What the apiserver gave is kept: an object's
// Version is the one in its own metadata, always, and a collection's Version is
// that of the last event or bookmark. So:
//
//   - An event's version is that of its object: ADDED and MODIFIED as the
//     apiserver sent them, DELETED with the version of the deletion in the
//     metadata of the last state. Clients resume from it.
//   - In one collection the events' versions strictly increase, and none is
//     above the collection's Version. What a client that holds Version v lacks
//     is exactly the events above v.
//   - A collection's Version may be above its last event's: bookmarks of the
//     apiserver, and changes the node drops at ingest (heartbeats).
//
// After the apiserver says 410 the mirror lists anew and publishes the
// difference. Objects that are new or changed come with their own versions.
// What vanished gets a DELETED whose version nothing else has, between the old
// and the new Version of the collection; the real one is somewhere there too and
// no client can tell. A difference that cannot be told so (an etcd restored
// without its revision bumped, so that versions went back) is a Reset instead.
//
// # Watches
//
// A Watch is a place in the ring: it costs nothing while idle, and no change
// waits for a slow one. It ends with ErrExpired (410 to the client, which lists
// anew, from this node) when
//
//   - the version asked for, or the place reached, has left the ring. It holds
//     RingEvents changes of each collection;
//   - the collection was Reset or Dropped;
//   - an overlay ended that the watch may have been shown (see below).
//
// A version above the collection's is ErrFuture: Wait for it for a while, then
// say 410 (cut) or 504 with cause ResourceVersionTooLarge (connected).
//
// Events are shared by all watches. Event.Frame keeps what was encoded once for
// the next watch that wants the same.
//
// # Overlay
//
// What the node writes while it is cut off will be laid over a collection with
// versions of their own: OverlayBase+n, above every version an apiserver ever
// gives, n growing over the life of the node. They are ordinary events to a
// watch. When the overlay ends, the collection is Reset: versions are the
// apiserver's again, and every watch that saw or may have seen the overlay gets
// its 410. Whoever comes later with an overlay version (Version.Overlay) that
// the collection does not hold gets 410 at once, never ErrFuture.
package replica
