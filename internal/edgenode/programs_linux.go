//go:build linux

package edgenode

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

const (
	// programStart bounds the time from a program's start to its being healthy:
	// far above what a slow board needs, so that only what hangs is hit.
	programStart = 2 * time.Minute
	// resolverLook is how often a change of the machine's name servers (another
	// network) is looked for.
	resolverLook = 10 * time.Second
)

// supervisor looks after one group of programs.
func (n *node) supervisor(group string) (*supervise.Supervisor, error) {
	return supervise.New(supervise.Options{
		RunDir: filepath.Join(n.dir, runDir, group),
		LogDir: filepath.Join(n.dir, logsDir),
		Logger: n.log.With("part", "supervise"),
		OnEvent: func(e supervise.Event) {
			n.status.update(func(s *Status) { s.Processes[e.Status.Name] = string(e.Status.State) })
		},
	})
}

// programEnv is all that programs get to see. The shim and the tools that
// kubelet and containerd call are found by PATH.
func (n *node) programEnv() []string {
	var dirs []string
	for _, p := range []string{ProgramShim, ProgramRunc} {
		dirs = append(dirs, filepath.Dir(n.spec.Programs[p]))
	}
	dirs = append(slices.Compact(dirs), "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
	return []string{"PATH=" + strings.Join(dirs, ":"), "HOME=/root"}
}

func (n *node) containerdSpec() (supervise.Spec, error) {
	lower, err := canLowerOOMScore()
	if err != nil {
		return supervise.Spec{}, err
	}
	text := containerdConfig(n.spec, !lower)
	path := filepath.Join(n.dir, confDir, "containerd.toml")
	if err := writeFile(path, []byte(text), 0o600); err != nil {
		return supervise.Spec{}, err
	}
	return supervise.Spec{
		Name: ProgramContainerd, Path: n.spec.Programs[ProgramContainerd],
		Args: []string{"--config", path}, Env: n.programEnv(), Dir: "/",
		Ready: criProbe(containerdSocket), ReadyTimeout: programStart,
		Revision: revision([]byte(text)),
	}, nil
}

// startComponents starts kubelet, kube-proxy and CoreDNS.
func (n *node) startComponents(ctx context.Context, g *errgroup.Group, id *identity, local *localPKI) (*supervise.Supervisor, error) {
	s, err := n.supervisor(componentGroup)
	if err != nil {
		return nil, err
	}
	lower, err := canLowerOOMScore()
	if err != nil {
		return nil, err
	}
	in := &configInput{
		Spec: n.spec, Dir: n.dir, Cluster: id.joined,
		CgroupV1: !n.cg.unified(), RestrictOOM: !lower, Resolvers: n.resolvers(),
	}
	for _, name := range []string{localKubelet, localKubeProxy, localCoreDNS} {
		if err := local.kubeconfig(in.conf(name+".kubeconfig"), name); err != nil {
			return nil, err
		}
	}
	if err := n.writeOperator(local); err != nil {
		return nil, err
	}
	specs, err := n.componentSpecs(in)
	if err != nil {
		return nil, err
	}
	g.Go(func() error { return s.Run(ctx, specs) })
	g.Go(func() error { return n.followResolvers(ctx, in) })
	return s, nil
}

// componentSpecs writes the programs' configuration and says how they run.
func (n *node) componentSpecs(in *configInput) ([]supervise.Spec, error) {
	if err := n.writeResolvers(in); err != nil {
		return nil, err
	}
	kubelet, err := kubeletConfig(in)
	if err != nil {
		return nil, err
	}
	proxy, err := kubeProxyConfig(in)
	if err != nil {
		return nil, err
	}
	for name, data := range map[string][]byte{"kubelet.yaml": kubelet, "kube-proxy.yaml": proxy} {
		if err := writeFile(in.conf(name), data, 0o600); err != nil {
			return nil, err
		}
	}
	health := func(port int, path string) supervise.Probe {
		return supervise.HTTPProbe(fmt.Sprintf("http://%s:%d%s", loopback, port, path), nil)
	}
	return []supervise.Spec{
		{
			Name: ProgramKubelet, Path: n.spec.Programs[ProgramKubelet],
			Args: []string{
				"--config=" + in.conf("kubelet.yaml"),
				"--kubeconfig=" + in.conf("kubelet.kubeconfig"),
				"--hostname-override=" + n.spec.Name,
				"--node-ip=" + n.spec.Local.Address.String(),
				"--root-dir=" + kubeletRoot,
				"--cert-dir=" + kubeletRoot + "/pki",
			},
			Env: n.programEnv(), Dir: "/",
			Ready: health(kubeletHealth, "/healthz"), ReadyTimeout: programStart,
			Revision: revision(kubelet),
		},
		{
			Name: ProgramKubeProxy, Path: n.spec.Programs[ProgramKubeProxy],
			Args: []string{"--config=" + in.conf("kube-proxy.yaml")},
			Env:  n.programEnv(), Dir: "/",
			// livez, not healthz: that one fails while a node is being deleted. No
			// time limit: kube-proxy waits for its Node, for as long as a cut lasts.
			Ready:    health(kubeProxyHealth, "/livez"),
			Revision: revision(proxy),
		},
		{
			Name: ProgramCoreDNS, Path: n.spec.Programs[ProgramCoreDNS],
			Args: []string{"-conf", in.conf("Corefile")},
			Env:  append(n.programEnv(), listEnv()), Dir: "/",
			// health, not ready: that one waits for the cluster, and DNS must be
			// up on a node that is cut off too. CoreDNS reloads the Corefile.
			Ready: health(corednsHealth, "/health"), ReadyTimeout: programStart,
		},
	}, nil
}

// revision stands for a configuration file's content in a program's spec.
func revision(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

func (n *node) writeResolvers(in *configInput) error {
	if len(in.Resolvers) == 0 {
		n.log.Warn("this machine has no name server that a node can reach: names outside of the cluster will not resolve")
	}
	if err := writeFile(in.conf("Corefile"), []byte(corefile(in)), 0o644); err != nil {
		return err
	}
	return writeFile(in.conf(podResolvConf), []byte(podResolv(in.Resolvers)), 0o644)
}

// followResolvers rewrites what names the machine's name servers when they
// change.
func (n *node) followResolvers(ctx context.Context, in *configInput) error {
	for n.wait(ctx, resolverLook) == nil {
		now := n.resolvers()
		if slices.Equal(now, in.Resolvers) {
			continue
		}
		n.log.Info("the machine's name servers changed", "servers", addrStrings(now))
		in.Resolvers = now
		if err := n.writeResolvers(in); err != nil {
			n.log.Error("write the name servers", "error", err)
		}
	}
	return nil
}

func addrStrings(addrs []netip.Addr) []string {
	out := make([]string, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}
