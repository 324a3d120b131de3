package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/edgewright/terraform-provider-edge/internal/component"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
)

func (a *app) newStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status [cluster]",
		Short: "Show the clusters of this state directory, or the nodes of one",
		Args:  atMost(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), engine.DefaultReadTimeout)
			defer cancel()
			if len(args) == 1 {
				return a.printNodes(ctx, args[0])
			}
			return a.printClusters(ctx)
		},
	}
}

func (a *app) printClusters(ctx context.Context) error {
	e, err := a.engine()
	if err != nil {
		return err
	}
	clusters, err := e.ListClusters(ctx)
	if err != nil {
		return err
	}
	type row struct {
		Name       string `json:"name"`
		ID         string `json:"id"`
		Status     string `json:"status"`
		Kubernetes string `json:"kubernetes"`
		Endpoint   string `json:"endpoint"`
	}
	rows := []row{}
	for _, c := range clusters {
		rows = append(rows, row{c.Spec.Name, c.ID, c.Status, c.KubernetesVersion, c.Endpoint})
	}
	return a.print(rows, "NAME\tID\tSTATUS\tKUBERNETES\tENDPOINT", func(add func(...any)) {
		for _, r := range rows {
			add(r.Name, r.ID, r.Status, r.Kubernetes, r.Endpoint)
		}
	})
}

func (a *app) printNodes(ctx context.Context, cluster string) error {
	e, id, err := a.cluster(cluster)
	if err != nil {
		return err
	}
	nodes, err := e.ListNodes(ctx, id)
	if err != nil {
		return err
	}
	now := time.Now()
	return a.print(nodes, "NODE\tPOOL\tPHASE\tCONNECTED\tCUT\tAUTONOMY\tARCH\tKUBELET", func(add func(...any)) {
		for _, n := range nodes {
			cut := "-"
			if n.CutSince != nil {
				cut = duration.HumanDuration(now.Sub(*n.CutSince))
			}
			add(n.Name, n.Pool, n.Phase, n.Connected, cut, n.Autonomy, n.Architecture, n.Kubelet)
		}
	})
}

func (a *app) newKubeconfigCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kubeconfig <cluster>",
		Short: "Print a kubeconfig that holds no secret: it asks `edge credentials` when it is used",
		Args:  clusterArgs(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, id, err := a.cluster(args[0])
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
		Use:   "credentials <cluster>",
		Short: "Print short-lived credentials as kubectl's exec plugins do (ExecCredential, v1)",
		Args:  clusterArgs(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, id, err := a.cluster(args[0])
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
		Use:   "kubectl -c <cluster> [arguments of kubectl]",
		Short: "Run the cluster's own kubectl against it",
		Long: "Runs the kubectl of a cluster's version against it. -c <cluster> (or --cluster, and\n" +
			"--state-dir) comes first; what follows is kubectl's own, its flags too.",
		Example: "  edge kubectl -c quickstart get nodes\n  edge kubectl -c quickstart --help",
		// kubectl's flags are not known here.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			cluster, rest := a.kubectlFlags(args)
			if cluster == "" {
				if len(rest) == 0 || slices.Contains([]string{"-h", "--help", "help"}, rest[0]) {
					return cmd.Help()
				}
				return errors.New("say which cluster first: edge kubectl -c <cluster> get nodes; `edge status` lists them")
			}
			e, id, err := a.cluster(cluster)
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
			k.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
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

// kubectlFlags takes -c or --cluster out of kubectl's arguments, and what this
// program knows beside: they must come first, so that kubectl's own -c (a
// container) is never taken for a cluster.
func (a *app) kubectlFlags(args []string) (cluster string, rest []string) {
	for len(args) > 0 {
		name, value, joined := strings.Cut(args[0], "=")
		var target *string
		switch name {
		case "-c", "--cluster":
			target = &cluster
		case "--state-dir":
			target = &a.stateDir
		}
		if target == nil || target == &cluster && cluster != "" {
			break
		}
		if !joined {
			if len(args) == 1 {
				break // its value is missing
			}
			value, args = args[1], args[1:]
		}
		*target, args = value, args[1:]
	}
	return cluster, args
}

func (a *app) newDestroyCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "destroy <cluster>",
		Short: "Destroy a cluster of this machine, also one whose state was lost",
		Args:  clusterArgs(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, id, err := a.cluster(args[0])
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

// cluster opens the engine and finds the cluster that a person named.
func (a *app) cluster(nameOrID string) (*engine.Engine, string, error) {
	e, err := a.engine()
	if err != nil {
		return nil, "", err
	}
	id, err := e.Resolve(nameOrID)
	if err != nil {
		return nil, "", err
	}
	return e, id, nil
}

func (a *app) clusterDir(nameOrID string) (string, error) {
	e, id, err := a.cluster(nameOrID)
	if err != nil {
		return "", err
	}
	return e.ClusterDir(id)
}
