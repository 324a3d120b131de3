package engine

import (
	"path/filepath"
	"testing"

	"github.com/edgewright/terraform-provider-edge/internal/component"
	"github.com/edgewright/terraform-provider-edge/internal/edgenode"
)

// TestNodePrograms: what a node is set up with holds every program of its spec,
// and kubectl for who is at the device.
func TestNodePrograms(t *testing.T) {
	for _, version := range component.Versions() {
		release, err := component.Lookup(version)
		if err != nil {
			t.Fatal(err)
		}
		fetched := component.Paths{}
		for _, c := range release.Components {
			for set, names := range c.Programs {
				for _, name := range names {
					if set&nodeSets != 0 {
						fetched[name] = filepath.Join("/cache", c.Name, name)
					}
				}
			}
		}
		got := nodePrograms(fetched)
		for _, name := range append(edgenode.Programs(), edgenode.ProgramKubectl) {
			if !filepath.IsAbs(got[name]) {
				t.Errorf("%s: %s is %q", version, name, got[name])
			}
		}
	}
}
