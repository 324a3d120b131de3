package edgenode

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
)

// Names of programs in Spec.Programs. ProgramCNI is a directory of plugins, the
// others are executables.
const (
	ProgramKubelet    = "kubelet"
	ProgramKubeProxy  = "kube-proxy"
	ProgramContainerd = "containerd"
	ProgramShim       = "containerd-shim-runc-v2"
	ProgramCtr        = "ctr"
	ProgramRunc       = "runc"
	ProgramCoreDNS    = "coredns"
	ProgramCNI        = "cni"
	// ProgramKubectl is for who is at the device. A Spec may lack it: those written
	// before it was fetched with the others do.
	ProgramKubectl = "kubectl"
)

// Programs lists every name a Spec must give a path for.
func Programs() []string {
	return []string{ProgramKubelet, ProgramKubeProxy, ProgramContainerd, ProgramShim, ProgramCtr, ProgramRunc, ProgramCoreDNS, ProgramCNI}
}

// Spec is what a node is told about itself: <node dir>/node.json. It holds no
// secret. Any operating system may write it; only Linux runs it.
type Spec struct {
	// ClusterID as faces show it, "local/<name>-<uid>".
	ClusterID   string `json:"clusterID"`
	ClusterName string `json:"clusterName"`
	// ClusterUID is the cluster's 8 hex characters.
	ClusterUID string `json:"clusterUID"`
	Name       string `json:"name"`
	Pool       string `json:"pool"`
	// KubernetesVersion without a leading v.
	KubernetesVersion string `json:"kubernetesVersion"`
	// Gateways are "host:port". Those of a local node follow from its place.
	Gateways []string `json:"gateways,omitempty"`
	// Programs maps each name of Programs(), and ProgramKubectl, to an absolute path.
	Programs map[string]string `json:"programs"`
	// Images are directories of OCI archives (*.tar) to import; an archive put there
	// later is imported too.
	Images []string `json:"images,omitempty"`
	// PauseImage is the reference under which the sandbox image is imported.
	PauseImage string `json:"pauseImage"`
	// Local places the node on this machine. It is the only placement so far.
	Local *LocalPlacement `json:"local,omitempty"`
	// OwnerUID and OwnerGID own the state directory: files a person may want to
	// read or remove are given to them. What containers wrote stays root's.
	OwnerUID int `json:"ownerUID"`
	OwnerGID int `json:"ownerGID"`
}

// LocalPlacement is a node at its pool's local site.
type LocalPlacement struct {
	// GatewayPort is where the cluster's gateway listens on this machine (UDP and TCP).
	GatewayPort int `json:"gatewayPort"`
	// Address on the site's LAN and Cloud, this machine's end of the site's
	// link: `up` finds them out and keeps them in place.json.
	Address netip.Addr `json:"-"`
	Cloud   netip.Addr `json:"-"`
}

// joinedFile in pki/ is written last of all when a node joins: with it, it has.
const joinedFile = "joined.json"

// Enrolled says whether the node of a node dir has joined its cluster and needs
// no token. A directory that cannot be looked into has not.
func Enrolled(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, pkiDir, joinedFile))
	return err == nil
}

// pkiDir of a node dir holds keys and certificates.
const pkiDir = "pki"

// specFile is the name of the spec in a node dir.
const specFile = "node.json"

var (
	uidForm  = regexp.MustCompile(`^[0-9a-f]{8}$`)
	nameForm = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
)

