package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

// hostRoutes are the destinations of this machine's IPv4 routes, the default
// route left out.
func hostRoutes() ([]netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if addr, ok := netip.AddrFromSlice(r.Dst.IP.To4()); ok {
			bits, _ := r.Dst.Mask.Size()
			if bits > 0 {
				out = append(out, netip.PrefixFrom(addr, bits))
			}
		}
	}
	return out, nil
}

// daemonRuns says whether the daemon of a cluster directory is alive.
func daemonRuns(dir string) bool {
	d, err := supervise.FindDaemon(filepath.Join(dir, "run"))
	return err == nil && d.Alive()
}

// survivors names what still exists of a cluster on this machine: supervised
// processes below its directory and namespaces of its sites and nodes.
func survivors(id clusterID) []string {
	var out []string
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	part := "/clusters/" + id.Name + "-" + id.UID
	for _, e := range entries {
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(cmdline) == 0 || e.Name()[0] < '0' || e.Name()[0] > '9' {
			continue
		}
		args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
		for _, a := range args[1:] {
			if strings.HasSuffix(a, part) || strings.Contains(a, part+"/") {
				if converging(args) {
					break
				}
				out = append(out, fmt.Sprintf("process %s (%s)", e.Name(), filepath.Base(args[0])))
				break
			}
		}
	}
	for _, name := range namespaces(id) {
		out = append(out, "network namespace "+name)
	}
	return out
}

// converging leaves out short-lived commands that name the cluster without
// being part of it: `edge ... up|down`, `edge logs`, sudo.
func converging(args []string) bool {
	for i, a := range args {
		if (a == "control-plane" || a == "node") && i+1 < len(args) {
			return args[i+1] != "run"
		}
	}
	return false
}

func namespaces(id clusterID) []string {
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "edge-"+id.UID+"-") {
			out = append(out, e.Name())
		}
	}
	return out
}

// survivingNodes are the names of local nodes whose namespaces still exist.
func survivingNodes(id clusterID) []string {
	var out []string
	for _, ns := range namespaces(id) {
		if name, ok := strings.CutPrefix(ns, "edge-"+id.UID+"-n-"); ok {
			out = append(out, name)
		}
	}
	return out
}

// checkRoot says how this user becomes root for the node daemon alone.
func checkRoot(ctx context.Context) error {
	if os.Geteuid() == 0 {
		return nil
	}
	sudo, err := exec.LookPath("sudo")
	if err != nil {
		return errors.New("a local node needs root for its namespaces, containers and firewall, this user is not root, and there is no sudo here: run terraform as root, or install sudo")
	}
	if out, err := exec.CommandContext(ctx, sudo, "-n", "true").CombinedOutput(); err != nil {
		return fmt.Errorf("a local node needs root for its namespaces, containers and firewall, and sudo does not let this user without a password now (%s): type `sudo -v` in this terminal and apply again", strings.TrimSpace(string(out)))
	}
	return nil
}
