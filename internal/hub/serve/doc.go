// Package serve answers reads of the API from the node's replica, online and
// offline alike. It opens no connection, decides nobody's rights and writes
// nothing but the answer.
//
//	                 Cover                     not the replica's to answer
//	Request ──► parse ──► whole, part, none ──────────────────────────────► false
//	              │            │                    (upstream, or a 503)
//	             400           ├─ get    one object, 404 only where covered whole
//	                           ├─ list   a snapshot, in pages
//	                           └─ watch  snapshot ─► initial-events-end ─► ring, bookmarks
//
// What an apiserver would answer is answered, with these differences, each of
// which the differential tests filter out by name:
//
//   - Objects lack what the mirror drops at ingest (managedFields and the like).
//   - A list or watch of a node component without a resourceVersion is answered
//     with the replica's state. An apiserver would read through to etcd; a
//     component only wants everything, and resumes by the version it was given.
//   - Bookmarks carry the collection's own version, which may lag behind the
//     apiserver's until the apiserver sends the mirror one.
//   - A Table is of meta.k8s.io/v1 and in JSON; its columns and cells are an
//     apiserver's, their descriptions our own (see package table).
//   - Continue tokens are the hub's own. They are good for as long as the
//     snapshot they page through is held, then 410, as an apiserver's are.
//
// What the replica cannot answer rightly it does not answer: a field selector
// the hub does not know, an exact version that is not there, a get by name in a
// collection that holds a part only. A collection that is not complete is a 503.
//
// # Files
//
//	serve.go   Server: coverage, waiting, errors      options.go  what a query asks for
//	list.go    get and list, pages                    continue.go tokens and held snapshots
//	watch.go   the life of a watch                    frames.go   events, bookmarks, errors
//	encode.go  an object in the encoding asked for    select.go   label and field selectors
//	table.go   an object as a row
package serve