// Validate names the first thing that is wrong.
func (s *Spec) Validate() error {
	switch {
	case !uidForm.MatchString(s.ClusterUID):
		return fmt.Errorf("cluster uid %q is not 8 lower hex characters", s.ClusterUID)
	case !nameForm.MatchString(s.Name):
		return fmt.Errorf("node name %q is not a DNS label", s.Name)
	case !nameForm.MatchString(s.Pool):
		return fmt.Errorf("pool name %q is not a DNS label", s.Pool)
	case s.ClusterID == "":
		return errors.New("no cluster id")
	case s.PauseImage == "":
		return errors.New("no pause image")
	case s.Local == nil:
		return errors.New("no placement: only local nodes can be run so far")
	case s.Local.GatewayPort < 1 || s.Local.GatewayPort > 65535:
		return fmt.Errorf("gateway port %d is not a port", s.Local.GatewayPort)
	}
	for _, name := range Programs() {
		if !filepath.IsAbs(s.Programs[name]) {
			return fmt.Errorf("path of program %s: %q is not absolute", name, s.Programs[name])
		}
	}
	if path, ok := s.Programs[ProgramKubectl]; ok && !filepath.IsAbs(path) {
		return fmt.Errorf("path of program %s: %q is not absolute", ProgramKubectl, path)
	}
	for _, dir := range s.Images {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("image directory %q is not absolute", dir)
		}
	}
	return nil
}

// ParseSpec reads and checks a spec.
func ParseSpec(data []byte) (*Spec, error) {
	var s Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("node spec: %w", err)
	}
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("node spec: %w", err)
	}
	return &s, nil
}

// LoadSpec reads the spec of a node dir, and the place that `up` has given it.
// Without a spec the error is fs.ErrNotExist.
func LoadSpec(dir string) (*Spec, error) {
	s, _, err := readSpec(dir)
	return s, err
}

// readSpec returns a digest of what it has read too.
func readSpec(dir string) (*Spec, string, error) {
	path := filepath.Join(dir, specFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, "", err
	}
	s, err := ParseSpec(data)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", path, err)
	}
	placed, err := readPlace(dir)
	if err != nil {
		return nil, "", err
	}
	placed.fill(s)
	sum := sha256.Sum256(fmt.Appendf(data, "\x00%v", placed))
	return s, hex.EncodeToString(sum[:8]), nil
}

// WriteSpec puts the spec into a node dir, which it makes if need be. A reader
// sees the old one or the new one. Only who decides on the node writes it; what
// `up` finds out is in a file of its own, so that neither undoes the other.
func WriteSpec(dir string, s *Spec) error {
	if err := s.Validate(); err != nil {
		return fmt.Errorf("node spec of %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return writeJSON(filepath.Join(dir, specFile), s)
}

// place is where a local node is at its site, <node dir>/place.json. It holds for
// one pool of one cluster.
type place struct {
	ClusterUID string     `json:"clusterUID"`
	Pool       string     `json:"pool"`
	Address    netip.Addr `json:"address"`
	Cloud      netip.Addr `json:"cloud"`
}

// placeFile is the name of the place in a node dir.
const placeFile = "place.json"

// readPlace returns the zero place if there is none.
func readPlace(dir string) (place, error) {
	path := filepath.Join(dir, placeFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return place{}, nil
	}
	if err != nil {
		return place{}, err
	}
	p, err := parsePlace(data)
	if err != nil {
		return place{}, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

func parsePlace(data []byte) (place, error) {
	var p place
	if err := json.Unmarshal(data, &p); err != nil {
		return place{}, fmt.Errorf("node's place: %w", err)
	}
	if !p.Address.Is4() || !p.Cloud.Is4() {
		return place{}, fmt.Errorf("node's place: %q and %q are not two IPv4 addresses", p.Address, p.Cloud)
	}
	return p, nil
}

// fill puts a place into the spec that it is of.
func (p place) fill(s *Spec) {
	if p.ClusterUID != s.ClusterUID || p.Pool != s.Pool {
		return
	}
	s.Local.Address, s.Local.Cloud = p.Address, p.Cloud
	s.Gateways = []string{net.JoinHostPort(p.Cloud.String(), strconv.Itoa(s.Local.GatewayPort))}
}

// writeJSON replaces a file with the indented JSON of v.
func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(data, '\n'), 0o600)
}

func removeFile(path string) error { return ignoreMissing(os.Remove(path)) }

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// writeFile replaces a file in one step.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}
