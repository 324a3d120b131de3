package component

import (
	"fmt"
	"strings"
)

// Set says which programs of a release are wanted. Sets combine with |.
type Set uint8

// The sets.
const (
	// ControlPlane: kube-apiserver, kube-controller-manager, kube-scheduler,
	// etcd, etcdutl.
	ControlPlane Set = 1 << iota
	// Node: kubelet, kube-proxy, containerd, containerd-shim-runc-v2, ctr, runc,
	// the CNI plugins bridge, loopback, host-local, portmap, and coredns.
	Node
	// Client: kubectl.
	Client
	// Images: archives of the container images, see ImageKey.
	Images

	// All is every set.
	All = ControlPlane | Node | Client | Images
)

var setNames = []struct {
	set  Set
	name string
}{{ControlPlane, "control-plane"}, {Node, "node"}, {Client, "client"}, {Images, "images"}}

// String returns the names of the sets, separated by commas.
func (s Set) String() string {
	var names []string
	for _, n := range setNames {
		if s&n.set != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, ",")
}

// ParseSet reads names of sets ("control-plane", "node", "client", "images",
// "all"), separated by commas. "nodes" and "clients" mean the same as the singular.
func ParseSet(text string) (Set, error) {
	var s Set
	for word := range strings.SplitSeq(text, ",") {
		word = strings.TrimSpace(word)
		if word == "all" {
			s |= All
			continue
		}
		found := false
		for _, n := range setNames {
			if word == n.name || word == n.name+"s" {
				s |= n.set
				found = true
			}
		}
		if !found {
			return 0, fmt.Errorf("unknown set of components %q: use control-plane, node, client, images or all, separated by commas", word)
		}
	}
	return s, nil
}
