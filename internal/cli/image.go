package cli

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/edgewright/terraform-provider-edge/internal/image"
)

// imageDeps is what the image commands need from the command line.
type imageDeps struct {
	Out io.Writer
	// Output returns "table" or "json".
	Output func() string
	// Directory returns the directory of archives that local nodes import:
	// <state_dir>/images.
	Directory func() (string, error)
}

func newImageCommand(deps imageDeps) *cobra.Command {
	c := &cobra.Command{
		Use:   "image",
		Short: "Container images for nodes that reach no registry",
	}
	c.AddCommand(newImageLoadCommand(deps))
	return c
}

func newImageLoadCommand(deps imageDeps) *cobra.Command {
	return &cobra.Command{
		Use:   "load <archive.tar>...",
		Short: "Check image archives and give them to every local node",
		Long: "Checks OCI image archives (made by `ctr images export`, `docker save` or `skopeo copy … oci-archive:`)\n" +
			"and copies them to images/ in the state directory, from which every local node imports them. An\n" +
			"archive of the same file name is replaced.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, err := deps.Directory()
			if err != nil {
				return err
			}
			loaded := []image.Info{}
			for _, archive := range args {
				infos, err := image.Load(archive, dir)
				if err != nil {
					return fmt.Errorf("load image: %w", err)
				}
				loaded = append(loaded, infos...)
			}
			if deps.Output() == "json" {
				return writeJSON(deps.Out, loaded)
			}
			w := tabwriter.NewWriter(deps.Out, 0, 4, 3, ' ', 0)
			fmt.Fprintln(w, "IMAGE\tPLATFORM\tDIGEST")
			for _, i := range loaded {
				fmt.Fprintf(w, "%s\t%s\t%s\n", i.Name, i.Platform, i.Digest)
			}
			return w.Flush()
		},
	}
}
