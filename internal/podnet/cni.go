package podnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
)

const (
	// cniVersion of the configuration: the newest that every container runtime
	// in use understands.
	cniVersion = "1.0.0"
	// networkName names the network in host-local's records. It never changes:
	// with another name every address would look free.
	networkName = "edge"
	// minMTU is what IPv6 needs of a link (RFC 8200, section 5); every smaller
	// value is a mistake.
	minMTU = 1280
	maxMTU = 65535
)

// CNIOptions is what a node's CNI configuration depends on.
type CNIOptions struct {
	// PodCIDRs are the node's own pod ranges, one or one of each family.
	PodCIDRs []netip.Prefix
	// MTU of the pods' links, in bytes; the kernel's default where 0. It should
	// be that of the LAN link.
	MTU int
	// DataDir is where host-local keeps which address is whose; its default
	// (/var/lib/cni/networks) where empty.
	DataDir string
	// PortMapBackend is portmap's: "nftables" or "iptables"; "nftables" where
	// empty.
	PortMapBackend string
}

// CNIConfig returns the network configuration list (a .conflist file, CNI spec
// 1.0.0) that gives pods an address of the node's ranges on a bridge, and maps
// host ports. There is no loopback plugin in it: containerd runs that one by
// itself, beside every configuration.
func CNIConfig(o CNIOptions) ([]byte, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("CNI configuration: %w", err)
	}
	type (
		route struct {
			Dst string `json:"dst"`
		}
		subnet struct {
			Subnet string `json:"subnet"`
		}
		ipam struct {
			Type    string     `json:"type"`
			DataDir string     `json:"dataDir,omitempty"`
			Ranges  [][]subnet `json:"ranges"`
			Routes  []route    `json:"routes"`
		}
		bridge struct {
			Type      string `json:"type"`
			Bridge    string `json:"bridge"`
			IsGateway bool   `json:"isGateway"`
			// IPMasq stays off: Masquerade knows where pods' own addresses
			// are valid, the plugin does not.
			IPMasq bool `json:"ipMasq"`
			// HairpinMode lets a pod reach itself through a Service.
			HairpinMode bool `json:"hairpinMode"`
			MTU         int  `json:"mtu,omitempty"`
			IPAM        ipam `json:"ipam"`
		}
		portmap struct {
			Type         string          `json:"type"`
			Capabilities map[string]bool `json:"capabilities"`
			Backend      string          `json:"backend"`
		}
	)
	addresses := ipam{Type: "host-local", DataDir: o.DataDir}
	for _, p := range o.PodCIDRs {
		addresses.Ranges = append(addresses.Ranges, []subnet{{p.String()}})
		if p.Addr().Is4() {
			addresses.Routes = append(addresses.Routes, route{"0.0.0.0/0"})
		} else {
			addresses.Routes = append(addresses.Routes, route{"::/0"})
		}
	}
	backend := o.PortMapBackend
	if backend == "" {
		backend = "nftables"
	}
	config := struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		Plugins    []any  `json:"plugins"`
	}{cniVersion, networkName, []any{
		bridge{Type: "bridge", Bridge: Bridge, IsGateway: true, HairpinMode: true, MTU: o.MTU, IPAM: addresses},
		portmap{Type: "portmap", Capabilities: map[string]bool{"portMappings": true}, Backend: backend},
	}}
	out, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("CNI configuration: %w", err)
	}
	return append(out, '\n'), nil
}

func (o *CNIOptions) validate() error {
	if err := onePerFamily(o.PodCIDRs); err != nil {
		return fmt.Errorf("pod ranges: %w", err)
	}
	if o.MTU != 0 && (o.MTU < minMTU || o.MTU > maxMTU) {
		return fmt.Errorf("MTU %d is not in %d..%d", o.MTU, minMTU, maxMTU)
	}
	switch o.PortMapBackend {
	case "", "nftables", "iptables":
	default:
		return fmt.Errorf("port map backend %q is neither nftables nor iptables", o.PortMapBackend)
	}
	return nil
}

// onePerFamily wants one range, or one of each family, none of them everything.
func onePerFamily(prefixes []netip.Prefix) error {
	if len(prefixes) == 0 {
		return errors.New("there is none")
	}
	families := map[bool]bool{}
	for _, p := range prefixes {
		if err := checkPrefix(p); err != nil {
			return err
		}
		if families[p.Addr().Is4()] {
			return fmt.Errorf("%s is the second of its family", p)
		}
		families[p.Addr().Is4()] = true
	}
	return nil
}

// checkPrefix wants a range in canonical form that is not everything.
func checkPrefix(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("a range is invalid")
	case p.Addr().Is4In6():
		return fmt.Errorf("%s is IPv4 written as IPv6", p)
	case p.Bits() == 0:
		return fmt.Errorf("%s is every address", p)
	case p.Masked() != p:
		return fmt.Errorf("%s has bits set beyond its mask", p)
	}
	return nil
}
