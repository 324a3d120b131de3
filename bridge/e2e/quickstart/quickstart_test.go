//go:build linux

package quickstart

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

// TestQuickstart brings the quickstart up with Terraform and with each of the three
// Pulumi programs, one after the other, and compares what they make.
func TestQuickstart(t *testing.T) {
	if testing.Short() {
		t.Skip("four real clusters")
	}
	var want map[string]any
	t.Run("terraform", func(t *testing.T) { want = terraform(t) })
	if want == nil {
		t.Fatal("there is nothing to compare with")
	}
	for _, f := range faces() {
		t.Run(f.name, func(t *testing.T) { life(t, f, want) })
	}
}

// terraform applies examples/quickstart and returns its objects.
func terraform(t *testing.T) map[string]any {
	r := rig.New(t)
	hcl, err := os.ReadFile(filepath.Join(r.Root, "examples", "quickstart", "main.tf"))
	if err != nil {
		t.Fatal(err)
	}
	r.Config(t, string(hcl))
	r.Apply(t)
	defer r.Destroy(t)
	return objects(t, r)
}

// life is the life of one program's cluster.
func life(t *testing.T, f face, want map[string]any) {
	w := newWorld(t, f.settings)
	t.Cleanup(func() {
		if t.Failed() { // the rig destroys what is left, and would report that too
			w.TryEdge(t, "destroy", "--yes", cluster)
		}
	})
	if f.name == "yaml" {
		interrupted(t, w, f)
	}
	for _, m := range moments[f.name] {
		killed(t, w, f, m)
	}
	w.run(t, f, up)
	id := strings.TrimSpace(w.pulumi(t, "stack", "output", "clusterId", "-s", stackName))

	if diff := cmp.Diff(want, objects(t, w.Rig)); diff != "" {
		t.Errorf("objects in Kubernetes (-terraform +pulumi):\n%s", diff)
	}
	w.run(t, f, preview)
	w.run(t, f, refresh)
	holdsNoSecret(t, w)
	leaksNothing(t, w)
	switch f.name {
	case "go":
		kubeconfigServesOthers(t, w)
	case "yaml":
		othersAreNotTaken(t, w, id)
	}
	changesInPlace(t, w, f)
	w.run(t, f, destroy)
	uid := id[strings.LastIndexByte(id, '-')+1:]
	if out, err := exec.CommandContext(t.Context(), filepath.Join(w.Root, "scripts", "leftovers.sh"), uid).CombinedOutput(); err != nil {
		t.Errorf("destroy has left something: %v\n%s", err, out)
	}
}

// moment is when a create is killed half-way.
type moment struct {
	what    string
	reached func(t *testing.T, w *world) bool
	// plugin says that the plugin is killed too, and not the CLI alone.
	plugin bool
}

var moments = map[string][]moment{
	"go": {
		{"the control plane starts", phase("control-plane", ""), false},
		{"a node joins", phase("join", "/tokyo-1"), true},
		{"units roll out", rollout, false},
	},
	"typescript": {{"a node joins", phase("join", "/berlin-1"), false}},
	"yaml":       {{"units roll out", rollout, true}},
}

// phase is reached once progress of an object whose id ends so has come there.
func phase(name, object string) func(*testing.T, *world) bool {
	return func(t *testing.T, w *world) bool {
		files, err := filepath.Glob(filepath.Join(w.StateDir, "clusters", "*", "progress.ndjson"))
		if err != nil || len(files) == 0 {
			return false
		}
		raw, err := os.ReadFile(files[0])
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(raw)) {
			var p struct{ Object, Phase string }
			if json.Unmarshal([]byte(line), &p) == nil && p.Phase == name && strings.HasSuffix(p.Object, object) {
				return true
			}
		}
		return false
	}
}

// rollout is reached while a unit deployment is being created.
func rollout(t *testing.T, w *world) bool {
	res := w.TryEdge(t, "kubectl", "-c", cluster, "get", "unitdeployment", "web", "-o", `jsonpath={.metadata.annotations.edgewright\.dev/unfinished}`)
	return res.Err == nil && res.Stdout == "create"
}

