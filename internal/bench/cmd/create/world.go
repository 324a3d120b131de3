//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/edgewright/terraform-provider-edge/internal/component"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
)

// version is the Kubernetes version that everything is measured with.
const version = "1.36.3"

// pluginVersion is the version under which the built plugin is offered.
const pluginVersion = "0.1.0"

// world is a run's own directory with all that it needs.
type world struct {
	options
	dir    string
	state  string // EDGE_STATE_DIR
	engine *engine.Engine
	lock   *flock.Flock
	// programs of Kubernetes and etcd in the component cache.
	programs component.Paths
}

func (w *world) say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// openWorld takes the run's directory, removes what a killed run left in it, and
// lays out what is measured.
func openWorld(ctx context.Context, o options) (*world, error) {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("edge-bench-%d", os.Getuid()))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if st, err := os.Lstat(dir); err != nil || !st.IsDir() || st.Mode().Perm() != 0o700 {
		return nil, fmt.Errorf("%s is not a directory that only this user may enter: remove it", dir)
	}
	w := &world{options: o, dir: dir, state: filepath.Join(dir, "state"), lock: flock.New(dir + ".lock")}
	if ok, err := w.lock.TryLock(); err != nil || !ok {
		return nil, fmt.Errorf("another benchmark holds %s.lock (%w)", dir, errors.Join(err, errors.New("one at a time")))
	}
	store, err := component.Open(component.DefaultOptions(os.Getenv))
	if err != nil {
		return nil, err
	}
	if w.programs, err = store.Ensure(ctx, version, component.All); err != nil {
		return nil, err
	}
	if w.engine, err = engine.New(engine.Options{StateDir: w.state, Components: component.DefaultOptions(os.Getenv), EdgeBinary: o.edge}); err != nil {
		return nil, err
	}
	if err := w.clear(ctx); err != nil {
		return nil, fmt.Errorf("remove what an earlier run left: %w", err)
	}
	if err := os.MkdirAll(w.state, 0o700); err != nil {
		return nil, err
	}
	return w, w.layMirror()
}

// close removes everything, within a bound, also after an interrupt.
func (w *world) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), roundTimeout)
	defer cancel()
	err := w.clear(ctx)
	if err == nil {
		err = os.RemoveAll(w.dir)
	}
	return errors.Join(err, os.Remove(w.lock.Path()), w.lock.Close())
}

// clear destroys every cluster of the run's directory and empties it. What
// cannot be destroyed keeps its files, so that the next run can try again.
func (w *world) clear(ctx context.Context) error {
	var errs []error
	if clusters, err := w.engine.ListClusters(ctx); err == nil {
		for _, c := range clusters {
			errs = append(errs, w.engine.DeleteCluster(ctx, c.ID))
		}
	} else {
		errs = append(errs, err)
	}
	errs = append(errs, w.kwokDelete(ctx))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(w.dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// layMirror offers the built plugin to terraform and OpenTofu.
func (w *world) layMirror() error {
	mirror := filepath.Join(w.dir, "mirror")
	for _, registry := range []string{"registry.terraform.io", "registry.opentofu.org"} {
		d := filepath.Join(mirror, registry, "edgewright", "edge", pluginVersion, runtime.GOOS+"_"+runtime.GOARCH)
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
		if err := os.Symlink(w.plugin, filepath.Join(d, "terraform-provider-edge_v"+pluginVersion)); err != nil {
			return err
		}
	}
	rc := fmt.Sprintf("provider_installation {\n  filesystem_mirror {\n    path = %q\n  }\n}\n", mirror)
	return os.WriteFile(filepath.Join(w.dir, "cli.tfrc"), []byte(rc), 0o600)
}

// environment of what is measured: this process's without what would change
// terraform's or kwokctl's behaviour.
func (w *world) environment(extra ...string) []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "TF_") && !strings.HasPrefix(v, "KWOK_") && !strings.HasPrefix(v, "KUBECONFIG=") {
			env = append(env, v)
		}
	}
	return append(append(env, "EDGE_STATE_DIR="+w.state, "TF_CLI_CONFIG_FILE="+filepath.Join(w.dir, "cli.tfrc"),
		"TF_IN_AUTOMATION=1", "CHECKPOINT_DISABLE=1"), extra...)
}

// command runs a program to its end and returns its standard output. An
// interrupt lets it stop by itself.
func (w *world) command(ctx context.Context, dir string, env []string, program string, args ...string) (stdout, stderr string, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = dir, env
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	began := time.Now()
	err = cmd.Run()
	took = time.Since(began)
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(program), strings.Join(args[:min(1, len(args))], " "), err, tail(out.String()), tail(errOut.String()))
	}
	return out.String(), errOut.String(), took, err
}

// tail is the last lines of what a program said.
func tail(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// pause waits, for what has to settle before it is measured.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
