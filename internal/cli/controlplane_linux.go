package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/edgewright/terraform-provider-edge/internal/controlplane"
)

// newControlPlaneCommand is how a host is converged to a control plane. The
// engine calls up and down; run is what they start and stop.
func (a *app) newControlPlaneCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "control-plane",
		Short: "Start or stop the control plane of a cluster on this host",
		Long: "Starts or stops the control plane whose keys, data and choices are in a cluster's\n" +
			"directory. Both may be run again at any time. The engine runs them.",
	}
	var dir string
	c.PersistentFlags().StringVar(&dir, "dir", "", "cluster directory (required)")
	_ = c.MarkPersistentFlagRequired("dir") // fails only for a flag that does not exist
	absolute := func(*cobra.Command, []string) (err error) {
		dir, err = filepath.Abs(dir)
		return err
	}
	c.PersistentPreRunE = absolute
	var until untilEOF
	up, down := &cobra.Command{
		Use:   "up",
		Short: "Start the control plane and wait until it is ready",
		Args:  atMost(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			ctx, unwatch := until.watch(cmd.Context(), a.In)
			defer unwatch()
			report := newLineReporter(a.Out)
			return report.result(controlplane.Up(ctx, controlplane.UpOptions{
				Dir: dir, Binary: self, Logger: a.daemonLogger(), Progress: report.phase,
			}))
		},
	},
		&cobra.Command{
			Use:   "down",
			Short: "Stop the control plane; its data stay",
			Args:  atMost(0),
			RunE: func(cmd *cobra.Command, _ []string) error {
				ctx, unwatch := until.watch(cmd.Context(), a.In)
				defer unwatch()
				return newLineReporter(a.Out).result(controlplane.Down(ctx, dir, a.daemonLogger()))
			},
		}
	until.flag(up)
	until.flag(down)
	c.AddCommand(up, down,
		&cobra.Command{
			Use:   "run",
			Short: "Run the daemon (started by `up`)",
			Args:  atMost(0),
			RunE: func(cmd *cobra.Command, _ []string) error {
				return controlplane.Run(cmd.Context(), dir, a.daemonLogger())
			},
		},
	)
	return c
}

func (a *app) daemonLogger() *slog.Logger {
	return slog.New(slog.NewTextHandler(a.Err, nil))
}

// lineReporter writes what the engine reads of a command it runs: one JSON
// object a line, progress and at the end perhaps an error.
type lineReporter struct {
	enc   *json.Encoder
	began time.Time
}

func newLineReporter(w interface{ Write([]byte) (int, error) }) *lineReporter {
	return &lineReporter{enc: json.NewEncoder(w), began: time.Now()}
}

func (r *lineReporter) phase(phase, message string) {
	// A reader that is gone must not stop the work.
	_ = r.enc.Encode(map[string]any{"phase": phase, "message": message, "elapsed_ms": time.Since(r.began).Milliseconds()})
}

// result writes err as the last line and makes the exit code 1 without saying
// it twice.
func (r *lineReporter) result(err error) error {
	if err == nil {
		return nil
	}
	if encErr := r.enc.Encode(map[string]any{"error": err.Error()}); encErr != nil {
		return errors.Join(err, fmt.Errorf("report it: %w", encErr))
	}
	return exitCode(1)
}
