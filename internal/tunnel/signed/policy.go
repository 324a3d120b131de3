package signed

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

// KindPolicy is the kind of a Policy document.
const KindPolicy = "edge-node-policy/1"

// maxRules bounds a policy: a node's pod ranges and what is exposed of its LAN.
const maxRules = 256

// The networks of a Rule.
const (
	TCP = "tcp"
	UDP = "udp"
)

// Policy is what may be dialled through one node beside its kubelet, which the
// agent is configured with and which nobody can aim elsewhere.
type Policy struct {
	// Node is the only node that the policy is for.
	Node string `json:"node"`
	// Version orders the policies of a node; the agent keeps the highest.
	Version uint64 `json:"version"`
	Allow   []Rule `json:"allow,omitempty"`
}

// Rule allows every address of a range, at every port or at those of a range.
type Rule struct {
	Network string       `json:"network"`
	Prefix  netip.Prefix `json:"prefix"`
	// FirstPort and LastPort; both zero: every port.
	FirstPort uint16 `json:"firstPort,omitempty"`
	LastPort  uint16 `json:"lastPort,omitempty"`
}

// Check names the first thing that is wrong.
func (p *Policy) Check() error {
	switch {
	case p.Node == "":
		return errors.New("node policy: no node")
	case p.Version == 0:
		return errors.New("node policy: no version")
	case len(p.Allow) > maxRules:
		return fmt.Errorf("node policy: %d rules are more than the %d allowed", len(p.Allow), maxRules)
	}
	for _, r := range p.Allow {
		if err := r.check(); err != nil {
			return fmt.Errorf("node policy of %s: %w", p.Node, err)
		}
	}
	return nil
}

func (r *Rule) check() error {
	switch {
	case r.Network != TCP && r.Network != UDP:
		return fmt.Errorf("network %q is neither tcp nor udp", r.Network)
	case !r.Prefix.IsValid():
		return errors.New("a rule without a range of addresses")
	case r.Prefix.Addr().Is4In6():
		return fmt.Errorf("%s is IPv4 in IPv6: write it as IPv4", r.Prefix)
	case r.FirstPort > r.LastPort, (r.FirstPort == 0) != (r.LastPort == 0):
		return fmt.Errorf("ports %d to %d are no range", r.FirstPort, r.LastPort)
	}
	return nil
}

// Sign makes the document.
func (p *Policy) Sign(s Signer) ([]byte, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	return sign(s, KindPolicy, p)
}

// VerifyPolicy reads a document that the authority signed for the node.
func VerifyPolicy(ca *x509.Certificate, node string, doc []byte) (*Policy, error) {
	payload, err := pki.VerifyDocument(ca, KindPolicy, doc)
	if err != nil {
		return nil, err
	}
	p, err := parsePolicy(payload)
	if err != nil {
		return nil, err
	}
	if p.Node != node {
		return nil, fmt.Errorf("node policy: it is of node %s and not of %s", p.Node, node)
	}
	return p, nil
}

func parsePolicy(payload []byte) (*Policy, error) {
	p := &Policy{}
	if err := json.Unmarshal(payload, p); err != nil {
		return nil, fmt.Errorf("node policy: %w", err)
	}
	return p, p.Check()
}

// Allows reports whether the policy lets addr through. A nil policy allows
// nothing.
func (p *Policy) Allows(network string, addr netip.AddrPort) bool {
	if p == nil {
		return false
	}
	a := addr.Addr().Unmap()
	if a.Zone() != "" {
		return false
	}
	for _, r := range p.Allow {
		if r.Network == network && r.Prefix.Contains(a) && (r.LastPort == 0 || r.FirstPort <= addr.Port() && addr.Port() <= r.LastPort) {
			return true
		}
	}
	return false
}
