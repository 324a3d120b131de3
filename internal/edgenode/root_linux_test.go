//go:build linux

package edgenode

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// nodeDir makes <cluster dir>/nodes/<node> with programs and a spec, as the
// engine does.
func nodeDir(t *testing.T, name string) (string, *Spec) {
	t.Helper()
	base := t.TempDir()
	dir := filepath.Join(base, "lab-"+testUID, "nodes", name)
	spec := testSpec()
	spec.ClusterUID, spec.Name = testUID, name
	for _, p := range Programs() {
		path := filepath.Join(base, "cache", p, p)
		put(t, path, "#!/bin/sh\n")
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
		spec.Programs[p] = path
	}
	spec.Programs[ProgramCNI] = filepath.Dir(spec.Programs[ProgramCNI])
	spec.Images = []string{filepath.Join(base, "images"), filepath.Join(base, "never-made")}
	if err := os.Mkdir(spec.Images[0], 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteSpec(dir, spec); err != nil {
		t.Fatal(err)
	}
	return dir, spec
}

// inside runs a shell in namespaces that enter makes for it.
func inside(t *testing.T, enter func() error, script string) string {
	t.Helper()
	type result struct {
		out []byte
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespaces
		if err := enter(); err != nil {
			done <- result{nil, err}
			return
		}
		cmd := exec.Command("/bin/sh", "-exc", script)
		cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		var steps strings.Builder
		cmd.Stderr = &steps
		out, err := cmd.Output()
		if err != nil {
			out = append(out, steps.String()...)
		}
		done <- result{out, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatalf("%v: %s", r.err, r.out)
	}
	return string(r.out)
}

// refuses is a function of the shell: a "!" before a command would not end a
// script that should have failed.
const refuses = `refuses() { if (echo x > "$1") 2>/dev/null; then echo "$1 can be written"; exit 1; fi; }
`

func TestNodeRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, spec := nodeDir(t, "t-root")
	plan, err := planRoot(spec, dir, spec.Programs[ProgramKubelet])
	if err != nil {
		t.Fatal(err)
	}
	sysctls := func() map[string]string {
		out := map[string]string{}
		for name := range kubeletSysctls {
			out[name] = get(t, filepath.Join("/proc/sys", name))
		}
		return out
	}
	before := sysctls()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(refuses+`
[ "$(hostname 2>/dev/null || cat /proc/sys/kernel/hostname)" = t-root ]
[ "$(cat /etc/hostname)" = t-root ]
[ "$(cat /proc/sys/vm/overcommit_memory)" = 1 ]
echo 1 > /proc/sys/vm/overcommit_memory
[ "$(cat /proc/sys/kernel/panic_on_oops)" = 1 ]
grep -q '^tcp' /etc/protocols
cat /etc/resolv.conf > %[1]s/resolvers
echo disk > /var/lib/kubelet/disk
echo memory > /run/memory
echo node > %[1]s/node-was-here
[ -x %[2]s ]
refuses %[2]s
refuses /usr/edge-test
[ -d /sys/fs/cgroup ]
[ -d %[3]s ]
[ -z "$(ls -A /home; ls -A /opt; ls -A /srv)" ]
[ ! -e %[4]s ]
cat %[5]s
`, dir, spec.Programs[ProgramKubelet], spec.Images[0], clusterDir(dir)+"/cluster.json", identityFile)
	put(t, clusterDir(dir)+"/cluster.json", "{}") // not the node's business
	if got := inside(t, func() error { return enterNewRoot(plan) }, script); got != nodeIdentity(testUID, "t-root") {
		t.Errorf("the root is of %q", got)
	}
	if got := get(t, filepath.Join(dir, dataDir, "var/lib/kubelet/disk")); got != "disk" {
		t.Errorf("the node's disk holds %q", got)
	}
	if got := get(t, filepath.Join(dir, "node-was-here")); got != "node" {
		t.Errorf("the node dir holds %q", got)
	}
	if got, want := get(t, filepath.Join(dir, "resolvers")), get(t, machineResolvConf); got != want {
		t.Errorf("the node sees the name servers %q, this machine %q", got, want)
	}
	if _, err := os.Stat("/run/memory"); !os.IsNotExist(err) {
		t.Errorf("the node wrote to this machine's /run: %v", err)
	}
	if d := cmp.Diff(before, sysctls()); d != "" {
		t.Errorf("this machine's settings changed:\n%s", d)
	}
	if mounts, err := mountsBelow(dir); err != nil || len(mounts) > 0 {
		t.Errorf("this machine sees mounts of the node: %v (%v)", mounts, err)
	}
	if now, err := os.Hostname(); err != nil || now != host {
		t.Errorf("this machine's name went from %s to %s (%v)", host, now, err)
	}
	// The second start is a reboot: the disk is there, the memory is not.
	inside(t, func() error { return enterNewRoot(plan) }, `[ "$(cat /var/lib/kubelet/disk)" = disk ]; [ ! -e /run/memory ]`)
	if left := leftovers(dir, spec); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// What is mounted below a directory of the machine is read-only in a node too.
func TestReadOnlyIsRecursive(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	from, root := t.TempDir(), t.TempDir()
	below := filepath.Join(from, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	inside(t, func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", below, "tmpfs", unix.MS_NOEXEC, ""); err != nil {
			return err
		}
		b := rootBuilder{root: root}
		b.bind(from, "/seen", unix.MS_REC|unix.MS_RDONLY)
		return b.err
	}, fmt.Sprintf(refuses+"refuses %[1]s/seen/a; refuses %[1]s/seen/below/a; echo x > %[2]s/a; grep %[1]s/seen/below /proc/self/mounts | grep noexec", root, below))
}

func TestReenterShowsWhatIsNew(t *testing.T) {
	c, cgroupSpec := realCgroups(t)
	dir, spec := nodeDir(t, cgroupSpec.Name)
	plan, err := planRoot(spec, dir, spec.Programs[ProgramKubelet])
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ensure(nodeCgroup(spec) + "/" + cgroupHost); err != nil {
		t.Fatal(err)
	}
	started := make(chan *exec.Cmd, 1)
	go func() {
		runtime.LockOSThread()
		if err := enterNewRoot(plan); err != nil {
			t.Error(err)
			started <- nil
			return
		}
		cmd := exec.Command("/bin/sleep", "1000")
		cmd.Dir = "/"
		if err := cmd.Start(); err != nil {
			t.Error(err)
			cmd = nil
		}
		started <- cmd
	}()
	cmd := <-started
	if cmd == nil {
		t.FailNow()
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		if err := killCgroup(t.Context(), spec); err != nil {
			t.Error(err)
		}
		<-ended
	}()
	if pid, err := survivor(c, spec); err != nil || pid != 0 {
		t.Errorf("before anything is in the cgroup, process %d is found (%v)", pid, err)
	}
	if err := c.join(nodeCgroup(spec)+"/"+cgroupHost, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	pid, err := survivor(c, spec)
	if err != nil || pid != cmd.Process.Pid {
		t.Fatalf("process %d is found (%v), want %d", pid, err, cmd.Process.Pid)
	}
	// A new version of a program, in another directory, as the engine puts it.
	newer := filepath.Join(filepath.Dir(filepath.Dir(spec.Programs[ProgramRunc])), "runc-2", "runc")
	put(t, newer, "newer")
	spec.Programs[ProgramRunc] = newer
	if plan, err = planRoot(spec, dir, spec.Programs[ProgramKubelet]); err != nil {
		t.Fatal(err)
	}
	for range 2 { // shown once, and found there the second time
		got := inside(t, func() error { return enterRootOf(pid, plan) }, "cat "+newer+"; cat /etc/hostname; grep -c runc-2 /proc/self/mounts")
		if got != "newer"+spec.Name+"\n1\n" {
			t.Errorf("inside of the node: %q", got)
		}
	}
}

func TestPlanRefusesToHideTheNodeDir(t *testing.T) {
	dir, spec := nodeDir(t, "t-plan")
	spec.Images = []string{filepath.Dir(filepath.Dir(dir))}
	if _, err := planRoot(spec, dir, spec.Programs[ProgramKubelet]); err == nil || !strings.Contains(err.Error(), "the node's own directory is in it") {
		t.Errorf("got %v", err)
	}
	// A program beside the state directory is shown alone.
	spec.Images = nil
	edge := filepath.Join(filepath.Dir(clusterDir(dir)), "edge")
	put(t, edge, "#!/bin/sh\n")
	plan, err := planRoot(spec, dir, edge)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range plan.paths {
		if holds(p, dir) {
			t.Errorf("%s would hide %s", p, dir)
		}
	}
}

func TestHandOver(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	put(t, outside, "x")
	put(t, filepath.Join(dir, "logs", "a.log"), "x")
	put(t, filepath.Join(dir, dataDir, "secret"), "x")
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := handOver(dir, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]uint32{
		filepath.Join(dir, "logs", "a.log"): 12345, filepath.Join(dir, "link"): 12345,
		filepath.Join(dir, dataDir, "secret"): 0, filepath.Join(dir, dataDir): 0, outside: 0,
	} {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || st.Uid != want {
			t.Errorf("%s belongs to %d (%v), want %d", path, st.Uid, err, want)
		}
	}
}
