//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/edgewright/terraform-provider-edge/internal/edgenode"
	"github.com/edgewright/terraform-provider-edge/internal/podnet"
	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

// bareFile in a node's directory says what a bare daemon is to start.
const bareFile = "bench-bare.json"

// cniFile is where a node's container runtime is told of its pod network.
const cniFile = "/etc/cni/net.d/10-edge.conflist"

// bare is a node without hub and agent: the programs that the node's own daemon
// runs, and its pod network as that daemon sets it up. The rest of the node, its
// namespaces and root directory, is made by edgenode.Up as ever.
type bare struct {
	Programs []bareProgram `json:"programs"`
	// Ranges of the node's pods, and of the cluster's pods and services.
	Own      []netip.Prefix `json:"own"`
	Pods     []netip.Prefix `json:"pods"`
	Services []netip.Prefix `json:"services"`
	// Cgroups are the directories that its processes belong to.
	Cgroups []string `json:"cgroups"`
}

// bareProgram is a program as the node's own daemon started it.
type bareProgram struct {
	Group string   `json:"group"` // below run/
	Name  string   `json:"name"`
	Argv  []string `json:"argv"`
	Env   []string `json:"env"`
}

// groups are the programs of a node as its daemon keeps them.
var groups = map[string][]string{
	"runtime":    {edgenode.ProgramContainerd},
	"components": {edgenode.ProgramKubelet, edgenode.ProgramKubeProxy, edgenode.ProgramCoreDNS},
}

// seenPrograms are the programs of a node whose own daemon runs.
func seenPrograms(dir string) ([]bareProgram, error) {
	var out []bareProgram
	for group, names := range groups {
		for _, name := range names {
			pid, err := recordedPID(dir, group, name)
			if err != nil {
				return nil, err
			}
			p := bareProgram{Group: group, Name: name}
			if p.Argv, err = strings0(pid, "cmdline"); err != nil {
				return nil, err
			}
			env, err := strings0(pid, "environ")
			if err != nil {
				return nil, err
			}
			for _, v := range env {
				if !strings.HasPrefix(v, "EDGE_SUPERVISE") { // a supervisor's own marks
					p.Env = append(p.Env, v)
				}
			}
			out = append(out, p)
		}
	}
	return out, nil
}

// recordedPID is the process that a node's supervisor has recorded last.
func recordedPID(dir, group, name string) (int, error) {
	text, err := os.ReadFile(filepath.Join(dir, "run", group, name+".json"))
	if err != nil {
		return 0, err
	}
	var record struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal(text, &record); err != nil {
		return 0, fmt.Errorf("record of %s: %w", name, err)
	}
	return record.PID, nil
}

// strings0 are the strings in a file of a process that ends each with a zero.
func strings0(pid int, file string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), file))
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00"), nil
}

// bareMain makes this program the daemon of a node, or that one's parent, if it is
// called like the edge program with that name. It does not return then.
func bareMain() {
	if len(os.Args) < 2 {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	var err error
	switch os.Args[1] {
	case "supervise":
		err = bareParent(ctx, os.Args[2:])
	case "node":
		err = bareDaemon(ctx, os.Args[2:])
	default:
		stop()
		return
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "node without a hub:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// bareParent is `edge supervise`.
func bareParent(ctx context.Context, args []string) error {
	var o supervise.ParentOptions
	flags := flag.NewFlagSet("supervise", flag.ContinueOnError)
	flags.StringVar(&o.PIDFile, "pidfile", "", "")
	flags.StringVar(&o.LogFile, "log", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	o.Command = flags.Args()
	return supervise.RunParent(ctx, o)
}

// bareDaemon is `edge node run`, without a hub.
func bareDaemon(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("node run", flag.ContinueOnError)
	dir := flags.String("dir", "", "")
	if len(args) == 0 || args[0] != "run" {
		return fmt.Errorf("called with %q", args)
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(*dir, bareFile))
	if err != nil {
		return err
	}
	var b bare
	if err := json.Unmarshal(text, &b); err != nil {
		return fmt.Errorf("%s: %w", bareFile, err)
	}
	right, err := supervise.AcquireDaemon(filepath.Join(*dir, "run"))
	if err != nil {
		return err
	}
	if err := b.run(ctx, *dir); err != nil {
		return err
	}
	return right.Release()
}

func (b bare) run(ctx context.Context, dir string) error {
	for _, cgroup := range b.Cgroups {
		if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
			return err
		}
	}
	if err := addLoopback(podnet.DNSAddress); err != nil { // CoreDNS's
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	for group := range groups {
		s, err := supervise.New(supervise.Options{RunDir: filepath.Join(dir, "run", group), LogDir: filepath.Join(dir, "logs"), Logger: logger})
		if err != nil {
			return err
		}
		g.Go(func() error { return s.Run(ctx, b.specs(group)) })
	}
	g.Go(func() error { return b.setUpPods(ctx) })
	return g.Wait()
}

func (b bare) specs(group string) []supervise.Spec {
	var specs []supervise.Spec
	for _, p := range b.Programs {
		if p.Group == group {
			specs = append(specs, supervise.Spec{Name: p.Name, Path: p.Argv[0], Args: p.Argv[1:], Env: p.Env, Dir: "/"})
		}
	}
	return specs
}

func (b bare) setUpPods(ctx context.Context) error {
	err := podnet.Setup(ctx, podnet.HostOptions{PodCIDRs: b.Own, ClusterPodCIDRs: b.Pods, ServiceCIDRs: b.Services})
	if err != nil {
		return err
	}
	config, err := podnet.CNIConfig(podnet.CNIOptions{PodCIDRs: b.Own})
	if err != nil {
		return err
	}
	whole := filepath.Join(filepath.Dir(cniFile), ".whole") // containerd reads what ends in .conflist
	return errors.Join(os.MkdirAll(filepath.Dir(cniFile), 0o755), os.WriteFile(whole, config, 0o644), os.Rename(whole, cniFile))
}

func addLoopback(address netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(address.BitLen(), address.BitLen())}})
	if err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("put %s on lo: %w", address, err)
	}
	return nil
}
