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
	"syscall"

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

// survivor is something of a cluster that exists on this machine.
type survivor struct {
	what string
	// dir is the cluster directory it was started with; empty where it does not
	// tell.
	dir string
	// node is the local node it belongs to; empty for the control plane.
	node string
}

func (s survivor) String() string { return s.what }

// clusterPrograms are the programs that a cluster's daemons start with paths of
// its directory among their arguments. Anything else that names the directory
// (an editor, a tail) is not part of the cluster.
var clusterPrograms = map[string]bool{
	"etcd": true, "kube-apiserver": true, "kube-controller-manager": true, "kube-scheduler": true,
	"containerd": true, "containerd-shim-runc-v2": true, "kubelet": true, "kube-proxy": true, "coredns": true, "runc": true,
}

// survivors lists what still exists of a cluster on this machine: its processes,
// by their arguments, and the network namespaces of its sites and nodes.
func survivors(id clusterID) []survivor {
	var out []survivor
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if e.Name()[0] < '0' || e.Name()[0] > '9' {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue
		}
		args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
		if dir, node, ok := belongs(args, id); ok {
			out = append(out, survivor{fmt.Sprintf("process %s (%s)", e.Name(), filepath.Base(args[0])), dir, node})
		}
	}
	for _, name := range namespaces(id) {
		node, ok := strings.CutPrefix(name, "edge-"+id.UID+"-n-")
		if !ok {
			node = ""
		}
		out = append(out, survivor{what: "network namespace " + name, node: node})
	}
	return out
}

// belongs says whether a command line is that of a process of the cluster: one
// of its daemons, a daemon's parent, or a program that they have started.
func belongs(args []string, id clusterID) (dir, node string, ok bool) {
	if !clusterPrograms[filepath.Base(args[0])] && !isDaemon(args) {
		return "", "", false
	}
	part := "/clusters/" + id.Name + "-" + id.UID
	for _, a := range args[1:] {
		i := strings.Index(a, part)
		if i < 0 {
			continue
		}
		rest := a[i+len(part):]
		if rest != "" && rest[0] != '/' {
			continue
		}
		if begin := strings.IndexByte(a, '/'); begin >= 0 {
			dir = filepath.Clean(a[begin : i+len(part)])
		}
		if below, found := strings.CutPrefix(rest, "/nodes/"); found {
			node, _, _ = strings.Cut(below, "/")
		}
		return dir, node, true
	}
	return "", "", false
}

// isDaemon says whether a command line is a daemon's or its parent's, and not
// that of a short-lived command like `edge node up`.
func isDaemon(args []string) bool {
	for i, a := range args {
		if (a == "control-plane" || a == "node") && i+1 < len(args) {
			return args[i+1] == "run"
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

// survivingNodes are the names of local nodes of which something still exists.
// Where only routers of sites are left, the sites' pools stand for nodes: a node
// that is removed takes the routers that nobody uses with it.
func survivingNodes(id clusterID) []string {
	var nodes, pools []string
	for _, s := range survivors(id) {
		if s.node != "" {
			nodes = append(nodes, s.node)
		}
	}
	for _, ns := range namespaces(id) {
		if pool, ok := strings.CutPrefix(ns, "edge-"+id.UID+"-r-"); ok {
			pools = append(pools, pool)
		}
	}
	if len(nodes) == 0 {
		return pools
	}
	return nodes
}

// sameDir says whether two paths of a cluster directory, which need not exist,
// mean the same.
func sameDir(a, b string) bool { return resolve(a) == resolve(b) }

// resolve is a path without symbolic links as far as it exists.
func resolve(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	if parent := filepath.Dir(path); parent != path {
		return filepath.Join(resolve(parent), filepath.Base(path))
	}
	return path
}

// ownGroup keeps a terminal's Ctrl-C from reaching a command that this process
// runs: the command is told by this process, once that has been told.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// checkRoot says how this user becomes root for the node daemon alone.
func checkRoot(ctx context.Context) error {
	if os.Geteuid() == 0 {
		return nil
	}
	sudo, err := exec.LookPath("sudo")
	if err != nil {
		return errors.New("a local node needs root for its namespaces, containers and firewall, this user is not root, and there is no sudo here: run this as root, or install sudo")
	}
	if out, err := exec.CommandContext(ctx, sudo, "-n", "true").CombinedOutput(); err != nil {
		return fmt.Errorf("a local node needs root for its namespaces, containers and firewall, and sudo does not let this user without a password now (%s): type `sudo -v` in this terminal and apply again", strings.TrimSpace(string(out)))
	}
	return nil
}
