//go:build linux

package edgenode

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgewright/terraform-provider-edge/internal/site"
	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

// DownOptions of Down. Dir is required.
type DownOptions struct {
	Dir string
	// Purge removes the node dir and releases the node's address too.
	Purge  bool
	Report *Reporter
	Logger *slog.Logger
}

// processOrder is the order in which the programs start; they stop in reverse.
var processOrder = []string{ProgramContainerd, ProgramKubelet, ProgramKubeProxy, ProgramCoreDNS}

// Down stops a node and removes what it made on this machine, also when half of
// it is gone, and proves that nothing is left. It goes on past what fails.
func Down(ctx context.Context, o DownOptions) error {
	if !filepath.IsAbs(o.Dir) {
		return fmt.Errorf("node dir %q must be absolute", o.Dir)
	}
	o.Dir = locate(o.Dir)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Report == nil {
		o.Report = NewReporter(discard{}, time.Now)
	}
	owner, err := checkTree(o.Dir, sudoUID())
	if err != nil {
		return err
	}
	if _, err := identify(o.Dir); err != nil {
		return err // before a lock is made beside it
	}
	var lock *nodeLock
	if _, err := os.Lstat(filepath.Dir(o.Dir)); err == nil {
		if lock, err = lockNode(ctx, o.Dir); err != nil {
			return err
		}
		defer lock.unlock()
	}
	spec, err := identify(o.Dir)
	if err == nil {
		err = checkOwner(spec, o.Dir, owner)
	}
	if err != nil {
		return err
	}
	var errs []error
	o.Report.Say("stopping", "stopping the programs of node "+spec.Name)
	errs = append(errs, stopPrograms(ctx, o.Dir, spec, o.Logger))
	o.Report.Say("removing", "removing the network, cgroups and mounts of node "+spec.Name)
	errs = append(errs, removeNetwork(ctx, o.Dir, spec, o))
	errs = append(errs, unmountBelow(o.Dir))
	if o.Purge && errors.Join(errs...) == nil {
		o.Report.Say("removing", "removing the data of node "+spec.Name)
		errs = append(errs, purge(o.Dir))
	} else {
		errs = append(errs, removeFile(filepath.Join(o.Dir, statusFile)), ignoreMissing(handOver(o.Dir, spec.OwnerUID, spec.OwnerGID)))
	}
	if lock != nil {
		errs = append(errs, dropOrphan(o.Dir, lock))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop node %s: %w", spec.Name, err)
	}
	if left := leftovers(o.Dir, spec); len(left) > 0 {
		return &NextError{
			Err:  fmt.Errorf("node %s is stopped, but this is left of it: %s", spec.Name, strings.Join(left, "; ")),
			Next: "Run the same command again; if it stays, a process outside of the node holds it.",
		}
	}
	o.Report.Say("stopped", "nothing is left of node "+spec.Name)
	return nil
}

// stopPrograms ends everything that runs of a node: first in order, then
// whatever is left in its cgroup.
func stopPrograms(ctx context.Context, dir string, spec *Spec, log *slog.Logger) error {
	run := filepath.Join(dir, runDir)
	var errs []error
	if err := supervise.StopDaemon(ctx, run, daemonStop); err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, supervise.StopRecorded(ctx, run, processOrder, supervise.StopRecordedOptions{Logger: log}))
	}
	return errors.Join(append(errs, killCgroup(ctx, spec))...)
}

// killCgroup ends whatever is left of a node and removes its cgroups.
func killCgroup(ctx context.Context, spec *Spec) error {
	cg, err := hostCgroups()
	if err != nil {
		return err
	}
	if err := cg.kill(ctx, nodeCgroup(spec)); err != nil {
		return err
	}
	return cg.remove(ctx, nodeCgroup(spec))
}

func removeNetwork(ctx context.Context, dir string, spec *Spec, o DownOptions) error {
	if spec.Pool == "" {
		return site.Sweep(spec.ClusterUID, spec.Name)
	}
	s, err := siteOf(spec, dir, o.Logger)
	if err != nil {
		return err
	}
	return s.Detach(ctx, spec.Name, o.Purge)
}

// identify says whose directory this is. Where the spec is lost, the path tells
// (<name>-<uid>/nodes/<node>) and the site's record knows the pool, which stays
// empty if that is lost too.
func identify(dir string) (*Spec, error) {
	spec, err := LoadSpec(dir)
	if err == nil {
		return spec, nil
	}
	cluster := filepath.Base(clusterDir(dir))
	i := strings.LastIndexByte(cluster, '-')
	s := &Spec{Name: filepath.Base(dir), ClusterUID: cluster[i+1:], OwnerUID: os.Getuid(), OwnerGID: os.Getgid()}
	if filepath.Base(filepath.Dir(dir)) != nodesDir || !nameForm.MatchString(s.Name) || !uidForm.MatchString(s.ClusterUID) {
		return nil, fmt.Errorf("%s is not a node's directory: %w", dir, err)
	}
	var st unix.Stat_t
	if unix.Lstat(filepath.Dir(dir), &st) == nil {
		s.OwnerUID, s.OwnerGID = int(st.Uid), int(st.Gid)
	}
	sites, err := site.List(clusterDir(dir), s.ClusterUID)
	if err != nil {
		return s, nil // names are enough
	}
	for _, p := range sites {
		if slices.ContainsFunc(p.Nodes, func(n site.NodeStatus) bool { return n.Name == s.Name }) {
			s.Pool = p.Pool
		}
	}
	return s, nil
}

