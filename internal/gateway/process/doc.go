// Package process is one gateway of several as a process of its own (`edge
// gateway run`). It needs a directory with a spec and what the spec names:
//
//	gateway.json       Spec
//	ca.crt             the cluster's CA
//	gateway.crt, .key  serving and mesh certificate (0600)
//	client.crt, .key   how it reads the API: edge:gateway (0600)
//	gateways.signed    the list of gateways as it was when this was made
//
// No key here signs anything that a node believes: the list of gateways and
// nodes' policies come signed by the cluster's authority, whose key stays with
// the control plane.
//
// The life of a process:
//
//	reading --members read--> meshing --links to the others, or 5 s--> serving
//	serving --SIGTERM--> draining --nodes moved, streams ended, or deadline--> ended
//
// A process takes the egress socket in one step (rename) when it begins to serve,
// from an older one of the same spec too, and waits for the UDP port until that
// one has left it. So a roll loses no dial: start the new one, wait until it
// serves, end the old one.
package process
