package component

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/windows"
)

// freeSpace returns the bytes a user may still write to the volume of path, and
// the volume's name.
func freeSpace(path string) (free uint64, fsName string, err error) {
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, "", fmt.Errorf("free space of %s: %w", path, err)
	}
	if err := windows.GetDiskFreeSpaceEx(p, &free, nil, nil); err != nil {
		return 0, "", fmt.Errorf("free space of %s: %w", path, err)
	}
	return free, filepath.VolumeName(path), nil
}
