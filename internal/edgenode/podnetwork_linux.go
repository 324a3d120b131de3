//go:build linux

package edgenode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/edgewright/terraform-provider-edge/internal/podnet"
)

const (
	// podRangesFile in conf/ remembers the node's pod ranges, so that a restart
	// without the cluster has them.
	podRangesFile = "pod-ranges.json"
	// nodePoll is how often the node's own object is asked for until it has its
	// pod ranges: the kubelet has just registered, and the node is not Ready
	// before.
	nodePoll = 200 * time.Millisecond
	// nodeRecheck is how often they are compared afterwards: they change only if
	// somebody deleted the object.
	nodeRecheck = time.Minute
)

// podNetwork is what runPodNetwork needs; ready is closed once pods can get
// addresses.
type podNetwork struct {
	id     *identity
	client kubernetes.Interface
	config *rest.Config
	ready  chan<- struct{}
}

// runPodNetwork sets the pod network up as soon as the node's pod ranges are
// known, and keeps the routes to the pool's other nodes.
func (n *node) runPodNetwork(ctx context.Context, p podNetwork) error {
	own := n.podCIDRs.Load()
	if own == nil {
		ranges, err := n.awaitPodCIDRs(ctx, p.client)
		if err != nil {
			return nil // ctx ended
		}
		own = &ranges
		n.podCIDRs.Store(own)
	}
	if err := n.setUpPods(ctx, p.id, *own); err != nil {
		return err
	}
	n.status.update(func(s *Status) { s.PodCIDRs = prefixStrings(*own) })
	close(p.ready)

	cluster, err := p.id.prefixes(p.id.PodCIDRs)
	if err != nil {
		return err
	}
	routes, err := podnet.NewReconciler(podnet.ReconcilerOptions{
		Node: podnet.Node{Name: n.spec.Name, PodCIDRs: *own, ClusterPodCIDRs: cluster},
		Link: lanLink, Logger: n.log.With("part", "podnet"),
	})
	if err != nil {
		return err
	}
	defer routes.Close()
	failed := make(chan error, 1)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		failed <- podnet.Watch(watching, podnet.WatchOptions{
			Config: p.config, Pool: n.spec.Pool, Apply: routes.Apply, Spec: n.transport.pool, Logger: n.log.With("part", "podnet"),
		})
	}()
	changed := n.recheckPodCIDRs(watching, p.client, *own)
	select {
	case err := <-failed:
		return err
	case err := <-changed:
		stop()
		if ended := <-failed; ended != nil && ctx.Err() == nil {
			n.log.Warn("the watch on the pool ended with an error", "error", ended)
		}
		return err
	}
}

// setUpPods gives the node's namespace and its container runtime what pods need.
func (n *node) setUpPods(ctx context.Context, id *identity, own []netip.Prefix) error {
	cluster, err := id.prefixes(id.PodCIDRs)
	if err != nil {
		return err
	}
	services, err := id.prefixes(id.ServiceCIDRs)
	if err != nil {
		return err
	}
	err = podnet.Setup(ctx, podnet.HostOptions{PodCIDRs: own, ClusterPodCIDRs: cluster, ServiceCIDRs: services})
	if err != nil {
		return err
	}
	config, err := podnet.CNIConfig(podnet.CNIOptions{PodCIDRs: own})
	if err != nil {
		return err
	}
	path := filepath.Join(cniConfigDir, cniConfigFile)
	if have, err := os.ReadFile(path); err == nil && string(have) == string(config) {
		return nil
	}
	return writeFile(path, config, 0o644)
}

// loadPodCIDRs returns what the node remembers, nil if nothing.
func (n *node) loadPodCIDRs() ([]netip.Prefix, error) {
	path := filepath.Join(n.dir, confDir, podRangesFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	if err := json.Unmarshal(data, &out); err != nil {
		n.log.Warn("the remembered pod ranges are damaged, asking the cluster", "file", path, "error", err)
		return nil, nil
	}
	return out, nil
}

// awaitPodCIDRs asks for the node's own object until it has pod ranges, and
// remembers them. It fails only when ctx ends.
func (n *node) awaitPodCIDRs(ctx context.Context, client kubernetes.Interface) ([]netip.Prefix, error) {
	for {
		ranges, err := n.askPodCIDRs(ctx, client)
		if err == nil && len(ranges) > 0 {
			if err := writeJSON(filepath.Join(n.dir, confDir, podRangesFile), ranges); err != nil {
				n.log.Error("remember the pod ranges", "error", err)
			}
			return ranges, nil
		}
		if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
			n.log.Debug("ask for the node's own object", "error", err)
		}
		if err := n.wait(ctx, nodePoll); err != nil {
			return nil, err
		}
	}
}

func (n *node) askPodCIDRs(ctx context.Context, client kubernetes.Interface) ([]netip.Prefix, error) {
	object, err := client.CoreV1().Nodes().Get(ctx, n.spec.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, c := range object.Spec.PodCIDRs {
		p, err := netip.ParsePrefix(c)
		if err != nil {
			return nil, fmt.Errorf("pod range %q of node %s: %w", c, n.spec.Name, err)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// recheckPodCIDRs watches for other pod ranges than the node has. They come
// with a new Node object; the daemon then starts again with them.
func (n *node) recheckPodCIDRs(ctx context.Context, client kubernetes.Interface, own []netip.Prefix) <-chan error {
	out := make(chan error, 1)
	go func() {
		// Soon at first: the remembered ranges may be from before a long cut.
		pause := joinRetry
		for n.wait(ctx, pause) == nil {
			ranges, err := n.askPodCIDRs(ctx, client)
			if err != nil {
				continue // cut off, or not there: nothing is known, nothing changes
			}
			pause = nodeRecheck
			if len(ranges) == 0 || slices.Equal(ranges, own) {
				continue
			}
			err = removeFile(filepath.Join(n.dir, confDir, podRangesFile))
			out <- errors.Join(fmt.Errorf("the node's pod ranges changed from %v to %v", own, ranges), err)
			return
		}
		out <- nil
	}()
	return out
}

// prefixes parses ranges that the cluster told the node.
func (joined) prefixes(texts []string) ([]netip.Prefix, error) {
	if len(texts) == 0 {
		return nil, errors.New("there is none")
	}
	var out []netip.Prefix
	for _, t := range texts {
		p, err := netip.ParsePrefix(t)
		if err != nil {
			return nil, err
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func prefixStrings(prefixes []netip.Prefix) []string {
	var out []string
	for _, p := range prefixes {
		out = append(out, p.String())
	}
	return out
}

// addLoopback puts addresses on lo. The pod network would do it too, but only
// once the pod ranges are known, and DNS and the hub need not wait for that.
func addLoopback(addrs ...netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
		if err := netlink.AddrAdd(lo, addr); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("put %s on lo: %w", a, err)
		}
	}
	return nil
}
