package component

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ErrUnknownVersion marks the error for a Kubernetes version that is not in the
// catalogue.
var ErrUnknownVersion = errors.New("unknown Kubernetes version")

// Release is a Kubernetes version and the programs that go with it.
type Release struct {
	Version string // "1.36.3"
	// Tested is set where the project's tests build and run this release. A
	// release without it has a recipe that is meant to work, no more.
	Tested     bool
	Components []Component
}

// Component is one upstream project's programs, which are built together.
type Component struct {
	Name    string // "kubernetes"
	Version string // "1.36.3"
	// Programs maps the set that needs it to the names of programs. A program
	// can be in several sets.
	Programs map[Set][]string
	// Image is the reference an archive's image has after import; empty for
	// programs.
	Image string
	// OnlyOS restricts the component to these operating systems; empty: linux.
	// Images are for linux wherever they are built.
	OnlyOS []string

	recipe Recipe
}

// wanted returns the component's programs for a set, without repetition.
func (c Component) wanted(s Set) []string {
	var names []string
	for _, n := range setNames {
		if s&n.set == 0 {
			continue
		}
		for _, p := range c.Programs[n.set] {
			if !slices.Contains(names, p) {
				names = append(names, p)
			}
		}
	}
	return names
}

// platform returns what the component is built for when a host of platform p
// asks for it, and whether it exists there.
func (c Component) platform(p Platform) (Platform, bool) {
	switch {
	case c.Image != "":
		p.OS = "linux"
		return p, true
	case len(c.OnlyOS) == 0:
		return p, p.OS == "linux"
	}
	return p, slices.Contains(c.OnlyOS, p.OS)
}

// upstream are the versions that differ between releases.
type upstream struct {
	kubernetes, etcd, agnhost string
	tested                    bool
}

// releases lists what is known, oldest first. Kubernetes goes with the etcd of
// its own go.mod; agnhost is the version its source tree carries
// (test/images/agnhost/VERSION).
func releases() []Release {
	var out []Release
	for _, u := range []upstream{
		{kubernetes: "1.36.3", etcd: "3.6.8", agnhost: "2.63.0", tested: true},
		{kubernetes: "1.37.1", etcd: "3.7.3", agnhost: "2.66.1"},
	} {
		out = append(out, Release{
			Version: u.kubernetes,
			Tested:  u.tested,
			// In the order in which they are worth having: the long build first, so
			// that short ones run beside it.
			Components: []Component{
				kubernetesComponent(u.kubernetes),
				kubectlComponent(u.kubernetes),
				etcdComponent(u.etcd),
				corednsComponent("1.15.0"),
				containerdComponent("2.4.2"),
				runcComponent("1.5.2"),
				cniPluginsComponent("1.9.1"),
				agnhostComponent(u.agnhost, u.kubernetes),
				pauseComponent(),
			},
		})
	}
	return out
}

// Versions returns the Kubernetes versions of the catalogue, oldest first.
func Versions() []string {
	var out []string
	for _, r := range releases() {
		out = append(out, r.Version)
	}
	return out
}

// Lookup returns the release of a Kubernetes version ("1.36.3"). The error for
// any other lists those that are known and is ErrUnknownVersion.
func Lookup(version string) (Release, error) {
	return lookup(releases(), version)
}

func lookup(in []Release, version string) (Release, error) {
	var known []string
	for _, r := range in {
		if r.Version == version {
			return r, nil
		}
		known = append(known, r.Version)
	}
	return Release{}, fmt.Errorf("%w %q: known are %s", ErrUnknownVersion, version, strings.Join(known, ", "))
}

// kubernetesPrograms are linked into one file, see recipes/kubernetes.go.txt.
var kubernetesPrograms = []string{
	"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
}

func kubernetesComponent(version string) Component {
	return Component{
		Name:    "kubernetes",
		Version: version,
		Programs: map[Set][]string{
			ControlPlane: {"kube-apiserver", "kube-controller-manager", "kube-scheduler"},
			Node:         {"kubelet", "kube-proxy"},
			Client:       {"kubectl"},
		},
		recipe: Recipe{
			Module:  "kubernetes-" + version,
			Sources: map[string]string{"main.go": "recipes/kubernetes.go.txt"},
			Targets: []Target{{
				Package: ".",
				Output:  "kubernetes",
				Links:   kubernetesPrograms,
				LDFlags: kubernetesVersionFlags(version),
			}},
			Probe:    "k8s.io/kubernetes@v" + version,
			Estimate: 6 * time.Minute,
			Disk:     5 << 30,
		},
	}
}

// kubectlComponent is kubectl for an operator's machine that is no Linux, where
// the other programs do not exist.
func kubectlComponent(version string) Component {
	return Component{
		Name:     "kubectl",
		Version:  version,
		Programs: map[Set][]string{Client: {"kubectl"}},
		OnlyOS:   []string{"darwin", "windows"},
		recipe: Recipe{
			Module: "kubernetes-" + version,
			Targets: []Target{{
				Package: "k8s.io/kubernetes/cmd/kubectl",
				Output:  "kubectl",
				LDFlags: kubernetesVersionFlags(version),
			}},
			Probe:    "k8s.io/kubernetes@v" + version,
			Estimate: 3 * time.Minute,
			Disk:     3 << 30,
		},
	}
}

