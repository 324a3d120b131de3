//go:build linux

package host

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// ablest is a machine that passes every probe.
func ablest() Machine {
	return Machine{
		Capabilities:    ^uint64(0),
		KernelRelease:   "6.1.0-18-amd64",
		LookPath:        func(n string) (string, error) { return "/usr/sbin/" + n, nil },
		FreeBytes:       func(string) (uint64, error) { return 100 << 30, nil },
		Cgroups:         func() ([]string, error) { return []string{"cpuset", "cpu", "io", "memory", "pids"}, nil },
		RootIsInitramfs: func() (bool, error) { return false, nil },
		Overlay:         func(string) error { return nil },
		Inotify:         func(int) error { return nil },
		Network:         func(context.Context) []Problem { return nil },
	}
}

func TestPreflight(t *testing.T) {
	tests := map[string]struct {
		change func(*Machine)
		want   []string // each in the error; none: it passes
	}{
		"able":         {func(*Machine) {}, nil},
		"no root":      {func(m *Machine) { m.EUID = 1000 }, []string{"needs root", "sudo"}},
		"no net admin": {func(m *Machine) { m.Capabilities &^= 1 << 12 }, []string{"CAP_NET_ADMIN", "--privileged"}},
		"old kernel":   {func(m *Machine) { m.KernelRelease = "5.10.0-28-amd64" }, []string{"5.10.0-28-amd64", "5.13"}},
		"odd kernel":   {func(m *Machine) { m.KernelRelease = "weird" }, []string{"weird"}},
		"new kernel":   {func(m *Machine) { m.KernelRelease = "7.0-rc1" }, nil},
		"no nft":       {func(m *Machine) { m.LookPath = func(string) (string, error) { return "", exec.ErrNotFound } }, []string{"nft", "apt-get install nftables"}},
		"no memory controller": {func(m *Machine) {
			m.Cgroups = func() ([]string, error) { return []string{"cpu", "cpuset", "pids"}, nil }
		}, []string{"controllers are missing: memory", "cgroup_enable=memory"}},
		"cgroups read-only": {func(m *Machine) {
			m.Cgroups = func() ([]string, error) { return nil, os.ErrPermission }
		}, []string{"cgroups cannot be used", "--privileged"}},
		"little disk": {func(m *Machine) {
			m.FreeBytes = func(string) (uint64, error) { return 1 << 30, nil }
		}, []string{"1024 MiB", "2048 MiB", "EDGE_STATE_DIR"}},
		"initramfs":  {func(m *Machine) { m.RootIsInitramfs = func() (bool, error) { return true, nil } }, []string{"initramfs"}},
		"no overlay": {func(m *Machine) { m.Overlay = func(string) error { return errors.New("no such device") } }, []string{"overlayfs", "no such device", "modprobe overlay"}},
		"no inotify": {func(m *Machine) { m.Inotify = func(int) error { return unix.EMFILE } }, []string{"too many open files", "sudo sysctl fs.inotify.max_user_instances=512"}},
		"two at once": {func(m *Machine) {
			m.KernelRelease = "4.19.0"
			m.Network = func(context.Context) []Problem { return []Problem{{What: "cannot make a bridge: x", Fix: "Load it."}} }
		}, []string{"2 reasons", "4.19.0", "bridge"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := ablest()
			tt.change(&m)
			err := Preflight(t.Context(), m, "/state")
			if len(tt.want) == 0 {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if err == nil {
				t.Fatal("passes")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error does not say %q: %v", w, err)
				}
			}
		})
	}
}

// TestLocalMachine runs the real probes. They must leave nothing behind, and on
// a machine that is meant to run these tests they find nothing wrong.
func TestLocalMachine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	m, err := LocalMachine()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := Preflight(t.Context(), m, dir); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("the probes left %v (%v)", left, err)
	}
}

func TestRootAccess(t *testing.T) {
	if err := RootAccess(t.Context(), 0); err != nil {
		t.Errorf("root is refused: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	err := RootAccess(t.Context(), 1000)
	if err == nil || !strings.Contains(err.Error(), "there is no sudo") {
		t.Errorf("without sudo: %v", err)
	}
}
