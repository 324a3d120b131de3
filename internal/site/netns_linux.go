//go:build linux

package site

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespaceDir is where iproute2 and everybody else keep named network
// namespaces, so that `ip netns list` shows ours too.
const namespaceDir = "/run/netns"

// NamespacePath is the file that holds a named network namespace.
func NamespacePath(name string) string { return filepath.Join(namespaceDir, name) }

// namespaceExists says whether a namespace of that name is there. A plain file
// of that name, which a reboot may leave where /run is on disk, is not one.
func namespaceExists(name string) (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(NamespacePath(name), &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look at network namespace %s: %w", name, err)
	}
	return st.Type == unix.NSFS_MAGIC, nil
}

// createNamespace makes a named network namespace if it is not there.
func createNamespace(name string) error {
	there, err := namespaceExists(name)
	if err != nil || there {
		return err
	}
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		return err
	}
	path := NamespacePath(name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("make network namespace %s: %w", name, err)
	}
	f.Close()
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	if err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return nil
}

// deleteNamespace lets go of a named network namespace. What is left in it goes
// when its last process does.
func deleteNamespace(name string) error {
	path := NamespacePath(name)
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // not mounted (any more)
		}
		if err != nil {
			return fmt.Errorf("remove network namespace %s: %w", name, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	return nil
}

// In runs fn on a thread of its own inside a named network namespace. Processes
// that fn starts are born in it; goroutines that fn starts are not.
func In(name string, fn func() error) error {
	ns, err := os.Open(NamespacePath(name))
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", name, err)
	}
	defer ns.Close()
	return onOwnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", name, err)
		}
		return fn()
	})
}

// onOwnThread runs fn on a thread that ends with it, so that no other goroutine
// ever runs in the namespaces that fn entered.
func onOwnThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		done <- fn()
	}()
	return <-done
}
