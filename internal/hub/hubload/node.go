package hubload

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"k8s.io/client-go/rest"

	"github.com/edgewright/terraform-provider-edge/internal/hub"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

func hubUser(node string) string { return "edge:hub:" + node }

// callers are the components' names in the hub's eyes.
var callers = map[Component]hub.Caller{Kubelet: hub.CallerKubelet, KubeProxy: hub.CallerKubeProxy, CoreDNS: hub.CallerCoreDNS}

// Node is the identities of one node: its authority with its components, and
// what its hub is towards the apiserver.
type Node struct {
	name  string
	store *pki.Store
	local *pki.Authority
	// at the apiserver.
	node, hub *rest.Config
	serving   [2]string // certificate and key
}

// NewNode makes a node's identities in dir. identity gives a client configuration
// of a user at the apiserver, from files.
func NewNode(dir, name string, identity func(user string, groups ...string) (*rest.Config, error)) (*Node, error) {
	n := &Node{name: name}
	var err error
	if n.store, err = pki.Open(dir, nil); err != nil {
		return nil, err
	}
	if n.local, err = n.store.Authority("local", "edge-local"); err != nil {
		return nil, err
	}
	n.serving[0], n.serving[1], _, err = n.store.Ensure(n.local, pki.Request{
		Name: "hub", CommonName: "edge:local:hub", Server: true, DNSNames: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		return nil, err
	}
	if n.node, err = identity("system:node:"+name, "system:nodes"); err != nil {
		return nil, err
	}
	n.hub, err = identity(hubUser(name), "edge:hubs")
	return n, err
}

// Process is the node's hub, still to be started. The directory is the replica's.
func (n *Node) Process(dataDir, apiserver string) Process {
	return Process{
		NodeName: n.name, APIServer: apiserver, ServerName: "localhost", DataDir: dataDir,
		UpstreamCA: n.node.CAFile, NodeCert: n.node.CertFile, NodeKey: n.node.KeyFile, HubCert: n.hub.CertFile, HubKey: n.hub.KeyFile,
		LocalCA: n.local.CertFile, ServingCert: n.serving[0], ServingKey: n.serving[1],
	}
}

// Config is a component's configuration for the node's hub at an address.
func (n *Node) Config(c Component, address string) (*rest.Config, error) {
	cert, key, _, err := n.store.Ensure(n.local, pki.Request{Name: string(c), CommonName: string(callers[c]), Client: true})
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", c, err)
	}
	return &rest.Config{Host: "https://" + address, TLSClientConfig: rest.TLSClientConfig{CAFile: n.local.CertFile, CertFile: cert, KeyFile: key}}, nil
}

// DataSize is how many bytes the files of a replica have.
func DataSize(dataDir string) (int64, error) {
	var sum int64
	err := filepath.Walk(dataDir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}
