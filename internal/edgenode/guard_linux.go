//go:build linux

package edgenode

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// nodesDir below a cluster dir holds its node dirs.
const nodesDir = "nodes"

// sitesDir below a cluster dir is internal/site's.
const sitesDir = "sites"

// locate returns a node dir without symbolic links above the state directory
// (inside of the node's root there are none, and both must speak of the same
// path). Below it there must be none: checkTree sees to that.
func locate(dir string) string {
	state := stateDir(filepath.Clean(dir))
	below, err := filepath.Rel(state, filepath.Clean(dir))
	if err != nil {
		return filepath.Clean(dir)
	}
	if real, err := filepath.EvalSymlinks(state); err == nil {
		return filepath.Join(real, below)
	}
	return filepath.Clean(dir)
}

// stateDir of a node dir <state dir>/clusters/<cluster>/nodes/<node>.
func stateDir(dir string) string { return filepath.Dir(filepath.Dir(clusterDir(dir))) }

// clusterDir of a node dir <cluster dir>/nodes/<node>.
func clusterDir(dir string) string { return filepath.Dir(filepath.Dir(dir)) }

// checkTree says whose the directories of a node are, from the state directory
// down, and refuses those in which anybody but root and that one user could put
// something in root's way: root makes, changes, mounts on and removes files
// there. After it, nobody else can exchange what was looked at. Parts that are
// missing are made later, by root. sudoUID is SUDO_UID of the environment: the
// user who asks root for it must be that one user.
func checkTree(dir, sudoUID string) (owner int, err error) {
	if filepath.Base(filepath.Dir(dir)) != nodesDir {
		return 0, fmt.Errorf("%s is not a node's directory: the path must end in %s/<node>", dir, nodesDir)
	}
	cluster := clusterDir(dir)
	parts := []string{
		stateDir(dir), filepath.Dir(cluster), cluster, filepath.Join(cluster, sitesDir), filepath.Join(cluster, nodesDir), dir,
	}
	for _, d := range []string{pkiDir, runDir, filepath.Join(runDir, runtimeGroup), filepath.Join(runDir, componentGroup), logsDir, confDir, dataDir} {
		parts = append(parts, filepath.Join(dir, d))
	}
	for _, part := range parts {
		var st unix.Stat_t
		err := unix.Lstat(part, &st)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w", part, err)
		}
		switch uid := int(st.Uid); {
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return 0, fmt.Errorf("%s is not a directory, and root follows no link there", part)
		case st.Mode&0o022 != 0:
			return 0, &NextError{
				Err:  fmt.Errorf("%s may be written by others than its owner", part),
				Next: "Type `chmod go-w " + part + "` and run the same command again.",
			}
		case uid == 0:
		case owner == 0:
			owner = uid
		case uid != owner:
			return 0, fmt.Errorf("%s belongs to user %d and a directory above or beside it to user %d: root works for one user at a time", part, uid, owner)
		}
	}
	if owner == 0 || sudoUID == "" || sudoUID == "0" || sudoUID == strconv.Itoa(owner) {
		return owner, nil
	}
	return 0, &NextError{
		Err:  fmt.Errorf("%s belongs to user %d, and user %s asks for it", dir, owner, sudoUID),
		Next: "Run the command as the user who owns the state directory.",
	}
}

// sudoUID is who became root by sudo; empty for who is root otherwise.
func sudoUID() string { return os.Getenv("SUDO_UID") }

// checkOwner refuses a spec that hands root's files to somebody else than the
// owner of its directory.
func checkOwner(s *Spec, dir string, owner int) error {
	if filepath.Base(dir) != s.Name {
		return fmt.Errorf("directory %s belongs to node %q: the last part of its path must be the node's name", dir, s.Name)
	}
	if owner != 0 && s.OwnerUID != 0 && s.OwnerUID != owner {
		return fmt.Errorf("the spec of node %s names user %d as owner, and %s belongs to user %d", s.Name, s.OwnerUID, dir, owner)
	}
	return nil
}
