// Package restate tells the cluster how a node and its pods are when the link comes
// back after a cut. The cloud's controllers have taken the node for lost meanwhile: its
// Node is Ready=Unknown and its pods are not Ready. Kubelet would say otherwise, but it
// compares what the API has with what it knows every ten seconds only, and all that the
// cloud does next waits for that: taints, endpoints, pods to be scheduled.
//
//	the link is back
//	      │ own Node and pods as the node shows them: kubelet's last words
//	      ▼
//	┌─► look at the apiserver's, as the mirror brings them ──► other than kubelet's:
//	│             │ as kubelet's, or window over                patch what is kubelet's
//	└─────────────┘                                             of it, and look again
//
// Kubelet's words come first: what it writes itself ends this for that object, and waits
// for a patch that is under way, so that nothing older is written over it. Nothing is
// stored and nothing is tried again for its own sake: what is lost here kubelet says a
// few seconds later.
//
// It tells only what kubelet stands by. The cut must have lasted for agreed, and kubelet
// be there and have been as long, in which it has compared every status with its own;
// or it has started since, and written of the object. Of a Node it tells the conditions that are kubelet's, of a pod
// what kubelet would (pkg/kubelet/status/status_manager.go, mergePodStatus), not of one
// that is being deleted or has ended.
package restate
