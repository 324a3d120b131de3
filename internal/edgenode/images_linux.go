//go:build linux

package edgenode

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/image"
	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

// imageLook is how often new archives are looked for: `edge image load` should
// be followed by its image at once, as people see it.
const imageLook = 2 * time.Second

// importImages gives containerd every image of the node's archives that it has
// not, and goes on to look for new ones. first gets the outcome of the first
// look: an archive that cannot be imported then is one whose pods cannot run.
func (n *node) importImages(ctx context.Context, engine *supervise.Supervisor, first chan<- error) error {
	if err := n.programs(ctx, engine, ProgramContainerd); err != nil {
		return nil // ctx ended
	}
	dir := &image.Dir{
		Paths:   n.spec.Images,
		Runtime: image.Ctr{Path: n.spec.Programs[ProgramCtr], Socket: containerdSocket, Env: n.programEnv()},
		Logger:  n.log.With("part", "image"),
	}
	for _, p := range n.spec.Images {
		if _, err := os.Stat(p); err != nil {
			n.log.Warn("no images", "directory", p, "error", err)
		}
	}
	if _, err := dir.Sync(ctx); err != nil {
		first <- fmt.Errorf("images of node %s: %w", n.spec.Name, err)
	} else {
		first <- nil
	}
	if err := dir.Run(ctx, imageLook); ctx.Err() == nil {
		return err
	}
	return nil
}
