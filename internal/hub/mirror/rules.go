package mirror

import (
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// Identity is as whom a collection is read.
type Identity int

const (
	// NodeIdentity is system:node:<name>: the Node authorizer decides.
	NodeIdentity Identity = iota
	// HubIdentity is edge:hub:<name>, bound to the ClusterRole edge-hub.
	HubIdentity
)

// scope of a rule: which collections of a resource there are.
type scope int

const (
	// whole: all objects, always.
	whole scope = iota
	// ownNode: the object that has the node's name, always.
	ownNode
	// boundToNode: the objects whose spec.nodeName is the node, always.
	boundToNode
	// named: single objects, as they are needed.
	named
)

// rule says how a resource is mirrored.
type rule struct {
	resource   schema.GroupVersionResource
	kind       string
	identity   Identity
	scope      scope
	media      string // upstream
	namespaced bool
	// listed: there may be many, and they are read in pages of a list, which the
	// apiserver compresses, before they are watched. See "Bytes" of the package.
	listed bool
	// sealed in the store.
	sealed bool
	// durable: changes that matter are on disk before they are shown.
	durable bool
	// same says that two states of an object differ in nothing that is kept.
	same func(old, new *replica.Object) bool
	// referred: dropped when no pod refers to the object any more.
	referred bool
}

func core(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: resource}
}

// podRule is the place of the pods' rule.
const podRule = 0

func rules() []rule {
	return []rule{
		{resource: core("pods"), kind: "Pod", scope: boundToNode, media: wire.MediaProtobuf, namespaced: true, listed: true, durable: true},
		{resource: core("nodes"), kind: "Node", scope: ownNode, media: wire.MediaProtobuf, durable: true, same: sameButHeartbeat},
		{resource: core("services"), kind: "Service", scope: whole, identity: HubIdentity, media: wire.MediaProtobuf, namespaced: true, listed: true},
		{resource: core("namespaces"), kind: "Namespace", scope: whole, identity: HubIdentity, media: wire.MediaProtobuf, listed: true},
		{
			resource: schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"},
			kind:     "EndpointSlice", identity: HubIdentity, media: wire.MediaProtobuf, namespaced: true, listed: true,
		},
		{
			resource: schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "servicecidrs"},
			kind:     "ServiceCIDR", identity: HubIdentity, media: wire.MediaProtobuf,
		},
		{
			resource: schema.GroupVersionResource{Group: "storage.k8s.io", Version: "v1", Resource: "csidrivers"},
			kind:     "CSIDriver", media: wire.MediaProtobuf,
		},
		{
			resource: schema.GroupVersionResource{Group: "node.k8s.io", Version: "v1", Resource: "runtimeclasses"},
			kind:     "RuntimeClass", media: wire.MediaProtobuf,
		},
		{resource: core("secrets"), kind: "Secret", scope: named, media: wire.MediaProtobuf, namespaced: true, sealed: true, referred: true},
		{resource: core("configmaps"), kind: "ConfigMap", scope: named, media: wire.MediaProtobuf, namespaced: true, referred: true},
		{
			resource: schema.GroupVersionResource{Group: "edgewright.dev", Version: "v1alpha1", Resource: "nodepools"},
			kind:     "NodePool", identity: HubIdentity, scope: named, media: wire.MediaJSON,
		},
	}
}

func (r *rule) gvk() schema.GroupVersionKind { return r.resource.GroupVersion().WithKind(r.kind) }

// always returns the collection that is mirrored without being asked for.
func (r *rule) always(node string) (replica.Collection, bool) {
	c := replica.Collection{Resource: r.resource}
	switch r.scope {
	case named:
		return c, false
	case ownNode:
		c.Name = node
	case boundToNode:
		c.Node = node
	}
	return c, true
}

// onDemand returns the collection of a single object that a query is about.
func (r *rule) onDemand(q replica.Query) (replica.Collection, bool) {
	if r.scope != named || r.resource != q.Resource || q.Name == "" || q.Node != "" || r.namespaced != (q.Namespace != "") {
		return replica.Collection{}, false
	}
	return replica.Collection(q), true
}

// belongs says whether a collection is one of this rule's for a node.
func (r *rule) belongs(c replica.Collection, node string) bool {
	if always, ok := r.always(node); ok {
		return c == always
	}
	_, ok := r.onDemand(replica.Query(c))
	return ok
}
