package v1alpha1

import "slices"

// reservedNodeNames are the names of one label under which the cluster's own
// servers are known by certificates of the cluster CA. A node gets a serving
// certificate for its own name, so a node of such a name could serve in their
// place: the gateway's above all, which every device trusts.
var reservedNodeNames = []string{"edge-gateway", "kubernetes", "localhost"}

// ReservedNodeName says whether no node may have this name.
func ReservedNodeName(name string) bool { return slices.Contains(reservedNodeNames, name) }
