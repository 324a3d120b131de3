// Package signed has what a cluster's authority says to the two ends of the
// tunnel, as documents that it signed:
//
//	document   kind                  says                                       read by
//	Gateways   edge-gateways/1       which gateways there are, and where        agents, gateways
//	Policy     edge-node-policy/1    what may be dialled through one node       that node's agent
//
// The control plane signs them, gateways only carry them: a gateway process
// holds no key that an agent would believe about either. What a gateway is told
// about a node's policy it can withhold or deliver late, but not change, and a
// document that was replaced is known by its version.
//
// The package decides nothing: it parses, verifies, orders and compares.
package signed
