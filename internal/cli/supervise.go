//go:build linux

package cli

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

// newSuperviseCommand is the small parent of a daemon where there is no systemd.
func (a *app) newSuperviseCommand() *cobra.Command {
	var opts supervise.ParentOptions
	cmd := &cobra.Command{
		Use:   "supervise [flags] -- command [argument...]",
		Short: "Keep a daemon running: start it, start it again when it dies, pass SIGTERM on",
		Long: `Starts the command in a session of its own and starts it again, after 0.1 to
10 seconds, whenever it ends. Exit code 0 means that it is done. SIGTERM and
SIGINT are passed on as SIGTERM; then this program waits for the command to end.

With --pidfile in the daemon's run directory the daemon watches this program in
turn and starts it again when it dies.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			// A terminal that closes is no reason to end. Caught, not ignored: the
			// command would inherit that it is ignored.
			signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
			opts.Command = args
			opts.Logger = slog.New(slog.NewTextHandler(a.Err, nil)).With("component", "supervise")
			return supervise.RunParent(ctx, opts)
		},
	}
	flags := cmd.Flags()
	// What follows the command is the command's own, with or without "--".
	flags.SetInterspersed(false)
	flags.StringVar(&opts.LogFile, "log", "", "file for the command's output, rotated by size (default: this program's own output)")
	flags.StringVar(&opts.PIDFile, "pidfile", "", "file to record this program and the command in; one program holds it at a time")
	flags.StringVar(&opts.Adopt, "adopt", "", "running command to look after, as `pid:start-time`")
	return cmd
}
