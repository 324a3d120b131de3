package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
)

// A cluster whose directory was removed while it ran is lost: its keys are gone,
// so nobody can ever ask it again, but its processes and networks survive and
// are found by their arguments and names. Nothing is planned from its absence;
// it can only be destroyed, and its children with it.

// elsewhere is the cluster directory, other than this state directory's, that a
// surviving process was started with; empty if there is none.
func (e *Engine) elsewhere(id clusterID, left []survivor) string {
	for _, s := range left {
		if s.dir != "" && !sameDir(s.dir, e.state.dir(id)) {
			return s.dir
		}
	}
	return ""
}

// lost says whether a cluster runs on this machine while this state directory,
// which made it, holds nothing of it any more.
func (e *Engine) lost(id clusterID) bool {
	if _, err := e.state.load(id); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	left := survivors(id)
	return len(left) > 0 && e.elsewhere(id, left) == ""
}

// lostError says what is known of a cluster that runs here without its keys.
func (e *Engine) lostError(id clusterID, left []survivor) *Error {
	if dir := e.elsewhere(id, left); dir != "" {
		return &Error{Class: Unreachable,
			Err:  fmt.Errorf("cluster %s runs on this machine (%s) from another state directory", id, left[0]),
			Next: "Set EDGE_STATE_DIR=" + filepath.Dir(filepath.Dir(dir))}
	}
	return &Error{Class: Unreachable,
		Err:  fmt.Errorf("cluster %s runs on this machine (%s) but the state directory %s no longer holds its keys", id, left[0], e.opts.StateDir),
		Next: "Restore the directory from a backup, or destroy the cluster: edge destroy " + id.String()}
}

// deleteLostNode removes what is on this machine of a lost cluster's node.
func (e *Engine) deleteLostNode(ctx context.Context, id clusterID, name string) error {
	if !slices.Contains(survivingNodes(id), name) {
		return nil
	}
	edge, err := e.installEdge()
	if err != nil {
		return err
	}
	dir := filepath.Join(e.state.dir(id), "nodes", name)
	return e.runEdge(ctx, e.report(id.String()+"/"+name, ""), edgeCommand{Binary: edge, Root: true, Args: []string{"node", "down", "--purge", "--dir", dir}})
}
