package fakeengine

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
)

// Ports that the fake chooses where a spec has none.
const (
	APIPort     = 20001
	GatewayPort = 20002
)

func setClusterStatus(c *engine.Cluster, s string) { c.Status = s }
func setPoolStatus(*engine.Pool, string)           {}
func setNodeStatus(n *engine.Node, s string)       { n.Status = s }
func setUnitStatus(u *engine.Unit, s string)       { u.Status = s }

// CreateCluster implements entity.Clusters.
func (e *Engine) CreateCluster(ctx context.Context, spec engine.ClusterSpec) (*engine.Cluster, error) {
	fault := e.enter(ctx, "CreateCluster", spec.Name)
	defer e.mu.Unlock()
	for _, c := range e.clusters {
		if c.Spec.Name == spec.Name {
			return nil, exists("create cluster", c.ID)
		}
	}
	e.uids++
	c := &engine.Cluster{ID: fmt.Sprintf("local/%s-%08x", spec.Name, e.uids)}
	e.fill(c, spec)
	if fault != nil { // what is only known once the control plane was started
		c.CACertificate, c.Kubeconfig = "", ""
	}
	return put(e.clusters, c.ID, fault, setClusterStatus, c)
}

// fill makes what a finished cluster of that spec looks like.
func (e *Engine) fill(c *engine.Cluster, spec engine.ClusterSpec) {
	if len(spec.Network.PodCIDRs) == 0 {
		spec.Network.PodCIDRs = []string{"10.64.0.0/16"}
	}
	if len(spec.Network.ServiceCIDRs) == 0 {
		spec.Network.ServiceCIDRs = []string{"10.65.0.0/20"}
	}
	if spec.Network.NodeMask == 0 {
		spec.Network.NodeMask = 24
	}
	if spec.Network.DNSDomain == "" {
		spec.Network.DNSDomain = "cluster.local"
	}
	if spec.API.Port == 0 {
		spec.API.Port = APIPort
	}
	if spec.Gateway.Port == 0 {
		spec.Gateway.Port = GatewayPort
	}
	c.Spec = spec
	c.Status = engine.StatusReady
	c.KubernetesVersion = spec.Version
	c.EngineVersion = "0.1.0"
	c.Endpoint = fmt.Sprintf("https://127.0.0.1:%d", spec.API.Port)
	c.CACertificate = "-----BEGIN CERTIFICATE-----\nfake-ca\n-----END CERTIFICATE-----\n"
	c.Kubeconfig = "exec: edge credentials " + c.ID
}

// ReadCluster implements entity.Clusters.
func (e *Engine) ReadCluster(ctx context.Context, id string) (*engine.Cluster, error) {
	fault := e.enter(ctx, "ReadCluster", id)
	defer e.mu.Unlock()
	return get(e.clusters, id, "read cluster", fault)
}

// UpdateCluster implements entity.Clusters.
func (e *Engine) UpdateCluster(ctx context.Context, id string, spec engine.ClusterSpec) (*engine.Cluster, error) {
	fault := e.enter(ctx, "UpdateCluster", id)
	defer e.mu.Unlock()
	c, err := get(e.clusters, id, "update cluster", nil)
	if err != nil {
		return nil, err
	}
	if fault == nil || fault.Recorded {
		e.fill(c, spec)
	}
	return put(e.clusters, id, fault, setClusterStatus, c)
}

// DeleteCluster implements entity.Clusters.
func (e *Engine) DeleteCluster(ctx context.Context, id string) error {
	fault := e.enter(ctx, "DeleteCluster", id)
	defer e.mu.Unlock()
	if fault != nil && fault.Recorded {
		e.clusters[id].Status = fault.Status
	}
	return remove(e.clusters, id, "delete cluster", fault)
}

