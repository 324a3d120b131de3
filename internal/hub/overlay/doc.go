// Package overlay keeps what a node rightfully writes while it is cut off: the
// status of its own Node and of its own pods with what kubelet changes of their
// labels and annotations, its CSINode, and events. It is applied to what the node
// mirrors, so that whoever reads on the node sees it, and handed back once the link
// is there. It accepts no other write, and drops none that it has accepted, but for
// the oldest of more than maxSpool events, which it tells.
//
//	status of own node, own pods     labels and annotations,     events
//	        │ patch                  CSINode                       │
//	        ▼                              ▼                       ▼
//	laid over the replica, at        declared, the last      spooled, the newest
//	versions of the overlay          of each object          maxSpool of them
//	        │                              │                       │
//	        │        ── the link is back ──└───────────┬───────────┘
//	        ▼                                          ▼
//	lifted: the replica is the            sent to the apiserver in order;
//	apiserver's again, watches get 410,   a refusal is final and logged;
//	and kubelet writes its status anew    no answer or a lost one is not, nor
//	                                      a failure of the apiserver's, nor a
//	                                      403 of one that may be starting
//
// What kubelet reads or writes online of an object comes after what is declared of it
// (see Settle), which would else be written over it.
//
// Status need not be handed back: a kubelet compares what the API has with what it
// knows every ten seconds (pkg/kubelet/status/status_manager.go, needsReconcile) and
// patches what differs, as soon as it sees the apiserver's state. So that the cloud
// need not wait for that, package restate tells it before.
//
// Everything accepted is in the memo before it is acknowledged, and on disk within
// the store's next batch: it survives a restart of the hub, and a power cut but
// for its last fraction of a second.
package overlay
