//go:build linux

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/edgewright/terraform-provider-edge/internal/edgenode"
	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

// maxTokenInput bounds what is read as a join token, in bytes; one has about
// eighty.
const maxTokenInput = 4096

// maxProxyInput bounds what is read as proxy variables, in bytes. Linux allows a
// process no longer variable than this.
const maxProxyInput = 128 << 10

// newNodeCommand is how a host is converged to a node. The engine calls up and
// down; run is what they start and stop.
func (a *app) newNodeCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "node",
		Short: "Converge this host to a node, and look at it",
	}
	c.AddCommand(a.newNodeUpCommand(), a.newNodeDownCommand(), a.newNodeRunCommand(), a.newNodeStatusCommand(), a.newNodeHistoryCommand(), a.newNodeKubectlCommand())
	return c
}

// dirFlag adds --dir to a command and makes it absolute before it runs.
func dirFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "dir", "", "node directory, <cluster directory>/nodes/<node> (required)")
	_ = c.MarkFlagRequired("dir") // fails only for a flag that does not exist
	c.PreRunE = func(*cobra.Command, []string) (err error) {
		*dir, err = filepath.Abs(*dir)
		return err
	}
}

// interruptible ends ctx at SIGINT and SIGTERM.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
}

func (a *app) newNodeUpCommand() *cobra.Command {
	var dir string
	var tokenStdin, proxyStdin bool
	var timeout time.Duration
	var until untilEOF
	c := &cobra.Command{
		Use:   "up",
		Short: "Start the node, join it if it has not joined, and wait until it is up",
		Long: `Makes whatever of the node is missing: its site, its namespaces, its daemon. It
may be run again at any time, and goes on where an earlier run stopped. Prints
progress as lines of JSON; the last line of a run that failed has "error" and
"next".

The HTTP proxy that HTTPS_PROXY or else ALL_PROXY names is for the node's
connection over TCP, unless NO_PROXY names its gateway. The node keeps these
variables, also through a reboot, until this command runs with others; a run
without any, as sudo makes it, leaves what is kept.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it took longer than %s", timeout))
			defer cancel()
			report := edgenode.NewReporter(a.Out, time.Now)
			in := buffered(a.In)
			token, err := readToken(in, tokenStdin)
			if err != nil {
				return nodeResult(report, err)
			}
			proxy, err := readProxy(in, proxyStdin, os.Getenv)
			if err != nil {
				return nodeResult(report, err)
			}
			ctx, unwatch := until.watch(ctx, in)
			defer unwatch()
			self, err := os.Executable()
			if err != nil {
				return nodeResult(report, err)
			}
			return nodeResult(report, edgenode.Up(ctx, edgenode.UpOptions{
				Dir: dir, Token: token, Proxy: proxy, Edge: self, Report: report, Logger: a.daemonLogger(),
			}))
		},
	}
	dirFlag(c, &dir)
	until.flag(c)
	c.Flags().BoolVar(&tokenStdin, "token-stdin", false, "read a join token from standard input")
	c.Flags().BoolVar(&proxyStdin, "proxy-stdin", false, "read the proxy variables from standard input, after the token: a line with a JSON object; an empty one means none")
	c.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait; the node goes on starting afterwards")
	return c
}

// readToken reads a line with a join token: never an argument, which every user
// of the machine could read.
func readToken(in *bufio.Reader, wanted bool) (string, error) {
	if !wanted {
		return "", nil
	}
	line, err := readLine(in, maxTokenInput)
	if err != nil {
		return "", fmt.Errorf("read the join token: %w", err)
	}
	token := strings.TrimSpace(string(line))
	if token == "" {
		return "", &edgenode.NextError{Err: errors.New("standard input holds no join token"), Next: "Apply the node's configuration again (`terraform apply`): it runs this command with a token."}
	}
	return token, nil
}

// readProxy reads a line with the proxy variables, which may hold a password, or
// takes them from the environment. It returns nil for a run that has no say:
// without the line and without any of them, as sudo passes none on.
func readProxy(in *bufio.Reader, wanted bool, getenv func(string) string) (edgenode.ProxyEnv, error) {
	if !wanted {
		if env := edgenode.ProxyEnvOf(getenv); len(env) > 0 {
			return env, nil
		}
		return nil, nil
	}
	line, err := readLine(in, maxProxyInput)
	if err != nil {
		return nil, fmt.Errorf("read the proxy variables: %w", err)
	}
	return edgenode.ParseProxyEnv(line)
}

// readLine reads a line without its end, of at most limit bytes.
func readLine(in *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for len(line) < limit {
		b, err := in.ReadByte()
		if errors.Is(err, io.EOF) || err == nil && b == '\n' {
			break
		}
		if err != nil {
			return nil, err
		}
		line = append(line, b)
	}
	return line, nil
}

// nodeResult prints err as the last line and makes the exit code 1 without
// saying it twice.
func nodeResult(report *edgenode.Reporter, err error) error {
	if err == nil {
		return nil
	}
	f := edgenode.Failure{Error: err.Error()}
	if next, ok := errors.AsType[*edgenode.NextError](err); ok {
		f.Next = next.Next
	}
	report.Fail(f)
	return exitCode(1)
}

func (a *app) newNodeDownCommand() *cobra.Command {
	var dir string
	var purge bool
	var until untilEOF
	c := &cobra.Command{
		Use:   "down",
		Short: "Stop the node and remove its processes, namespaces, links, cgroups and mounts",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			ctx, unwatch := until.watch(ctx, a.In)
			defer unwatch()
			report := edgenode.NewReporter(a.Out, time.Now)
			return nodeResult(report, edgenode.Down(ctx, edgenode.DownOptions{Dir: dir, Purge: purge, Report: report, Logger: a.daemonLogger()}))
		},
	}
	dirFlag(c, &dir)
	until.flag(c)
	c.Flags().BoolVar(&purge, "purge", false, "remove the node's directory and all data too")
	return c
}

func (a *app) newNodeRunCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "run",
		Short: "The daemon itself",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return edgenode.Run(ctx, edgenode.RunOptions{Dir: dir, Version: a.version, Logger: a.daemonLogger()})
		},
	}
	dirFlag(c, &dir)
	return c
}

// nodeStatus reads a node's status and corrects it where no daemon is alive to
// stand by it.
func nodeStatus(dir string) (*edgenode.Status, error) {
	spec, err := edgenode.LoadSpec(dir)
	if err != nil {
		return nil, fmt.Errorf("node directory %s: %w", dir, err)
	}
	state, err := supervise.FindDaemon(filepath.Join(dir, "run"))
	if err != nil {
		return nil, err
	}
	st, err := edgenode.LoadStatus(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if st == nil {
		st = &edgenode.Status{Node: spec.Name, Cluster: spec.ClusterID, Pool: spec.Pool, KubernetesVersion: spec.KubernetesVersion, Phase: edgenode.PhaseStarting}
	}
	if !state.Alive() {
		st.Phase, st.Link, st.Message = edgenode.PhaseStopped, "", "no daemon runs; start it with `edge node up --dir "+dir+"`"
	}
	return st, nil
}
