package edgenode

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
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
	// Gateways are "host:port". For a local node `up` fills them in.
	Gateways []string `json:"gateways,omitempty"`
	// Programs maps each name of Programs() to an absolute path.
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
	// GatewayPort is where the cluster's gateway listens on this machine (UDP).
	GatewayPort int `json:"gatewayPort"`
	// Address on the site's LAN and Cloud, this machine's end of the site's
	// link. `up` fills them in.
	Address netip.Addr `json:"address,omitzero"`
	Cloud   netip.Addr `json:"cloud,omitzero"`
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

// LoadSpec reads the spec of a node dir. Without one the error is fs.ErrNotExist.
func LoadSpec(dir string) (*Spec, error) {
	path := filepath.Join(dir, specFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s, err := ParseSpec(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// WriteSpec puts the spec into a node dir, which it makes if need be. A reader
// sees the old one or the new one. What `up` has filled in is kept where s
// leaves it open, so that a daemon that starts meanwhile still finds its gateway.
func WriteSpec(dir string, s *Spec) error {
	if err := s.Validate(); err != nil {
		return fmt.Errorf("node spec of %s: %w", dir, err)
	}
	if have, err := LoadSpec(dir); err == nil && have.ClusterUID == s.ClusterUID && have.Pool == s.Pool &&
		!s.Local.Cloud.IsValid() && have.Local.GatewayPort == s.Local.GatewayPort {
		filled, local := *s, *s.Local
		local.Address, local.Cloud = have.Local.Address, have.Local.Cloud
		filled.Local, filled.Gateways = &local, have.Gateways
		s = &filled
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return writeJSON(filepath.Join(dir, specFile), s)
}

// writeJSON replaces a file with the indented JSON of v.
func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(data, '\n'), 0o600)
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
