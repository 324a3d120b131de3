package controlplane

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
)

// SpecFile is the name of the Spec's file in a cluster directory.
const SpecFile = "control-plane.json"

// Spec is everything the daemon needs to know. The engine writes it; nothing in
// it is secret and nothing in it is left to be chosen.
type Spec struct {
	ClusterID string `json:"clusterID"` // local/<name>-<uid8>
	UID       string `json:"uid"`       // eight lower hexadecimal characters
	Name      string `json:"name"`

	KubernetesVersion string   `json:"kubernetesVersion"`
	PodCIDRs          []string `json:"podCIDRs"`
	ServiceCIDRs      []string `json:"serviceCIDRs"`
	NodeMask          int      `json:"nodeMask"`
	DNSDomain         string   `json:"dnsDomain"`

	Ports Ports `json:"ports"`
	// Programs maps a program's name to its absolute path.
	Programs map[string]string `json:"programs"`
	// EngineVersion is the version of the edge program that wrote the spec.
	EngineVersion string `json:"engineVersion"`
}

// Ports are the TCP ports on loopback (and the gateway's UDP port) of one
// cluster, found free once and kept.
type Ports struct {
	API               int `json:"api"`
	EtcdClient        int `json:"etcdClient"`
	EtcdPeer          int `json:"etcdPeer"`
	ControllerManager int `json:"controllerManager"`
	Scheduler         int `json:"scheduler"`
	Gateway           int `json:"gateway"` // UDP and TCP
}

// All returns every TCP port that a child has, with the name of the child.
func (p Ports) All() map[string]int {
	return map[string]int{
		"kube-apiserver":          p.API,
		"etcd (clients)":          p.EtcdClient,
		"etcd (peers)":            p.EtcdPeer,
		"kube-controller-manager": p.ControllerManager,
		"kube-scheduler":          p.Scheduler,
	}
}

// LoadSpec reads the Spec of a cluster directory.
func LoadSpec(dir string) (*Spec, error) {
	path := filepath.Join(dir, SpecFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the control plane's spec: %w", err)
	}
	s := &Spec{}
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("read the control plane's spec %s: %w", path, err)
	}
	return s, nil
}

// Endpoint is the URL of the apiserver on this machine.
func (s *Spec) Endpoint() string {
	return fmt.Sprintf("https://127.0.0.1:%d", s.Ports.API)
}

// ServiceIP is the address of the Service default/kubernetes: the first of the
// first service range, as upstream assigns it.
func (s *Spec) ServiceIP() (netip.Addr, error) {
	if len(s.ServiceCIDRs) == 0 {
		return netip.Addr{}, fmt.Errorf("cluster %s has no service CIDR", s.ClusterID)
	}
	p, err := netip.ParsePrefix(s.ServiceCIDRs[0])
	if err != nil {
		return netip.Addr{}, fmt.Errorf("service CIDR %q: %w", s.ServiceCIDRs[0], err)
	}
	return p.Masked().Addr().Next(), nil
}

// Ranges are the pod and service ranges.
func (s *Spec) Ranges() ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, cidr := range append(slices.Clone(s.PodCIDRs), s.ServiceCIDRs...) {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fmt.Errorf("range %q of cluster %s: %w", cidr, s.ClusterID, err)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// Layout names the files and directories of a cluster directory.
//
//	control-plane.json   Spec
//	pki/                 certificate authorities, certificates and keys (0700)
//	conf/                kubeconfigs and configuration of the children (0700)
//	etcd/                etcd's data
//	logs/<name>.log      what each child and the daemon itself print
//	run/<name>.json      records of running children
//	run/gateway.sock     the apiserver's egress
//	run/gateway-admin.sock  the gateway's figures
//	run/status.json      Status
type Layout struct{ Dir string }

// Join returns a path below the cluster directory.
func (l Layout) Join(elem ...string) string {
	return filepath.Join(append([]string{l.Dir}, elem...)...)
}

// PKI returns a path below the certificate directory.
func (l Layout) PKI(name string) string { return l.Join("pki", name) }

// Conf returns a path below the configuration directory.
func (l Layout) Conf(name string) string { return l.Join("conf", name) }

// Logs returns the log directory.
func (l Layout) Logs() string { return l.Join("logs") }

// Run returns a path below the directory of records and sockets.
func (l Layout) Run(elem ...string) string {
	return l.Join(append([]string{"run"}, elem...)...)
}

// EgressSocket is the apiserver's egress socket relative to the cluster
// directory, the working directory of daemon and apiserver: a socket address
// holds 108 bytes at most (unix(7)), a state directory may be longer.
const EgressSocket = "run/gateway.sock"

// AdminSocket is where operators read the gateway's figures, relative to the
// cluster directory too.
const AdminSocket = "run/gateway-admin.sock"

func loopbackPort(port int) string { return net.JoinHostPort("127.0.0.1", fmt.Sprint(port)) }
