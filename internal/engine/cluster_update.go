package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// UpdateCluster brings a cluster to its spec: it finishes an unfinished create,
// starts a stopped control plane, and starts its daemon again from this program's
// version. No attribute of a cluster can be changed yet: each change is Refused
// with its attribute.
func (e *Engine) UpdateCluster(ctx context.Context, id string, spec ClusterSpec) (*Cluster, error) {
	const op = "update cluster"
	spec.Version = normalVersion(spec.Version)
	if err := CheckClusterSpec(spec); err != nil {
		return nil, err
	}
	parsed, err := parseClusterID(id)
	if err != nil {
		return nil, &Error{Class: Invalid, Op: op, Object: id, Field: "id", Err: err}
	}
	r, err := e.state.load(parsed)
	if errors.Is(err, fs.ErrNotExist) {
		c, err := e.readElsewhere(ctx, parsed)
		if err != nil {
			return nil, err
		}
		return c, &Error{Class: Refused, Op: op, Object: id,
			Err:  fmt.Errorf("its control plane is not on this machine"),
			Next: "Apply this change where the cluster was made"}
	}
	if err != nil {
		return nil, &Error{Class: Failed, Op: op, Object: id, Err: err}
	}
	if r.Phase == phaseDestroying {
		return e.describe(r, r.status()), &Error{Class: Refused, Op: op, Object: id, Err: errors.New("it is half destroyed"), Next: "Finish that first: edge destroy " + id}
	}
	if field, err := conflict(r.Spec, spec); err != nil {
		return e.describe(r, r.status()), &Error{Class: Refused, Op: op, Object: id, Field: field, Err: fmt.Errorf("%s cannot be changed yet: %w", field, err),
			Next: "Go back to it, or destroy the cluster and make it anew"}
	}
	if spec.Name != r.Spec.Name {
		return e.describe(r, r.status()), &Error{Class: Refused, Op: op, Object: id, Field: "name", Err: errors.New("a cluster keeps its name")}
	}
	r.EngineVersion = e.opts.Version
	e.forget(id)
	if err := e.converge(ctx, r, op); err != nil {
		return e.describe(r, r.status()), err
	}
	return e.describe(r, StatusReady), nil
}
