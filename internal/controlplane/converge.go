//go:build linux

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

// pollInterval is how often `up` looks at the daemon's status file.
const pollInterval = 20 * time.Millisecond

// plainLists makes the daemon's own watches begin with a list. A watch that
// begins with its initial events (client-go's default) ends them with a bookmark
// that the apiserver's cache sends once a second or so: a second of every start,
// for nothing in a cache as small as ours (measured: 1.1 s against 0.02 s).
const plainLists = "KUBE_FEATURE_WatchListClient=false"

// daemonStopTimeout is how long the daemon may take to end by itself; it leaves
// its children alone, so it has little to do.
const daemonStopTimeout = 10 * time.Second

// UpOptions of Up.
type UpOptions struct {
	Dir    string
	Binary string // the edge program that the daemon runs from
	// Progress is told of each phase as it begins; may be nil.
	Progress func(phase, message string)
	Logger   *slog.Logger
}

// Up makes the control plane of a cluster directory run as its spec says and
// waits until it is ready. Run again it finds everything in place. When ctx ends
// the daemon goes on by itself.
func Up(ctx context.Context, o UpOptions) error {
	l := Layout{o.Dir}
	spec, err := LoadSpec(o.Dir)
	if err != nil {
		return err
	}
	digest, err := spec.digest()
	if err != nil {
		return err
	}
	if o.Progress == nil {
		o.Progress = func(string, string) {}
	}
	for _, dir := range []string{l.Run(), l.Logs()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	state, err := supervise.FindDaemon(l.Run())
	if err != nil {
		return err
	}
	status, err := LoadStatus(o.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	obeys := status != nil && status.SpecDigest == digest && status.Program == o.Binary && status.Error == "" && state.Running() && status.PID == state.Daemon.PID
	if !obeys {
		if state.Alive() {
			o.Progress("restart", "the daemon takes its changed spec or program")
			if err := supervise.StopDaemon(ctx, l.Run(), daemonStopTimeout); err != nil {
				return fmt.Errorf("stop the daemon that runs: %w", err)
			}
		}
		if err := checkPorts(ctx, spec, l); err != nil {
			return err
		}
		if err := os.Remove(l.Join(StatusFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the old status: %w", err)
		}
		log := filepath.Join(l.Logs(), "control-plane.log")
		_, err := supervise.StartDetached(supervise.DetachOptions{
			Path:    o.Binary,
			Args:    supervise.ParentArgs(l.Run(), log, o.Binary, "control-plane", "run", "--dir", o.Dir),
			Dir:     o.Dir,
			Env:     append(supervise.MinimalEnv(os.LookupEnv), plainLists),
			LogFile: log,
		})
		if err != nil {
			return fmt.Errorf("start the daemon: %w", err)
		}
	}
	return waitReady(ctx, l, digest, o.Progress)
}

func waitReady(ctx context.Context, l Layout, digest string, progress func(phase, message string)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var told string
	for {
		s, err := LoadStatus(l.Dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if s != nil && s.SpecDigest == digest {
			if s.Phase != told {
				told = s.Phase
				progress("control-plane", s.Phase)
			}
			if s.Error != "" {
				return fmt.Errorf("%s: %s", s.Phase, s.Error)
			}
			if s.Phase == PhaseReady {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the control plane was still at %q: %w", told, ctx.Err())
		case <-tick.C:
		}
	}
}

// checkPorts refuses to start over somebody else's port. Ports that the
// cluster's own children hold are theirs.
func checkPorts(ctx context.Context, s *Spec, l Layout) error {
	own, err := supervise.FindMarked(l.Run())
	if err != nil {
		return err
	}
	running := map[string]bool{}
	for _, m := range own {
		running[m.Name] = true
	}
	for user, port := range s.Ports.All() {
		name, _, _ := strings.Cut(user, " ")
		if running[name] {
			continue
		}
		var lc net.ListenConfig
		ln, err := lc.Listen(ctx, "tcp", loopbackPort(port))
		if err != nil {
			return fmt.Errorf("%s cannot have its TCP port %d: %w. End what holds it (ss -ltnp 'sport = %d') and apply again", user, port, err, port)
		}
		_ = ln.Close() // a probe; nothing was accepted
	}
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp", fmt.Sprintf(":%d", s.Ports.Gateway))
	if err != nil {
		return fmt.Errorf("the gateway cannot have its UDP port %d: %w. End what holds it (ss -lunp 'sport = %d') and apply again", s.Ports.Gateway, err, s.Ports.Gateway)
	}
	_ = pc.Close() // a probe
	ln, err := lc.Listen(ctx, "tcp", fmt.Sprintf(":%d", s.Ports.Gateway))
	if err != nil {
		return fmt.Errorf("the gateway cannot have its TCP port %d: %w. End what holds it (ss -ltnp 'sport = %d') and apply again", s.Ports.Gateway, err, s.Ports.Gateway)
	}
	_ = ln.Close() // a probe; nothing was accepted
	return nil
}

// Down stops the daemon and its children in reverse order. It works from what
// runs, not from the directory, which may be gone.
func Down(ctx context.Context, dir string, logger *slog.Logger) error {
	l := Layout{dir}
	if err := supervise.StopDaemon(ctx, l.Run(), daemonStopTimeout); err != nil {
		return fmt.Errorf("stop the control plane's daemon: %w", err)
	}
	if err := stopSurvivors(ctx, dir, daemonStopTimeout); err != nil {
		return fmt.Errorf("stop the control plane's daemon, whose records are lost: %w", err)
	}
	if err := supervise.StopRecorded(ctx, l.Run(), startOrder, supervise.StopRecordedOptions{Logger: logger}); err != nil {
		return fmt.Errorf("stop the control plane's processes: %w", err)
	}
	left, err := supervise.FindMarked(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range left {
		if filepath.Dir(m.RunDir) == dir { // nodes have run directories of their own below
			errs = append(errs, fmt.Errorf("process %d (%s) is left", m.PID, m.Name))
		}
	}
	return errors.Join(errs...)
}
