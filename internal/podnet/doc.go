// Package podnet is the pod network of one node: what its container runtime is
// told (CNI), the routes to the pods of its pool, and the few things of the
// node's network namespace that pods need.
//
//	                     node's network namespace
//	pod ─ veth ─ cni0 ───────────────┬── LAN link ── peer nodes' pods (routes via their LAN address)
//	                                 │        └───── everywhere else (masqueraded as the node)
//	             lo: 169.254.20.10 ──┤ DNS
//	                 169.254.20.11 ──┘ the API, for pods
//
// Routes come from the pool's NodePool (status.members), read through the hub:
//
//	hub ─ watch ─► Watch ─► Reconciler.Apply ─► kernel
//	                 └── every Resync, and soon after a failure, again
//
// Whatever is unknown changes nothing: until the pool has been read once, and
// while it cannot be read, the routes stay as they are.
//
// The package touches only the network namespace of the calling thread, which
// has to be the node's (a daemon enters it before it starts), only routes of its
// own protocol number, only its own nftables table, and only sysctls below
// /proc/sys/net. It never loads kernel modules, and it changes no firewall but
// that table: in a namespace of the node's own nothing stands in the way of
// forwarding.
package podnet

import "net/netip"

// What other components on a node rely on.
const (
	// Bridge is the link pods are attached to.
	Bridge = "cni0"
	// RouteProtocol marks the routes this package made (rtm_protocol). Numbers
	// above 4 are for whoever sets routes; 0xED ("edge") is not among those
	// iproute2 (rt_protos) or the kernel's rtnetlink.h names.
	RouteProtocol = 0xED
	// Table is the nftables table of family inet this package owns.
	Table = "edge_podnet"
)

// The node's own addresses for its pods. They are the same on every node: a pod
// finds DNS and the API there wherever it runs, and they never leave the node.
var (
	// DNSAddress is where CoreDNS listens (port 53).
	DNSAddress = netip.AddrFrom4([4]byte{169, 254, 20, 10})
	// APIAddress is where the hub's ServePods listens (port 443).
	APIAddress = netip.AddrFrom4([4]byte{169, 254, 20, 11})
)
