package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// Statuses of a cluster or node, as faces show them.
const (
	StatusReady            = "ready"
	StatusStopped          = "stopped"
	StatusIncompletePrefix = "incomplete: "
	StatusDestroying       = StatusIncompletePrefix + "destroying"
)

// ClusterSpec is the declared cluster. Zero values mean "choose for me"; the
// engine fills them once, at create, and keeps the choice.
type ClusterSpec struct {
	Name    string      `json:"name"`
	Version string      `json:"version"` // "1.36.3", without a leading v
	Network NetworkSpec `json:"network"`
	API     APISpec     `json:"api"`
	Gateway GatewaySpec `json:"gateway"`
}

// NetworkSpec are the cluster's own address ranges.
type NetworkSpec struct {
	PodCIDRs     []string `json:"podCIDRs,omitempty"`
	ServiceCIDRs []string `json:"serviceCIDRs,omitempty"`
	NodeMask     int      `json:"nodeMask,omitempty"`  // prefix length of a node's pod range, default 24
	DNSDomain    string   `json:"dnsDomain,omitempty"` // default cluster.local
}

// APISpec says where the apiserver listens (on loopback).
type APISpec struct {
	Port int `json:"port,omitempty"`
}

// GatewaySpec says where nodes find the tunnel.
type GatewaySpec struct {
	Port int `json:"port,omitempty"`
}

// Cluster is what is known of a cluster. Nothing in it is secret.
type Cluster struct {
	ID                string
	Spec              ClusterSpec // with every choice filled in
	Status            string
	KubernetesVersion string
	EngineVersion     string
	Endpoint          string // https://127.0.0.1:port
	CACertificate     string // PEM
	Kubeconfig        string // names `edge credentials <id>`; holds no secret
}

// Pool is a declared pool with its identifier "<cluster id>/<name>".
type Pool struct {
	ID        string
	ClusterID string
	Name      string
	Spec      v1alpha1.NodePoolSpec
	Status    v1alpha1.NodePoolStatus
}

// NodeSpec is a declared node.
type NodeSpec struct {
	ClusterID string
	Name      string
	Spec      v1alpha1.EdgeNodeSpec
	// Local places the node on this machine, at the pool's local site.
	Local bool
	// WaitReady makes create and update wait for the node to be Ready.
	WaitReady bool
}

// Node is what is known of a node, with its identifier "<cluster id>/<name>".
type Node struct {
	ID                string
	ClusterID         string
	Name              string
	Spec              v1alpha1.EdgeNodeSpec
	Local             bool
	Status            string
	Architecture      string
	KubernetesVersion string
	EngineVersion     string
}

// UnitSpec is a declared unit deployment.
type UnitSpec struct {
	ClusterID string
	Namespace string
	Name      string
	Spec      v1alpha1.UnitDeploymentSpec
	// WaitRollout makes create and update wait until every unit that is not
	// cut has rolled out, and fail as soon as one cannot.
	WaitRollout bool
}

// Unit is a unit deployment, with its identifier "<cluster id>/<namespace>/<name>".
type Unit struct {
	ID        string
	ClusterID string
	Namespace string
	Name      string
	Spec      v1alpha1.UnitDeploymentSpec
	Status    string
	Detail    v1alpha1.UnitDeploymentStatus
}

// ClusterAccess is how the provider's `clusters` map says a cluster is reached.
// Exactly one way is set.
type ClusterAccess struct {
	KubeconfigPath string
	Context        string // with KubeconfigPath; empty: its current context
	Host           string // https://host:port, with CACertificate and Token
	CACertificate  string // PEM
	Token          string // secret
	// Gone declares that the cluster no longer exists: deleting its children
	// then succeeds without it.
	Gone bool
}

// Class says how a face treats an error. An error has one class.
type Class string

// The classes of error.
const (
	// NotFound: the object is definitely absent.
	NotFound Class = "not found"
	// Unreachable: the object may well exist, but cannot be asked.
	Unreachable Class = "unreachable"
	// AlreadyExists: something of that name exists that this call did not make.
	AlreadyExists Class = "already exists"
	// Invalid: the request can never succeed as it is.
	Invalid Class = "invalid"
	// Refused: the request conflicts with what exists.
	Refused Class = "refused"
	// Unfinished: the id is recorded and running the call again goes on.
	Unfinished Class = "unfinished"
	// Failed: something broke.
	Failed Class = "failed"
)

// Error is every error that leaves the engine: what failed, on which object,
// and what to do next.
type Error struct {
	Class  Class
	Op     string // "create cluster"
	Object string // "local/quickstart-1f2e3d4c"
	Err    error
	Next   string // a sentence with the command to type; may be empty
	// ImportID is set for AlreadyExists where a face can take the object over: the
	// id that it is imported with.
	ImportID string
	// Field is the attribute that is wrong, dotted ("network.pod_cidrs"), for
	// Invalid errors; may be empty.
	Field string
}

// Error implements error.
func (e *Error) Error() string {
	s := fmt.Sprintf("%s %s: %v", e.Op, e.Object, e.Err)
	if e.Next != "" {
		s += ". " + e.Next
	}
	if e.ImportID != "" {
		s += ". Import it with the id " + e.ImportID
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ClassOf returns the class of an error that left the engine, and Failed for
// any other.
func ClassOf(err error) Class {
	var e *Error
	if errors.As(err, &e) {
		return e.Class
	}
	return Failed
}

// Default bounds of the engine's use cases, for faces that let a user set them.
const (
	DefaultClusterCreateTimeout = 45 * time.Minute // a first create may build components
	DefaultClusterDeleteTimeout = 10 * time.Minute
	DefaultPoolTimeout          = 10 * time.Minute
	DefaultNodeCreateTimeout    = 20 * time.Minute
	DefaultNodeDeleteTimeout    = 10 * time.Minute
	DefaultUnitTimeout          = 10 * time.Minute
	DefaultReadTimeout          = 30 * time.Second
)
