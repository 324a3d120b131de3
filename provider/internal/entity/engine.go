package entity

import (
	"context"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
)

// Clusters are the engine's use cases of edge_cluster. Calls return a non-nil
// cluster beside an error once an id is recorded.
type Clusters interface {
	CreateCluster(ctx context.Context, spec engine.ClusterSpec) (*engine.Cluster, error)
	ReadCluster(ctx context.Context, id string) (*engine.Cluster, error)
	UpdateCluster(ctx context.Context, id string, spec engine.ClusterSpec) (*engine.Cluster, error)
	DeleteCluster(ctx context.Context, id string) error
}

// Pools are the engine's use cases of edge_node_pool.
type Pools interface {
	CreatePool(ctx context.Context, clusterID, name string, spec v1alpha1.NodePoolSpec) (*engine.Pool, error)
	ReadPool(ctx context.Context, clusterID, name string) (*engine.Pool, error)
	UpdatePool(ctx context.Context, clusterID, name string, spec v1alpha1.NodePoolSpec) (*engine.Pool, error)
	DeletePool(ctx context.Context, clusterID, name string) error
}

// Nodes are the engine's use cases of edge_node.
type Nodes interface {
	CreateNode(ctx context.Context, spec engine.NodeSpec) (*engine.Node, error)
	ReadNode(ctx context.Context, clusterID, name string) (*engine.Node, error)
	UpdateNode(ctx context.Context, spec engine.NodeSpec) (*engine.Node, error)
	DeleteNode(ctx context.Context, clusterID, name string) error
	// LookUpNode returns what the cluster knows of a node now.
	LookUpNode(ctx context.Context, clusterID, name string) (*engine.NodeSummary, error)
	// CheckLocalNode says, before anything is made, whether this machine and
	// user can run a local node.
	CheckLocalNode(ctx context.Context) error
}

// Units are the engine's use cases of edge_unit_deployment.
type Units interface {
	CreateUnit(ctx context.Context, spec engine.UnitSpec) (*engine.Unit, error)
	ReadUnit(ctx context.Context, clusterID, namespace, name string) (*engine.Unit, error)
	UpdateUnit(ctx context.Context, spec engine.UnitSpec) (*engine.Unit, error)
	DeleteUnit(ctx context.Context, clusterID, namespace, name string) error
}

// Credentials mints short-lived credentials of a cluster.
type Credentials interface {
	ClusterCredentials(ctx context.Context, id string, ttl time.Duration) (*engine.Credentials, error)
}

// Engine is everything the provider asks of the engine.
type Engine interface {
	Clusters
	Pools
	Nodes
	Units
	Credentials
}
