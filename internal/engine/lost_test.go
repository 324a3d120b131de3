//go:build linux

package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

func TestLostErrorTellsWhoseClusterItIs(t *testing.T) {
	e := newTestEngineAt(t, t.TempDir())
	id := clusterID{Placement: "local", Name: "c", UID: "1f2e3d4c"}
	ours := []survivor{{what: "network namespace edge-1f2e3d4c-n-a", node: "a"}, {what: "process 7 (etcd)", dir: e.state.dir(id)}}
	if dir := e.elsewhere(id, ours); dir != "" {
		t.Errorf("our own directory is called another's: %s", dir)
	}
	err := e.lostError(id, ours)
	if err.Class != Unreachable || !strings.Contains(err.Error(), "no longer holds its keys") || !strings.Contains(err.Next, "edge destroy "+id.String()) {
		t.Errorf("%v", err)
	}
	theirs := append(ours, survivor{what: "process 8 (kubelet)", dir: "/home/u/.edge/clusters/c-1f2e3d4c"})
	err = e.lostError(id, theirs)
	if err.Class != Unreachable || !strings.Contains(err.Next, "EDGE_STATE_DIR=/home/u/.edge") {
		t.Errorf("%v", err)
	}
}

func TestUnknownClusterIsNotGone(t *testing.T) {
	e := newTestEngineAt(t, t.TempDir())
	const id = "local/c-1f2e3d4c"
	if _, err := e.ReadCluster(t.Context(), id); ClassOf(err) != Unreachable {
		t.Errorf("read: %v", err)
	}
	if err := e.DeleteCluster(t.Context(), id); ClassOf(err) != Unreachable {
		t.Errorf("delete: %v", err)
	}
	e.opts.Clusters = map[string]ClusterAccess{id + "@seed": {Gone: true}}
	if err := e.DeleteCluster(t.Context(), id); err != nil {
		t.Errorf("delete of a cluster that is declared gone: %v", err)
	}
	if err := e.DeletePool(t.Context(), id, "p"); err != nil {
		t.Errorf("delete of its pool: %v", err)
	}
}

func TestChildrenGoWithAHalfDestroyedCluster(t *testing.T) {
	e := newTestEngineAt(t, t.TempDir())
	const id = "local/c-1f2e3d4c"
	r := &record{ID: id, UID: "1f2e3d4c", Spec: ClusterSpec{Name: "c"}, Phase: phaseDestroying}
	if err := e.state.save(r); err != nil {
		t.Fatal(err)
	}
	if err := e.DeletePool(t.Context(), id, "p"); err != nil {
		t.Errorf("%v", err)
	}
	if err := e.DeleteUnit(t.Context(), id, "default", "u"); err != nil {
		t.Errorf("%v", err)
	}
	c, err := e.ReadCluster(t.Context(), id)
	if err != nil || c.Status != StatusDestroying {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestStoppedNodeIsReadFromWhatWasDeclared(t *testing.T) {
	e := newTestEngineAt(t, t.TempDir())
	const id = "local/c-1f2e3d4c"
	r := &record{ID: id, UID: "1f2e3d4c", Spec: ClusterSpec{Name: "c"}, Phase: phaseReady}
	if err := e.state.save(r); err != nil {
		t.Fatal(err)
	}
	if _, err := e.ReadNode(t.Context(), id, "n"); ClassOf(err) != Unreachable {
		t.Errorf("a node that is not known: %v", err)
	}
	dir := filepath.Join(e.dirOf(r), "nodes", "n")
	want := &Node{
		ID: id + "/n", ClusterID: id, Name: "n", Local: true, Status: StatusReady, Architecture: "amd64", KubernetesVersion: "1.36.3", EngineVersion: "0.1.0",
		Spec: v1alpha1.EdgeNodeSpec{Pool: "p", Labels: map[string]string{"a": "b"}},
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := e.keepDeclared(&connection{dir: e.dirOf(r)}, want); err != nil {
		t.Fatal(err)
	}
	got, err := e.ReadNode(t.Context(), id, "n")
	if err != nil {
		t.Fatal(err)
	}
	want.Status = StatusStopped
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	r.Phase = phaseControlPlane
	if err := e.state.save(r); err != nil {
		t.Fatal(err)
	}
	if n, err := e.ReadNode(t.Context(), id, "n"); err == nil {
		t.Errorf("a node of an unfinished cluster reads %+v", n)
	}
}
