// Package store keeps the node's replica on disk, so that a node which starts
// without a link begins with what it knew. It is read once, when it is opened,
// and from then on only written: what is served comes from memory. It never
// judges what it keeps, and never serves what is damaged.
//
// One file of bbolt, 0600, schema version 1:
//
//	├── meta
//	│   ├── schema                 big-endian uint32, number of the last migration
//	│   └── key                    which sealing key it was written with (a digest)
//	├── collections
//	│   └── <collection>           record: JSON of State, and number and digest of
//	│                              its objects' records
//	└── objects
//	    └── <collection> \0 <namespace> / <name>
//	                               record: the object as it was received
//
//	<collection>  resource / version / group / namespace / name / node, parts that
//	              are not narrowed empty
//	record        format byte │ flags byte │ CRC-32C of key, flags and payload │ payload
//	              flags: 1 sealed, 2 JSON. A sealed payload is a nonce and AES-GCM,
//	              bound to the record's key
//
// Whoever changes this drawing adds a migration (see migrations).
//
// # What can be relied on
//
//   - A collection's State is written in the same transaction as the objects it
//     speaks of: Complete and Version are never ahead of the data. A write that
//     was interrupted leaves the transaction before it.
//   - Write is batched: it is on disk within CommitInterval. Commit returns once
//     it is. Moving a Version alone (bookmarks) writes nothing by itself; it goes
//     along with the next change, and with Close.
//   - A file that is no store, whose pages do not hang together, with a record
//     whose checksum is wrong or a collection that does not hold what it was
//     written with, is renamed to <file>.bad-<unix time> when it is
//     opened; a new one takes its place. Of those, keepDamaged are kept. What was
//     in memory then is empty: the node answers 503 until it has mirrored anew,
//     rather than something that may be wrong.
//   - Secrets are sealed under a key that lies in a file of its own, 0600. If it
//     is another key than the store was written with, the collections that hold
//     sealed records are forgotten, and the rest stays.
//
// A disk that fails while the node runs makes writes wait and be tried again; Err
// says so. Nothing that was written before is lost by that. So it is with a file that
// can be read and not written when it is opened, and a disk that is too full to make
// a smaller copy of the file costs no more than the space.
//
// # Memory
//
// The store holds what waits to be written (pointers to objects that are in
// memory anyway) and bbolt's list of free pages: well under a megabyte. The file
// is mapped, so its pages, 2 to 5 MB, count as the process's until the kernel
// takes them back.
package store