// CreatePool implements entity.Pools.
func (e *Engine) CreatePool(ctx context.Context, clusterID, name string, spec v1alpha1.NodePoolSpec) (*engine.Pool, error) {
	id := clusterID + "/" + name
	fault := e.enter(ctx, "CreatePool", id)
	defer e.mu.Unlock()
	if _, ok := e.pools[id]; ok {
		return nil, exists("create pool", id)
	}
	return put(e.pools, id, fault, setPoolStatus, &engine.Pool{ID: id, ClusterID: clusterID, Name: name, Spec: *spec.DeepCopy()})
}

// ReadPool implements entity.Pools.
func (e *Engine) ReadPool(ctx context.Context, clusterID, name string) (*engine.Pool, error) {
	id := clusterID + "/" + name
	fault := e.enter(ctx, "ReadPool", id)
	defer e.mu.Unlock()
	return get(e.pools, id, "read pool", fault)
}

// UpdatePool implements entity.Pools.
func (e *Engine) UpdatePool(ctx context.Context, clusterID, name string, spec v1alpha1.NodePoolSpec) (*engine.Pool, error) {
	id := clusterID + "/" + name
	fault := e.enter(ctx, "UpdatePool", id)
	defer e.mu.Unlock()
	p, err := get(e.pools, id, "update pool", nil)
	if err != nil {
		return nil, err
	}
	p.Spec = *spec.DeepCopy()
	return put(e.pools, id, fault, setPoolStatus, p)
}

// DeletePool implements entity.Pools.
func (e *Engine) DeletePool(ctx context.Context, clusterID, name string) error {
	id := clusterID + "/" + name
	fault := e.enter(ctx, "DeletePool", id)
	defer e.mu.Unlock()
	return remove(e.pools, id, "delete pool", fault)
}

// CheckLocalNode implements entity.Nodes.
func (e *Engine) CheckLocalNode(ctx context.Context) error {
	fault := e.enter(ctx, "CheckLocalNode", "")
	defer e.mu.Unlock()
	if fault != nil {
		return fault.Err
	}
	return nil
}

// CreateNode implements entity.Nodes.
func (e *Engine) CreateNode(ctx context.Context, spec engine.NodeSpec) (*engine.Node, error) {
	id := spec.ClusterID + "/" + spec.Name
	fault := e.enter(ctx, "CreateNode", id)
	defer e.mu.Unlock()
	if _, ok := e.nodes[id]; ok {
		return nil, exists("create node", id)
	}
	n := &engine.Node{ID: id, ClusterID: spec.ClusterID, Name: spec.Name}
	fillNode(n, spec)
	if fault != nil { // a node that never joined has told nothing of itself
		n.Architecture, n.KubernetesVersion, n.EngineVersion = "", "", ""
	}
	return put(e.nodes, id, fault, setNodeStatus, n)
}

func fillNode(n *engine.Node, spec engine.NodeSpec) {
	n.Spec = *spec.Spec.DeepCopy()
	n.Local = spec.Local
	n.Status = engine.StatusReady
	n.Architecture, n.KubernetesVersion, n.EngineVersion = "amd64", "1.36.3", "0.1.0"
}

// ReadNode implements entity.Nodes.
func (e *Engine) ReadNode(ctx context.Context, clusterID, name string) (*engine.Node, error) {
	id := clusterID + "/" + name
	fault := e.enter(ctx, "ReadNode", id)
	defer e.mu.Unlock()
	return get(e.nodes, id, "read node", fault)
}

// LookUpNode implements entity.Nodes: what Look says of a node that is there.
func (e *Engine) LookUpNode(ctx context.Context, clusterID, name string) (*engine.NodeSummary, error) {
	id := clusterID + "/" + name
	fault := e.enter(ctx, "LookUpNode", id)
	defer e.mu.Unlock()
	n, err := get(e.nodes, id, "look up node", fault)
	if err != nil {
		return nil, err
	}
	s := e.look
	s.Name, s.Pool, s.Architecture, s.Kubelet = n.Name, n.Spec.Pool, n.Architecture, "v"+n.KubernetesVersion
	return &s, nil
}

