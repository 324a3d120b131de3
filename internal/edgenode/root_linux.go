//go:build linux

package edgenode

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// rootPlan is what a node's root directory is made of.
type rootPlan struct {
	node, uid string
	dir       string // the node dir
	// paths are further files and directories of the machine that the node
	// reads: programs, images, the edge program itself.
	paths []string
	// etc holds small files of /etc by name.
	etc map[string]string
	// resolvers are what resolverDirs says.
	resolvers []string
	// sysctls are kernel settings that kubelet insists on; see maskSysctls.
	sysctls map[string]string
}

// identityFile tells a node's mount namespace from every other: processes whose
// root holds it, with the node's identity, are in that namespace.
const identityFile = "/run/edge/node"

func nodeIdentity(uid, node string) string { return uid + "/" + node + "\n" }

// kubeletSysctls are what kubelet writes at start unless they hold already
// (pkg/kubelet/cm/container_manager_linux.go). They belong to the machine.
var kubeletSysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// planRoot looks at the machine and decides what a node's root is made of.
func planRoot(s *Spec, dir, edge string) (rootPlan, error) {
	p := rootPlan{node: s.Name, uid: s.ClusterUID, dir: dir, sysctls: map[string]string{}}
	paths := append([]string{edge}, s.Images...)
	for _, name := range Programs() {
		paths = append(paths, s.Programs[name])
	}
	for _, path := range paths {
		st, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(s.Images, path) {
			continue // nothing was ever put there
		}
		if err != nil {
			return p, fmt.Errorf("show %s to node %s: %w", path, s.Name, err)
		}
		if !st.IsDir() {
			if path, err = p.program(path); err != nil {
				return p, err
			}
		} else if err := p.plugins(path); err != nil {
			return p, err
		}
		if holds(path, dir) {
			return p, fmt.Errorf("show %s to node %s: the node's own directory is in it", path, s.Name)
		}
		p.paths = append(p.paths, path)
	}
	slices.Sort(p.paths) // parents before children
	p.paths = slices.Compact(p.paths)

	for name, want := range kubeletSysctls {
		have, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err == nil && strings.TrimSpace(string(have)) != want {
			p.sysctls[name] = want
		}
	}
	p.resolvers = resolverDirs()
	id := sha256.Sum256([]byte("edge machine id of " + s.ClusterUID + "/" + s.Name))
	p.etc = map[string]string{
		"hostname":   s.Name + "\n",
		"hosts":      "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 " + s.Name + "\n",
		"machine-id": hex.EncodeToString(id[:16]) + "\n",
		"passwd":     "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"group":      "root:x:0:\nnogroup:x:65534:\n",
		"protocols":  protocols,
	}
	return p, nil
}

// protocols of a node. nft names a protocol only if it finds it here; a
// kube-proxy that starts again takes its own Services for somebody else's if
// they are listed under a number, and removes them.
const protocols = `ip 0 IP
icmp 1 ICMP
tcp 6 TCP
udp 17 UDP
ipv6 41 IPv6
gre 47 GRE
esp 50 IPSEC-ESP
ah 51 IPSEC-AH
ipv6-icmp 58 IPv6-ICMP
sctp 132 SCTP
udplite 136 UDPLite
`

// holds says that a directory is the other or above it.
func holds(dir, other string) bool {
	return dir == other || strings.HasPrefix(other, strings.TrimSuffix(dir, "/")+"/")
}

// program says what must be shown for an executable: its directory, because
// runc looks for itself in there, or where that is above the node's own, which
// would be read-only then, the file alone. What it is a link to is added.
func (p *rootPlan) program(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	show := func(file string) string {
		if dir := filepath.Dir(file); !holds(dir, p.dir) {
			return dir
		}
		return file
	}
	p.paths = append(p.paths, show(real))
	return show(path), nil
}

// plugins adds what the links in a directory lead to: several plugins may be
// links to one program.
func (p *rootPlan) plugins(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink == 0 {
			continue
		}
		real, err := filepath.EvalSymlinks(filepath.Join(dir, e.Name()))
		if err == nil && filepath.Dir(real) != dir {
			p.paths = append(p.paths, real)
		}
	}
	return nil
}

