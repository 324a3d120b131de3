//go:build linux

package edgenode

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// enterRootOf puts the calling thread into the mount and UTS namespaces of a
// process of the node, and shows there what plan wants and was not there when
// that root was made: another version of the daemon or of a program.
func enterRootOf(pid int, plan rootPlan) error {
	held, err := takeHold(plan.paths)
	defer func() {
		for _, d := range held {
			unix.Close(d.tree)
		}
	}()
	if err != nil {
		return err
	}
	kinds := []struct {
		name string
		flag int
	}{{"uts", unix.CLONE_NEWUTS}, {"mnt", unix.CLONE_NEWNS}}
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, k := range kinds {
		path := fmt.Sprintf("/proc/%d/ns/%s", pid, k.name)
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open namespace %s: %w", path, err)
		}
		fds = append(fds, fd)
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	for i, k := range kinds {
		if err := unix.Setns(fds[i], k.flag); err != nil {
			return fmt.Errorf("enter the %s namespace of process %d: %w", k.name, pid, err)
		}
	}
	for _, d := range held {
		if err := d.attach(); err != nil {
			return fmt.Errorf("show %s to the node: %w", d.path, err)
		}
	}
	return nil
}

// shown is a file or directory of the machine on its way into a node's root.
type shown struct {
	path string
	tree int // a mount of it that is attached nowhere yet
	stat unix.Stat_t
}

// takeHold takes hold of files and directories of the machine, read-only.
func takeHold(paths []string) ([]shown, error) {
	var out []shown
	for _, path := range paths {
		if shownAlready(path) {
			continue
		}
		d := shown{path: path}
		if err := unix.Stat(path, &d.stat); err != nil {
			return out, fmt.Errorf("%s: %w", path, err)
		}
		var err error
		if d.tree, err = unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
			return out, fmt.Errorf("take hold of %s: %w", path, err)
		}
		out = append(out, d)
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(d.tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
			return out, fmt.Errorf("make %s read-only: %w", path, err)
		}
	}
	return out, nil
}

// attach mounts it at its own path in the namespace of the calling
// thread, unless it is there already.
func (d *shown) attach() error {
	var have unix.Stat_t
	err := unix.Stat(d.path, &have)
	if err == nil && have.Dev == d.stat.Dev && have.Ino == d.stat.Ino {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeMountPoint(d.path, d.stat.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return err
	}
	return unix.MoveMount(d.tree, "", unix.AT_FDCWD, d.path, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
