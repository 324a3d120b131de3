package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/edgewright/terraform-provider-edge/internal/component"
	"github.com/edgewright/terraform-provider-edge/internal/edgenode"
	"github.com/edgewright/terraform-provider-edge/internal/host"
	"github.com/edgewright/terraform-provider-edge/internal/supervise"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// nodeDir is the node directory that is meant: the one given, or the only one of
// the state directory.
func (a *app) nodeDir(dir string) (string, error) {
	if dir != "" {
		return filepath.Abs(dir)
	}
	e, err := a.engine()
	if err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(e.StateDir(), "clusters", "*", "nodes", "*", "node.json"))
	if err != nil {
		return "", err
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("no node in %s; name its directory with --dir", e.StateDir())
	case 1:
		return filepath.Dir(found[0]), nil
	}
	var dirs []string
	for _, f := range found {
		dirs = append(dirs, filepath.Dir(f))
	}
	return "", fmt.Errorf("say which node with --dir, one of:\n  %s", strings.Join(dirs, "\n  "))
}

// nodeTold is what `edge node status` prints: what the daemon wrote last, and what
// it answers now.
type nodeTold struct {
	*edgenode.Status
	Live *edgenode.Live `json:"live,omitempty"`
}

func (a *app) newNodeStatusCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "status",
		Short: "Show how a node on this machine does, with or without a link to its cluster",
		Long: `Shows what a node says of itself: its link and why that is cut, what would keep
it from going on through a cut, its programs, when its certificates end, and what
it holds of the cluster's API: whether each part is whole, when the cluster last
said something of it, and what bytes it cost. Nothing of it is asked of the cluster.`,
		Args: atMost(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := a.nodeDir(dir)
			if err != nil {
				return err
			}
			st, err := nodeStatus(dir)
			if err != nil {
				return err
			}
			told := nodeTold{Status: st}
			if st.Phase != edgenode.PhaseStopped {
				// Before it has joined, the daemon answers nobody.
				if told.Live, err = edgenode.LoadLive(cmd.Context(), dir); err != nil && st.Phase == edgenode.PhaseRunning {
					fmt.Fprintf(a.Err, "edge: only what the daemon wrote last is shown: %v\n", err)
				}
			}
			return a.printNode(told, time.Now())
		},
	}
	a.nodeDirFlag(c, &dir)
	return c
}

// nodeDirFlag adds --dir, for nodeDir, to a command.
func (a *app) nodeDirFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "dir", "", "node directory, <cluster directory>/nodes/<node> (default: the only one of the state directory)")
}

func (a *app) newNodeHistoryCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "history",
		Short: "Show what has happened to a node's tunnel of late",
		Long: `Shows the last thousand events of a node's end of the tunnel since its daemon
began, the oldest first: sessions that began, ended or could not be made, and why;
changes of the network; and of sessions over QUIC what became of their packets, with
round trip, window and packets lost at that moment, once a minute if nothing happens.
Events that repeat are one line, with their number. Nothing of it is asked of the
cluster. Packet by packet a gateway records a session, see ` + "`edge gateway qlog`" + `.`,
		Args: atMost(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := a.nodeDir(dir)
			if err != nil {
				return err
			}
			happened, err := edgenode.LoadHistory(cmd.Context(), dir)
			if err != nil {
				return err
			}
			return a.printHistory(happened)
		},
	}
	a.nodeDirFlag(c, &dir)
	return c
}

