package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/edgewright/terraform-provider-edge/internal/component"
)

// Program returns the path of an upstream program of a cluster's version,
// fetching it where it is not in the cache.
func (e *Engine) Program(ctx context.Context, id string, set component.Set, name string) (string, error) {
	c, err := e.ReadCluster(ctx, id)
	if c == nil {
		return "", err
	}
	store, err := e.componentStore()
	if err != nil {
		return "", &Error{Class: Failed, Op: "find " + name + " for", Object: id, Err: err}
	}
	paths, err := store.Ensure(ctx, c.KubernetesVersion, set)
	if err != nil {
		return "", &Error{Class: Failed, Op: "find " + name + " for", Object: id, Err: err}
	}
	return paths[name], nil
}

// WriteKubeconfig writes the exec-plugin kubeconfig of a cluster below the state
// directory and returns its path.
func (e *Engine) WriteKubeconfig(ctx context.Context, id string) (string, error) {
	text, err := e.Kubeconfig(ctx, id)
	if err != nil {
		return "", err
	}
	parsed, err := parseClusterID(id)
	if err != nil {
		return "", err
	}
	path := filepath.Join(e.state.dir(parsed), "kubeconfig")
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return path, nil
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", &Error{Class: Failed, Op: "write the kubeconfig of", Object: id, Err: fmt.Errorf("%s: %w", path, err)}
	}
	return path, nil
}
