package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// DeleteCluster removes a cluster from this machine: its local nodes, its
// control plane and its directory, and fails if something of it is left. It can
// be run again at any time, also when the state directory was lost: survivors
// are found by their markers. A cluster that is proven gone is no error.
func (e *Engine) DeleteCluster(ctx context.Context, id string) error {
	const op = "destroy cluster"
	parsed, err := parseClusterID(id)
	if err != nil {
		return &Error{Class: Invalid, Op: op, Object: id, Field: "id", Err: err}
	}
	if access, ok := e.access(parsed); ok && access.Gone {
		return nil
	}
	if e.opts.GOOS != "linux" {
		return &Error{Class: Invalid, Op: op, Object: id, Err: fmt.Errorf("a local cluster runs on Linux and this is %s", e.opts.GOOS)}
	}
	dir := e.state.dir(parsed)
	r, err := e.state.load(parsed)
	switch {
	case err == nil:
		r.Phase = phaseDestroying
		if err := e.state.save(r); err != nil {
			return &Error{Class: Failed, Op: op, Object: id, Err: err}
		}
	case errors.Is(err, fs.ErrNotExist):
		if e.state.destroyed(parsed) {
			return nil
		}
		left := survivors(parsed)
		if len(left) > 0 && e.elsewhere(parsed, left) != "" {
			err := e.lostError(parsed, left)
			err.Class, err.Op, err.Object = Refused, op, id
			return err
		}
		if len(left) == 0 {
			_, err := e.connect(ctx, op, id, id)
			if err == nil {
				err = &Error{Class: Refused, Op: op, Object: id, Err: errors.New("its control plane is not on this machine"), Next: "Destroy it where it was made"}
			}
			return err
		}
	default:
		return &Error{Class: Failed, Op: op, Object: id, Err: err}
	}
	e.forget(id)
	progress := filepath.Join(dir, "progress.ndjson")
	if r == nil {
		progress = ""
	}
	report := e.report(id, progress)
	fail := func(err error) error {
		class, next := Failed, "Run it again to go on; nothing is forgotten"
		if interrupted(ctx, err) {
			class = Unfinished
		}
		return &Error{Class: class, Op: op, Object: id, Err: err, Next: next}
	}
	edge, err := e.installEdge()
	if err != nil {
		return fail(err)
	}
	nodes, err := localNodes(dir, parsed)
	if err != nil {
		return fail(err)
	}
	for _, node := range nodes {
		report.phase(ctx, "nodes", "removing local node "+node)
		if err := e.runEdge(ctx, report, edgeCommand{Binary: edge, Root: true, Args: []string{"node", "down", "--purge", "--dir", filepath.Join(dir, "nodes", node)}}); err != nil {
			return fail(fmt.Errorf("remove local node %s: %w", node, err))
		}
	}
	report.phase(ctx, phaseControlPlane, "stopping the control plane")
	if err := e.runEdge(ctx, report, edgeCommand{Binary: edge, Args: []string{"control-plane", "down", "--dir", dir}}); err != nil {
		return fail(err)
	}
	if left := survivors(parsed); len(left) > 0 {
		return fail(fmt.Errorf("something of it is left: %v", left))
	}
	unlock, err := e.state.lock(ctx)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	if err := e.state.bury(parsed, e.opts.Now()); err != nil {
		return fail(err)
	}
	return nil
}

func (e *Engine) access(id clusterID) (ClusterAccess, bool) {
	for key, a := range e.opts.Clusters {
		if parsed, err := parseClusterID(key); err == nil && parsed.String() == id.String() {
			return a, true
		}
	}
	return ClusterAccess{}, false
}

// localNodes are the nodes of a cluster that this machine holds, by their
// directories and, where those were lost, by what of them still exists.
func localNodes(dir string, id clusterID) ([]string, error) {
	names := map[string]bool{}
	entries, err := os.ReadDir(filepath.Join(dir, "nodes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list local nodes: %w", err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			names[entry.Name()] = true
		}
	}
	for _, name := range survivingNodes(id) {
		names[name] = true
	}
	return sortedKeys(names), nil
}
