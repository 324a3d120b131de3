//go:build linux

package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Rig is one test's own world.
type Rig struct {
	Root     string // the repository
	Edge     string // bin/edge
	StateDir string // EDGE_STATE_DIR
	work     string // Terraform working directory
	mirror   string
	tf       string // terraform program
}

// pluginVersion is the version under which the built plugin is offered.
const pluginVersion = "0.1.0"

// New makes a world and takes it down again when the test ends. Clusters that
// the test leaves behind are destroyed and reported as an error.
func New(t testing.TB) *Rig {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real clusters; run make test-one-apply")
	}
	sweep(t)
	dir, err := os.MkdirTemp("", "edge-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	r := &Rig{Root: repository(t), StateDir: filepath.Join(dir, "state"), work: filepath.Join(dir, "tf"), mirror: filepath.Join(dir, "mirror")}
	r.Edge = filepath.Join(r.Root, "bin", "edge")
	if _, err := os.Stat(r.Edge); err != nil {
		t.Fatalf("%v; run make build first", err)
	}
	for _, d := range []string{r.StateDir, r.work} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	r.tf = terraform(t, r.Root)
	r.layMirror(t, dir)
	forget := remember(t, r)
	t.Cleanup(func() {
		r.destroyLeftClusters(t)
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the test's directory: %v", err)
		}
		forget()
	})
	return r
}

func repository(t testing.TB) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("no caller information")
	}
	return filepath.Clean(filepath.Join(filepath.Dir(file), "..", "..", ".."))
}

func terraform(t testing.TB, root string) string {
	t.Helper()
	if p := os.Getenv("TF_ACC_TERRAFORM_PATH"); p != "" {
		return p
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(root, "scripts", "terraform.sh")).Output()
	if err != nil {
		t.Fatalf("find terraform: %v", err)
	}
	return strings.TrimSpace(string(out))
}

