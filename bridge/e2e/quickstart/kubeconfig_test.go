//go:build linux

package quickstart

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// kubeconfigServesOthers does what another provider does with the kubeconfig that a
// program hands it: uses it with no more than `edge` on the PATH.
func kubeconfigServesOthers(t *testing.T, w *world) {
	t.Helper()
	var list []struct {
		Components []struct{ Component, Directory string }
	}
	raw := w.EdgeCmd(t, "component", "list", "--kubernetes", "1.36.3", "-o", "json")
	if err := json.Unmarshal([]byte(raw), &list); err != nil || len(list) == 0 {
		t.Fatalf("%v: %s", err, raw)
	}
	kubectl := ""
	for _, c := range list[0].Components {
		if c.Component == "kubernetes" {
			kubectl = filepath.Join(c.Directory, "kubectl")
		}
	}
	file := filepath.Join(w.Work(), "kubeconfig")
	if err := os.WriteFile(file, []byte(w.pulumi(t, "stack", "output", "kubeconfig", "-s", stackName)), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{
		"HOME=" + w.Work(), "EDGE_STATE_DIR=" + w.StateDir,
		"PATH=" + filepath.Join(w.StateDir, "bin") + ":" + os.Getenv("PATH"),
	}
	res := w.Run(t.Context(), env, kubectl, "--kubeconfig", file, "get", "nodes", "-o", "name")
	if res.Err != nil || len(strings.Fields(res.Stdout)) != 3 {
		t.Errorf("kubectl with the stack's kubeconfig: %v\n%s%s", res.Err, res.Stdout, res.Stderr)
	}
}
