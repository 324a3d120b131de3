//go:build linux

package edgenode

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/podnet"
)

// Addresses of a node's own services. All are on loopback of the node's network
// namespace, so that they are the same on every node and nobody else can dial
// them; the agent dials the kubelet's for the cloud.
const (
	hubPort            = 6443
	kubeletPort        = 10250
	kubeletHealth      = 10248
	kubeProxyHealth    = 10256
	kubeProxyMetrics   = 10249
	corednsHealth      = 8080
	corednsReady       = 8181
	corednsMetrics     = 9153
	loopback           = "127.0.0.1"
	containerdSocket   = "/run/containerd/containerd.sock"
	containerdRoot     = "/var/lib/containerd"
	containerdState    = "/run/containerd"
	kubeletRoot        = "/var/lib/kubelet"
	podLogs            = "/var/log/pods"
	cniConfigDir       = "/etc/cni/net.d"
	cniConfigFile      = "10-edge.conflist"
	podResolvConf      = "pod-resolv.conf"
	lanLink            = "eth0"
	defaultDNSDomain   = "cluster.local"
	apiserverName      = "kubernetes.default.svc"
	maxContainerLog    = "10Mi"
	maxContainerLogs   = 3
	maxRestartPeriod   = "30s"
	minMemoryAvailable = "100Mi"
	minDiskAvailable   = "1Gi"
)

// configInput is what a node's configuration files depend on.
type configInput struct {
	Spec    *Spec
	Dir     string
	Cluster joined
	// CgroupV1 and RestrictOOM are what the machine is like: v1 controllers, and
	// no right to lower a process's OOM score.
	CgroupV1    bool
	RestrictOOM bool
	// Resolvers are the machine's name servers.
	Resolvers []netip.Addr
}

func (c *configInput) conf(name string) string { return filepath.Join(c.Dir, confDir, name) }
func (c *configInput) pki(name string) string  { return filepath.Join(c.Dir, pkiDir, name) }

// containerdConfig is in containerd's schema 3 (docs/cri/config.md). It needs
// nothing of the cluster, so that containerd starts before the node has joined.
func containerdConfig(s *Spec, restrictOOM bool) string {
	q := strconv.Quote // Go and TOML quote paths alike
	return `# Written by edge node run.
version = 3
root = ` + q(containerdRoot) + `
state = ` + q(containerdState) + `

[grpc]
  address = ` + q(containerdSocket) + `

[debug]
  address = ""

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"

  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = ` + q(s.PauseImage) + `

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = ` + strconv.FormatBool(restrictOOM) + `

  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"

    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      runtime_path = ` + q(s.Programs[ProgramShim]) + `

      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = ` + q(s.Programs[ProgramRunc]) + `
        SystemdCgroup = false

  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [` + q(s.Programs[ProgramCNI]) + `]
    conf_dir = ` + q(cniConfigDir) + `

[plugins."io.containerd.nri.v1.nri"]
  disable = true
`
}

// kubeletConfig is a kubelet.config.k8s.io/v1beta1 KubeletConfiguration.
func kubeletConfig(c *configInput) ([]byte, error) {
	config := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",

		"address":            loopback,
		"port":               kubeletPort,
		"healthzBindAddress": loopback,
		"healthzPort":        kubeletHealth,
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": c.conf(kubeletClientsFile)},
		},
		"authorization":      map[string]any{"mode": "Webhook"},
		"tlsCertFile":        c.pki(servingName + ".crt"),
		"tlsPrivateKeyFile":  c.pki(servingName + ".key"),
		"tlsMinVersion":      "VersionTLS12",
		"rotateCertificates": false, // the daemon holds and renews the node's identity
		"serverTLSBootstrap": false,

		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               nodeCgroup(c.Spec) + "/" + cgroupPods,
		"failCgroupV1":             !c.CgroupV1,
		"failSwapOn":               false,
		"podLogsDir":               podLogs,
		"volumePluginDir":          kubeletRoot + "/volume-plugins", // the default is below /usr, which is the machine's
		"makeIPTablesUtilChains":   false,
		"hairpinMode":              "none", // the bridge does it

		"clusterDNS":    []string{podnet.DNSAddress.String()},
		"clusterDomain": c.Cluster.DNSDomain,
		"resolvConf":    c.conf(podResolvConf),

		"registerWithTaints": []map[string]any{{"key": v1alpha1.UnplacedTaint, "effect": "NoSchedule"}},

		// After an outage nothing may wait longer than this for its next try.
		"crashLoopBackOff":     map[string]any{"maxContainerRestartPeriod": maxRestartPeriod},
		"serializeImagePulls":  false,
		"containerLogMaxSize":  maxContainerLog,
		"containerLogMaxFiles": maxContainerLogs,
		// Images come from archives and cannot be pulled again: never collected
		// for the age of a disk that the node shares with the machine.
		"imageGCHighThresholdPercent": 100,
		"imageGCLowThresholdPercent":  99,
		"evictionHard": map[string]any{
			"memory.available":  minMemoryAvailable,
			"nodefs.available":  minDiskAvailable,
			"imagefs.available": minDiskAvailable,
		},
		"featureGates": listGates(),

		// Events cross the site's link.
		"eventRecordQPS": 5,
		"eventBurst":     20,
	}
	return yaml.Marshal(config)
}

