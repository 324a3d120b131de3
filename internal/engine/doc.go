// Package engine holds the use cases that every face calls: create, read,
// change and destroy a cluster; declare pools, nodes and units; hand out
// credentials. It knows no Terraform type and no flag.
//
// A cluster's life, and what a caller sees of it:
//
//	(nothing) --CreateCluster--> id recorded --> "incomplete: <phase>" --> "ready"
//	                                   ^                |                    |
//	                                   +---- resumed ---+                "stopped"
//	"incomplete: destroying" <--DeleteCluster-- any                          |
//	                                                 <------ UpdateCluster --+
//
// From the moment an id is recorded every call returns it, also beside an
// error, so that nothing durable is ever forgotten.
package engine
