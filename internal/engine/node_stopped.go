package engine

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// declaredNode is declared.json in the directory of a local node: what its
// EdgeNode was when it was last written from here. After a reboot of the machine
// the cluster is stopped and cannot be asked, and a plan must still see that the
// node is stopped too, and nothing else of it changed. Once the cluster runs it
// is asked, and this file is not read.
type declaredNode struct {
	Spec              v1alpha1.EdgeNodeSpec `json:"spec"`
	Architecture      string                `json:"architecture"`
	KubernetesVersion string                `json:"kubernetesVersion"`
	EngineVersion     string                `json:"engineVersion"`
}

const declaredFile = "declared.json"

func readDeclaredNode(dir string) (declaredNode, error) {
	var d declaredNode
	raw, err := os.ReadFile(filepath.Join(dir, declaredFile))
	if err != nil {
		return d, err
	}
	return d, json.Unmarshal(raw, &d)
}

// keepDeclared writes down what a local node is now.
func (e *Engine) keepDeclared(conn *connection, n *Node) error {
	if conn.dir == "" || !n.Local {
		return nil
	}
	dir := e.nodeDir(conn, n.Name)
	d := declaredNode{n.Spec, n.Architecture, n.KubernetesVersion, n.EngineVersion}
	if old, err := readDeclaredNode(dir); err == nil && reflect.DeepEqual(old, d) {
		return nil
	}
	return writeJSON(filepath.Join(dir, declaredFile), d)
}

// stoppedNode is a local node of a stopped cluster of this machine, or nil.
func (e *Engine) stoppedNode(clusterID, name string) *Node {
	parsed, err := parseClusterID(clusterID)
	if err != nil {
		return nil
	}
	r, err := e.state.load(parsed)
	if err != nil || !r.finished() || daemonRuns(e.dirOf(r)) {
		return nil
	}
	dir := filepath.Join(e.dirOf(r), "nodes", name)
	d, err := readDeclaredNode(dir)
	if err != nil || daemonRuns(dir) {
		return nil
	}
	return &Node{
		ID: clusterID + "/" + name, ClusterID: clusterID, Name: name, Spec: d.Spec, Local: true, Status: StatusStopped,
		Architecture: d.Architecture, KubernetesVersion: d.KubernetesVersion, EngineVersion: d.EngineVersion,
	}
}
