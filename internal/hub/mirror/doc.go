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
// Listing anew is a watch with sendInitialEvents, or pages of a list where that
// is refused. Nothing of it is shown until all of it has come: complete, objects
// and version go into one transaction of the store, then into the cache. What was
// complete before stays readable meanwhile, and after a 410 clients get the
// difference as events (see diff).
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
