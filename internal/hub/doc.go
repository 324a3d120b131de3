// Package hub is the node's only client of the cluster's API. kubelet,
// kube-proxy, CoreDNS and the node daemon talk to it on loopback; it answers
// through the tunnel with the identities the node holds.
//
//	kubelet ──────┐ TLS, client certificate         ┌─ system:node:<name> ─┐
//	kube-proxy ───┤ of the node-local CA            │                      │
//	CoreDNS ──────┼──► authenticate ► authorize ────┤                      ├─► tunnel ► apiserver
//	node daemon ──┤    (401)          (403)         │                      │
//	operator ─────┘                                 └─ edge:hub:<name> ────┘
//
//	pods ── TLS with the apiserver itself, own token ──► ServePods ──────────► tunnel ► apiserver
//
// Reads of what the node mirrors are answered from its own replica, online and
// offline alike; all else is streamed through while the apiserver can be reached:
//
//	apiserver ══► mirror ──► store (Config.DataDir)
//	                 └─────► replica ──► serve ──► callers
//	                            ▲
//	         overlay (what the node writes while it is cut off), endpoints (what
//	         follows of it for slices), memo (what it was last told and does not
//	         mirror); restate tells the cluster as the link comes back
//
// The EndpointSlice default/kubernetes is the hub's own. It names the node's
// link-local address of ServePods, which the API refuses in a stored slice.
//
// An operator on the node reads, and enters the node's own pods (log, exec, attach,
// port-forward) by its kubelet, whom the hub then is OperatorUser to: the same with
// and without a link.
//
// The hub never serves an unauthenticated caller, never forwards a caller's
// own credentials or impersonation, never carries an upgraded connection to the
// cluster, and never leaves a request hanging: what
// cannot be reached is a 503 with Retry-After, and what was cut off in the
// middle is aborted, so that no truncated answer looks complete.
//
// # Files
//
//	hub.go          Config, New, Serve: the listener and the life of a request
//	authenticate.go who calls;  authorize.go what they may do and as whom
//	request.go      what a request asks for
//	upstream.go     one HTTP/2 transport an identity
//	data.go         the replica: store, mirror, memo together
//	local.go        answering on the node;  remember.go, writes.go, lease.go its parts
//	forward.go      streaming a request through
//	slices.go       requests for EndpointSlices: which are rewritten and how
//	synthetic.go    the slice itself;  in which encoding: package codec
//	slicetables.go  slices as rows for a person
//	list.go, watch.go        rewriting of lists and watch streams
//	operator.go     logs, exec and the like of the node's pods for an operator on it
//	faults.go       what would keep the node from being without its cluster
//	passthrough.go  ServePods;  podconns.go how many connections pods may have
//	codec/          how objects look as bytes
//
// # Resource versions of the synthetic slice
//
// In the replica it is an object like others, with the version of the list it
// first stood in (see package mirror). Where slices are streamed through:
//
// Reflectors resume from the resourceVersion of the last event they saw, so the
// slice must never carry one that is ahead of or behind what the client has
// really been given:
//
//   - In a list it has the list's own resourceVersion.
//   - In a watch with sendInitialEvents and bookmarks it is sent last of the
//     initial events, with the resourceVersion of the bookmark that ends them.
//   - In a watch from "" or "0" without such a bookmark it is sent first, with a
//     resourceVersion that was listed before the watch was opened: whoever
//     resumes there misses nothing that happened since.
//   - In a watch from a resourceVersion the client holds it already, from the
//     list or watch that gave it that resourceVersion; nothing is added.
//   - Events about a stored default/kubernetes are left out among initial
//     events; later ones become MODIFIED events of the synthetic slice with the
//     event's own resourceVersion.
package hub