// systemDirs of the machine are shown to its nodes read-only, where they exist.
// nix and gnu are where NixOS and Guix keep everything.
var systemDirs = []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "gnu"}

// kernelDirs are the kernel's own file systems.
var kernelDirs = []string{"dev", "proc", "sys"}

// etcShared of the machine's /etc are shown read-only: how programs find their
// libraries, and whom to trust.
var etcShared = []string{"alternatives", "ssl", "ca-certificates", "pki", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime"}

// varDirs of a node outlive its reboots.
var varDirs = []string{"lib/kubelet", "lib/containerd", "lib/cni", "log/pods", "log/containers", "tmp", "cache"}

// rootMountPoint is where a node's root is put together; in the machine's view
// it stays an empty directory.
func rootMountPoint(dir string) string { return filepath.Join(dir, dataDir, "root") }

// dataDir below the node dir is what containers and kubelet write: root's only.
const dataDir = "data"

// enterNewRoot gives the calling thread mount and UTS namespaces of its own with
// the node's root directory. The thread must be locked and never be used for
// anything else. Should it fail, everything ends with the thread.
func enterNewRoot(p rootPlan) error {
	root := rootMountPoint(p.dir)
	if err := makeDirs(root, filepath.Join(p.dir, dataDir, "var")); err != nil {
		return err
	}
	for _, d := range varDirs {
		if err := makeDirs(filepath.Join(p.dir, dataDir, "var", d)); err != nil {
			return err
		}
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	if err := unix.Sethostname([]byte(p.node)); err != nil {
		return fmt.Errorf("set the node's host name: %w", err)
	}
	// What the machine unmounts goes here too; nothing goes the other way.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separate the node's mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount %s: %w", root, err)
	}
	b := rootBuilder{root: root}
	b.system()
	b.etc(p)
	b.state(p)
	b.sysctls(p.sysctls)
	if b.err != nil {
		return b.err
	}
	return pivot(root)
}

// pivot makes root the root directory and lets go of the machine's.
func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return err
	}
	// Old and new root on the same place, as pivot_root(2) allows: no directory
	// for the old one is needed.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("enter the node's root %s: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the machine's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	// Volumes mounted later must be seen by containers that ask for it.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share the node's mounts with its containers: %w", err)
	}
	return nil
}

// rootBuilder fills a new root; the first error ends it.
type rootBuilder struct {
	root string
	err  error
}

func (b *rootBuilder) do(what string, fn func() error) {
	if b.err == nil {
		if err := fn(); err != nil {
			b.err = fmt.Errorf("node's root: %s: %w", what, err)
		}
	}
}

func (b *rootBuilder) mkdir(path string, mode fs.FileMode) {
	b.do("make "+path, func() error {
		full := filepath.Join(b.root, path)
		if err := os.MkdirAll(full, mode); err != nil {
			return err
		}
		return os.Chmod(full, mode) // MkdirAll obeys the umask
	})
}

func (b *rootBuilder) write(path, text string) {
	b.do("write "+path, func() error {
		return os.WriteFile(filepath.Join(b.root, path), []byte(text), 0o644)
	})
}

// bind shows a file or directory of the machine at the same path, or at.
func (b *rootBuilder) bind(from, at string, flags uintptr) {
	b.do("show "+from, func() error {
		st, err := os.Stat(from)
		if err != nil {
			return err
		}
		target := filepath.Join(b.root, at)
		if err := makeMountPoint(target, st.IsDir()); err != nil {
			return err
		}
		if err := unix.Mount(from, target, "", unix.MS_BIND|flags&^unix.MS_RDONLY, ""); err != nil {
			return err
		}
		if flags&unix.MS_RDONLY == 0 {
			return nil
		}
		// Every mount below it too, which a remount would leave writable. The
		// other attributes stay as they are.
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		return unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW, attr)
	})
}

