//go:build linux

package edgenode

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is one mounted cgroup file system: the single v2 one, or one of
// several v1 ones (with, on a hybrid machine, v2 beside them without
// controllers).
type hierarchy struct {
	mount       string   // /sys/fs/cgroup, /sys/fs/cgroup/memory …
	v2          bool     // cgroup2
	controllers []string // of v1: "cpu", "memory", "name=systemd"
}

func (h hierarchy) has(controller string) bool { return slices.Contains(h.controllers, controller) }

// cgroups are all hierarchies of this machine.
type cgroups []hierarchy

// unified says whether v2 carries the controllers, which is the case exactly if
// there is no v1 hierarchy with one.
func (c cgroups) unified() bool {
	for _, h := range c {
		if !h.v2 {
			return false
		}
	}
	return len(c) > 0
}

// hostCgroups reads the machine's mount table.
func hostCgroups() (cgroups, error) {
	// thread-self, not self: that is the main thread, which may have ended in
	// namespaces that a call on a thread of its own had entered.
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c, err := parseCgroups(f)
	if err == nil && len(c) == 0 {
		err = errors.New("no cgroup file system is mounted")
	}
	return c, err
}

// parseCgroups reads lines of proc(5)'s mountinfo. Only mounts at or below
// /sys/fs/cgroup count: kubelet and runc look there.
func parseCgroups(r io.Reader) (cgroups, error) {
	var out cgroups
	seen := map[string]bool{}
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20) // overlay mounts have long option lists
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		sep := slices.Index(fields, "-")
		if sep < 6 || sep+3 >= len(fields) {
			continue
		}
		mount, kind, super := fields[4], fields[sep+1], fields[sep+3]
		if mount != cgroupMount && !strings.HasPrefix(mount, cgroupMount+"/") || seen[mount] {
			continue
		}
		switch kind {
		case "cgroup2":
			out = append(out, hierarchy{mount: mount, v2: true})
		case "cgroup":
			h := hierarchy{mount: mount}
			for _, o := range strings.Split(super, ",") {
				if o != "rw" && o != "ro" && o != "xattr" && !strings.HasPrefix(o, "release_agent=") {
					h.controllers = append(h.controllers, o)
				}
			}
			out = append(out, h)
		default:
			continue
		}
		seen[mount] = true
	}
	return out, sc.Err()
}

// cgroupMount is where cgroups are mounted on every distribution.
const cgroupMount = "/sys/fs/cgroup"

// Cgroups of a node, below each hierarchy's root.
const (
	cgroupTop  = "/edge"
	cgroupHost = "host" // the daemon, its children and containerd's shims
	cgroupPods = "pods" // kubelet's cgroup root
)

// nodeCgroup is the cgroup all of a node's processes are in or below.
func nodeCgroup(s *Spec) string { return path.Join(cgroupTop, s.ClusterUID, s.Name) }

// wantedControllers are what pods are limited and counted by. The first four
// are needed, the others used where the machine has them.
var wantedControllers = []string{"cpu", "cpuset", "memory", "pids", "io", "hugetlb"}

// neededControllers is how many of wantedControllers kubelet insists on.
const neededControllers = 4

