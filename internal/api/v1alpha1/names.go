package v1alpha1

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// GroupVersion is the API group and version of every type in this package.
var GroupVersion = schema.GroupVersion{Group: "edgewright.dev", Version: "v1alpha1"}

// Names that several components agree on.
const (
	// PoolLabel on a Node names the pool it belongs to. Only the node
	// controller writes it, from the enrolment record.
	PoolLabel = "edgewright.dev/pool"
	// CutLabel on a Node says that it is cut off: "true", or it is not there.
	CutLabel = "edgewright.dev/cut"
	// UnitDeploymentLabel on a Deployment, Service or Pod names the
	// UnitDeployment that made it.
	UnitDeploymentLabel = "edgewright.dev/unit-deployment"
	// UnplacedTaint is what a node registers with until the node controller
	// has given it its pool, labels and taints.
	UnplacedTaint = "edgewright.dev/unplaced"
	// NodeFinalizer on an EdgeNode holds it until its identity is revoked and
	// its Node object is gone.
	NodeFinalizer = "edgewright.dev/node"
	// PoolFinalizer on a NodePool holds it until no EdgeNode names it.
	PoolFinalizer = "edgewright.dev/pool"
	// ManagedAnnotation on a Node records, as JSON, which labels and taints the
	// node controller put there, so that it removes only its own.
	ManagedAnnotation = "edgewright.dev/managed"
	// PolicyAnnotation on an EdgeNode is the node's signed policy (package
	// tunnel/signed): what may be dialled through it. The controllers have it
	// signed; gateways carry it to the node, whose agent verifies it.
	PolicyAnnotation = "edgewright.dev/node-policy"
	// SystemNamespace holds what belongs to the cluster itself: join tokens and
	// the declared cluster spec.
	SystemNamespace = "edge-system"
	// GatewaysConfigMap in SystemNamespace holds under GatewaysKey the signed list
	// of gateways (package tunnel/signed), where there is more than one.
	GatewaysConfigMap = "gateways"
	GatewaysKey       = "gateways.signed"
	// PlacesConfigMap in SystemNamespace tells the admission policies what only
	// lands on edge nodes, and how; see internal/controllers.
	PlacesConfigMap = "edge-places"
	// KeptReadyConfigMap in SystemNamespace names the nodes whose pods stay
	// Ready although the node is cut off.
	KeptReadyConfigMap = "edge-kept-ready"
	// ClusterConfigMap in SystemNamespace keeps the declared cluster spec.
	ClusterConfigMap = "cluster"
)

// Identities (certificate common names) of the cluster's own components.
const (
	// NodeUserPrefix + node name is the kubelet's identity, held by the agent.
	NodeUserPrefix = "system:node:"
	// HubUserPrefix + node name is the hub's identity for what the Node
	// authorizer does not give a node: services, endpoint slices, its pool.
	HubUserPrefix = "edge:hub:"
	// HubGroup is the organization in hub certificates. Nothing is ever bound
	// to it that is not safe for every node: rights are bound per name.
	HubGroup = "edge:hubs"
	// GatewayUser requests certificates on behalf of nodes that present a join
	// token. The approver trusts it for nothing else.
	GatewayUser = "edge:gateway"
	// OperatorsGroup is the organization in operators' short-lived certificates.
	// It is bound to cluster-admin: who holds the state directory administers
	// the cluster.
	OperatorsGroup = "edge:operators"
	// ControllersUser runs the controllers.
	ControllersUser = "edge:controllers"
)

// SchemeBuilder collects the types of this package.
var (
	SchemeBuilder = runtime.NewSchemeBuilder(addKnownTypes)
	// AddToScheme registers the types of this package with a scheme.
	AddToScheme = SchemeBuilder.AddToScheme
)

func addKnownTypes(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&NodePool{}, &NodePoolList{},
		&EdgeNode{}, &EdgeNodeList{},
		&UnitDeployment{}, &UnitDeploymentList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
