package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// stateDir is the directory that holds what this machine and user know of
// clusters. Only the engine and the daemons it starts write below it.
//
//	bin/<sha>/edge, bin/edge     the edge program that daemons run
//	images/                      archives that local nodes import
//	clusters/.lock               held while a cluster is found, recorded or removed
//	clusters/.destroyed/<name>-<uid8>  tombstones
//	clusters/<name>-<uid8>/      one cluster: cluster.json (record) and what the daemons keep
type stateDir struct{ root string }

func (s stateDir) clusters() string { return filepath.Join(s.root, "clusters") }
func (s stateDir) bin(elem ...string) string {
	return filepath.Join(append([]string{s.root, "bin"}, elem...)...)
}
func (s stateDir) images() string { return filepath.Join(s.root, "images") }

// dir is the directory of a cluster.
func (s stateDir) dir(id clusterID) string {
	return filepath.Join(s.clusters(), id.Name+"-"+id.UID)
}

// clusterID is a parsed cluster id: <placement>/<name>-<uid8>[@seed]. The seed
// is a hint where to look and never compared.
type clusterID struct{ Placement, Name, UID, Seed string }

var clusterIDPattern = regexp.MustCompile(`^(local|ssh|existing)/([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)-([0-9a-f]{8})(?:@(.+))?$`)

// parseClusterID reads an id; the error says what one looks like.
func parseClusterID(id string) (clusterID, error) {
	m := clusterIDPattern.FindStringSubmatch(id)
	if m == nil || len(id) > 512 {
		return clusterID{}, fmt.Errorf("%q is not a cluster id: it looks like local/<name>-<eight hexadecimal digits>", id)
	}
	return clusterID{m[1], m[2], m[3], m[4]}, nil
}

// String returns the id without its seed: what ids are compared by.
func (c clusterID) String() string { return c.Placement + "/" + c.Name + "-" + c.UID }

// Phases of a cluster's record. Every phase but ready is unfinished.
const (
	phaseCreated      = "created"       // id recorded, nothing made
	phaseComponents   = "components"    // programs being fetched or built
	phaseControlPlane = "control-plane" // daemon being started
	phaseDeclare      = "declare"       // the spec being put into the cluster
	phaseReady        = "ready"
	phaseDestroying   = "destroying"
)

// record is cluster.json: the journal of one cluster.
type record struct {
	ID            string      `json:"id"`
	UID           string      `json:"uid"`
	Spec          ClusterSpec `json:"spec"`
	Phase         string      `json:"phase"`
	EngineVersion string      `json:"engineVersion"`
	CreatedAt     time.Time   `json:"createdAt"`
}

func (r *record) finished() bool { return r.Phase == phaseReady }

// status is what faces show for the record alone, before the daemon is asked.
func (r *record) status() string {
	if r.finished() {
		return StatusReady
	}
	return StatusIncompletePrefix + r.Phase
}

// tombstone is the file that says that this state directory's cluster was
// destroyed: the only proof on which an id is called gone.
func (s stateDir) tombstone(id clusterID) string {
	return filepath.Join(s.clusters(), ".destroyed", id.Name+"-"+id.UID)
}

func (s stateDir) destroyed(id clusterID) bool {
	_, err := os.Stat(s.tombstone(id))
	return err == nil
}

// bury removes a cluster's directory and leaves its tombstone.
func (s stateDir) bury(id clusterID, now time.Time) error {
	stone := s.tombstone(id)
	if err := os.MkdirAll(filepath.Dir(stone), 0o700); err != nil {
		return fmt.Errorf("remember that cluster %s is destroyed: %w", id, err)
	}
	if err := writeJSON(stone, map[string]any{"id": id.String(), "destroyedAt": now.UTC()}); err != nil {
		return err
	}
	if err := os.RemoveAll(s.dir(id)); err != nil {
		return fmt.Errorf("remove the directory of cluster %s: %w", id, err)
	}
	return nil
}

func newUID() (string, error) {
	b := make([]byte, 4)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("make an identifier: %w", err)
	}
	return hex.EncodeToString(b), nil
}

// lock holds the state directory's lock until the returned function is called.
func (s stateDir) lock(ctx context.Context) (func(), error) {
	if err := os.MkdirAll(s.clusters(), 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w; set EDGE_STATE_DIR to a directory you may write", err)
	}
	path := filepath.Join(s.clusters(), ".lock")
	l := flock.New(path, flock.SetPermissions(0o600))
	ok, err := l.TryLockContext(ctx, 50*time.Millisecond)
	if err != nil || !ok {
		return nil, fmt.Errorf("lock the state directory %s: %w", s.root, err)
	}
	return func() { _ = l.Close() }, nil // closing releases; there is nothing to do about a failed close
}

// load reads a cluster's record; fs.ErrNotExist where there is none.
func (s stateDir) load(id clusterID) (*record, error) {
	return readRecord(filepath.Join(s.dir(id), "cluster.json"))
}

func readRecord(path string) (*record, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("record %s is damaged: %w", path, err)
	}
	return r, nil
}

// save writes a cluster's record so that it is on disk when save returns.
func (s stateDir) save(r *record) error {
	id, err := parseClusterID(r.ID)
	if err != nil {
		return err
	}
	dir := s.dir(id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the cluster's directory: %w", err)
	}
	return writeJSON(filepath.Join(dir, "cluster.json"), r)
}

// list returns every record of the state directory, by id. A directory without
// a readable record is an error with the others: a cluster is never skipped in
// silence.
func (s stateDir) list() ([]*record, error) {
	entries, err := os.ReadDir(s.clusters())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list clusters: %w", err)
	}
	var records []*record
	var errs []error
	for _, entry := range entries {
		if !entry.IsDir() || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		r, err := readRecord(filepath.Join(s.clusters(), entry.Name(), "cluster.json"))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // a directory whose cluster was never recorded, or is gone
		case err != nil:
			errs = append(errs, err)
		default:
			records = append(records, r)
		}
	}
	slices.SortFunc(records, func(a, b *record) int { return strings.Compare(a.ID, b.ID) })
	return records, errors.Join(errs...)
}

// byName returns the record of a cluster of that name, or nil.
func (s stateDir) byName(name string) (*record, error) {
	records, err := s.list()
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		if r.Spec.Name == name {
			return r, nil
		}
	}
	return nil, nil
}

func writeJSON(path string, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(append(raw, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}

func appendJSONLine(path string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(raw, '\n'))
	return errors.Join(err, f.Close())
}
