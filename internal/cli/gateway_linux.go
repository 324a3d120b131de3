package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/edgewright/terraform-provider-edge/internal/controlplane"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/gateway/process"
)

// newGatewayCommand is what there is for gateways beside the control plane's own.
func (a *app) newGatewayCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "gateway",
		Short: "Run more gateways beside the control plane's own, and look at one",
	}
	c.AddCommand(a.newGatewayIssueCommand(), a.newGatewayRemoveCommand(), a.newGatewayRunCommand(), a.newGatewayShowCommand(), a.newGatewayQlogCommand())
	return c
}

func (a *app) newGatewayIssueCommand() *cobra.Command {
	var o controlplane.GatewayOptions
	c := &cobra.Command{
		Use:   "issue --cluster-dir DIR --id ID --address HOST:PORT --out DIR",
		Short: "Make or renew the directory of a gateway, and tell the cluster of it",
		Long: `Makes a directory with everything that one more gateway needs, keys included
(0600), and adds it to the list of gateways that the cluster's authority signs.
Every gateway and node learns of it. Run it again before the certificates end
(a year): it renews what is due. The gateway runs on the control plane's host.

The first time, --main-address says where nodes reach the control plane's own
gateway: once there is a list, nodes believe no gateway outside of it.`,
		Args: atMost(0),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Dir, err = filepath.Abs(o.Dir); err != nil {
				return err
			}
			if o.Listen == "" {
				_, port, err := net.SplitHostPort(o.Addresses[0])
				if err != nil {
					return fmt.Errorf("--address: %w", err)
				}
				o.Listen = ":" + port
			}
			if err := controlplane.IssueGateway(cmd.Context(), o); err != nil {
				return err
			}
			fmt.Fprintf(a.Err, "Run it with `edge gateway run --dir %s`.\n", o.Out)
			return nil
		},
	}
	flags := c.Flags()
	flags.StringVar(&o.Dir, "cluster-dir", "", "the cluster's directory below the state directory (required)")
	flags.StringVar(&o.ID, "id", "", "name of the gateway, a DNS label that stays (required)")
	flags.StringArrayVar(&o.Addresses, "address", nil, "`host:port` at which nodes and other gateways reach it (required, may be repeated)")
	flags.StringArrayVar(&o.MainAddresses, "main-address", nil, "`host:port` of the control plane's own gateway (may be repeated)")
	flags.StringVar(&o.Listen, "listen", "", "UDP address to listen on (default the port of --address, on every address)")
	flags.StringVar(&o.Out, "out", "", "directory to make (required)")
	for _, name := range []string{"cluster-dir", "id", "address", "out"} {
		_ = c.MarkFlagRequired(name) // fails only for a flag that does not exist
	}
	return c
}

func (a *app) newGatewayRemoveCommand() *cobra.Command {
	var dir, id string
	c := &cobra.Command{
		Use:   "remove --cluster-dir DIR --id ID",
		Short: "Take a gateway out of the cluster's list: nobody believes it any more",
		Args:  atMost(0),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if dir, err = filepath.Abs(dir); err != nil {
				return err
			}
			return controlplane.RemoveGateway(cmd.Context(), dir, id)
		},
	}
	c.Flags().StringVar(&dir, "cluster-dir", "", "the cluster's directory below the state directory (required)")
	c.Flags().StringVar(&id, "id", "", "name of the gateway (required)")
	for _, name := range []string{"cluster-dir", "id"} {
		_ = c.MarkFlagRequired(name) // fails only for a flag that does not exist
	}
	return c
}

func (a *app) newGatewayRunCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "run --dir DIR",
		Short: "Run a gateway until SIGTERM, which makes it drain",
		Long: `Runs the gateway of a directory that ` + "`edge gateway issue`" + ` made. On SIGTERM it
sends its nodes to the other gateways, serves them until they have moved, and
ends when what it carries has ended, after 15 minutes at most.

To replace it without losing a dial: start the new one, wait until its log says
that it serves the apiserver, then end the old one. The new one takes the egress
socket at once and the UDP port when the old one has left it.`,
		Args: atMost(0),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if dir, err = filepath.Abs(dir); err != nil {
				return err
			}
			return process.Run(cmd.Context(), dir, a.daemonLogger())
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "directory of the gateway (required)")
	_ = c.MarkFlagRequired("dir") // fails only for a flag that does not exist
	return c
}

