package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// UnitDeployment puts one workload into pools, with overrides per pool.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=ud
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Units",type=integer,JSONPath=`.status.units`
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.readyUnits`
// +kubebuilder:printcolumn:name="Cut",type=integer,JSONPath=`.status.cutUnits`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type UnitDeployment struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   UnitDeploymentSpec   `json:"spec,omitempty"`
	Status UnitDeploymentStatus `json:"status,omitempty"`
}

// UnitDeploymentSpec is a workload and where it goes.
type UnitDeploymentSpec struct {
	// Template is what every unit is made from.
	Template UnitTemplate `json:"template"`
	// Pools names the pools that get a unit, with what differs there.
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=1000
	Pools []UnitPool `json:"pools,omitempty"`
	// Service, where set, gives the pods of all units one Service of the
	// deployment's name.
	Service *UnitService `json:"service,omitempty"`
}

// UnitTemplate is the pod template of every unit.
type UnitTemplate struct {
	// Labels and annotations of the pods, beside the controller's own.
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Containers of the pods, at least one.
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=50
	Containers []UnitContainer `json:"containers"`
}

// UnitContainer is one container of the template.
type UnitContainer struct {
	// Name of the container, a DNS label.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
	// Image to run.
	// +kubebuilder:validation:MinLength=1
	Image string `json:"image"`
	// Command replaces the image's entry point.
	// +listType=atomic
	Command []string `json:"command,omitempty"`
	// Args replace the image's arguments.
	// +listType=atomic
	Args []string `json:"args,omitempty"`
	// Env is the container's environment.
	Env map[string]string `json:"env,omitempty"`
	// Ports the container listens on.
	// +listType=map
	// +listMapKey=name
	Ports []UnitPort `json:"ports,omitempty"`
	// Resources the container asks for and is held to.
	Resources *UnitResources `json:"resources,omitempty"`
}

// UnitPort is one port of a container.
type UnitPort struct {
	// Name of the port, which a Service may target.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=15
	Name string `json:"name"`
	// Port number.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`
	// Protocol is TCP or UDP. Default TCP.
	// +kubebuilder:validation:Enum=TCP;UDP
	// +kubebuilder:default=TCP
	Protocol corev1.Protocol `json:"protocol,omitempty"`
}

// UnitResources are requests and limits by resource name (cpu, memory ...).
type UnitResources struct {
	Requests corev1.ResourceList `json:"requests,omitempty"`
	Limits   corev1.ResourceList `json:"limits,omitempty"`
}

// UnitPool is what one pool gets.
type UnitPool struct {
	// Name of the pool.
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
	// Replicas in this pool. Default 1.
	// +kubebuilder:validation:Minimum=0
	Replicas *int32 `json:"replicas,omitempty"`
	// Env is set in every container of the pool's pods and wins over the
	// template's.
	Env map[string]string `json:"env,omitempty"`
	// Containers override single containers of the template, by name.
	// +listType=map
	// +listMapKey=name
	Containers []ContainerOverride `json:"containers,omitempty"`
}

// ContainerOverride is what differs for one container in one pool.
type ContainerOverride struct {
	Name string `json:"name"`
	// Image, where set, replaces the template's.
	Image string `json:"image,omitempty"`
	// Env wins over the pool's and the template's.
	Env map[string]string `json:"env,omitempty"`
	// Command, where set, replaces the template's.
	// +listType=atomic
	Command []string `json:"command,omitempty"`
	// Args, where set, replace the template's.
	// +listType=atomic
	Args []string `json:"args,omitempty"`
	// Resources, where set, replace the template's.
	Resources *UnitResources `json:"resources,omitempty"`
}

// UnitService describes the Service in front of all units.
type UnitService struct {
	// Type of the Service. Default ClusterIP.
	// +kubebuilder:validation:Enum=ClusterIP;NodePort
	// +kubebuilder:default=ClusterIP
	Type corev1.ServiceType `json:"type,omitempty"`
	// Ports of the Service.
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	Ports []UnitServicePort `json:"ports"`
}

// UnitServicePort is one port of the Service.
type UnitServicePort struct {
	Name string `json:"name"`
	// Port the Service listens on.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`
	// TargetPort on the pods: a number, or the name of a container port.
	// Default the port.
	TargetPort string `json:"targetPort,omitempty"`
	// Protocol is TCP or UDP. Default TCP.
	// +kubebuilder:validation:Enum=TCP;UDP
	// +kubebuilder:default=TCP
	Protocol corev1.Protocol `json:"protocol,omitempty"`
}

// UnitDeploymentStatus is what the unit controller observed.
type UnitDeploymentStatus struct {
	// ObservedGeneration is the generation the status speaks of.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Units counts the pools asked for; ReadyUnits those whose rollout is
	// complete; CutUnits those whose pool holds no connected node.
	// +optional
	// +kubebuilder:default=0
	Units int32 `json:"units"`
	// +optional
	// +kubebuilder:default=0
	ReadyUnits int32 `json:"readyUnits"`
	// +optional
	// +kubebuilder:default=0
	CutUnits int32 `json:"cutUnits"`
	// Pools tells each unit's state.
	// +listType=map
	// +listMapKey=name
	Pools []UnitStatus `json:"pools,omitempty"`
	// Conditions: Ready (every unit that is not cut rolled out), Failed (a
	// unit cannot start, with the event's text).
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Condition types of a UnitDeployment.
const (
	ConditionUnitsReady  = "Ready"
	ConditionUnitsFailed = "Failed"
)

// UnitState is where a unit is in its rollout.
type UnitState string

// The states of a unit.
const (
	UnitProgressing UnitState = "Progressing"
	UnitReady       UnitState = "Ready"
	UnitFailed      UnitState = "Failed"
	UnitCut         UnitState = "Cut"
	// UnitUnknownPool names a pool that does not exist.
	UnitUnknownPool UnitState = "UnknownPool"
)

// UnitStatus is the state of the unit in one pool.
type UnitStatus struct {
	Name     string    `json:"name"`
	State    UnitState `json:"state"`
	Workload string    `json:"workload,omitempty"`
	// +optional
	// +kubebuilder:default=0
	Replicas int32 `json:"replicas"`
	// +optional
	// +kubebuilder:default=0
	UpdatedReplicas int32 `json:"updatedReplicas"`
	// +optional
	// +kubebuilder:default=0
	ReadyReplicas int32 `json:"readyReplicas"`
	// Message says what holds a unit up: an event's or a container's own text.
	Message string `json:"message,omitempty"`
}

// UnitDeploymentList is a list of unit deployments.
//
// +kubebuilder:object:root=true
type UnitDeploymentList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []UnitDeployment `json:"items"`
}
