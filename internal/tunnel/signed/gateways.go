package signed

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"

	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

// KindGateways is the kind of a Gateways document.
const KindGateways = "edge-gateways/1"

// maxGateways bounds the list: gateways form a full mesh, and each is good for
// ten thousand nodes.
const maxGateways = 64

// Gateways lists every gateway of a cluster.
type Gateways struct {
	// Version orders the lists of a cluster; a reader keeps the highest.
	Version  uint64    `json:"version"`
	Gateways []Gateway `json:"gateways"`
}

// Gateway is one gateway and where nodes and other gateways reach it.
type Gateway struct {
	// ID is in the gateway's certificate (tunnel.GatewayName): a DNS label that
	// stays when the process is replaced.
	ID string `json:"id"`
	// Addresses are "host:port", UDP and TCP alike, in the order to try.
	Addresses []string `json:"addresses"`
}

// Signer signs documents; *pki.Authority does.
type Signer interface {
	SignDocument(kind string, payload []byte) ([]byte, error)
}

var gatewayID = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// CheckID refuses what cannot be a gateway's ID.
func CheckID(id string) error {
	if !gatewayID.MatchString(id) {
		return fmt.Errorf("gateway id %q is not a DNS label", id)
	}
	return nil
}

// Check names the first thing that is wrong.
func (g *Gateways) Check() error {
	if g.Version == 0 {
		return errors.New("list of gateways: no version")
	}
	if len(g.Gateways) == 0 || len(g.Gateways) > maxGateways {
		return fmt.Errorf("list of gateways: %d gateways, want 1 to %d", len(g.Gateways), maxGateways)
	}
	seen := map[string]bool{}
	for _, gw := range g.Gateways {
		if err := CheckID(gw.ID); err != nil {
			return fmt.Errorf("list of gateways: %w", err)
		}
		if seen[gw.ID] {
			return fmt.Errorf("list of gateways: gateway %s is there twice", gw.ID)
		}
		seen[gw.ID] = true
		if len(gw.Addresses) == 0 {
			return fmt.Errorf("list of gateways: gateway %s has no address", gw.ID)
		}
		for _, a := range gw.Addresses {
			host, port, err := net.SplitHostPort(a)
			if err != nil {
				return fmt.Errorf("list of gateways: gateway %s: %w", gw.ID, err)
			}
			if p, err := strconv.ParseUint(port, 10, 16); err != nil || p == 0 || host == "" {
				return fmt.Errorf("list of gateways: gateway %s: address %q is not host:port", gw.ID, a)
			}
		}
	}
	return nil
}

// Sign makes the document.
func (g *Gateways) Sign(s Signer) ([]byte, error) {
	if err := g.Check(); err != nil {
		return nil, err
	}
	return sign(s, KindGateways, g)
}

// VerifyGateways reads a document that the authority signed.
func VerifyGateways(ca *x509.Certificate, doc []byte) (*Gateways, error) {
	payload, err := pki.VerifyDocument(ca, KindGateways, doc)
	if err != nil {
		return nil, err
	}
	return parseGateways(payload)
}

func parseGateways(payload []byte) (*Gateways, error) {
	g := &Gateways{}
	if err := json.Unmarshal(payload, g); err != nil {
		return nil, fmt.Errorf("list of gateways: %w", err)
	}
	return g, g.Check()
}

// Find returns the gateway of that ID.
func (g *Gateways) Find(id string) (Gateway, bool) {
	i := slices.IndexFunc(g.Gateways, func(gw Gateway) bool { return gw.ID == id })
	if i < 0 {
		return Gateway{}, false
	}
	return g.Gateways[i], true
}

// Rank orders the gateways for a node, its home first, by rendezvous hashing
// (Thaler and Ravishankar 1998): every reader of the list finds the same order,
// nodes spread evenly, and when a gateway goes only its own nodes move, to
// all others evenly.
func (g *Gateways) Rank(node string) []Gateway {
	type scored struct {
		Gateway
		score uint64
	}
	list := make([]scored, len(g.Gateways))
	for i, gw := range g.Gateways {
		sum := sha256.Sum256([]byte(node + "\x00" + gw.ID))
		list[i] = scored{gw, binary.BigEndian.Uint64(sum[:8])}
	}
	slices.SortFunc(list, func(a, b scored) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.ID, b.ID))
	})
	out := make([]Gateway, len(list))
	for i, s := range list {
		out[i] = s.Gateway
	}
	return out
}

func sign(s Signer, kind string, v any) ([]byte, error) {
	payload, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("document %s: %w", kind, err)
	}
	return s.SignDocument(kind, bytes.TrimSpace(payload))
}