// printHistory prints what has happened to a tunnel.
func (a *app) printHistory(happened []tunnel.Happened) error {
	return a.print(happened, "TIME\tSESSION\tEVENT\tTIMES\tRTT\tWINDOW\tLOST\tDETAIL", func(add func(...any)) {
		for _, h := range happened {
			session, rtt, window, lost := "-", "-", "-", "-"
			if h.Session > 0 {
				session = strconv.FormatUint(h.Session, 10)
			}
			if p := h.Path; p != nil {
				rtt, window, lost = p.RTT.Round(100*time.Microsecond).String(), strconv.FormatInt(p.Window, 10), fmt.Sprintf("%d of %d", p.Lost, p.Sent)
			}
			detail := h.Detail
			if h.Count > 1 {
				detail = strings.TrimPrefix(detail+", until "+h.Last.Local().Format(time.TimeOnly), ", ")
			}
			add(h.At.Local().Format("2006-01-02 15:04:05.000"), session, h.Event, h.Count, rtt, window, lost, strings.ReplaceAll(detail, "\n", "; "))
		}
	})
}

// printNode prints what a node says of itself.
func (a *app) printNode(n nodeTold, now time.Time) error {
	err := a.print(n, "NODE\tPOOL\tPHASE\tLINK\tADDRESS\tPODS\tVERSION\tMESSAGE", func(add func(...any)) {
		add(n.Node, n.Pool, n.Phase, n.Link, n.Address, strings.Join(n.PodCIDRs, ","), n.KubernetesVersion, n.Message)
	})
	if err != nil || a.output == "json" {
		return err
	}
	age := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return duration.HumanDuration(now.Sub(t)) + " ago"
	}
	faults := n.Faults
	if n.Live != nil {
		faults = n.Live.Faults
	}
	w := tabwriter.NewWriter(a.Out, 0, 4, 3, ' ', 0)
	fmt.Fprintln(w)
	switch {
	case n.Live != nil && !n.Live.Link.Online:
		fmt.Fprintf(w, "Link:\tcut %s: %s\n", age(n.Live.Link.Since), n.Live.Link.Reason)
	case n.Live != nil:
		fmt.Fprintf(w, "Link:\tthe cluster answers, since %s\n", n.Live.Link.Since.Local().Format(time.DateTime))
	case n.CutReason != "":
		fmt.Fprintf(w, "Link:\tcut: %s\n", n.CutReason)
	}
	if n.Live != nil && n.Live.Tunnel != nil {
		fmt.Fprintf(w, "Tunnel:\t%s\n", tunnelLine(n.Live.Tunnel))
	}
	if len(faults) == 0 && n.Live != nil {
		fmt.Fprintf(w, "Autonomy:\tnothing would keep the node from going on through a cut\n")
	}
	for _, f := range faults {
		fmt.Fprintf(w, "Autonomy:\t%s: %s\n", f.Reason, f.Message)
	}
	for _, name := range sortedKeys(n.Processes) {
		fmt.Fprintf(w, "Program:\t%s %s\n", name, n.Processes[name])
	}
	if n.Live != nil {
		for _, c := range n.Live.Certificates {
			ends := "ends in " + duration.HumanDuration(c.Ends.Sub(now))
			if now.After(c.Ends) {
				ends = "ended " + age(c.Ends)
			}
			fmt.Fprintf(w, "Certificate:\t%s (%s) %s\n", c.Name, c.File, ends)
		}
		fmt.Fprintf(w, "Bytes:\t%d from and %d to the cluster's API since the daemon started %s\n",
			n.Live.Traffic.Received, n.Live.Traffic.Sent, age(n.Started))
	}
	if err := w.Flush(); err != nil || n.Live == nil || len(n.Live.Collections) == 0 {
		return err
	}
	fmt.Fprintln(a.Out)
	return a.print(nil, "HELD OF THE API\tWHOLE\tOBJECTS\tHEARD\tBYTES", func(add func(...any)) {
		for _, c := range n.Live.Collections {
			add(c.Name, c.Complete, c.Objects, age(c.Heard), c.Bytes)
		}
	})
}

// tunnelLine says what carries the node's session, and where it is not what the
// node's pool says, why.
func tunnelLine(t *edgenode.LiveTunnel) string {
	line := "no session"
	if t.Transport != "" {
		line = "a session over " + t.Transport
	}
	line += "; the pool's transport is " + t.Wanted
	if t.Fallback {
		line += ", and UDP does not get through"
	}
	if t.Trouble != "" {
		line += ": " + strings.ReplaceAll(t.Trouble, "\n", "; ")
	}
	return line
}