// kubernetesVersionFlags stamp the version as upstream's hack/lib/version.sh
// does, without commit and date: the module proxy does not carry them.
func kubernetesVersionFlags(version string) []string {
	part := strings.SplitN(version, ".", 3)
	const pkg = "k8s.io/component-base/version."
	return []string{
		"-X", pkg + "gitVersion=v" + version,
		"-X", pkg + "gitMajor=" + part[0],
		"-X", pkg + "gitMinor=" + part[1],
		"-X", pkg + "gitTreeState=clean",
	}
}

func etcdComponent(version string) Component {
	return Component{
		Name:     "etcd",
		Version:  version,
		Programs: map[Set][]string{ControlPlane: {"etcd", "etcdutl"}},
		recipe: Recipe{
			Module: "etcd-" + version,
			Targets: []Target{
				{Package: "go.etcd.io/etcd/server/v3", Output: "etcd"},
				{Package: "go.etcd.io/etcd/etcdutl/v3", Output: "etcdutl"},
			},
			Probe:    "go.etcd.io/etcd/server/v3@v" + version,
			Estimate: 30 * time.Second,
			Disk:     600 << 20,
		},
	}
}

func corednsComponent(version string) Component {
	return Component{
		Name:     "coredns",
		Version:  version,
		Programs: map[Set][]string{Node: {"coredns"}},
		recipe: Recipe{
			Module:   "coredns-" + version,
			Targets:  []Target{{Package: "github.com/coredns/coredns", Output: "coredns"}},
			Probe:    "github.com/coredns/coredns@v" + version,
			Estimate: 3 * time.Minute,
			Disk:     2 << 30,
		},
	}
}

func containerdComponent(version string) Component {
	const pkg = "github.com/containerd/containerd/v2/"
	flags := []string{"-X", pkg + "version.Version=v" + version}
	return Component{
		Name:     "containerd",
		Version:  version,
		Programs: map[Set][]string{Node: {"containerd", "containerd-shim-runc-v2", "ctr"}},
		recipe: Recipe{
			Module: "containerd-" + version,
			Targets: []Target{
				{Package: pkg + "cmd/containerd", Output: "containerd", LDFlags: flags},
				// Upstream's Makefile builds the shim without gRPC: there is one shim
				// per pod, and this keeps it small.
				{Package: pkg + "cmd/containerd-shim-runc-v2", Output: "containerd-shim-runc-v2", LDFlags: flags, Tags: []string{"no_grpc"}},
				{Package: pkg + "cmd/ctr", Output: "ctr", LDFlags: flags},
			},
			Probe:    "github.com/containerd/containerd/v2@v" + version,
			Estimate: 90 * time.Second,
			Disk:     1 << 30,
		},
	}
}

func runcComponent(version string) Component {
	return Component{
		Name:     "runc",
		Version:  version,
		Programs: map[Set][]string{Node: {"runc"}},
		recipe: Recipe{
			Module: "runc-" + version,
			Targets: []Target{{
				Package: "github.com/opencontainers/runc",
				Output:  "runc",
				// Without seccomp every pod fails. Static, so that a file built on
				// one host runs on another with a different C library.
				Tags:    []string{"seccomp", "netgo", "osusergo"},
				LDFlags: []string{"-extldflags", "-static"},
				CGO:     true,
			}},
			Libraries: []CLibrary{{PkgConfig: "libseccomp", Debian: "libseccomp-dev"}},
			Probe:     "github.com/opencontainers/runc@v" + version,
			Estimate:  15 * time.Second,
			Disk:      300 << 20,
		},
	}
}

func cniPluginsComponent(version string) Component {
	const pkg = "github.com/containernetworking/plugins/"
	flags := []string{"-X", pkg + "pkg/utils/buildversion.BuildVersion=v" + version}
	return Component{
		Name:     "cni-plugins",
		Version:  version,
		Programs: map[Set][]string{Node: {"bridge", "loopback", "host-local", "portmap"}},
		recipe: Recipe{
			Module: "cni-plugins-" + version,
			Targets: []Target{
				{Package: pkg + "plugins/main/bridge", Output: "bridge", LDFlags: flags},
				{Package: pkg + "plugins/main/loopback", Output: "loopback", LDFlags: flags},
				{Package: pkg + "plugins/ipam/host-local", Output: "host-local", LDFlags: flags},
				{Package: pkg + "plugins/meta/portmap", Output: "portmap", LDFlags: flags},
			},
			Probe:    "github.com/containernetworking/plugins@v" + version,
			Estimate: 6 * time.Second,
			Disk:     200 << 20,
		},
	}
}