// showTimeout bounds the look at a gateway on this machine.
const showTimeout = 30 * time.Second

func (a *app) newGatewayShowCommand() *cobra.Command {
	paths := map[string]string{"metrics": "/metrics", "nodes": "/metrics/nodes", "sessions": "/sessions", "peers": "/peers"}
	c := &cobra.Command{
		Use:       "show SOCKET metrics|nodes|sessions|peers",
		Short:     "Print what a gateway on this machine says of itself",
		Long:      "Reads the gateway's admin socket: run/gateway-admin.sock of a cluster's directory,\nor admin.sock of a gateway's own. Metrics are in Prometheus' text format.",
		Args:      cobra.ExactArgs(2),
		ValidArgs: []string{"metrics", "nodes", "sessions", "peers"},
		RunE: func(cmd *cobra.Command, args []string) error {
			path, ok := paths[args[1]]
			if !ok {
				return fmt.Errorf("%q is nothing a gateway shows: write metrics, nodes, sessions or peers", args[1])
			}
			return a.readSocket(cmd.Context(), args[0], path)
		},
	}
	return c
}

// readSocket prints what an HTTP server on a unix socket answers.
func (a *app) readSocket(ctx context.Context, socket, path string) error {
	ctx, cancel := context.WithTimeout(ctx, showTimeout)
	defer cancel()
	body, err := askSocket(ctx, socket, path)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(a.Out, body)
	return err
}

// askSocket asks an HTTP server on a unix socket; the caller closes the answer.
func askSocket(ctx context.Context, socket, path string) (io.ReadCloser, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://gateway"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the gateway at %s: %w", socket, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		// Its own words, where it has any.
		text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		if err != nil || len(text) == 0 {
			return nil, fmt.Errorf("the gateway at %s answers %s", socket, resp.Status)
		}
		return nil, fmt.Errorf("the gateway at %s answers %s: %s", socket, resp.Status, strings.TrimSpace(string(text)))
	}
	return resp.Body, nil
}

func (a *app) newGatewayQlogCommand() *cobra.Command {
	var d time.Duration
	var out string
	c := &cobra.Command{
		Use:   "qlog SOCKET NODE",
		Short: "Record what a node's connection does, packet by packet, into a file",
		Long: `Asks the gateway that holds the node's session, by its admin socket (see
` + "`edge gateway show`" + `), to record the session: packets sent, received and lost, round
trip, congestion window, migrations. What is carried is not in the file, which
only you may read (0600); addresses of node and gateway are. It is qlog
(application/qlog+json-seq), which qvis draws.

A recording ends with --for, with the session, at 64 MiB or when you interrupt it;
what there is by then is kept. It needs a session over QUIC: what each node has is
in what ` + "`edge gateway show SOCKET sessions`" + ` prints. Nothing is recorded unless
asked for.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if d <= 0 || d > gateway.MaxQlogTime {
				return fmt.Errorf("--for %s: record for more than 0s and at most %s", d, gateway.MaxQlogTime)
			}
			if out == "" {
				out = fmt.Sprintf("%s-%s.sqlog", args[1], time.Now().UTC().Format("20060102T150405Z"))
			}
			return a.recordQlog(cmd.Context(), args[0], args[1], d, out)
		},
	}
	c.Flags().DurationVar(&d, "for", 30*time.Second, "how long to record")
	c.Flags().StringVarP(&out, "out", "o", "", "file to make (default NODE-TIME.sqlog here)")
	return c
}

// recordQlog writes a recording to a new file.
func (a *app) recordQlog(ctx context.Context, socket, node string, d time.Duration, out string) error {
	body, err := askSocket(ctx, socket, "/qlog?"+url.Values{"node": {node}, "for": {d.String()}}.Encode())
	if err != nil {
		return err
	}
	defer body.Close()
	f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make the file of the recording: %w", err)
	}
	fmt.Fprintf(a.Err, "Recording the session of node %s for %s into %s.\n", node, d, out)
	n, err := io.Copy(f, body)
	if ctx.Err() != nil {
		err = nil // asked to end; what there is is a recording
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("recording into %s ended after %d bytes: %w", out, n, err)
	}
	if n >= gateway.MaxQlogBytes {
		fmt.Fprintf(a.Err, "That is all that one recording may have.\n")
	}
	fmt.Fprintf(a.Err, "%d bytes recorded.\n", n)
	return nil
}