// killed runs up and kills it at a moment, with SIGKILL.
func killed(t *testing.T, w *world, f face, m moment) {
	t.Helper()
	r := f.start(t, w, up)
	rig.Eventually(t, 5*time.Minute, m.what, func() error {
		if !m.reached(t, w) {
			return errors.New("not yet")
		}
		return nil
	})
	found := below(r.root)
	cli, plugins := named(found, "pulumi"), named(found, "pulumi-resource-edge")
	if len(cli) != 1 || len(plugins) == 0 {
		t.Fatalf("when %s there run %+v", m.what, found)
	}
	if m.plugin {
		for _, pid := range plugins {
			kill(t, pid)
		}
	}
	kill(t, cli[0])
	if out, err := r.wait(); err == nil {
		t.Fatalf("pulumi up went on when it was killed:\n%s", out)
	}
	for _, pid := range plugins {
		rig.Eventually(t, time.Minute, "the plugin of a killed CLI has ended", func() error { return gone(pid) })
	}
	w.pulumi(t, "cancel", "--yes", "-s", stackName) // the lock of the one that was killed
	t.Logf("killed when %s", m.what)
}

// interrupted runs up and presses Ctrl-C while nodes join: what is unfinished is in
// the state, and the next up finishes it in place.
func interrupted(t *testing.T, w *world, f face) {
	t.Helper()
	r := f.start(t, w, up)
	joins := phase("join", "/tokyo-1")
	rig.Eventually(t, 5*time.Minute, "a node joins", func() error {
		if !joins(t, w) {
			return errors.New("not yet")
		}
		return nil
	})
	began := time.Now()
	if err := syscall.Kill(r.root, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if out, err := r.wait(); err == nil {
		t.Fatalf("pulumi up went on when it was interrupted:\n%s", out)
	}
	t.Logf("interrupted when a node joins: ended after %.1f s", time.Since(began).Seconds())
	if state := w.pulumi(t, "stack", "export", "-s", stackName); !strings.Contains(state, `"status": "incomplete: join"`) {
		t.Errorf("no node is in the state as incomplete:\n%s", state)
	}
}

// changesInPlace changes a unit and nothing else.
func changesInPlace(t *testing.T, w *world, f face) {
	before := identity(t, w)
	w.pulumi(t, "config", "set", "tokyoReplicas", "2", "-s", stackName)
	w.run(t, f, up)
	var history []struct{ ResourceChanges map[string]int }
	raw := w.pulumi(t, "stack", "history", "--json", "--page-size", "1", "-s", stackName)
	if err := json.Unmarshal([]byte(raw), &history); err != nil || len(history) != 1 {
		t.Fatalf("%v: %s", err, raw)
	}
	if diff := cmp.Diff(map[string]int{"same": 7, "update": 1}, history[0].ResourceChanges); diff != "" {
		t.Errorf("changes of an update in place (-want +got):\n%s", diff)
	}
	if after := identity(t, w); before != after {
		t.Errorf("objects were replaced: %s, and before %s", after, before)
	}
	if got := w.Kubectl(t, cluster, "get", "deployment", "web-tokyo", "-o", "jsonpath={.status.readyReplicas}"); got != "2" {
		t.Errorf("web-tokyo has %s ready replicas, want 2", got)
	}
	w.run(t, f, preview)
}

func identity(t *testing.T, w *world) string {
	t.Helper()
	return w.Kubectl(t, cluster, "get", "namespace/default", "unitdeployment/web", "deployment/web-tokyo", "-o", "jsonpath={.items[*].metadata.uid}")
}

// othersAreNotTaken applies the same program from another stack: what exists is not
// its own, and it is told how to take it over.
func othersAreNotTaken(t *testing.T, w *world, id string) {
	const other = "other"
	w.pulumi(t, "stack", "init", other)
	res := w.try(t, "up", "--yes", "--skip-preview", "-s", other)
	told := fmt.Sprintf("Import it with the id %s: `pulumi import edge:index/cluster:Cluster <name> %s`", id, id)
	if res.Err == nil || !strings.Contains(res.Stdout+res.Stderr, told) {
		t.Errorf("another stack's up: %v, want it told %q\n%s%s", res.Err, told, res.Stdout, res.Stderr)
	}
	w.pulumi(t, "import", "--yes", "--generate-code=false", "-s", other, "edge:index/nodePool:NodePool", "berlin", id+"/berlin")
	w.pulumi(t, "stack", "rm", "--yes", "--force", other) // forgets it
	w.pulumi(t, "stack", "select", stackName)
}
