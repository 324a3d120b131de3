//go:build linux

package quickstart

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

const (
	project   = "quickstart"
	stackName = "dev"
	cluster   = "quickstart"
	// passphrase encrypts the stack's secrets. It is looked for where it must not be.
	passphrase = "open-sesame-58121"
)

// world is one program's own: a rig, and a backend, a home and settings of Pulumi's.
type world struct {
	*rig.Rig
	cli  string // the pulumi program
	dir  string // with Pulumi.yaml and the stack's configuration
	vars map[string]string
}

// newWorld makes a world with the settings of an example and an empty stack.
func newWorld(t *testing.T, example string) *world {
	t.Helper()
	w := &world{Rig: rig.New(t)}
	plugin := filepath.Join(w.Root, "bin", "pulumi-resource-edge")
	if _, err := os.Stat(plugin); err != nil {
		t.Fatalf("%v; run make build-pulumi first", err)
	}
	tools := tools(t, w.Root)
	w.cli = filepath.Join(tools, "pulumi")
	w.dir = filepath.Join(w.Work(), "project")
	home, backend := filepath.Join(w.Work(), "home"), filepath.Join(w.Work(), "backend")
	for _, d := range []string{w.dir, home, backend} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	settings, err := os.ReadFile(filepath.Join(w.Root, "examples", "pulumi", example, "Pulumi.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "Pulumi.yaml"), settings, 0o600); err != nil {
		t.Fatal(err)
	}
	w.vars = map[string]string{
		"PATH":                     strings.Join([]string{filepath.Dir(plugin), tools, os.Getenv("PATH")}, ":"),
		"EDGE_STATE_DIR":           w.StateDir,
		"PULUMI_HOME":              home,
		"PULUMI_BACKEND_URL":       "file://" + backend,
		"PULUMI_CONFIG_PASSPHRASE": passphrase,
		"PULUMI_SKIP_UPDATE_CHECK": "true",
		"PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
	}
	t.Setenv("PATH", w.vars["PATH"]) // where the Automation API looks for the CLI
	w.pulumi(t, "stack", "init", stackName)
	return w
}

// tools is the directory of the CLI and the language host of YAML programs.
func tools(t *testing.T, root string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(root, "scripts", "pulumi.sh"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("scripts/pulumi.sh: %v", err)
	}
	return strings.TrimSpace(string(out))
}

func (w *world) env() []string {
	var env []string
	for _, k := range slices.Sorted(maps.Keys(w.vars)) {
		env = append(env, k+"="+w.vars[k])
	}
	return env
}

// try runs the CLI.
func (w *world) try(t *testing.T, args ...string) rig.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Minute)
	defer cancel()
	return w.Run(ctx, w.env(), w.cli, append(args, "-C", w.dir, "--non-interactive")...)
}

// pulumi runs the CLI and fails the test if it fails.
func (w *world) pulumi(t *testing.T, args ...string) string {
	t.Helper()
	res := w.try(t, args...)
	if res.Err != nil {
		t.Fatalf("pulumi %s: %v\n%s%s", strings.Join(args, " "), res.Err, res.Stdout, res.Stderr)
	}
	return res.Stdout
}

// process is one of this machine's.
type process struct {
	pid, parent int
	program     string // name of its executable
}

// below lists a process and its descendants.
func below(root int) []process {
	all := map[int]process{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil {
			continue // likewise, or a kernel's thread
		}
		fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
		parent, err := strconv.Atoi(fields[1])
		if err != nil {
			continue
		}
		all[pid] = process{pid, parent, filepath.Base(exe)}
	}
	var out []process
	for pid, p := range all {
		for at := pid; at != 0; at = all[at].parent {
			if at == root {
				out = append(out, p)
				break
			}
		}
	}
	return out
}

// named picks the processes of a program.
func named(ps []process, program string) []int {
	var pids []int
	for _, p := range ps {
		if p.program == program {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

func gone(pid int) error {
	if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(raw), ") Z ") {
		return fmt.Errorf("process %d is there", pid)
	}
	return nil
}