// ensure makes a cgroup and its parents in every hierarchy.
func (c cgroups) ensure(cgroup string) error {
	for _, h := range c {
		dir := h.mount
		for _, part := range strings.Split(strings.Trim(cgroup, "/"), "/") {
			if h.v2 && c.unified() {
				if err := enableControllers(dir); err != nil {
					return err
				}
			}
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup %s: %w", dir, err)
			}
			if h.has("cpuset") {
				if err := fillCpuset(dir); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// delegate lets the children of a v2 cgroup use its controllers; kubelet does
// the same below its own root, but checks that root before it does.
func (c cgroups) delegate(cgroup string) error {
	if !c.unified() {
		return nil
	}
	for _, h := range c {
		if err := enableControllers(filepath.Join(h.mount, cgroup)); err != nil {
			return err
		}
	}
	return nil
}

// enableControllers passes on to a v2 cgroup's children what it has itself.
func enableControllers(dir string) error {
	have, err := readFields(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	on, err := readFields(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	for i, c := range wantedControllers {
		if slices.Contains(on, c) || !slices.Contains(have, c) {
			continue
		}
		// One at a time: a controller that is refused must not keep out others.
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
		if err != nil && i < neededControllers {
			return fmt.Errorf("let children of cgroup %s use the %s controller: %w", dir, c, err)
		}
	}
	return nil
}

// fillCpuset gives a new v1 cpuset all that its parent has: the kernel creates
// it empty, and then nothing can run in it.
func fillCpuset(dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := readFields(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if len(have) > 0 {
			continue
		}
		parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), parent, 0o644); err != nil {
			return fmt.Errorf("fill %s of cgroup %s: %w", name, dir, err)
		}
	}
	return nil
}

// join moves a whole process into a cgroup.
func (c cgroups) join(cgroup string, pid int) error {
	for _, h := range c {
		file := filepath.Join(h.mount, cgroup, "cgroup.procs")
		if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("move process %d into cgroup %s: %w", pid, file, err)
		}
	}
	return nil
}

// processes lists who is in a cgroup or below, in any hierarchy. A cgroup that
// is not there has none.
func (c cgroups) processes(cgroup string) ([]int, error) {
	set := map[int]bool{}
	err := c.walk(cgroup, func(dir string) error {
		pids, err := readFields(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return err
		}
		for _, p := range pids {
			pid, err := strconv.Atoi(p)
			if err != nil {
				return fmt.Errorf("process id %q in cgroup %s", p, dir)
			}
			if pid > 0 { // 0: a process of another pid namespace
				set[pid] = true
			}
		}
		return nil
	})
	out := make([]int, 0, len(set))
	for pid := range set {
		out = append(out, pid)
	}
	slices.Sort(out)
	return out, err
}

// killPoll is how long to wait between two rounds of killing: a killed process
// takes about that long to go.
const killPoll = 20 * time.Millisecond

// kill ends every process in a cgroup and below with SIGKILL, as a power cut
// would, and returns when none is left.
func (c cgroups) kill(ctx context.Context, cgroup string) error {
	for {
		pids, err := c.processes(cgroup)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, h := range c {
			// v2 kills all at once, also who forks meanwhile (kernel 5.14).
			if h.v2 {
				_ = os.WriteFile(filepath.Join(h.mount, cgroup, "cgroup.kill"), []byte("1"), 0o644)
			}
		}
		for some := range slices.Chunk(pids, killBatch) {
			if err := c.killProcesses(cgroup, some); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes %v of cgroup %s do not end: %w", pids, cgroup, ctx.Err())
		case <-time.After(killPoll):
		}
	}
}

// killBatch is how many processes are held at once, each by a file descriptor.
const killBatch = 256

// killProcesses ends those of pids that are in the cgroup. A pid may by now be
// another process's: each is held first, and killed only if it is in the cgroup
// while it is held.
func (c cgroups) killProcesses(cgroup string, pids []int) error {
	held := map[int]int{} // pid to file descriptor
	defer func() {
		for _, fd := range held {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			continue // ended, or not the leader of its threads any more
		}
		if err != nil {
			return fmt.Errorf("hold process %d of cgroup %s: %w", pid, cgroup, err)
		}
		held[pid] = fd
	}
	now, err := c.processes(cgroup)
	if err != nil {
		return err
	}
	for _, pid := range now {
		fd, ok := held[pid]
		if !ok {
			continue
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d of cgroup %s: %w", pid, cgroup, err)
		}
	}
	return nil
}

// remove removes a cgroup and all below it, then its parents up to the top if
// nothing else is in them. It must be empty of processes.
func (c cgroups) remove(ctx context.Context, cgroup string) error {
	var errs []error
	var dirs []string
	err := c.walk(cgroup, func(dir string) error { dirs = append(dirs, dir); return nil })
	errs = append(errs, err)
	slices.Reverse(dirs) // children first
	for _, dir := range dirs {
		errs = append(errs, removeCgroup(ctx, dir))
	}
	for _, h := range c {
		for p := path.Dir(cgroup); p != "/" && p != "."; p = path.Dir(p) {
			// Refused while another node is below it.
			if err := unix.Rmdir(filepath.Join(h.mount, p)); err != nil {
				break
			}
		}
	}
	return errors.Join(errs...)
}

// removeCgroup waits out the moment in which a cgroup still counts a process
// that has ended.
func removeCgroup(ctx context.Context, dir string) error {
	for {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		case <-time.After(killPoll):
		}
	}
}

// left lists the directories of a cgroup that are still there.
func (c cgroups) left(cgroup string) []string {
	var out []string
	for _, h := range c {
		dir := filepath.Join(h.mount, cgroup)
		if _, err := os.Stat(dir); err == nil {
			out = append(out, dir)
		}
	}
	return out
}

// walk visits a cgroup and all below it in every hierarchy, parents first. A
// directory that goes meanwhile is passed over.
func (c cgroups) walk(cgroup string, visit func(dir string) error) error {
	for _, h := range c {
		err := filepath.WalkDir(filepath.Join(h.mount, cgroup), func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				err = visit(p)
			}
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("walk cgroup %s: %w", filepath.Join(h.mount, cgroup), err)
		}
	}
	return nil
}

func readFields(file string) ([]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(data)), nil
}
