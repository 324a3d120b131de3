package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
)

// UpdateCluster brings a cluster to its spec: it finishes an unfinished create,
// starts a stopped control plane, and changes what can be changed in place
// (gateway.addresses). A change that is not possible yet is Refused with its
// attribute.
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
			Next: "Go back to it, or make the cluster anew on purpose with -replace"}
	}
	if spec.Name != r.Spec.Name {
		return e.describe(r, r.status()), &Error{Class: Refused, Op: op, Object: id, Field: "name", Err: errors.New("a cluster keeps its name")}
	}
	if !reflect.DeepEqual(r.Spec.Gateway.Addresses, spec.Gateway.Addresses) {
		r.Spec.Gateway.Addresses = spec.Gateway.Addresses
		if err := e.state.save(r); err != nil {
			return e.describe(r, r.status()), &Error{Class: Failed, Op: op, Object: id, Err: err}
		}
	}
	r.EngineVersion = e.opts.Version
	e.forget(id)
	if err := e.converge(ctx, r, op); err != nil {
		return e.describe(r, r.status()), err
	}
	return e.describe(r, StatusReady), nil
}
