//go:build linux

package edgenode

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/edgewright/terraform-provider-edge/internal/image"
	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

// imageNamespace is where the container runtime keeps kubelet's images.
const imageNamespace = "k8s.io"

// importImages gives containerd every image of the node's archives that it has
// not. An archive that cannot be imported is an error: its pods could never run.
func (n *node) importImages(ctx context.Context, engine *supervise.Supervisor) error {
	if err := engine.WaitReady(ctx, ProgramContainerd); err != nil {
		return err
	}
	archives, err := n.archives()
	if err != nil {
		return err
	}
	have, err := n.ctr(ctx, "images", "list")
	if err != nil {
		return err
	}
	known := parseImageList(have)
	for _, path := range archives {
		infos, err := image.Check(path)
		if err != nil {
			return err
		}
		missing := false
		for _, i := range infos {
			missing = missing || known[i.Name] != i.Digest
		}
		if !missing {
			continue
		}
		if _, err := n.ctr(ctx, "images", "import", "--local", path); err != nil {
			return err
		}
		for _, i := range infos {
			n.log.Info("imported image", "image", i.Name, "digest", i.Digest)
		}
	}
	return nil
}

// ctr runs containerd's own command line against the node's containerd.
func (n *node) ctr(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, n.spec.Programs[ProgramCtr], append([]string{"--address", containerdSocket, "--namespace", imageNamespace}, args...)...)
	cmd.Env = n.programEnv()
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// parseImageList reads the table of `ctr images list`: REF TYPE DIGEST …
func parseImageList(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 3 && strings.HasPrefix(f[2], "sha256:") {
			out[f[0]] = f[2]
		}
	}
	return out
}
