// Package badnetworks shows what the tunnel promises on the networks that edge
// sites have: addresses and interfaces that change, links that go away for seconds,
// firewalls that block UDP, paths that lose packets or those that are large, for as
// long as a machine is up.
//
// It runs a real gateway and a real agent on real sockets, each in a network
// namespace of its own, with a link of package netlab between them. A kubelet
// that knows three words stands for the real one, so that every byte can be
// counted; package oneapply shows the same tunnel under a real cluster.
//
// EDGE_TEST_SCALE=full makes it long.
package badnetworks
