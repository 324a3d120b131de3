//go:build !linux

package engine

import (
	"context"
	"net/netip"
)

// On other systems no cluster or node can be placed on this machine, so there
// is nothing of one to find.

func hostRoutes() ([]netip.Prefix, error) { return nil, nil }
func daemonRuns(string) bool              { return false }
func survivors(clusterID) []string        { return nil }
func survivingNodes(clusterID) []string   { return nil }
func checkRoot(context.Context) error     { return nil }
