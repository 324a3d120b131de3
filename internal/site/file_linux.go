//go:build linux

package site

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

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
	data, err := readPlain(s.recordPath())
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

// maxRecordBytes bounds what is read as a record: the largest, a LAN full of
// nodes, has some 30 KiB.
const maxRecordBytes = 1 << 20

// readPlain reads a file that is no link.
func readPlain(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxRecordBytes))
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
	// A name nobody can foresee, and never one that is there: root writes into a
	// user's directory.
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+s.o.Pool+".*") // 0600
	if err != nil {
		return fmt.Errorf("site record %s: %w", path, err)
	}
	_, err = tmp.Write(append(data, '\n'))
	err = errors.Join(err, s.giveToOwner(tmp), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("site record %s: %w", path, errors.Join(err, os.Remove(tmp.Name())))
	}
	return nil
}

// giveToOwner makes a file belong to who owns the cluster dir: nodes need root,
// but the state directory stays the user's.
func (s *Site) giveToOwner(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Lstat(s.o.ClusterDir, &st); err != nil {
		return fmt.Errorf("owner of %s: %w", s.o.ClusterDir, err)
	}
	return f.Chown(int(st.Uid), int(st.Gid))
}

// checkDirs refuses a cluster dir or sites/ in which somebody else than its
// owner could put a link in the way of root.
func (s *Site) checkDirs() error {
	var cluster, sites unix.Stat_t
	if err := unix.Lstat(s.o.ClusterDir, &cluster); err != nil {
		return fmt.Errorf("%s: %w", s.o.ClusterDir, err)
	}
	dir := filepath.Join(s.o.ClusterDir, sitesDir)
	if err := unix.Lstat(dir, &sites); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	for path, st := range map[string]*unix.Stat_t{s.o.ClusterDir: &cluster, dir: &sites} {
		switch {
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return fmt.Errorf("%s is not a directory", path)
		case st.Mode&0o022 != 0:
			return fmt.Errorf("%s may be written by others than its owner: `chmod go-w %s`", path, path)
		case st.Uid != 0 && st.Uid != cluster.Uid:
			return fmt.Errorf("%s belongs to user %d, and %s to user %d", path, st.Uid, s.o.ClusterDir, cluster.Uid)
		}
	}
	return nil
}

// makeDir makes sites/ below the cluster dir, for its owner.
func (s *Site) makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(s.giveToOwner(f), f.Close())
}

// lock holds the site against other processes until the returned function is
// called. It waits for them as long as ctx lasts.
func (s *Site) lock(ctx context.Context) (func(), error) {
	dir := filepath.Join(s.o.ClusterDir, sitesDir)
	if err := errors.Join(s.makeDir(dir), s.checkDirs()); err != nil {
		return nil, fmt.Errorf("site %s: %w", s.o.Pool, err)
	}
	path := filepath.Join(dir, s.o.Pool+".lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock site %s: %w", s.o.Pool, err)
	}
	if err := s.giveToOwner(f); err != nil {
		f.Close()
		return nil, err
	}
	return flock(ctx, f)
}

// lockMachine holds this machine's address plan against other clusters. The
// lock is on the directory of the namespaces, so that it leaves no file behind.
func lockMachine(ctx context.Context) (func(), error) {
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(namespaceDir)
	if err != nil {
		return nil, err
	}
	return flock(ctx, f)
}

// lockPoll is how often a lock is tried that another holds: whoever holds it
// needs a tenth of a second, and a wait in the kernel would not end with ctx.
const lockPoll = 20 * time.Millisecond

// flock takes over f; the returned function, or an error, closes it.
func flock(ctx context.Context, f *os.File) (func(), error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("another command holds %s: %w", f.Name(), context.Cause(ctx))
		case <-time.After(lockPoll):
		}
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
