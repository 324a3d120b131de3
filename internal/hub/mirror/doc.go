// Package mirror keeps the node's replica in step with the apiserver: one stream
// upstream for each collection, however many clients read it. It answers nobody
// and judges no rights; what it may read is the apiserver's to say.
//
//	              ┌────────────────────────────────────────────────┐
//	              ▼                                                │ link lost, stream over
//	resting ──► watch from Version ──410, too large──► list anew ──┤ (jittered backoff)
//	   ▲          │   ▲                                   │        │
//	   │          │   └──────── initial events over ──────┘        │
//	   └──────────┴────────────────────────────────────────────────┘
//	  (while the link is cut)
//
// While an apiserver answers and cannot do what it should, the streams of a node share
// their trials (see trialEvery). What is not followed for two minutes of a link that is
// there is told by Collections: what the node holds of it is served, and grows old.
//
// Listing anew is pages of a list where there may be many objects (see Bytes), and
// a watch with sendInitialEvents where there are few, or pages where that is
// refused. Nothing of it is shown until all of it has come: complete, objects
// and version go into one transaction of the store, then into the cache. What was
// complete before stays readable meanwhile, and after a 410 clients get the
// difference as events (see diff).
//
// # Bytes
//
// An apiserver compresses answers above 128 KiB, but no watch. So what may be large
// is read as a list; TestFirstFill weighs it, on the link:
//
//	                                as a list    as a stream
//	  500 EndpointSlices                84 KB         635 KB
//	5,000 EndpointSlices               834 KB       6,319 KB
//	  110 pods of the node              23 KB         362 KB
//
// Of a list that the link breaks off, the pages that came are kept: it goes on with
// the next, and smaller ones, as long as the apiserver knows the version (its
// token, for 5 to 10 minutes). When it says 410 the list begins anew, so pages are
// never of two versions. Changes come by the watch, as they are: 1.3 KB for a slice
// of three endpoints.
//
// A bookmark a minute, so that a watch can be gone on with, is some 200 bytes on the
// link with all that goes with it: 0.3 MB a day for each collection. Only what is
// read as a list is worth that. Of a single object, or of a few, that were changed
// long ago the apiserver may have forgotten the version by the time a watch of them
// ends; they are then read anew, which costs no more than a few bookmarks. And where
// bookmarks show that the apiserver has gone back in time, all that have none are
// read anew.
//
// # What is mirrored
//
//	identity      collection                         when
//	system:node   pods of the node, its own Node     always
//	              csidrivers, runtimeclasses         always
//	              a Secret, a ConfigMap              from the first request, or a pod
//	                                                 that refers to it, to the last pod
//	edge:hub      services, endpointslices,          always
//	              namespaces, servicecidrs
//	              a NodePool                         from the first request
//
// That is what kubelet, CoreDNS and kube-proxy of 1.36 and 1.37 watch. The node's
// Lease is not mirrored: kubelet's renewals would come back over the link every
// ten seconds, and nobody on the node watches it.
//
// # What is dropped at ingest
//
//   - managedFields, of everything. Nobody who reads from a node applies, and an
//     update without them leaves them as they are.
//   - Changes of a Node's heartbeat times and of nothing else. The collection's
//     version moves on, the object stays as it was.
//   - What a filter says: see Filter.
//
// A Node's images stay: kubelet compares what it reads with what it knows, and
// would write them anew every ten seconds.
//
// # Order
//
// A change is given to the store before it is shown. Pods that come, go, or whose
// spec changes are on disk before they are shown, because they alone make kubelet
// start and kill; all else is within the store's batch. A disk that fails does
// not stop the node: it is shown all the same, and the store says what is wrong.
package mirror
