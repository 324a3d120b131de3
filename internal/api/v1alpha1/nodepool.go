package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// NodePool is the nodes of one site.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=np
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.spec.type`
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.nodes`
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.readyNodes`
// +kubebuilder:printcolumn:name="Cut",type=integer,JSONPath=`.status.cutNodes`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type NodePool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   NodePoolSpec   `json:"spec,omitempty"`
	Status NodePoolStatus `json:"status,omitempty"`
}

// NodePoolSpec is what the nodes of a pool share.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.autonomy) && self.type == 'cloud')",message="autonomy is for pools of type edge"
type NodePoolSpec struct {
	// Type says whether the pool's nodes are behind a link that may be cut
	// (edge) or beside the control plane (cloud).
	// +kubebuilder:validation:Enum=edge;cloud
	// +kubebuilder:default=edge
	Type PoolType `json:"type,omitempty"`
	// Labels are put on every node of the pool.
	Labels map[string]string `json:"labels,omitempty"`
	// Annotations are put on every node of the pool.
	Annotations map[string]string `json:"annotations,omitempty"`
	// Taints are put on every node of the pool.
	// +listType=atomic
	Taints []corev1.Taint `json:"taints,omitempty"`
	// Autonomy says what becomes of the pods of nodes that are cut off. It
	// counts for pools of type edge.
	Autonomy *AutonomySpec `json:"autonomy,omitempty"`
	// Network is how the pool's nodes reach others.
	Network *NetworkSpec `json:"network,omitempty"`
}

// NetworkSpec is how a pool's nodes reach others.
type NetworkSpec struct {
	// Transport carries the sessions of the pool's nodes with their gateways:
	// auto is QUIC (over UDP) where that gets through and TCP where it does not;
	// quic and tcp are one of the two and never the other. A node goes over to
	// it as soon as a session can be made over it, and keeps what it has until
	// then.
	// +kubebuilder:default=auto
	Transport Transport `json:"transport,omitempty"`
}

// Transport is auto, quic or tcp.
//
// +kubebuilder:validation:Enum=auto;quic;tcp
type Transport string

// The transports of a pool.
const (
	TransportAuto Transport = "auto"
	TransportQUIC Transport = "quic"
	TransportTCP  Transport = "tcp"
)

// AutonomySpec is what a pool's pods may rely on while its link is cut.
//
// +kubebuilder:validation:XValidation:rule="!has(self.duration) || duration(self.duration) > duration('0s')",message="duration must be longer than nothing; leave it out for a cut of any length"
type AutonomySpec struct {
	// Duration is how long a node may be cut off before its pods are deleted,
	// so that others can take their place. Pods of DaemonSets and the node's own
	// stay. Without it they stay for a cut of any length.
	Duration *metav1.Duration `json:"duration,omitempty"`
	// ImagePullPolicy says what becomes of pull policies "Always" of pods that
	// can only land on edge nodes, when they are created: IfNotPresent, so that
	// a container can be started again without its registry, or AsDeclared.
	// +kubebuilder:default=IfNotPresent
	ImagePullPolicy PullPolicy `json:"imagePullPolicy,omitempty"`
}

// PullPolicy is IfNotPresent or AsDeclared.
//
// +kubebuilder:validation:Enum=IfNotPresent;AsDeclared
type PullPolicy string

// The pull policies of a pool.
const (
	PullIfNotPresent PullPolicy = "IfNotPresent"
	PullAsDeclared   PullPolicy = "AsDeclared"
)

// PoolType is edge or cloud.
type PoolType string

// The pool types.
const (
	PoolEdge  PoolType = "edge"
	PoolCloud PoolType = "cloud"
)

// NodePoolStatus is what the pool controller observed.
type NodePoolStatus struct {
	// ObservedGeneration is the generation the status speaks of.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Nodes counts the EdgeNodes of the pool, joined or not.
	// +optional
	// +kubebuilder:default=0
	Nodes int32 `json:"nodes"`
	// ReadyNodes counts those whose Node is Ready.
	// +optional
	// +kubebuilder:default=0
	ReadyNodes int32 `json:"readyNodes"`
	// CutNodes counts the joined ones that are cut off.
	// +optional
	// +kubebuilder:default=0
	CutNodes int32 `json:"cutNodes"`
	// Members lists the joined nodes with what their peers need to route to
	// them. Hubs read it for their own pool.
	// +listType=map
	// +listMapKey=name
	Members []PoolMember `json:"members,omitempty"`
	// Conditions of the pool.
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Condition types of a NodePool.
const (
	// ConditionPoolDeleting is there while a pool is being deleted: True while
	// its last nodes leave, False with reason NodesRemain while it has nodes
	// that stay.
	ConditionPoolDeleting = "Deleting"
)

// PoolMember is one joined node as its peers on the same LAN see it.
type PoolMember struct {
	Name string `json:"name"`
	// Addresses are the node's internal addresses.
	// +listType=atomic
	Addresses []string `json:"addresses,omitempty"`
	// PodCIDRs are the node's pod ranges.
	// +listType=atomic
	PodCIDRs []string `json:"podCIDRs,omitempty"`
}

// NodePoolList is a list of pools.
//
// +kubebuilder:object:root=true
type NodePoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodePool `json:"items"`
}
