//go:build linux

package site

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// record is what a site remembers: <cluster dir>/sites/<pool>.json. It outlives
// the site itself, so that a node finds its address again after a reboot.
type record struct {
	Pool  string                 `json:"pool"`
	WAN   netip.Prefix           `json:"wan"`
	Nodes map[string]*nodeRecord `json:"nodes"`
	// Cut of the whole site holds while BootID is this boot's.
	Cut    bool   `json:"cut,omitempty"`
	BootID string `json:"bootID,omitempty"`
}

// nodeRecord is a node's place on the LAN.
type nodeRecord struct {
	Address netip.Addr `json:"address"`
	// Attached says that the node should have its namespace now.
	Attached bool `json:"attached"`
	// Cut holds while the record's BootID is this boot's.
	Cut bool `json:"cut,omitempty"`
}

func (r *record) attached() int {
	n := 0
	for _, node := range r.Nodes {
		if node.Attached {
			n++
		}
	}
	return n
}

// forgetCuts drops cuts made before this boot: a reboot restores links.
func (r *record) forgetCuts(bootID string) {
	if r.BootID == bootID {
		return
	}
	r.BootID, r.Cut = bootID, false
	for _, n := range r.Nodes {
		n.Cut = false
	}
}

func (s *Site) recordPath() string {
	return filepath.Join(s.o.ClusterDir, sitesDir, s.o.Pool+".json")
}

// sitesDir below the cluster dir holds a record and a lock for each pool.
const sitesDir = "sites"

// parseRecord reads a record, and refuses addresses outside of the plan: they
// go into firewall rules and routes.
func parseRecord(data []byte) (*record, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, err
	}
	if r.WAN.IsValid() && (r.WAN.Bits() != wanBits || !wanRange.Contains(r.WAN.Addr()) || r.WAN != r.WAN.Masked()) {
		return nil, fmt.Errorf("link %s is not a /%d of %s", r.WAN, wanBits, wanRange)
	}
	for name, n := range r.Nodes {
		if n == nil || !nameForm.MatchString(name) || !lanRange.Contains(n.Address) || n.Address == lanRouter {
			return nil, fmt.Errorf("node %q has no address of %s", name, lanRange)
		}
	}
	if r.Nodes == nil {
		r.Nodes = map[string]*nodeRecord{}
	}
	return &r, nil
}

// load returns the site's record, an empty one if there is none.
func (s *Site) load() (*record, error) {
	data, err := os.ReadFile(s.recordPath())
	if errors.Is(err, fs.ErrNotExist) {
		return &record{Pool: s.o.Pool, Nodes: map[string]*nodeRecord{}, BootID: s.bootID}, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := parseRecord(data)
	if err != nil {
		return nil, fmt.Errorf("site record %s: %w; remove the file if it was damaged, nodes may then get other addresses", s.recordPath(), err)
	}
	r.Pool = s.o.Pool
	r.forgetCuts(s.bootID)
	return r, nil
}

// save writes the record, or removes it when it holds nothing any more.
func (s *Site) save(r *record) error {
	path := s.recordPath()
	if len(r.Nodes) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return err
	}
	if err := s.giveToOwner(tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// giveToOwner makes a file belong to who owns the cluster dir: nodes need root,
// but the state directory stays the user's.
func (s *Site) giveToOwner(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(s.o.ClusterDir, &st); err != nil {
		return fmt.Errorf("owner of %s: %w", s.o.ClusterDir, err)
	}
	return os.Lchown(path, int(st.Uid), int(st.Gid))
}

// lock holds the site against other processes until the returned function is
// called.
func (s *Site) lock() (func(), error) {
	dir := filepath.Join(s.o.ClusterDir, sitesDir)
	if err := os.Mkdir(dir, 0o700); err == nil {
		if err := s.giveToOwner(dir); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("site %s: %w", s.o.Pool, err)
	}
	path := filepath.Join(dir, s.o.Pool+".lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock site %s: %w", s.o.Pool, err)
	}
	if err := s.giveToOwner(path); err != nil {
		f.Close()
		return nil, err
	}
	return flock(f)
}

// lockMachine holds this machine's address plan against other clusters. The
// lock is on the directory of the namespaces, so that it leaves no file behind.
func lockMachine() (func(), error) {
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(namespaceDir)
	if err != nil {
		return nil, err
	}
	return flock(f)
}

func flock(f *os.File) (func(), error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		return func() { f.Close() }, nil
	}
}

// remembered are the links that the cluster's other sites hold or will hold
// again once they are started.
func (s *Site) remembered() ([]netip.Prefix, error) {
	pools, err := pools(s.o.ClusterDir)
	if err != nil {
		return nil, err
	}
	var links []netip.Prefix
	for _, p := range pools {
		if p == s.o.Pool {
			continue
		}
		other := &Site{o: Options{ClusterDir: s.o.ClusterDir, ClusterUID: s.o.ClusterUID, Pool: p}, bootID: s.bootID}
		r, err := other.load()
		if err != nil {
			return nil, err
		}
		if r.WAN.IsValid() {
			links = append(links, r.WAN)
		}
	}
	return links, nil
}

// pools lists the pools of a cluster that have a site record.
func pools(clusterDir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(clusterDir, sitesDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok && nameForm.MatchString(name) {
			out = append(out, name)
		}
	}
	return out, nil
}