func (r *Rig) layMirror(t testing.TB, dir string) {
	t.Helper()
	for _, host := range []string{"registry.terraform.io", "registry.opentofu.org"} {
		d := filepath.Join(r.mirror, host, "edgewright", "edge", pluginVersion, runtime.GOOS+"_"+runtime.GOARCH)
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
		plugin := filepath.Join(r.Root, "bin", "terraform-provider-edge")
		if err := os.Symlink(plugin, filepath.Join(d, "terraform-provider-edge_v"+pluginVersion)); err != nil {
			t.Fatal(err)
		}
	}
	rc := fmt.Sprintf("provider_installation {\n  filesystem_mirror {\n    path = %q\n  }\n}\n", r.mirror)
	if err := os.WriteFile(filepath.Join(dir, "cli.tfrc"), []byte(rc), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (r *Rig) env(extra ...string) []string {
	return append(append(os.Environ(),
		"EDGE_STATE_DIR="+r.StateDir,
		"TF_CLI_CONFIG_FILE="+filepath.Join(filepath.Dir(r.work), "cli.tfrc"),
		"TF_IN_AUTOMATION=1",
		"CHECKPOINT_DISABLE=1",
	), extra...)
}

// Result is what a program said and how it ended.
type Result struct {
	Stdout, Stderr string
	Err            error
}

// Run runs a program in the Terraform working directory with the rig's
// environment.
func (r *Rig) Run(ctx context.Context, env []string, program string, args ...string) Result {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = r.work
	cmd.Env = r.env(env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 2 * time.Minute
	err := cmd.Run()
	return Result{stdout.String(), stderr.String(), err}
}

// Terraform runs terraform and fails the test if it fails.
func (r *Rig) Terraform(t testing.TB, args ...string) string {
	t.Helper()
	res := r.TryTerraform(t, args...)
	if res.Err != nil {
		t.Fatalf("terraform %s: %v\n%s%s%s", strings.Join(args, " "), res.Err, res.Stdout, res.Stderr, r.Logs())
	}
	return res.Stdout
}

// TryTerraform runs terraform.
func (r *Rig) TryTerraform(t testing.TB, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Minute)
	defer cancel()
	return r.Run(ctx, nil, r.tf, args...)
}

// TerraformPath is the terraform program in use.
func (r *Rig) TerraformPath() string { return r.tf }

// Work is the Terraform working directory.
func (r *Rig) Work() string { return r.work }

// Config writes a configuration and initialises it.
func (r *Rig) Config(t testing.TB, hcl string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(r.work, "main.tf"), []byte(hcl), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(r.work, ".terraform.lock.hcl")); errors.Is(err, os.ErrNotExist) {
		r.Terraform(t, "init", "-input=false", "-no-color")
	}
}

// Apply applies the configuration.
func (r *Rig) Apply(t testing.TB, args ...string) string {
	t.Helper()
	return r.Terraform(t, append([]string{"apply", "-input=false", "-no-color", "-auto-approve"}, args...)...)
}

// Destroy destroys everything in the state.
func (r *Rig) Destroy(t testing.TB) {
	t.Helper()
	r.Terraform(t, "destroy", "-input=false", "-no-color", "-auto-approve")
}

// Change is what a plan wants to do with one resource.
type Change struct {
	Address string
	Actions []string
	Before  map[string]any
	After   map[string]any
}

// Plan returns the changes of a plan, without those that do nothing.
func (r *Rig) Plan(t testing.TB) []Change {
	t.Helper()
	r.Terraform(t, "plan", "-input=false", "-no-color", "-out=plan.bin")
	out := r.Terraform(t, "show", "-json", "plan.bin")
	var plan struct {
		ResourceChanges []struct {
			Address string
			Change  struct {
				Actions       []string
				Before, After map[string]any
			}
		} `json:"resource_changes"`
	}
	if err := json.Unmarshal([]byte(out), &plan); err != nil {
		t.Fatal(err)
	}
	var changes []Change
	for _, c := range plan.ResourceChanges {
		if len(c.Change.Actions) == 1 && (c.Change.Actions[0] == "no-op" || c.Change.Actions[0] == "read") {
			continue
		}
		changes = append(changes, Change{c.Address, c.Change.Actions, c.Change.Before, c.Change.After})
	}
	return changes
}

// ExpectNoChanges fails the test if a plan would do anything.
func (r *Rig) ExpectNoChanges(t testing.TB) {
	t.Helper()
	if changes := r.Plan(t); len(changes) > 0 {
		out := r.Terraform(t, "show", "-no-color", "plan.bin")
		t.Fatalf("the plan is not empty:\n%s", out)
	}
}

// EdgeCmd runs the edge command line and fails the test if it fails.
func (r *Rig) EdgeCmd(t testing.TB, args ...string) string {
	t.Helper()
	res := r.TryEdge(t, args...)
	if res.Err != nil {
		t.Fatalf("edge %s: %v\n%s%s", strings.Join(args, " "), res.Err, res.Stdout, res.Stderr)
	}
	return res.Stdout
}

// TryEdge runs the edge command line.
func (r *Rig) TryEdge(t testing.TB, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Minute)
	defer cancel()
	return r.Run(ctx, nil, r.Edge, args...)
}

// Root runs a program as root: directly, or through sudo.
func (r *Rig) AsRoot(t testing.TB, program string, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Minute)
	defer cancel()
	if os.Geteuid() != 0 {
		args = append([]string{"-n", "env", "EDGE_STATE_DIR=" + r.StateDir, program}, args...)
		program = "sudo"
	}
	return r.Run(ctx, nil, program, args...)
}

// Kubectl runs the cluster's kubectl and fails the test if it fails.
func (r *Rig) Kubectl(t testing.TB, cluster string, args ...string) string {
	t.Helper()
	return r.EdgeCmd(t, append([]string{"kubectl", "-c", cluster}, args...)...)
}

// Eventually calls ok until it returns nil or the time is over, and fails the
// test with its last error.
func Eventually(t testing.TB, within time.Duration, what string, ok func() error) time.Duration {
	t.Helper()
	began := time.Now()
	deadline := began.Add(within)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return time.Since(began)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		<-tick.C
	}
}

// Logs returns the last lines of every log below the state directory, for a
// test that fails.
func (r *Rig) Logs() string {
	var b strings.Builder
	for _, pattern := range []string{"clusters/*/logs/*.log", "clusters/*/nodes/*/logs/*.log"} {
		files, err := filepath.Glob(filepath.Join(r.StateDir, pattern))
		if err != nil {
			continue
		}
		for _, f := range files {
			if filepath.Base(f) == "audit.log" {
				continue
			}
			raw, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
			if n := len(lines) - 15; n > 0 {
				lines = lines[n:]
			}
			fmt.Fprintf(&b, "--- %s\n%s\n", strings.TrimPrefix(f, r.StateDir+"/"), strings.Join(lines, "\n"))
		}
	}
	return b.String()
}