// UpdateNode implements entity.Nodes.
func (e *Engine) UpdateNode(ctx context.Context, spec engine.NodeSpec) (*engine.Node, error) {
	id := spec.ClusterID + "/" + spec.Name
	fault := e.enter(ctx, "UpdateNode", id)
	defer e.mu.Unlock()
	n, err := get(e.nodes, id, "update node", nil)
	if err != nil {
		return nil, err
	}
	fillNode(n, spec)
	return put(e.nodes, id, fault, setNodeStatus, n)
}

// DeleteNode implements entity.Nodes.
func (e *Engine) DeleteNode(ctx context.Context, clusterID, name string) error {
	id := clusterID + "/" + name
	fault := e.enter(ctx, "DeleteNode", id)
	defer e.mu.Unlock()
	return remove(e.nodes, id, "delete node", fault)
}

// CreateUnit implements entity.Units.
func (e *Engine) CreateUnit(ctx context.Context, spec engine.UnitSpec) (*engine.Unit, error) {
	id := spec.ClusterID + "/" + spec.Namespace + "/" + spec.Name
	fault := e.enter(ctx, "CreateUnit", id)
	defer e.mu.Unlock()
	if _, ok := e.units[id]; ok {
		return nil, exists("create unit deployment", id)
	}
	return put(e.units, id, fault, setUnitStatus, unit(id, spec))
}

// unit is what a cluster returns: lists in another order, and quantities in the
// canonical spelling.
func unit(id string, spec engine.UnitSpec) *engine.Unit {
	u := &engine.Unit{ID: id, ClusterID: spec.ClusterID, Namespace: spec.Namespace, Name: spec.Name,
		Spec: *spec.Spec.DeepCopy(), Status: engine.StatusReady}
	slices.Reverse(u.Spec.Pools)
	slices.Reverse(u.Spec.Template.Containers)
	return u
}

// ReadUnit implements entity.Units.
func (e *Engine) ReadUnit(ctx context.Context, clusterID, namespace, name string) (*engine.Unit, error) {
	id := clusterID + "/" + namespace + "/" + name
	fault := e.enter(ctx, "ReadUnit", id)
	defer e.mu.Unlock()
	return get(e.units, id, "read unit deployment", fault)
}

// UpdateUnit implements entity.Units.
func (e *Engine) UpdateUnit(ctx context.Context, spec engine.UnitSpec) (*engine.Unit, error) {
	id := spec.ClusterID + "/" + spec.Namespace + "/" + spec.Name
	fault := e.enter(ctx, "UpdateUnit", id)
	defer e.mu.Unlock()
	if _, ok := e.units[id]; !ok {
		return nil, notFound("update unit deployment", id)
	}
	return put(e.units, id, fault, setUnitStatus, unit(id, spec))
}

// DeleteUnit implements entity.Units.
func (e *Engine) DeleteUnit(ctx context.Context, clusterID, namespace, name string) error {
	id := clusterID + "/" + namespace + "/" + name
	fault := e.enter(ctx, "DeleteUnit", id)
	defer e.mu.Unlock()
	return remove(e.units, id, "delete unit deployment", fault)
}

// ClusterCredentials implements entity.Credentials.
func (e *Engine) ClusterCredentials(ctx context.Context, id string, ttl time.Duration) (*engine.Credentials, error) {
	fault := e.enter(ctx, "ClusterCredentials", id)
	defer e.mu.Unlock()
	c, err := get(e.clusters, id, "mint credentials for", fault)
	if err != nil {
		return nil, err
	}
	return &engine.Credentials{
		Host: c.Endpoint, CACertificate: c.CACertificate,
		ClientCertificate: "fake-client-certificate", ClientKey: ClientKey,
		ExpiresAt: e.expiry.Add(ttl),
	}, nil
}