// watchListGate is client-go's feature of getting the first list through a
// watch. The API server ends that list with a bookmark, which its cache may send
// only at its next tick, up to a second later; a plain list is answered at once.
// On an idle cluster of 1.36 neither is measurably faster.
const watchListGate = "WatchListClient"

// listGates turns it off in programs of Kubernetes, which have put their own
// feature gates in the place of client-go's.
func listGates() map[string]bool { return map[string]bool{watchListGate: false} }

// listEnv turns it off in other programs that use client-go: CoreDNS, and the
// daemon itself.
func listEnv() string { return "KUBE_FEATURE_" + watchListGate + "=false" }

// kubeProxyConfig is a kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration.
func kubeProxyConfig(c *configInput) ([]byte, error) {
	return yaml.Marshal(map[string]any{
		"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
		"kind":               "KubeProxyConfiguration",
		"mode":               "nftables",
		"clientConnection":   map[string]any{"kubeconfig": c.conf("kube-proxy.kubeconfig")},
		"clusterCIDR":        strings.Join(c.Cluster.PodCIDRs, ","),
		"hostnameOverride":   c.Spec.Name,
		"healthzBindAddress": netip.AddrPortFrom(netip.MustParseAddr(loopback), kubeProxyHealth).String(),
		"metricsBindAddress": netip.AddrPortFrom(netip.MustParseAddr(loopback), kubeProxyMetrics).String(),
		"featureGates":       listGates(),
		// The table's size belongs to the machine, not to a network namespace.
		"conntrack": map[string]any{"maxPerCore": 0, "min": 0},
	})
}

// corefile tells CoreDNS to answer for the cluster from the hub and to ask the
// machine's resolvers for the rest. Without any, other names fail at once.
func corefile(c *configInput) string {
	var b strings.Builder
	b.WriteString("# Written by edge node run.\n.:53 {\n")
	fmt.Fprintf(&b, "    bind %s\n", podnet.DNSAddress)
	b.WriteString("    errors\n")
	fmt.Fprintf(&b, "    health %s:%d\n", loopback, corednsHealth)
	fmt.Fprintf(&b, "    ready %s:%d\n", loopback, corednsReady)
	fmt.Fprintf(&b, "    prometheus %s:%d\n", loopback, corednsMetrics)
	fmt.Fprintf(&b, "    kubernetes %s in-addr.arpa ip6.arpa {\n", c.Cluster.DNSDomain)
	fmt.Fprintf(&b, "        kubeconfig %s\n", c.conf("coredns.kubeconfig"))
	// "verified" would make every node watch every pod.
	b.WriteString("        pods insecure\n        fallthrough in-addr.arpa ip6.arpa\n        ttl 30\n    }\n")
	if len(c.Resolvers) > 0 {
		b.WriteString("    forward .")
		for _, r := range c.Resolvers {
			b.WriteString(" " + r.String())
		}
		b.WriteString("\n")
	}
	b.WriteString("    cache 30\n    loop\n    reload 5s 1s\n    loadbalance\n}\n")
	return b.String()
}

// maxResolvers is how many name servers CoreDNS's forward takes.
const maxResolvers = 15

// parseResolvers reads name servers from resolv.conf(5). Loopback ones are the
// machine's own and not reachable from a node.
func parseResolvers(r io.Reader) ([]netip.Addr, error) {
	var out []netip.Addr
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		if len(fields) < 2 || fields[0] != "nameserver" || len(out) == maxResolvers {
			continue
		}
		a, err := netip.ParseAddr(fields[1])
		if err != nil || a.IsLoopback() || a.IsUnspecified() || a == podnet.DNSAddress {
			continue
		}
		out = append(out, a)
	}
	return out, sc.Err()
}

// podResolv is the resolv.conf of pods that ask for the node's (dnsPolicy
// Default, host network): the node's resolvers without its search domains,
// which mean nothing elsewhere.
func podResolv(resolvers []netip.Addr) string {
	if len(resolvers) == 0 {
		return "nameserver " + podnet.DNSAddress.String() + "\n"
	}
	var b strings.Builder
	for _, r := range resolvers[:min(len(resolvers), 3)] { // resolv.conf(5): MAXNS
		b.WriteString("nameserver " + r.String() + "\n")
	}
	return b.String()
}
