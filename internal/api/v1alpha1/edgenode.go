package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// EdgeNode is one declared or joined node. It exists before the device ever
// joins and is the enrolment record from which pool membership comes.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=en
// +kubebuilder:subresource:status
// +kubebuilder:validation:XValidation:rule="!(self.metadata.name in ['edge-gateway', 'kubernetes', 'localhost'])",message="the name belongs to the cluster's own servers"
// +kubebuilder:printcolumn:name="Pool",type=string,JSONPath=`.spec.pool`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Connected",type=boolean,JSONPath=`.status.connected`
// +kubebuilder:printcolumn:name="Cut",type=date,JSONPath=`.status.cutSince`
// +kubebuilder:printcolumn:name="Autonomy",type=string,JSONPath=`.status.conditions[?(@.type=="NodeAutonomy")].reason`
// +kubebuilder:printcolumn:name="Arch",type=string,JSONPath=`.status.architecture`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type EdgeNode struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   EdgeNodeSpec   `json:"spec,omitempty"`
	Status EdgeNodeStatus `json:"status,omitempty"`
}

// EdgeNodeSpec is what an operator declares of a node.
type EdgeNodeSpec struct {
	// Pool is the name of the NodePool the node belongs to.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a node never changes its pool: delete it and join it again"
	Pool string `json:"pool"`
	// Labels are put on the Node in addition to the pool's; they win over them.
	Labels map[string]string `json:"labels,omitempty"`
	// Taints are put on the Node in addition to the pool's.
	// +listType=atomic
	Taints []corev1.Taint `json:"taints,omitempty"`
	// Drain bounds what deleting the node waits for.
	Drain *DrainSpec `json:"drain,omitempty"`
}

// DrainSpec bounds the drain of a node that is being deleted.
type DrainSpec struct {
	// Disabled skips the drain.
	Disabled bool `json:"disabled,omitempty"`
	// Timeout after which the node leaves although pods are left on it; they
	// are then deleted with the node. Default 60s.
	Timeout *metav1.Duration `json:"timeout,omitempty"`
}

// EdgeNodePhase is where a node is in its life.
type EdgeNodePhase string

// The phases of a node.
//
//	Declared -> Enrolled -> Ready <-> NotReady
//	                          any -> Leaving
const (
	// NodeDeclared has never presented a token or key.
	NodeDeclared EdgeNodePhase = "Declared"
	// NodeEnrolled holds certificates but its kubelet has not registered.
	NodeEnrolled EdgeNodePhase = "Enrolled"
	// NodeReady is placed and its kubelet says Ready.
	NodeReady EdgeNodePhase = "Ready"
	// NodeNotReady is registered, but not placed or not Ready.
	NodeNotReady EdgeNodePhase = "NotReady"
	// NodeLeaving is being drained and removed.
	NodeLeaving EdgeNodePhase = "Leaving"
)

// EdgeNodeStatus is what the gateway and the node controller observed.
type EdgeNodeStatus struct {
	// ObservedGeneration is the generation the status speaks of.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Phase sums the conditions up in a word.
	Phase EdgeNodePhase `json:"phase,omitempty"`
	// Key is the fingerprint of the key that holds the node's identity:
	// "SHA256:" and the unpadded base64 of the SHA-256 of its PKIX public key.
	// Only the enrolment at the gateway writes it; the approver signs for no other key.
	Key string `json:"key,omitempty"`
	// RevokedKeys may never hold this node's identity again.
	// +listType=atomic
	RevokedKeys []string `json:"revokedKeys,omitempty"`
	// Connected says whether a gateway holds a session of the node.
	// +optional
	// +kubebuilder:default=false
	Connected bool `json:"connected"`
	// LastConnected is when the session was last seen to begin or end.
	LastConnected *metav1.Time `json:"lastConnected,omitempty"`
	// CutSince is when the last session of a node ended that is cut off now: one
	// of which no gateway has held a session for 20 s. A cut node may well be
	// alive. Not there: the node is not cut.
	CutSince *metav1.Time `json:"cutSince,omitempty"`
	// Architecture, KubeletVersion and EngineVersion as the node reports them.
	Architecture   string `json:"architecture,omitempty"`
	KubeletVersion string `json:"kubeletVersion,omitempty"`
	EngineVersion  string `json:"engineVersion,omitempty"`
	// Conditions of the node: Enrolled, Placed, Ready, Connected, Cut,
	// NodeAutonomy, Drained.
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Condition types of an EdgeNode.
const (
	ConditionEnrolled  = "Enrolled"
	ConditionPlaced    = "Placed"
	ConditionReady     = "Ready"
	ConditionConnected = "Connected"
	// ConditionCut is True while the node is cut off; its reason says whether
	// the pool's autonomy goes on (LinkLost) or has ended (DurationOver).
	ConditionCut = "Cut"
	// ConditionAutonomy says whether the node, as it says itself, would go on
	// through a cut and a reboot in it. The same condition is on the Node.
	ConditionAutonomy = "NodeAutonomy"
	ConditionDrained  = "Drained"
)

// Reasons of the condition NodeAutonomy. The node gives those of False.
const (
	ReasonAutonomous      = "Autonomous"
	ReasonNotReported     = "NotReported"
	ReasonCacheIncomplete = "CacheIncomplete"
	ReasonDiskError       = "DiskError"
	ReasonClockUnset      = "ClockUnset"
	ReasonCertExpiring    = "CertExpiring"
)

// EdgeNodeList is a list of nodes.
//
// +kubebuilder:object:root=true
type EdgeNodeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []EdgeNode `json:"items"`
}
