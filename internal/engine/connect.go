package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// connection is a verified way to a cluster: it answered, and it is the one
// that the id names.
type connection struct {
	client  client.Client
	config  *rest.Config
	expires time.Time
	dir     string // cluster directory on this machine; empty for a cluster known by `clusters` alone
}

// connectionLife is how long a connection's own certificate lives. It is made
// for one run of a face, which may wait an hour for a build.
const connectionLife = 4 * time.Hour

// connect resolves a cluster id: this process's cache, the state directory, the
// `clusters` map. It pins the CA (by the record's) and the uid (by asking the
// cluster). Errors are of class NotFound (the cluster is definitely gone),
// Unreachable, or Invalid.
func (e *Engine) connect(ctx context.Context, op, object, id string) (*connection, error) {
	parsed, err := parseClusterID(id)
	if err != nil {
		return nil, &Error{Class: Invalid, Op: op, Object: object, Field: "cluster_id", Err: err}
	}
	e.mu.Lock()
	c := e.conns[parsed.String()]
	e.mu.Unlock()
	if c != nil && e.opts.Now().Before(c.expires.Add(-10*time.Minute)) {
		return c, nil
	}
	c, err = e.open(ctx, parsed)
	if err != nil {
		var own *Error
		if errors.As(err, &own) {
			own.Op, own.Object = op, object
			return nil, own
		}
		return nil, &Error{Class: Unreachable, Op: op, Object: object, Err: fmt.Errorf("cluster %s: %w", parsed, err), Next: logsHint(parsed.String())}
	}
	if err := verifyUID(ctx, c.client, parsed); err != nil {
		var own *Error
		if errors.As(err, &own) {
			own.Op, own.Object = op, object
			return nil, own
		}
		if c.dir != "" && !daemonRuns(c.dir) {
			return nil, &Error{Class: Unreachable, Op: op, Object: object, Err: fmt.Errorf("cluster %s is stopped: %w", parsed, err), Next: "Applying its edge_cluster starts it"}
		}
		return nil, &Error{Class: Unreachable, Op: op, Object: object, Err: fmt.Errorf("cluster %s: %w", parsed, err), Next: logsHint(parsed.String())}
	}
	e.mu.Lock()
	e.conns[parsed.String()] = c
	e.mu.Unlock()
	return c, nil
}

func (e *Engine) open(ctx context.Context, id clusterID) (*connection, error) {
	r, err := e.state.load(id)
	switch {
	case err == nil:
		return e.openLocal(r)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	for key, access := range e.opts.Clusters {
		parsed, err := parseClusterID(key)
		if err != nil {
			return nil, &Error{Class: Invalid, Field: "clusters", Err: err}
		}
		if parsed.String() != id.String() {
			continue
		}
		if access.Gone {
			return nil, &Error{Class: NotFound, Err: fmt.Errorf("cluster %s is declared gone in `clusters`", id)}
		}
		return openAccess(id, access, e.opts.Now())
	}
	if left := survivors(id); len(left) > 0 {
		return nil, e.lostError(id, left)
	}
	if e.state.destroyed(id) {
		return nil, &Error{Class: NotFound, Err: fmt.Errorf("cluster %s was destroyed", id)}
	}
	// Not known here is not gone: it may run on another machine or belong to
	// another state directory, and "gone" would make a plan create it anew.
	return nil, &Error{Class: Unreachable,
		Err:  fmt.Errorf("cluster %s is neither in the state directory %s nor in the provider's `clusters`", id, e.opts.StateDir),
		Next: "Set EDGE_STATE_DIR to the directory that made it, name it in `clusters`, or, if it no longer exists, declare it there with gone = true"}
}

func (e *Engine) openLocal(r *record) (*connection, error) {
	creds, err := e.mint(r, "engine", connectionLife)
	if err != nil {
		return nil, err
	}
	cfg := &rest.Config{
		Host: creds.Host,
		TLSClientConfig: rest.TLSClientConfig{
			CAData:   []byte(creds.CACertificate),
			CertData: []byte(creds.ClientCertificate),
			KeyData:  []byte(creds.ClientKey),
		},
	}
	return newConnection(cfg, creds.ExpiresAt, e.dirOf(r))
}

func openAccess(id clusterID, a ClusterAccess, now time.Time) (*connection, error) {
	var cfg *rest.Config
	switch {
	case a.KubeconfigPath != "":
		path := a.KubeconfigPath
		if len(path) > 1 && path[:2] == "~/" {
			home, err := os.UserHomeDir()
			if err != nil {
				return nil, err
			}
			path = filepath.Join(home, path[2:])
		}
		loaded, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: path},
			&clientcmd.ConfigOverrides{CurrentContext: a.Context}).ClientConfig()
		if err != nil {
			return nil, &Error{Class: Invalid, Field: "clusters", Err: fmt.Errorf("kubeconfig of %s: %w", id, err)}
		}
		cfg = loaded
	case a.Host != "":
		cfg = &rest.Config{
			Host:            a.Host,
			BearerToken:     a.Token,
			TLSClientConfig: rest.TLSClientConfig{CAData: []byte(a.CACertificate)},
		}
	default:
		return nil, &Error{Class: Invalid, Field: "clusters", Err: fmt.Errorf("cluster %s: give kubeconfig_path, or host with ca_certificate and token, or gone", id)}
	}
	return newConnection(cfg, now.Add(connectionLife), "")
}

