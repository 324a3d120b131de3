// Package cli is the `edge` command line: what operators type, and the entry
// points of the daemons. Commands parse flags, call the engine and print; they
// decide nothing. Tables by default, -o json everywhere.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/edgewright/terraform-provider-edge/internal/component"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
)

// Main runs the command line and returns its exit code.
func Main(ctx context.Context, version string, args []string) int {
	root := newRoot(version, streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	root.SetArgs(args[1:])
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit exitCode
	if errors.As(err, &exit) {
		return int(exit)
	}
	fmt.Fprintln(os.Stderr, "edge:", err)
	return 1
}

// exitCode ends the program with the code of a child that has already said what
// was wrong.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// streams are where commands read and write.
type streams struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
}

// app is what every command shares.
type app struct {
	streams
	version  string
	stateDir string
	output   string
}

func newRoot(version string, s streams) *cobra.Command {
	a := &app{streams: s, version: version}
	root := &cobra.Command{
		Use:           "edge",
		Short:         "Edge clusters as code: look at, enter and repair what terraform apply made",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if a.output != "table" && a.output != "json" {
			return fmt.Errorf("output format %q: write -o table or -o json", a.output)
		}
		return nil
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w; `%s --help` lists the flags", err, c.CommandPath())
	})
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	root.PersistentFlags().StringVar(&a.stateDir, "state-dir", "", "state directory (default $EDGE_STATE_DIR, or ~/.edge)")
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "table", "output format: table or json")
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("operate", a.newStatusCommand(), a.newProgressCommand(), a.newKubeconfigCommand(), a.newCredentialsCommand(),
		a.newKubectlCommand(), a.newLogsCommand(), a.newDestroyCommand())
	a.addSupply(add)
	a.addDaemons(add)
	root.AddCommand(a.newVersionCommand())
	for _, g := range []*cobra.Group{
		{ID: "operate", Title: "Clusters:"},
		{ID: "nodes", Title: "Nodes:"},
		{ID: "supply", Title: "Programs and images:"},
		{ID: "daemons", Title: "Daemons (started by the engine):"},
	} {
		// Elsewhere than on Linux there are no nodes and daemons: no empty titles.
		if slices.ContainsFunc(root.Commands(), func(c *cobra.Command) bool { return c.GroupID == g.ID }) {
			root.AddGroup(g)
		}
	}
	return root
}

func (a *app) engine() (*engine.Engine, error) {
	return engine.New(engine.Options{
		StateDir:   a.stateDir,
		Version:    a.version,
		Components: component.DefaultOptions(os.Getenv),
		Logger:     slog.New(slog.NewTextHandler(a.Err, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Progress: func(p engine.Progress) {
			fmt.Fprintf(a.Err, "%8.1fs  %s  %s\n", p.Elapsed.Seconds(), p.Phase, p.Message)
		},
	})
}

func (a *app) newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program and the Kubernetes versions it knows",
		Args:  atMost(0),
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version    string   `json:"version"`
				Go         string   `json:"go"`
				Platform   string   `json:"platform"`
				Kubernetes []string `json:"kubernetes"`
			}{a.version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, component.Versions()}
			return a.print(v, "VERSION\tGO\tPLATFORM\tKUBERNETES", func(add func(...any)) {
				add(v.Version, v.Go, v.Platform, strings.Join(v.Kubernetes, ", "))
			})
		},
	}
}

// print writes v as JSON, or as the table that rows make.
func (a *app) print(v any, header string, rows func(add func(cells ...any))) error {
	if a.output == "json" {
		return writeJSON(a.Out, v)
	}
	w := tabwriter.NewWriter(a.Out, 0, 4, 3, ' ', 0)
	fmt.Fprintln(w, header)
	rows(func(cells ...any) {
		for i, c := range cells {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, c)
		}
		fmt.Fprintln(w)
	})
	return w.Flush()
}
