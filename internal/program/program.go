// Package program decides what a program of this project was started as. The
// plugins are also the `edge` program: the engine copies the program that it runs
// in below the state directory, calls the copy `edge`, and starts it as command
// line, as daemon and as a daemon's parent. So every plugin begins with Run.
//
//	terraform-provider-edge ┐                       ┌─ the plugin, where its host calls
//	pulumi-resource-edge    ├─ Run ─ by name, then ─┤
//	edge (a copy of either) ┘        by arguments   └─ the command line and the daemons
//
// It decides before anything of either is set up, and knows no plugin protocol.
package program

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/edgewright/terraform-provider-edge/internal/cli"
)

// Plugin is the plugin that a program is, when it is not `edge`.
type Plugin struct {
	// Called says whether these arguments and this environment are those with which
	// the plugin's host starts it.
	Called func(args []string, getenv func(string) string) bool
	// Serve serves the host until it is done.
	Serve func(ctx context.Context) error
}

// Run runs this process as what it was started as, and returns its exit code.
func Run(version string, p Plugin) int {
	if !isEdge(os.Args) && p.Called(os.Args, os.Getenv) {
		if err := p.Serve(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return cli.Main(ctx, version, os.Args)
}

// isEdge says whether the program was called `edge`: no host calls a plugin so.
func isEdge(args []string) bool {
	return len(args) > 0 && strings.TrimSuffix(filepath.Base(args[0]), ".exe") == "edge"
}
