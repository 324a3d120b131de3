//go:build linux

package quickstart

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/auto"
	"github.com/pulumi/pulumi/sdk/v3/go/auto/optdestroy"
	"github.com/pulumi/pulumi/sdk/v3/go/auto/optpreview"
	"github.com/pulumi/pulumi/sdk/v3/go/auto/optrefresh"
	"github.com/pulumi/pulumi/sdk/v3/go/auto/optup"

	program "github.com/edgewright/terraform-provider-edge/examples/pulumi/go/quickstart"
)

// operation is one of the CLI's: up, preview, refresh (both expect no changes) or
// destroy.
type operation string

const (
	up      operation = "up"
	preview operation = "preview"
	refresh operation = "refresh"
	destroy operation = "destroy"
)

// running is an operation that runs.
type running struct {
	root int // the process that is the CLI, or that has started it
	wait func() (output string, err error)
}

// face is one language's way to run the quickstart.
type face struct {
	name     string
	settings string // the example's directory
	start    func(t *testing.T, w *world, op operation) running
}

func faces() []face {
	return []face{
		{"go", "go", startGo},
		{"typescript", "typescript", startTypeScript},
		{"yaml", "yaml", startYAML},
	}
}

// startGo runs the program in this process.
func startGo(t *testing.T, w *world, op operation) running {
	t.Helper()
	stack, err := auto.SelectStackInlineSource(t.Context(), stackName, project, program.Deploy, auto.WorkDir(w.dir), auto.EnvVars(w.vars))
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		output string
		err    error
	}
	done := make(chan result, 1)
	ctx := t.Context()
	go func() {
		var r result
		r.output, r.err = runGo(ctx, stack, op)
		done <- r
	}()
	return running{os.Getpid(), func() (string, error) { r := <-done; return r.output, r.err }}
}

func runGo(ctx context.Context, stack auto.Stack, op operation) (string, error) {
	switch op {
	case up:
		r, err := stack.Up(ctx, optup.SuppressProgress())
		return r.StdOut + r.StdErr, err
	case preview:
		r, err := stack.Preview(ctx, optpreview.ExpectNoChanges())
		return r.StdOut + r.StdErr, err
	case refresh:
		r, err := stack.Refresh(ctx, optrefresh.ExpectNoChanges())
		return r.StdOut + r.StdErr, err
	case destroy:
		r, err := stack.Destroy(ctx, optdestroy.SuppressProgress())
		return r.StdOut + r.StdErr, err
	}
	return "", fmt.Errorf("no operation is called %s", op)
}

// startTypeScript runs the compiled program, from the package as it is published.
func startTypeScript(t *testing.T, w *world, op operation) running {
	t.Helper()
	return w.begin(t, "node", filepath.Join(typeScriptProject(t, w), "bin", "run.js"), string(op), w.dir)
}

func typeScriptProject(t *testing.T, w *world) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(w.Root, "scripts", "pulumi-typescript.sh"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("scripts/pulumi-typescript.sh: %v", err)
	}
	return strings.TrimSpace(string(out))
}

func startYAML(t *testing.T, w *world, op operation) running {
	t.Helper()
	args := map[operation][]string{
		up:      {"--yes", "--skip-preview"},
		preview: {"--expect-no-changes"},
		refresh: {"--yes", "--skip-preview", "--expect-no-changes"},
		destroy: {"--yes", "--skip-preview"},
	}
	return w.begin(t, w.cli, append([]string{string(op), "-C", w.dir, "-s", stackName, "--non-interactive", "--suppress-progress"}, args[op]...)...)
}

// begin starts a program with the world's environment.
func (w *world) begin(t *testing.T, program string, args ...string) running {
	t.Helper()
	p := w.Start(t, w.env(), program, args...)
	return running{p.PID(), func() (string, error) {
		r := p.Wait(t, 10*time.Minute)
		return r.Stdout + r.Stderr, r.Err
	}}
}

// run runs an operation and fails the test if it fails.
func (w *world) run(t *testing.T, f face, op operation) string {
	t.Helper()
	began := time.Now()
	out, err := f.start(t, w, op).wait()
	if err != nil {
		t.Fatalf("pulumi %s: %v\n%s%s", op, err, out, w.Logs())
	}
	t.Logf("pulumi %s: %.1f s", op, time.Since(began).Seconds())
	return out
}
