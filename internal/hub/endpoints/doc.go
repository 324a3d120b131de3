// Package endpoints corrects the endpoints of the node's own pods while the node is
// cut off. A machine that starts anew gives its pods new sandboxes and so new
// addresses; their kubelet writes those into the pods, but what makes EndpointSlices
// of pods is in the cloud. Without this every Service of such a pod would lead nowhere
// until the link is back. It asks nobody, and changes addresses and conditions of own
// pods' endpoints only: all else of a slice is the same bytes.
//
//	           a pod's status or the link changes
//	cut ──► pods of the node, as the overlay has them ──► slices that name one by its
//	 ▲                                                    uid: laid over the replica
//	 │                                                               │ the link is back
//	 └── cut again ── held: until the apiserver's slices are ◄───────┘
//	                  as shown, or its pods are what kubelet
//	                  had written of them and slices have had
//	                  time to follow, for longest at most
//	                         │
//	                         ▼
//	                  lifted: the replica is the apiserver's again
//
// Lifted at once, the slices would have the dead addresses again until kubelet has
// written its status anew, which it does every ten seconds. While they are held, what
// the apiserver changes of other slices is not shown either.
//
// Nothing of it is stored: a hub that starts in a cut derives it anew from the pods,
// whose status the overlay has kept.
package endpoints
