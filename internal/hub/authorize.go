package hub

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// identity is whom the hub is towards the apiserver.
type identity int

const (
	// nodeIdentity is system:node:<name>: the Node authorizer decides.
	nodeIdentity identity = iota
	// hubIdentity is edge:hub:<name>: the few shared collections that the Node
	// authorizer gives no node.
	hubIdentity
)

// groupResource names a resource without its version.
type groupResource struct{ group, resource string }

// shared are the collections every node reads whole, with the hub's identity.
var shared = map[groupResource]bool{
	{"", "services"}:                       true,
	{"", "namespaces"}:                     true,
	{"discovery.k8s.io", "endpointslices"}: true,
	{"networking.k8s.io", "servicecidrs"}:  true,
}

// nodePools are read with the hub's identity too, but only by those that route.
var nodePools = groupResource{"edgewright.dev", "nodepools"}

// secrets are the kubelet's to read, for its pods.
var secrets = groupResource{"", "secrets"}

// nodeReads are what network components and the node daemon may read with the
// node's identity: upstream shows them their own Node only.
var nodeReads = map[groupResource]bool{
	{"", "nodes"}: true,
}

// daemonReads are what the node daemon may read beyond that: the pods bound to
// this node, and its own certificate requests.
var daemonReads = map[groupResource]bool{
	{"", "pods"}: true,
	{"certificates.k8s.io", "certificatesigningrequests"}: true,
}

// connects are subresources that a plain GET turns into a byte stream to a
// container or node. None goes through the hub to the cluster; see operator.go for
// those that it carries to the node's own kubelet.
var connects = map[string]bool{"exec": true, "attach": true, "portforward": true, "proxy": true}

// authorize says as whom the request goes upstream, or why it does not. It
// bounds what a caller may ask the hub to do; the apiserver authorizes again.
func authorize(caller Caller, r request) (identity, error) {
	if connects[r.subresource] {
		return 0, fmt.Errorf("the hub carries no %s connections", r.subresource)
	}
	if caller == CallerKubelet {
		return nodeIdentity, nil
	}
	if !r.isResource() {
		if r.method == http.MethodGet && discovery(r.path) {
			return nodeIdentity, nil
		}
		return 0, fmt.Errorf("%s may only read discovery and health outside the API's resources", caller)
	}
	gr := groupResource{r.group, r.resource}
	reads := r.reads() && r.subresource == ""
	switch caller {
	case CallerAdmin:
		switch {
		case gr == secrets:
			return 0, errors.New("an operator on the node reads no Secrets through the hub")
		case reads && (shared[gr] || gr == nodePools):
			return hubIdentity, nil
		case r.reads():
			return nodeIdentity, nil
		}
		return 0, errors.New("an operator on the node may only read, and enter pods; change the cluster with `edge kubectl` where it can be reached")
	case CallerNode:
		switch {
		case reads && (shared[gr] || gr == nodePools):
			return hubIdentity, nil
		case reads && (nodeReads[gr] || daemonReads[gr]),
			writesEvents(r),
			gr.resource == "certificatesigningrequests" && gr.group == "certificates.k8s.io" && r.verb == "create" && r.subresource == "":
			return nodeIdentity, nil
		}
	case CallerKubeProxy, CallerCoreDNS:
		switch {
		case reads && shared[gr]:
			return hubIdentity, nil
		case reads && nodeReads[gr], writesEvents(r):
			return nodeIdentity, nil
		}
	}
	return 0, fmt.Errorf("%s needs no %s of %s", caller, r.verb, r.resourceName())
}

// writesEvents: creating an event, or patching it when it repeats.
func writesEvents(r request) bool {
	return r.resource == "events" && (r.group == "" || r.group == "events.k8s.io") &&
		r.subresource == "" && (r.verb == "create" || r.verb == "patch")
}

// discovery holds the paths that tell what an apiserver serves and whether it
// is well; every authenticated user may read them upstream.
func discovery(path string) bool {
	for _, p := range []string{"/api", "/apis", "/version", "/healthz", "/livez", "/readyz"} {
		if path == p {
			return true
		}
	}
	for _, p := range []string{"/api/", "/apis/", "/openapi/", "/healthz/", "/livez/", "/readyz/"} {
		if strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}
