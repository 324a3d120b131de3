// Package agent is the edge end of the tunnel. It keeps one session to a
// gateway, serves the dials that come through it (the kubelet, pods), and opens
// connections to the apiserver for components on its own node.
//
//	          +--------------- jittered wait <-------------+
//	          v                                            |
//	connecting --handshake, HELLO, WELCOME--> connected ---+ session ended
//	          \-- every gateway failed --------------------+
//
// The wait: within half a second at first and after a session that lasted; after
// n failures anything up to min(30 s, 0.5 s * 2^n). Poke ends it early, and
// where nothing at all had answered, the first answer to a knock (see pause).
//
// The agent is the last word on what is reachable through it: the kubelet it was
// configured with, and addresses that Config.AllowTCP lets pass. A gateway that
// has been taken over can aim at nothing else.
//
// It never listens on the network, never sends a credential of its node but the
// certificate of the handshake, and never trusts a gateway that the cluster's CA
// did not sign.
package agent
