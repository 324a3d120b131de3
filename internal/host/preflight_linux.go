//go:build linux

package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// minKernelMajor.minKernelMinor is what kube-proxy's nftables mode asks for.
	minKernelMajor, minKernelMinor = 5, 13
	// minDiskBytes is what a node's images and containers need to start with.
	minDiskBytes = 2 << 30
	// inotifyRoom is how many inotify instances must be free: a node opens 8 to
	// 10 (kubelet, containerd, shims), the control plane beside it about 17, and
	// pods want some. The kernel's default is 128 for each user, all of root's
	// programs together, and who gets none fails late and obscurely.
	inotifyRoom = 24
)

// Machine is what the probes ask. LocalMachine is this one; tests bring others.
type Machine struct {
	// EUID of the process.
	EUID int
	// Capabilities is the effective set, one bit each (capability.h).
	Capabilities uint64
	// KernelRelease as uname says it: "6.1.0-18-amd64".
	KernelRelease string
	// LookPath finds a program.
	LookPath func(name string) (string, error)
	// FreeBytes says how many bytes a user may still write below dir.
	FreeBytes func(dir string) (uint64, error)
	// Cgroups lists the controllers that a new cgroup can use, and makes and
	// removes one to be sure. RootIsInitramfs says that "/" cannot be pivoted.
	Cgroups func() (controllers []string, err error)
	// RootIsInitramfs says that "/" is the kernel's first file system, which
	// pivot_root refuses.
	RootIsInitramfs func() (bool, error)
	// Overlay mounts an overlay whose upper directory is below dir.
	Overlay func(dir string) error
	// Inotify opens n inotify instances at once and closes them.
	Inotify func(n int) error
	// Network makes a bridge, a cable and a rule set in a scratch namespace.
	Network func(ctx context.Context) []Problem
}

// LocalMachine asks this machine.
func LocalMachine() (Machine, error) {
	caps, err := effectiveCapabilities()
	if err != nil {
		return Machine{}, err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Machine{}, err
	}
	return Machine{
		EUID:            os.Geteuid(),
		Capabilities:    caps,
		KernelRelease:   unix.ByteSliceToString(u.Release[:]),
		LookPath:        exec.LookPath,
		FreeBytes:       freeBytes,
		Cgroups:         usableControllers,
		RootIsInitramfs: rootIsInitramfs,
		Overlay:         tryOverlay,
		Inotify:         tryInotify,
		Network:         tryNetwork,
	}, nil
}

// Preflight runs every probe and returns a *PreflightError with all that is
// wrong, or nil. stateDir is where the node's data will be; it must exist.
func Preflight(ctx context.Context, m Machine, stateDir string) error {
	var found []Problem
	add := func(p *Problem) {
		if p != nil {
			found = append(found, *p)
		}
	}
	if p := checkRoot(m); p != nil {
		return &PreflightError{Problems: []Problem{*p}} // every other probe would only repeat it
	}
	add(checkKernel(m))
	add(checkPrograms(m))
	add(checkCgroups(m))
	add(checkRootFS(m))
	add(checkDisk(m, stateDir))
	if err := m.Overlay(stateDir); err != nil {
		add(&Problem{
			What: fmt.Sprintf("overlayfs does not work below %s: %v", stateDir, err),
			Fix:  "Set EDGE_STATE_DIR to a directory on ext4, xfs or btrfs (an overlay, NFS or eCryptfs home cannot carry containers), and see that `modprobe overlay` succeeds.",
		})
	}
	add(checkInotify(m))
	found = append(found, m.Network(ctx)...)
	if len(found) == 0 {
		return nil
	}
	return &PreflightError{Problems: found}
}

func checkRoot(m Machine) *Problem {
	if m.EUID != 0 {
		return &Problem{What: "a local node needs root", Fix: "Run the same command with `sudo`."}
	}
	for _, c := range []struct {
		bit  int
		name string
	}{{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_SYS_CHROOT, "CAP_SYS_CHROOT"}, {unix.CAP_MKNOD, "CAP_MKNOD"}} {
		if m.Capabilities&(1<<c.bit) == 0 {
			return &Problem{
				What: "root lacks the capability " + c.name + " here",
				Fix:  "This looks like a container: start it with `--privileged`, or run on the machine itself.",
			}
		}
	}
	return nil
}

