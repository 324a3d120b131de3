package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// ReadCluster returns a cluster as it is. A cluster of this machine whose
// daemons are down is no error: it reads "stopped". Class NotFound is returned
// only on proof that it was destroyed; anything else that keeps it from being
// asked is Unreachable.
func (e *Engine) ReadCluster(ctx context.Context, id string) (*Cluster, error) {
	const op = "read cluster"
	parsed, err := parseClusterID(id)
	if err != nil {
		return nil, &Error{Class: Invalid, Op: op, Object: id, Field: "id", Err: err}
	}
	r, err := e.state.load(parsed)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return e.readElsewhere(ctx, parsed)
	case err != nil:
		return nil, &Error{Class: Unreachable, Op: op, Object: id, Err: err}
	}
	if !r.finished() {
		return e.describe(r, r.status()), nil
	}
	conn, err := e.connect(ctx, op, id, id)
	if err == nil {
		_, err = e.readDeclared(ctx, conn)
	}
	switch {
	case err == nil:
		return e.describe(r, StatusReady), nil
	case !daemonRuns(e.dirOf(r)):
		e.forget(id)
		return e.describe(r, StatusStopped), nil
	case ctx.Err() == nil && ClassOf(err) == Refused:
		return nil, err
	default:
		return e.describe(r, StatusReady), &Error{Class: Unreachable, Op: op, Object: id, Err: err, Next: logsHint(id)}
	}
}

func (e *Engine) readElsewhere(ctx context.Context, id clusterID) (*Cluster, error) {
	conn, err := e.connect(ctx, "read cluster", id.String(), id.String())
	if err != nil {
		return nil, err
	}
	c, err := e.readDeclared(ctx, conn)
	if err != nil {
		return nil, &Error{Class: Unreachable, Op: "read cluster", Object: id.String(), Err: err}
	}
	return c, nil
}

// readDeclared reads the declared spec that the cluster keeps of itself.
func (e *Engine) readDeclared(ctx context.Context, conn *connection) (*Cluster, error) {
	cm := &corev1.ConfigMap{}
	key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.ClusterConfigMap}
	if err := conn.client.Get(ctx, key, cm); err != nil {
		return nil, fmt.Errorf("read the declared cluster: %w", err)
	}
	c := &Cluster{
		ID:            cm.Data[clusterKeyID],
		Status:        StatusReady,
		EngineVersion: cm.Data[clusterKeyVer],
		Endpoint:      conn.config.Host,
		CACertificate: cm.Data[clusterKeyCA],
	}
	if err := json.Unmarshal([]byte(cm.Data[clusterKeySpec]), &c.Spec); err != nil {
		return nil, fmt.Errorf("the declared spec in ConfigMap %s is damaged: %w", key, err)
	}
	c.KubernetesVersion = c.Spec.Version
	c.Kubeconfig = execKubeconfig(c, "edge")
	return c, nil
}

// ListClusters returns the clusters of the state directory with their status.
func (e *Engine) ListClusters(ctx context.Context) ([]*Cluster, error) {
	records, err := e.state.list()
	if err != nil {
		return nil, &Error{Class: Failed, Op: "list clusters of", Object: e.opts.StateDir, Err: err}
	}
	var out []*Cluster
	for _, r := range records {
		c, err := e.ReadCluster(ctx, r.ID)
		if err != nil {
			c = e.describe(r, "unreachable")
		}
		out = append(out, c)
	}
	return out, nil
}

// Resolve turns what a person types (a name, or an id) into a cluster id of the
// state directory or of the `clusters` map.
func (e *Engine) Resolve(nameOrID string) (string, error) {
	if id, err := parseClusterID(nameOrID); err == nil {
		return id.String(), nil
	}
	r, err := e.state.byName(nameOrID)
	if err != nil {
		return "", &Error{Class: Failed, Op: "find cluster", Object: nameOrID, Err: err}
	}
	if r == nil {
		return "", &Error{Class: NotFound, Op: "find cluster", Object: nameOrID,
			Err: fmt.Errorf("no cluster of that name in %s", e.opts.StateDir), Next: "`edge status` lists the clusters of this state directory"}
	}
	return r.ID, nil
}

// ClusterDir is the directory of a cluster of this machine.
func (e *Engine) ClusterDir(id string) (string, error) {
	parsed, err := parseClusterID(id)
	if err != nil {
		return "", &Error{Class: Invalid, Op: "find cluster", Object: id, Err: err}
	}
	r, err := e.state.load(parsed)
	if err != nil {
		return "", &Error{Class: NotFound, Op: "find cluster", Object: id, Err: err}
	}
	return e.dirOf(r), nil
}

// Kubeconfig is the exec-plugin kubeconfig of a cluster, naming the edge program
// and the state directory by their absolute paths: it works from anywhere and
// without EDGE_STATE_DIR.
func (e *Engine) Kubeconfig(ctx context.Context, id string) (string, error) {
	c, err := e.ReadCluster(ctx, id)
	if c == nil || (err != nil && c.CACertificate == "") {
		return "", err
	}
	return execKubeconfig(c, e.state.bin("edge"), "--state-dir", e.opts.StateDir), nil
}
