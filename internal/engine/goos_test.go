package engine

import (
	"strings"
	"testing"
)

// An operator on another system is told before anything is made.
func TestNotLinux(t *testing.T) {
	dir := t.TempDir()
	e, err := New(Options{StateDir: dir, GOOS: "darwin"})
	if err != nil {
		t.Fatal(err)
	}
	_, cluster := e.CreateCluster(t.Context(), ClusterSpec{Name: "c", Version: "1.36.3"})
	for what, err := range map[string]error{
		"cluster": cluster,
		"node":    e.CheckLocalNode(t.Context()),
		"destroy": e.DeleteCluster(t.Context(), "local/c-0a1b2c3d"),
	} {
		if ClassOf(err) != Invalid || err == nil || !strings.Contains(err.Error(), "darwin") {
			t.Errorf("%s: %v, want a refusal that names the system", what, err)
		}
	}
	clusters, err := e.ListClusters(t.Context())
	if err != nil || len(clusters) != 0 {
		t.Errorf("something was made: %v, %v", clusters, err)
	}
}