// mountsBelow lists what the machine has mounted at or below a directory,
// deepest first. A node's own mounts are not among it.
func mountsBelow(dir string) ([]string, error) {
	// thread-self, not self: that is the main thread, which may have ended in
	// namespaces that a call on a thread of its own had entered.
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		if len(fields) < 5 {
			continue
		}
		if m := unescapeMount(fields[4]); m == dir || strings.HasPrefix(m, dir+"/") {
			out = append(out, m)
		}
	}
	slices.Reverse(out) // later ones are above or below earlier ones
	return out, sc.Err()
}

// unescapeMount reads the \ooo that mountinfo writes for spaces and the like.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// unmountBelow unmounts what is mounted inside of a node dir, other than the
// dir itself, which may be a disk of its own.
func unmountBelow(dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		if m == dir {
			continue
		}
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	return errors.Join(errs...)
}

// purge removes a node dir, never through a mount.
func purge(dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	if mounts = slices.DeleteFunc(mounts, func(m string) bool { return m == dir }); len(mounts) > 0 {
		return fmt.Errorf("%s is not removed: %s is mounted in it", dir, strings.Join(mounts, ", "))
	}
	return os.RemoveAll(dir)
}

// Leftovers names what of a node is on this machine although it should not be
// once the node is down: processes, namespaces, links, cgroups, mounts. What
// could not be looked at is named too. nft tables and routes of a node live in
// its namespaces and end with them.
func Leftovers(dir string) []string {
	dir = locate(dir)
	spec, err := identify(dir)
	if err != nil {
		return []string{err.Error()}
	}
	return leftovers(dir, spec)
}

func leftovers(dir string, spec *Spec) []string {
	var left []string
	doubt := func(what string, err error) {
		if err != nil {
			left = append(left, fmt.Sprintf("cannot look for %s: %v", what, err))
		}
	}
	run := filepath.Join(dir, runDir)
	state, err := supervise.FindDaemon(run)
	doubt("the daemon", err)
	if state.Daemon.PID != 0 {
		left = append(left, fmt.Sprintf("daemon process %d", state.Daemon.PID))
	}
	if state.Parent.PID != 0 {
		left = append(left, fmt.Sprintf("the daemon's parent, process %d", state.Parent.PID))
	}
	marked, err := supervise.FindMarked(run)
	doubt("processes", err)
	for _, m := range marked {
		left = append(left, fmt.Sprintf("process %d (%s)", m.PID, m.Name))
	}
	cg, err := hostCgroups()
	doubt("cgroups", err)
	pids, err := cg.processes(nodeCgroup(spec))
	doubt("processes", err)
	for _, pid := range pids {
		left = append(left, fmt.Sprintf("process %d in cgroup %s", pid, nodeCgroup(spec)))
	}
	for _, d := range cg.left(nodeCgroup(spec)) {
		left = append(left, "cgroup "+d)
	}
	mounts, err := mountsBelow(dir)
	doubt("mounts", err)
	for _, m := range mounts {
		if m != dir {
			left = append(left, "mount "+m)
		}
	}
	if spec.Pool == "" {
		names, err := site.Swept(spec.ClusterUID, spec.Name)
		doubt("namespaces", err)
		return append(left, names...)
	}
	s, err := siteOf(spec, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		doubt("the site", err)
		return left
	}
	names, err := s.Leftovers(spec.Name)
	doubt("namespaces", err)
	return append(left, names...)
}

// PowerCut ends a node as pulling its plug would: every process at once, and
// all that was in memory. Its disk and its place at the site stay, and so does
// a cut of its link. Up starts it again.
func PowerCut(ctx context.Context, dir string) error {
	dir = locate(dir)
	owner, err := checkTree(dir, sudoUID())
	if err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, specFile)); err != nil {
		return notNode(dir)
	}
	lock, err := lockNode(ctx, dir)
	if err != nil {
		return err
	}
	defer lock.unlock()
	spec, err := LoadSpec(dir)
	if err == nil {
		err = checkOwner(spec, dir, owner)
	}
	if err != nil {
		return err
	}
	if err := killCgroup(ctx, spec); err != nil {
		return fmt.Errorf("cut the power of node %s: %w", spec.Name, err)
	}
	// A parent or daemon that had not yet moved into the cgroup.
	if err := supervise.StopDaemon(ctx, filepath.Join(dir, runDir), 0); err != nil {
		return fmt.Errorf("cut the power of node %s: %w", spec.Name, err)
	}
	if err := killCgroup(ctx, spec); err != nil {
		return fmt.Errorf("cut the power of node %s: %w", spec.Name, err)
	}
	s, err := siteOf(spec, dir, nil)
	if err != nil {
		return err
	}
	return errors.Join(s.Unplug(ctx, spec.Name), removeFile(filepath.Join(dir, statusFile)))
}