func newConnection(cfg *rest.Config, expires time.Time, dir string) (*connection, error) {
	cfg.QPS, cfg.Burst = 50, 100 // Terraform runs ten operations at once
	cfg.UserAgent = "edge"
	cfg.Timeout = 30 * time.Second
	s := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(s), v1alpha1.AddToScheme(s)); err != nil {
		return nil, err
	}
	c, err := client.New(cfg, client.Options{Scheme: s})
	if err != nil {
		return nil, err
	}
	return &connection{client: c, config: cfg, expires: expires, dir: dir}, nil
}

// forget drops a cached connection, because its cluster is gone or restarts.
func (e *Engine) forget(id string) {
	parsed, err := parseClusterID(id)
	if err != nil {
		return
	}
	e.mu.Lock()
	delete(e.conns, parsed.String())
	e.mu.Unlock()
}

// Keys of the ConfigMap edge-system/cluster, the declared cluster as the
// cluster itself keeps it.
const (
	clusterKeyID   = "id"
	clusterKeySpec = "spec.json"
	clusterKeyCA   = "ca.crt"
	clusterKeyVer  = "engineVersion"
)

// declareCluster keeps the declared spec in the cluster, so that an operator
// without this state directory can read it.
func (e *Engine) declareCluster(ctx context.Context, r *record) error {
	c, err := e.openLocal(r)
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(filepath.Join(e.dirOf(r), "pki", "ca.crt"))
	if err != nil {
		return fmt.Errorf("read the cluster's CA: %w", err)
	}
	spec, err := json.Marshal(r.Spec)
	if err != nil {
		return err
	}
	cm := &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.ClusterConfigMap},
		Data: map[string]string{
			clusterKeyID:   r.ID,
			clusterKeySpec: string(spec),
			clusterKeyCA:   string(ca),
			clusterKeyVer:  e.opts.Version,
		},
	}
	if err := e.apply(ctx, c, cm); err != nil {
		return fmt.Errorf("keep the declared spec in the cluster: %w", err)
	}
	return nil
}

// verifyUID asks the cluster who it is. Another cluster's answer is Refused:
// nothing may ever be changed in the wrong cluster.
func verifyUID(ctx context.Context, c client.Client, id clusterID) error {
	cm := &corev1.ConfigMap{}
	key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.ClusterConfigMap}
	if err := c.Get(ctx, key, cm); err != nil {
		if apierrors.IsNotFound(err) {
			return &Error{Class: Refused, Err: fmt.Errorf("what answers for cluster %s is not a cluster made by edge: it has no ConfigMap %s", id, key)}
		}
		return err
	}
	got, err := parseClusterID(cm.Data[clusterKeyID])
	if err != nil || got.String() != id.String() {
		return &Error{Class: Refused,
			Err:  fmt.Errorf("connected to a different cluster: asked for %s, %q answered", id, cm.Data[clusterKeyID]),
			Next: "Correct the entry in the provider's `clusters`"}
	}
	return nil
}

// apply writes an object with server-side apply under this face's field
// manager. Fields that another manager took over are taken back: what a user
// declares here is what they mean.
func (e *Engine) apply(ctx context.Context, c *connection, obj client.Object) error {
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return err
	}
	delete(raw, "status")
	u := unstructuredOf(raw)
	if err := c.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(e.opts.FieldManager), client.ForceOwnership); err != nil {
		return err
	}
	return nil
}
