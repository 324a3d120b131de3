//go:build linux

package site

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
)

// Unplug removes a node's namespace and port, and nothing else: the node keeps
// its place, and a cut of its link. Attach makes them again.
func (s *Site) Unplug(ctx context.Context, node string) error {
	if err := checkNames(s.o.ClusterUID, node); err != nil {
		return err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return s.removeNode(node)
}

// Sweep removes a node's namespace, and every router of its cluster if no node
// namespace of the cluster is left: for when the records are lost and only
// names tell.
func Sweep(clusterUID, node string) error {
	if err := checkNames(clusterUID, node); err != nil {
		return err
	}
	if err := deleteNamespace(NodeNamespace(clusterUID, node)); err != nil {
		return err
	}
	routers, err := idleRouters(clusterUID)
	if err != nil {
		return err
	}
	host, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer host.Close()
	var errs []error
	for _, pool := range routers {
		errs = append(errs, deleteLink(host, wanLinkName(clusterUID, pool)), deleteNamespace(RouterNamespace(clusterUID, pool)))
	}
	return errors.Join(errs...)
}

// Swept names what Sweep would still find.
func Swept(clusterUID, node string) ([]string, error) {
	if err := checkNames(clusterUID, node); err != nil {
		return nil, err
	}
	var left []string
	there, err := namespaceExists(NodeNamespace(clusterUID, node))
	if err != nil {
		return nil, err
	}
	if there {
		left = append(left, "network namespace "+NodeNamespace(clusterUID, node))
	}
	routers, err := idleRouters(clusterUID)
	for _, pool := range routers {
		left = append(left, "network namespace "+RouterNamespace(clusterUID, pool))
	}
	return left, err
}

// idleRouters lists the pools of a cluster's routers if no node namespace of
// the cluster is there, and nothing otherwise: which router a node is behind
// only the records tell.
func idleRouters(clusterUID string) ([]string, error) {
	entries, err := os.ReadDir(namespaceDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pools []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), NodeNamespace(clusterUID, "")) {
			return nil, nil
		}
		if pool, ok := strings.CutPrefix(e.Name(), RouterNamespace(clusterUID, "")); ok && nameForm.MatchString(pool) {
			pools = append(pools, pool)
		}
	}
	return pools, nil
}