// system shows what belongs to the machine and not to a node.
func (b *rootBuilder) system() {
	for _, name := range systemDirs {
		path := "/" + name
		st, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err == nil && st.Mode()&fs.ModeSymlink != 0:
			b.do("link "+path, func() error {
				target, err := os.Readlink(path)
				if err != nil {
					return err
				}
				return os.Symlink(target, filepath.Join(b.root, name))
			})
		default:
			b.bind(path, path, unix.MS_REC|unix.MS_RDONLY)
		}
	}
	for _, name := range kernelDirs {
		b.bind("/"+name, "/"+name, unix.MS_REC)
	}
	for _, name := range []string{"root", "home", "mnt", "media", "srv", "opt"} {
		b.mkdir(name, 0o755)
	}
	b.mkdir("tmp", 0o777|fs.ModeSticky)
	b.mkdir("run/lock", 0o755)
}

func (b *rootBuilder) etc(p rootPlan) {
	b.mkdir("etc/cni/net.d", 0o755)
	for name, text := range p.etc {
		b.write("etc/"+name, text)
	}
	for _, name := range etcShared {
		path := "/etc/" + name
		if _, err := os.Stat(path); err == nil {
			b.bind(path, path, unix.MS_REC|unix.MS_RDONLY)
		}
	}
	for _, dir := range p.resolvers {
		b.bind(dir, dir, unix.MS_RDONLY)
	}
	// A link into one of those directories stays one; a plain file is shown as
	// it is, and seen to change as long as it is edited and not replaced.
	target, err := filepath.EvalSymlinks(machineResolvConf)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		b.write(machineResolvConf, "")
	case err == nil && slices.Contains(p.resolvers, filepath.Dir(target)):
		b.do("link "+machineResolvConf, func() error { return os.Symlink(target, filepath.Join(b.root, machineResolvConf)) })
	case err == nil:
		b.bind(target, machineResolvConf, unix.MS_RDONLY)
	default:
		b.do("find "+machineResolvConf, func() error { return err })
	}
}

// state shows what the node reads and writes of its own.
func (b *rootBuilder) state(p rootPlan) {
	b.bind(filepath.Join(p.dir, dataDir, "var"), "/var", 0)
	b.do("link /var/run", func() error {
		return replaceLink("/run", filepath.Join(b.root, "var/run"))
	})
	b.do("open /var/tmp", func() error { return os.Chmod(filepath.Join(b.root, "var/tmp"), 0o777|fs.ModeSticky) })
	for _, path := range p.paths {
		if !shownAlready(path) {
			b.bind(path, path, unix.MS_RDONLY)
		}
	}
	b.bind(p.dir, p.dir, 0)
	b.mkdir(filepath.Dir(identityFile), 0o755)
	b.write(identityFile, nodeIdentity(p.uid, p.node))
}

// shownAlready says that a path is inside one of systemDirs.
func shownAlready(path string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return slices.Contains(systemDirs, first)
}

// sysctls puts files of the node's own over kernel settings that kubelet would
// otherwise change for the whole machine. It reads the value it wants to see;
// what it writes stays here. Containers have a /proc of their own.
func (b *rootBuilder) sysctls(values map[string]string) {
	for name, value := range values {
		file := "run/edge/sysctl/" + strings.ReplaceAll(name, "/", ".")
		b.mkdir(filepath.Dir(file), 0o755)
		b.write(file, value+"\n")
		b.do("mask "+name, func() error {
			return unix.Mount(filepath.Join(b.root, file), filepath.Join(b.root, "proc/sys", name), "", unix.MS_BIND, "")
		})
	}
}

// makeMountPoint makes an empty directory or file to mount on, if there is
// nothing.
func makeMountPoint(path string, dir bool) error {
	if dir {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// makeDirs makes directories and their parents.
func makeDirs(dirs ...string) error {
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func replaceLink(target, path string) error {
	if have, err := os.Readlink(path); err == nil && have == target {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(target, path)
}

// survivor finds a process of the node whose root is the node's own, so that
// its mount namespace can be entered again. 0: there is none.
func survivor(c cgroups, s *Spec) (int, error) {
	pids, err := c.processes(nodeCgroup(s) + "/" + cgroupHost)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		if inNodeRoot(pid, s) {
			return pid, nil
		}
	}
	return 0, nil
}

func inNodeRoot(pid int, s *Spec) bool {
	id, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "root", identityFile))
	return err == nil && string(id) == nodeIdentity(s.ClusterUID, s.Name)
}
