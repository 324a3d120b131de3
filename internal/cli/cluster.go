package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/edgewright/terraform-provider-edge/internal/component"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
)

func (a *app) newStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status [cluster]",
		Short: "Show the clusters of this state directory, or the nodes of one",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), engine.DefaultReadTimeout)
			defer cancel()
			if len(args) == 1 {
				return a.printNodes(ctx, e, args[0])
			}
			clusters, err := e.ListClusters(ctx)
			if err != nil {
				return err
			}
			type row struct{ Name, ID, Status, Kubernetes, Endpoint string }
			rows := []row{}
			for _, c := range clusters {
				rows = append(rows, row{c.Spec.Name, c.ID, c.Status, c.KubernetesVersion, c.Endpoint})
			}
			return a.print(rows, "NAME\tID\tSTATUS\tKUBERNETES\tENDPOINT", func(add func(...any)) {
				for _, r := range rows {
					add(r.Name, r.ID, r.Status, r.Kubernetes, r.Endpoint)
				}
			})
		},
	}
}

func (a *app) printNodes(ctx context.Context, e *engine.Engine, cluster string) error {
	id, err := e.Resolve(cluster)
	if err != nil {
		return err
	}
	nodes, err := e.ListNodes(ctx, id)
	if err != nil {
		return err
	}
	return a.print(nodes, "NODE\tPOOL\tPHASE\tCONNECTED\tARCH\tKUBELET", func(add func(...any)) {
		for _, n := range nodes {
			add(n.Name, n.Pool, n.Phase, n.Connected, n.Architecture, n.Kubelet)
		}
	})
}

func (a *app) newProgressCommand() *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use:   "progress <cluster>",
		Short: "Show the steps of the last create, change or destroy, with their times",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := a.clusterDir(args[0])
			if err != nil {
				return err
			}
			return a.tailFile(cmd.Context(), filepath.Join(dir, "progress.ndjson"), follow, 0, func(line string) string {
				var p engine.Progress
				if a.output == "json" || json.Unmarshal([]byte(line), &p) != nil {
					return line
				}
				return fmt.Sprintf("%s  %8.1fs  %-14s  %s", p.Time.Local().Format(time.DateTime), p.Elapsed.Seconds(), p.Phase, p.Message)
			})
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on as new steps come")
	return c
}

func (a *app) newKubeconfigCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kubeconfig <cluster>",
		Short: "Print a kubeconfig that holds no secret: it asks `edge credentials` when it is used",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine()
			if err != nil {
				return err
			}
			id, err := e.Resolve(args[0])
			if err != nil {
				return err
			}
			text, err := e.Kubeconfig(cmd.Context(), id)
			if err != nil {
				return err
			}
			_, err = io.WriteString(a.Out, text)
			return err
		},
	}
}

func (a *app) newCredentialsCommand() *cobra.Command {
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "credentials <id>",
		Short: "Print short-lived credentials as kubectl's exec plugins do (ExecCredential, v1)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine()
			if err != nil {
				return err
			}
			id, err := e.Resolve(args[0])
			if err != nil {
				return err
			}
			creds, err := e.ClusterCredentials(cmd.Context(), id, ttl)
			if err != nil {
				return err
			}
			return json.NewEncoder(a.Out).Encode(map[string]any{
				"apiVersion": "client.authentication.k8s.io/v1",
				"kind":       "ExecCredential",
				"status": map[string]any{
					"clientCertificateData": creds.ClientCertificate,
					"clientKeyData":         creds.ClientKey,
					"expirationTimestamp":   creds.ExpiresAt.UTC().Format(time.RFC3339),
				},
			})
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", engine.DefaultCredentialTTL, "how long the certificate lives")
	return c
}

func (a *app) newKubectlCommand() *cobra.Command {
	c := &cobra.Command{
		Use:                "kubectl -c <cluster> [arguments of kubectl]",
		Short:              "Run the cluster's own kubectl against it",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			cluster, rest, err := clusterFlag(args)
			if err != nil {
				return err
			}
			e, err := a.engine()
			if err != nil {
				return err
			}
			id, err := e.Resolve(cluster)
			if err != nil {
				return err
			}
			kubeconfig, err := e.WriteKubeconfig(cmd.Context(), id)
			if err != nil {
				return err
			}
			program, err := e.Program(cmd.Context(), id, component.Client, "kubectl")
			if err != nil {
				return err
			}
			k := exec.CommandContext(cmd.Context(), program, rest...)
			k.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "EDGE_STATE_DIR="+e.StateDir())
			k.Stdin, k.Stdout, k.Stderr = a.In, a.Out, a.Err
			k.Cancel = func() error { return k.Process.Signal(os.Interrupt) }
			err = k.Run()
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return exitCode(exit.ExitCode())
			}
			return err
		},
	}
	return c
}

