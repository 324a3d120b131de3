//go:build linux

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/edgewright/terraform-provider-edge/internal/edgenode"
	"github.com/edgewright/terraform-provider-edge/internal/host"
	"github.com/edgewright/terraform-provider-edge/internal/site"
)

// newLabCommand lets a user see autonomy at work: cut the link of a local node
// or site, restore it, pull a node's plug.
func (a *app) newLabCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "lab",
		Short: "Cut and restore links of local nodes, and pull their plug",
		Long: `Shows what a node does without its cluster: cuts and restores links of local
nodes, and pulls their plug. All but list need root: run as a user, they call
sudo themselves, which must not ask for a password (type "sudo -v" first).`,
	}
	cut := func(use, short string, cut bool) *cobra.Command {
		return &cobra.Command{
			Use: use, Short: short, Args: cobra.ExactArgs(2),
			RunE: func(cmd *cobra.Command, args []string) error {
				t, err := a.findTarget(args[0], args[1])
				if err != nil {
					return err
				}
				if os.Geteuid() != 0 {
					return a.againAsRoot(cmd, args)
				}
				return t.setCut(cmd.Context(), cut)
			},
		}
	}
	c.AddCommand(
		cut("cut <cluster> <node|pool>", "Cut the link of a node, or of a whole site, to the cloud side (a reboot of this machine restores it)", true),
		cut("restore <cluster> <node|pool>", "Restore a link that was cut", false),
		&cobra.Command{
			Use: "reboot <cluster> <node|pool>", Short: "Pull the plug of a node, or of every node of a site, and start it again", Args: cobra.ExactArgs(2),
			RunE: func(cmd *cobra.Command, args []string) error {
				t, err := a.findTarget(args[0], args[1])
				if err != nil {
					return err
				}
				if os.Geteuid() != 0 {
					return a.againAsRoot(cmd, args)
				}
				return a.rebootNodes(cmd.Context(), t)
			},
		},
		&cobra.Command{
			Use: "list <cluster>", Short: "List the local sites of a cluster", Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				dir, err := a.clusterDir(args[0])
				if err != nil {
					return err
				}
				sites, err := site.List(dir, uidOf(dir))
				if err != nil {
					return err
				}
				return a.print(sites, "POOL\tNODE\tADDRESS\tRUNNING\tLINK", func(add func(...any)) {
					for _, s := range sites {
						for _, n := range s.Nodes {
							add(s.Pool, n.Name, n.Address, s.Running && n.Attached, linkWord(s.Cut, n.Cut))
						}
					}
				})
			},
		},
	)
	return c
}

func linkWord(siteCut, nodeCut bool) string {
	switch {
	case siteCut:
		return "cut (site)"
	case nodeCut:
		return "cut"
	default:
		return "up"
	}
}

// labTarget is a node, or with node empty a whole site.
type labTarget struct {
	clusterDir, pool, node string
	nodes                  []string // of the site, or the one node
}

// findTarget finds a node or pool of a local cluster by its name. A name that
// is both means the node.
func (a *app) findTarget(cluster, name string) (*labTarget, error) {
	dir, err := a.clusterDir(cluster)
	if err != nil {
		return nil, err
	}
	sites, err := site.List(dir, uidOf(dir))
	if err != nil {
		return nil, err
	}
	var known []string
	var found *labTarget
	for _, s := range sites {
		var nodes []string
		for _, n := range s.Nodes {
			if n.Name == name {
				return &labTarget{clusterDir: dir, pool: s.Pool, node: n.Name, nodes: []string{n.Name}}, nil
			}
			nodes = append(nodes, n.Name)
		}
		if s.Pool == name {
			found = &labTarget{clusterDir: dir, pool: s.Pool, nodes: nodes}
		}
		known = append(append(known, s.Pool), nodes...)
	}
	if found == nil {
		return nil, fmt.Errorf("cluster %s has no local node or pool %q; it has %s", cluster, name, strings.Join(known, ", "))
	}
	return found, nil
}

// againAsRoot runs this same command through sudo, on this user's state
// directory.
func (a *app) againAsRoot(cmd *cobra.Command, args []string) error {
	ctx := cmd.Context()
	if err := host.RootAccess(ctx, os.Geteuid()); err != nil {
		return err
	}
	e, err := a.engine()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	again := exec.CommandContext(ctx, "sudo", append([]string{"-n", "--", self, "--state-dir", e.StateDir(), "--output", a.output, "lab", cmd.Name()}, args...)...)
	again.Stdin, again.Stdout, again.Stderr = a.In, a.Out, a.Err
	err = again.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exitCode(exit.ExitCode())
	}
	return err
}

func (t *labTarget) setCut(ctx context.Context, cut bool) error {
	s, err := site.New(site.Options{ClusterDir: t.clusterDir, ClusterUID: uidOf(t.clusterDir), Pool: t.pool})
	if err != nil {
		return err
	}
	return s.SetCut(ctx, t.node, cut)
}

// rebootTimeout bounds the wait for rebooted nodes to be up; one takes seconds.
const rebootTimeout = 5 * time.Minute

// rebootNodes pulls every plug first and starts the nodes again afterwards, as
// when the power of a site fails.
func (a *app) rebootNodes(ctx context.Context, t *labTarget) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, rebootTimeout, fmt.Errorf("it took longer than %s", rebootTimeout))
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, n := range t.nodes {
		if err := edgenode.PowerCut(ctx, filepath.Join(t.clusterDir, "nodes", n)); err != nil {
			return err
		}
	}
	report := edgenode.NewTextReporter(a.Out, time.Now)
	if a.output == "json" {
		report = edgenode.NewReporter(a.Out, time.Now)
	}
	var errs []error
	for _, n := range t.nodes {
		report.Say("reboot", "starting node "+n)
		errs = append(errs, edgenode.Up(ctx, edgenode.UpOptions{
			Dir: filepath.Join(t.clusterDir, "nodes", n), Edge: self, Report: report, Logger: a.daemonLogger(),
		}))
	}
	return errors.Join(errs...)
}

// uidOf a cluster dir <name>-<uid8>.
func uidOf(clusterDir string) string {
	base := filepath.Base(clusterDir)
	return base[strings.LastIndexByte(base, '-')+1:]
}
