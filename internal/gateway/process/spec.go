package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/signed"
)

// Names in a gateway's directory.
const (
	SpecFile     = "gateway.json"
	CAFile       = "ca.crt"
	CertFile     = "gateway.crt"
	KeyFile      = "gateway.key"
	ClientCert   = "client.crt"
	ClientKey    = "client.key"
	GatewaysFile = "gateways.signed"
	// AdminSocket serves metrics and sessions to whoever may open it (0600).
	AdminSocket = "admin.sock"
)

// DefaultDrain is how long carried connections may go on after SIGTERM: longer
// than nearly every exec session or copy.
const DefaultDrain = 15 * time.Minute

// Spec is what a gateway process is told. It holds no secret.
type Spec struct {
	// ID is which gateway of the list this is.
	ID string `json:"id"`
	// Listen is the address, of UDP and of TCP, nodes and other gateways reach: "host:port" or
	// ":port".
	Listen string `json:"listen"`
	// Egress is the path of the apiserver's egress socket; relative to the
	// directory. Empty: none, for a gateway beside no apiserver.
	Egress string `json:"egress,omitempty"`
	// APIServer is the "host:port" that nodes' connections to the API go to.
	APIServer string `json:"apiServer"`
	// APIServerURL is where this process itself reads the API.
	APIServerURL string `json:"apiServerURL"`
	// Cluster is what a joining device is told. Without it this gateway takes no
	// new devices.
	Cluster *enroll.Cluster `json:"cluster,omitempty"`
	// Ranges are the cluster's pod and service ranges: nothing in them is dialled
	// outside of the tunnel.
	Ranges []netip.Prefix `json:"ranges"`
	// Drain bounds the end of the process, in seconds; 0: DefaultDrain.
	DrainSeconds int `json:"drainSeconds,omitempty"`
}

// Drain is DrainSeconds or the default.
func (s *Spec) Drain() time.Duration {
	if s.DrainSeconds > 0 {
		return time.Duration(s.DrainSeconds) * time.Second
	}
	return DefaultDrain
}

// Check names the first thing that is wrong.
func (s *Spec) Check() error {
	if err := signed.CheckID(s.ID); err != nil {
		return err
	}
	for name, addr := range map[string]string{"listen": s.Listen, "apiServer": s.APIServer} {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	switch {
	case s.APIServerURL == "":
		return errors.New("no apiServerURL")
	case len(s.Ranges) == 0:
		return errors.New("no ranges")
	case s.DrainSeconds < 0:
		return fmt.Errorf("drainSeconds %d is below zero", s.DrainSeconds)
	}
	for _, r := range s.Ranges {
		if !r.IsValid() {
			return errors.New("a range that is none")
		}
	}
	return nil
}

// ParseSpec reads and checks a spec.
func ParseSpec(raw []byte) (*Spec, error) {
	s := &Spec{}
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("gateway spec: %w", err)
	}
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("gateway spec: %w", err)
	}
	return s, nil
}

// LoadSpec reads the spec of a gateway's directory.
func LoadSpec(dir string) (*Spec, error) {
	path := filepath.Join(dir, SpecFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the gateway's spec: %w", err)
	}
	s, err := ParseSpec(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}
