// Package site makes the networks that local nodes live in. Every local pool
// is a site of its own: a router with network address translation towards the
// cloud side (this machine), and a LAN behind it on which each node is a
// network namespace.
//
//	this machine              router namespace              node namespaces
//	(gateway, apiserver)      edge-<uid8>-r-<pool>          edge-<uid8>-n-<node>
//
//	ew<hash> 198.18.x.y/30 -- wan0 198.18.x.y+1/30
//	                          masquerade, no way in
//	                          lan0 192.168.1.1/24 (bridge)
//	                            en<hash> ------------------ eth0 192.168.1.11/24
//	                            en<hash> ------------------ eth0 192.168.1.12/24
//
// The LAN range is the same at every site on purpose: that is what real sites
// look like, and nothing in the cluster may depend on it being unique.
//
// A link's life, per node and for the whole site:
//
//	up <--Cut/Restore--> cut        (a reboot of the machine restores it)
//
// The package never changes forwarding, the firewall or a sysctl of the machine
// itself: nothing is forwarded by it, because what the nodes dial (the gateway)
// is on it. It touches only namespaces and links whose names it derives from
// the cluster's uid, and it never starts, stops or looks for a node's
// processes (see internal/edgenode).
package site
