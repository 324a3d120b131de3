//go:build linux

package host

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cgroupRoot is where every distribution mounts cgroups.
const cgroupRoot = "/sys/fs/cgroup"

func effectiveCapabilities() (uint64, error) {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		}
	}
	return 0, errors.New("/proc/self/status has no CapEff line")
}

func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}

func rootIsInitramfs() (bool, error) {
	// thread-self, not self: that is the main thread, which may have ended in
	// namespaces that a call on a thread of its own had entered.
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return false, err
	}
	defer f.Close()
	last := ""
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 7 || fields[4] != "/" {
			continue
		}
		if i := slices.Index(fields, "-"); i > 0 && i+1 < len(fields) {
			last = fields[i+1]
		}
	}
	return last == "rootfs", nil
}

// usableControllers makes a scratch cgroup and removes it again.
func usableControllers() ([]string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return nil, err
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return controllersV2(cgroupRoot)
	}
	return controllersV1(cgroupRoot)
}

func controllersV2(root string) ([]string, error) {
	data, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	if err := scratchCgroup(root); err != nil {
		return nil, err
	}
	return strings.Fields(string(data)), nil
}

func controllersV1(root string) ([]string, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		path := filepath.Join(root, e.Name())
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil || st.Type != unix.CGROUP_SUPER_MAGIC {
			continue
		}
		if err := scratchCgroup(path); err != nil {
			return nil, err
		}
		out = append(out, strings.Split(e.Name(), ",")...)
	}
	return out, nil
}

func scratchCgroup(root string) error {
	path, err := os.MkdirTemp(root, "edge-preflight-")
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// tryOverlay mounts an overlay in a mount namespace of its own.
func tryOverlay(dir string) error {
	scratch, err := os.MkdirTemp(dir, ".preflight-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(scratch, d), 0o700); err != nil {
			return err
		}
	}
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		data := fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", scratch, scratch, scratch)
		merged := filepath.Join(scratch, "merged")
		if err := unix.Mount("overlay", merged, "overlay", 0, data); err != nil {
			return err
		}
		err := os.WriteFile(filepath.Join(merged, "probe"), nil, 0o600)
		return errors.Join(err, unix.Unmount(merged, 0))
	})
}

// tryInotify opens n inotify instances at once: what is left of the limit can
// only be tried.
func tryInotify(n int) error {
	fds := make([]int, 0, n)
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for range n {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			return fmt.Errorf("number %d: %w", len(fds)+1, err)
		}
		fds = append(fds, fd)
	}
	return nil
}

// networkProbe is what routers and kube-proxy's nftables mode ask of nft.
const networkProbe = `table ip edge_probe {
	set s { type ipv4_addr . inet_proto . inet_service; }
	map m { type ipv4_addr . inet_proto . inet_service : verdict; }
	chain nat { type nat hook postrouting priority srcnat; meta l4proto tcp masquerade fully-random; }
	chain pre { type nat hook prerouting priority dstnat; fib daddr type local numgen random mod 2 vmap { 0 : accept, 1 : accept }; }
	chain through { type filter hook forward priority filter; ct state established,related accept; }
}
`

// tryNetwork makes in a scratch network namespace what a site is made of.
func tryNetwork(ctx context.Context) []Problem {
	var found []Problem
	add := func(what, fix string, err error) {
		found = append(found, Problem{What: fmt.Sprintf("%s: %v", what, err), Fix: fix})
	}
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			add("cannot make a network namespace", "Use a kernel with CONFIG_NET_NS, or leave the container.", err)
			return nil
		}
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		link := func(name string) netlink.LinkAttrs {
			a := netlink.NewLinkAttrs()
			a.Name = name
			return a
		}
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: link("probe-br")}); err != nil {
			add("cannot make a bridge", "Load it with `modprobe bridge`; some distributions have it in the package linux-modules-extra.", err)
		}
		if err := h.LinkAdd(&netlink.Veth{LinkAttrs: link("probe-a"), PeerName: "probe-b"}); err != nil {
			add("cannot make a veth pair", "Load it with `modprobe veth`; some distributions have it in the package linux-modules-extra.", err)
		}
		nft, err := exec.LookPath("nft")
		if err != nil {
			return nil // said by another probe
		}
		cmd := exec.CommandContext(ctx, nft, "-f", "-")
		cmd.Stdin = strings.NewReader(networkProbe)
		if out, err := cmd.CombinedOutput(); err != nil {
			first, _, _ := bytes.Cut(bytes.TrimSpace(out), []byte("\n"))
			add("nftables does not work", "Use a kernel with nf_tables, nft_masq, nft_ct, nft_fib and nft_numgen (`modprobe nf_tables`), and nftables 1.0.1 or later.", fmt.Errorf("%w: %s", err, first))
		}
		return nil
	})
	if err != nil {
		add("cannot try the network", "Run the command again.", err)
	}
	return found
}

// onOwnThread runs fn on a thread that ends with it, with what it unshared.
func onOwnThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		done <- fn()
	}()
	return <-done
}