func (a *app) newNodeKubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl [--dir <node directory>] [arguments of kubectl]",
		Short: "Run kubectl against a node's own copy of the API, with or without a link",
		Long: `Runs kubectl against what a node on this machine holds of its cluster's API, with
or without a link. It reads the node, its pods, services and the like (no Secrets),
and enters the node's own pods: logs, exec, attach, cp, port-forward. It changes
nothing. Without a --dir, the only node of the state directory is meant.

It needs root to get into the node's network: run as a user, it calls sudo itself,
which must not ask for a password (type "sudo -v" first). kubectl then runs as the
owner of the node's files.`,
		Example: "  edge node kubectl get pods -A\n  edge node kubectl logs web-0\n  edge node kubectl exec -it web-0 -- sh",
		// kubectl's flags are not known here.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			var dir, program string
			args, err := leadingFlags(args, map[string]*string{"--dir": &dir, "--kubectl": &program, "--state-dir": &a.stateDir})
			if err != nil {
				return err
			}
			if len(args) == 0 || slices.Contains([]string{"-h", "--help", "help"}, args[0]) {
				return cmd.Help()
			}
			if dir, err = a.nodeDir(dir); err != nil {
				return err
			}
			spec, err := edgenode.LoadSpec(dir)
			if err != nil {
				return fmt.Errorf("node directory %s: %w", dir, err)
			}
			if program == "" {
				if program, err = clientProgram(spec, component.DefaultOptions(os.Getenv)); err != nil {
					return err
				}
			}
			if os.Geteuid() != 0 {
				err = a.kubectlAsRoot(cmd.Context(), dir, program, args)
			} else {
				err = edgenode.Kubectl(cmd.Context(), edgenode.KubectlOptions{
					Dir: dir, Program: program, Args: args,
					Env: supervise.MinimalEnv(os.LookupEnv, "TERM", "LANG", "LC_ALL", "TZ"),
					In:  a.In, Out: a.Out, ErrOut: a.Err,
				})
			}
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				return exitCode(exit.ExitCode())
			}
			return err
		},
	}
}

// clientProgram is a node's kubectl: the one it was set up with or, where it is of
// before that, what the cache of whoever asks has. Nothing is fetched: the node may
// be cut off from more than its cluster.
func clientProgram(spec *edgenode.Spec, cache component.Options) (string, error) {
	if path := spec.Programs[edgenode.ProgramKubectl]; path != "" {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	store, err := component.Open(cache)
	if err != nil {
		return "", err
	}
	paths, err := store.Find(spec.KubernetesVersion, component.Client)
	if err != nil {
		return "", fmt.Errorf("kubectl of node %s: %w", spec.Name, err)
	}
	return paths["kubectl"], nil
}

// kubectlAsRoot runs the same command through sudo, with what this user's
// environment has led to.
func (a *app) kubectlAsRoot(ctx context.Context, dir, program string, args []string) error {
	if err := host.RootAccess(ctx, os.Geteuid()); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	again := exec.CommandContext(ctx, "sudo", append([]string{"-n", "--", self, "node", "kubectl", "--dir", dir, "--kubectl", program}, args...)...)
	again.Stdin, again.Stdout, again.Stderr = a.In, a.Out, a.Err
	return again.Run()
}

// leadingFlags takes known flags off the front of another program's arguments, and the
// "--" that may end them.
func leadingFlags(args []string, known map[string]*string) ([]string, error) {
	for len(args) > 0 {
		if args[0] == "--" {
			return args[1:], nil
		}
		name, value, joined := strings.Cut(args[0], "=")
		target := known[name]
		if target == nil {
			break
		}
		if !joined {
			if len(args) == 1 {
				return nil, fmt.Errorf("%s needs a value", name)
			}
			value, args = args[1], args[1:]
		}
		*target, args = value, args[1:]
	}
	return args, nil
}
