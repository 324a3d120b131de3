//go:build !linux

package engine

import (
	"context"
	"net/netip"
	"os/exec"
)

// On other systems no cluster or node can be placed on this machine, so there
// is nothing of one to find.

func hostRoutes() ([]netip.Prefix, error) { return nil, nil }
func daemonRuns(string) bool              { return false }
func survivors(clusterID) []survivor      { return nil }
func survivingNodes(clusterID) []string   { return nil }
func checkRoot(context.Context) error     { return nil }
func sameDir(a, b string) bool            { return a == b }
func ownGroup(*exec.Cmd)                  {}

// survivor is something of a cluster that exists on this machine.
type survivor struct{ what, dir, node string }

func (s survivor) String() string { return s.what }
