package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/edgewright/terraform-provider-edge/internal/component"
)

// componentDeps is what the component commands need from the command line.
type componentDeps struct {
	Out io.Writer // results
	Err io.Writer // progress
	// Terminal says that Err shows bars; otherwise progress is plain lines.
	Terminal bool
	// Output returns "table" or "json".
	Output  func() string
	Options component.Options
	Now     func() time.Time
}

func newComponentCommand(deps componentDeps) *cobra.Command {
	c := &cobra.Command{
		Use:   "component",
		Short: "The upstream programs clusters are made of: fetch them, list what is in the cache",
		Long: "The upstream programs clusters are made of, at fixed versions and verified.\n\n" +
			"Sources, in this order: the cache (EDGE_COMPONENT_CACHE, now " + deps.Options.Cache + "), a mirror\n" +
			"(EDGE_COMPONENT_MIRROR: a directory or URL), and the Go modules, built here, which takes minutes and\n" +
			"about 10 GB of disk once. EDGE_COMPONENT_SOURCE=auto|cache|mirror|module restricts it.\n" +
			"To make a mirror, copy index.json and v1/ of a cache; pin it with \"#sha256=<digest of index.json>\".",
	}
	c.AddCommand(newComponentFetchCommand(deps), newComponentListCommand(deps))
	return c
}

func newComponentFetchCommand(deps componentDeps) *cobra.Command {
	var version, sets, arch string
	c := &cobra.Command{
		Use:   "fetch",
		Short: "Get components into the cache",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := component.ParseSet(sets)
			if err != nil {
				return err
			}
			report := newComponentReport(deps.Err, deps.Terminal, deps.Now)
			opts := deps.Options
			opts.Progress = report.event
			opts.Platform.Arch = arch
			if arch != "" {
				// Another architecture is asked for on behalf of hosts, which are linux.
				opts.Platform.OS = "linux"
			}
			store, err := component.Open(opts)
			if err != nil {
				return err
			}
			paths, err := store.Ensure(cmd.Context(), strings.TrimPrefix(version, "v"), set)
			report.close()
			if err != nil {
				return err
			}
			return printPaths(deps, paths)
		},
	}
	c.Flags().StringVar(&version, "kubernetes", defaultKubernetes(), "Kubernetes version, one of "+strings.Join(component.Versions(), ", "))
	c.Flags().StringVar(&sets, "set", "all", "what to get: control-plane, node, client, images or all, separated by commas")
	c.Flags().StringVar(&arch, "arch", "", "for linux on amd64 or arm64 instead of this machine; runc cannot be built for another one, only mirrored")
	return c
}

// defaultKubernetes is the newest version that is tested.
func defaultKubernetes() string {
	version := ""
	for _, v := range component.Versions() {
		if r, err := component.Lookup(v); err == nil && r.Tested {
			version = v
		}
	}
	return version
}

func printPaths(deps componentDeps, paths component.Paths) error {
	if deps.Output() == "json" {
		return writeJSON(deps.Out, paths)
	}
	names := sortedKeys(paths)
	w := tabwriter.NewWriter(deps.Out, 0, 4, 3, ' ', 0)
	fmt.Fprintln(w, "PROGRAM\tPATH")
	for _, n := range names {
		fmt.Fprintf(w, "%s\t%s\n", n, paths[n])
	}
	return w.Flush()
}

func newComponentListCommand(deps componentDeps) *cobra.Command {
	var version string
	var verify bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List components and what of them is in the cache",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := component.Open(deps.Options)
			if err != nil {
				return err
			}
			versions := component.Versions()
			if version != "" {
				versions = []string{strings.TrimPrefix(version, "v")}
			}
			type release struct {
				Kubernetes string             `json:"kubernetes"`
				Tested     bool               `json:"tested"`
				Components []component.Status `json:"components"`
			}
			var out []release
			damaged := 0
			for _, v := range versions {
				r, err := component.Lookup(v)
				if err != nil {
					return err
				}
				list := store.List
				if verify {
					list = store.Verify
				}
				statuses, err := list(cmd.Context(), v)
				if err != nil {
					return err
				}
				for _, s := range statuses {
					if s.State == component.Damaged {
						damaged++
					}
				}
				out = append(out, release{v, r.Tested, statuses})
			}
			if deps.Output() == "json" {
				err = writeJSON(deps.Out, out)
			} else {
				w := tabwriter.NewWriter(deps.Out, 0, 4, 3, ' ', 0)
				fmt.Fprintln(w, "KUBERNETES\tCOMPONENT\tVERSION\tPLATFORM\tSTATE\tSIZE\tSETS\tPROGRAMS")
				for _, r := range out {
					name := r.Kubernetes
					if !r.Tested {
						name += " (untested)"
					}
					for _, s := range r.Components {
						size := "-"
						if s.State == component.Present {
							size = fmt.Sprintf("%.1f MB", float64(s.Size)/1e6)
						}
						fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, s.Component, s.Version, s.Platform, s.State, size, s.Sets, strings.Join(s.Programs, " "))
					}
				}
				err = w.Flush()
				for _, r := range out {
					for _, s := range r.Components {
						if s.State == component.Damaged {
							fmt.Fprintf(deps.Err, "%s %s is damaged: %s\n", s.Component, s.Version, s.Detail)
						}
					}
				}
			}
			if err == nil && damaged > 0 {
				err = fmt.Errorf("%d components in the cache are damaged: run `edge component fetch`, which replaces them", damaged)
			}
			return err
		},
	}
	c.Flags().StringVar(&version, "kubernetes", "", "only this Kubernetes version")
	c.Flags().BoolVar(&verify, "verify", false, "read every file and compare its sha256")
	return c
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