// clusterFlag takes -c or --cluster out of kubectl's arguments: it must come
// first, so that kubectl's own -c (a container) is never taken for it.
func clusterFlag(args []string) (cluster string, rest []string, err error) {
	if len(args) > 0 {
		for _, prefix := range []string{"--cluster=", "-c="} {
			if v, ok := strings.CutPrefix(args[0], prefix); ok {
				return v, args[1:], nil
			}
		}
		if len(args) > 1 && (args[0] == "-c" || args[0] == "--cluster") {
			return args[1], args[2:], nil
		}
	}
	return "", nil, errors.New("say which cluster first: edge kubectl -c <cluster> get nodes; `edge status` lists them")
}

func (a *app) newLogsCommand() *cobra.Command {
	var follow bool
	var node string
	var lines int
	c := &cobra.Command{
		Use:   "logs <cluster> [process]",
		Short: "Show what a cluster's or local node's own processes printed",
		Long:  "Show what a process of a cluster printed, or, without one, list the processes.\nWith --node, those of a local node of the cluster.",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := a.clusterDir(args[0])
			if err != nil {
				return err
			}
			if node != "" {
				dir = filepath.Join(dir, "nodes", filepath.Base(node))
			}
			dir = filepath.Join(dir, "logs")
			if len(args) == 1 {
				return a.listLogs(dir)
			}
			path := filepath.Join(dir, filepath.Base(args[1])+".log")
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("no process %q has logged here; `edge logs %s` lists them", args[1], args[0])
			}
			return a.tailFile(cmd.Context(), path, follow, lines, func(s string) string { return s })
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on as new lines come")
	c.Flags().StringVar(&node, "node", "", "a local node of the cluster")
	c.Flags().IntVarP(&lines, "lines", "n", 100, "how many of the last lines to show; 0: all")
	return c
}

func (a *app) listLogs(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list logs: %w", err)
	}
	type row struct {
		Process string
		Bytes   int64
		Changed time.Time
	}
	rows := []row{}
	for _, entry := range entries {
		name, ok := strings.CutSuffix(entry.Name(), ".log")
		info, err := entry.Info()
		if !ok || err != nil {
			continue
		}
		rows = append(rows, row{name, info.Size(), info.ModTime()})
	}
	return a.print(rows, "PROCESS\tBYTES\tLAST WRITTEN", func(add func(...any)) {
		for _, r := range rows {
			add(r.Process, r.Bytes, r.Changed.Format(time.DateTime))
		}
	})
}

// tailFile prints the last lines of a file (0: all) and, with follow, what is
// appended until ctx ends.
func (a *app) tailFile(ctx context.Context, path string, follow bool, last int, format func(string) string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer f.Close()
	r := bufio.NewReader(f)
	var ring []string
	for {
		line, err := r.ReadString('\n')
		if line != "" {
			ring = append(ring, strings.TrimSuffix(line, "\n"))
			if last > 0 && len(ring) > last {
				ring = ring[1:]
			}
		}
		if err != nil {
			break
		}
	}
	for _, line := range ring {
		fmt.Fprintln(a.Out, format(line))
	}
	// A log file is followed by looking at it: it is truncated in place when it
	// is rotated, which no notification tells apart from writing.
	const look = 250 * time.Millisecond
	for ticker := time.NewTicker(look); follow; {
		select {
		case <-ctx.Done():
			ticker.Stop()
			return nil
		case <-ticker.C:
		}
		if info, err := f.Stat(); err == nil {
			if at, err := f.Seek(0, io.SeekCurrent); err == nil && info.Size() < at-int64(r.Buffered()) {
				if _, err := f.Seek(0, io.SeekStart); err != nil {
					return err
				}
				r.Reset(f)
			}
		}
		for {
			line, err := r.ReadString('\n')
			if line != "" {
				fmt.Fprintln(a.Out, format(strings.TrimSuffix(line, "\n")))
			}
			if err != nil {
				break
			}
		}
	}
	return nil
}

func (a *app) newDestroyCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "destroy <cluster>",
		Short: "Destroy a cluster of this machine, also one whose state was lost",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine()
			if err != nil {
				return err
			}
			id, err := e.Resolve(args[0])
			if err != nil {
				return err
			}
			if !yes {
				fmt.Fprintf(a.Err, "This removes cluster %s with its data and local nodes. Type its id to go on: ", id)
				answer, err := bufio.NewReader(a.In).ReadString('\n')
				if err != nil && answer == "" {
					return fmt.Errorf("nothing was destroyed: no answer (%w); pass --yes to go on without one", err)
				}
				if strings.TrimSpace(answer) != id {
					return errors.New("nothing was destroyed: that is not its id")
				}
			}
			return e.DeleteCluster(cmd.Context(), id)
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

func (a *app) clusterDir(nameOrID string) (string, error) {
	e, err := a.engine()
	if err != nil {
		return "", err
	}
	id, err := e.Resolve(nameOrID)
	if err != nil {
		return "", err
	}
	return e.ClusterDir(id)
}
