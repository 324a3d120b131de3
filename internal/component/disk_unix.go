//go:build unix

package component

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// freeSpace returns the bytes a user may still write to the file system of path,
// and a name for that file system.
func freeSpace(path string) (free uint64, fsName string, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, "", fmt.Errorf("statfs %s: %w", path, err)
	}
	var info unix.Stat_t
	if err := unix.Stat(path, &info); err != nil {
		return 0, "", fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Bavail * uint64(st.Bsize), fmt.Sprint(info.Dev), nil
}