// Capable says whether a capability is in the machine's effective set.
func (m Machine) Capable(bit int) bool { return m.Capabilities&(1<<bit) != 0 }

func checkKernel(m Machine) *Problem {
	major, minor, ok := kernelVersion(m.KernelRelease)
	if ok && (major > minKernelMajor || major == minKernelMajor && minor >= minKernelMinor) {
		return nil
	}
	return &Problem{
		What: fmt.Sprintf("kernel %s is older than %d.%d, which kube-proxy's nftables mode needs", m.KernelRelease, minKernelMajor, minKernelMinor),
		Fix:  "Upgrade the operating system (Debian 12, Ubuntu 22.04 and later have one) and reboot.",
	}
}

// kernelVersion reads the first two numbers of a release.
func kernelVersion(release string) (major, minor int, ok bool) {
	first, rest, found := strings.Cut(release, ".")
	if !found {
		return 0, 0, false
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	major, err1 := strconv.Atoi(first)
	minor, err2 := strconv.Atoi(rest[:end])
	return major, minor, err1 == nil && err2 == nil
}

func checkPrograms(m Machine) *Problem {
	if _, err := m.LookPath("nft"); err != nil {
		return &Problem{
			What: "the program nft is missing: routers and kube-proxy need it",
			Fix:  "Install the package nftables: `apt-get install nftables`, or `dnf install nftables`.",
		}
	}
	return nil
}

// neededControllers are what kubelet refuses to start without.
var neededControllers = []string{"cpu", "cpuset", "memory", "pids"}

func checkCgroups(m Machine) *Problem {
	have, err := m.Cgroups()
	if err != nil {
		return &Problem{
			What: fmt.Sprintf("cgroups cannot be used: %v", err),
			Fix:  "Mount /sys/fs/cgroup read-write (in a container: `--privileged --cgroupns=host`).",
		}
	}
	set := map[string]bool{}
	for _, c := range have {
		set[c] = true
	}
	var missing []string
	for _, c := range neededControllers {
		if !set[c] {
			missing = append(missing, c)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	fix := "Enable them at boot and reboot."
	if !set["memory"] {
		fix = "Add `cgroup_enable=memory` to the kernel's command line (on a Raspberry Pi in /boot/firmware/cmdline.txt) and reboot."
	}
	return &Problem{What: "cgroup controllers are missing: " + strings.Join(missing, ", "), Fix: fix}
}

func checkRootFS(m Machine) *Problem {
	initramfs, err := m.RootIsInitramfs()
	if err != nil {
		return &Problem{What: fmt.Sprintf("cannot read the mount table: %v", err), Fix: "See that /proc is mounted."}
	}
	if !initramfs {
		return nil
	}
	return &Problem{
		What: "this system runs from its initramfs, in which a node cannot get a root directory of its own",
		Fix:  "Boot from a disk image instead.",
	}
}

func checkInotify(m Machine) *Problem {
	err := m.Inotify(inotifyRoom)
	if err == nil {
		return nil
	}
	return &Problem{
		What: fmt.Sprintf("fewer than %d more inotify instances can be opened (fs.inotify.max_user_instances): %v", inotifyRoom, err),
		Fix:  "Type `sudo sysctl fs.inotify.max_user_instances=512`, and put that setting into a file in /etc/sysctl.d to keep it.",
	}
}

func checkDisk(m Machine, dir string) *Problem {
	freeNow, err := m.FreeBytes(dir)
	if err != nil {
		return &Problem{What: fmt.Sprintf("cannot see how much space is left below %s: %v", dir, err), Fix: "See that the directory exists."}
	}
	if freeNow >= minDiskBytes {
		return nil
	}
	return &Problem{
		What: fmt.Sprintf("only %d MiB are free below %s; a node needs %d MiB", freeNow>>20, dir, minDiskBytes>>20),
		Fix:  "Free some space, or set EDGE_STATE_DIR to a directory on a larger disk.",
	}
}
