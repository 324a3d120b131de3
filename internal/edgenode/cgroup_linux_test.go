//go:build linux

package edgenode

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Mount tables as machines of the three kinds have them.
const (
	mountsV2 = `24 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
31 24 0:27 / /var/lib/x/cgroup rw - cgroup2 cgroup2 rw
`
	mountsHybrid = `30 24 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
35 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct
36 30 0:32 / /sys/fs/cgroup/cpuset rw,nosuid - cgroup cgroup rw,cpuset,release_agent=/x
36 30 0:32 / /sys/fs/cgroup/cpuset rw,nosuid - cgroup cgroup rw,cpuset
`
)

func TestParseCgroups(t *testing.T) {
	tests := map[string]struct {
		text    string
		want    cgroups
		unified bool
	}{
		"v2": {mountsV2, cgroups{{mount: "/sys/fs/cgroup", v2: true}}, true},
		"hybrid": {mountsHybrid, cgroups{
			{mount: "/sys/fs/cgroup/unified", v2: true},
			{mount: "/sys/fs/cgroup/systemd", controllers: []string{"name=systemd"}},
			{mount: "/sys/fs/cgroup/cpu,cpuacct", controllers: []string{"cpu", "cpuacct"}},
			{mount: "/sys/fs/cgroup/cpuset", controllers: []string{"cpuset"}},
		}, false},
		"none": {"24 1 8:1 / / rw - ext4 /dev/sda1 rw\n", nil, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseCgroups(strings.NewReader(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got, cmp.AllowUnexported(hierarchy{})); d != "" {
				t.Error(d)
			}
			if got.unified() != tt.unified {
				t.Errorf("unified is %v", got.unified())
			}
		})
	}
}

func FuzzParseCgroups(f *testing.F) {
	f.Add(mountsV2)
	f.Add(mountsHybrid)
	f.Add("a b c d /sys/fs/cgroup - cgroup2")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCgroups(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, h := range c {
			if h.mount != cgroupMount && !strings.HasPrefix(h.mount, cgroupMount+"/") {
				t.Fatalf("hierarchy at %q", h.mount)
			}
		}
	})
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// TestControllersV2 runs against a directory that looks like cgroup v2: on the
// hybrid machines of CI there is no real one with controllers.
func TestControllersV2(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "cgroup.controllers"), "cpuset cpu memory pids\n")
	put(t, filepath.Join(dir, "cgroup.subtree_control"), "cpu cpuset memory\n")
	if err := enableControllers(dir); err != nil {
		t.Fatal(err)
	}
	if got := get(t, filepath.Join(dir, "cgroup.subtree_control")); got != "+pids" {
		t.Errorf("wrote %q, want only what was missing", got)
	}
	if err := enableControllers(t.TempDir()); err == nil {
		t.Error("a directory that is no cgroup passes")
	}
}

func TestFillCpuset(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"cpuset.cpus": "0-3", "cpuset.mems": "0", "a/cpuset.cpus": "", "a/cpuset.mems": "1"} {
		put(t, filepath.Join(dir, name), text)
	}
	if err := fillCpuset(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if cpus, mems := get(t, filepath.Join(dir, "a/cpuset.cpus")), get(t, filepath.Join(dir, "a/cpuset.mems")); cpus != "0-3" || mems != "1" {
		t.Errorf("cpus %q, mems %q", cpus, mems)
	}
}

// TestRealCgroups makes, fills, kills and removes a node's cgroups on this
// machine, whatever kind it is of.
func TestRealCgroups(t *testing.T) {
	c, spec := realCgroups(t)
	for _, leaf := range []string{cgroupHost, cgroupPods + "/kubepods/pod1"} {
		if err := c.ensure(nodeCgroup(spec) + "/" + leaf); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("exercised: unified %v, %d hierarchies", c.unified(), len(c))
	var waits []*exec.Cmd
	for _, leaf := range []string{cgroupHost, cgroupPods + "/kubepods/pod1"} {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waits = append(waits, cmd)
		if err := c.join(nodeCgroup(spec)+"/"+leaf, cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
	}
	pids, err := c.processes(nodeCgroup(spec))
	if err != nil || len(pids) != 2 {
		t.Fatalf("processes %v (%v)", pids, err)
	}
	done := make(chan error, len(waits))
	for _, cmd := range waits {
		go func() { done <- cmd.Wait() }() // a zombie still counts
	}
	if err := killCgroup(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	for range waits {
		if exit, ok := (<-done).(*exec.ExitError); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("ended as %v", exit)
		}
	}
	if left := c.left(nodeCgroup(spec)); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if left := c.left(filepath.Dir(nodeCgroup(spec))); len(left) > 0 {
		t.Errorf("the cluster's cgroups are left: %v", left)
	}
	if err := killCgroup(t.Context(), spec); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

// realCgroups is this machine's, with a node of the tests' own that is swept
// before and after.
func realCgroups(t *testing.T) (cgroups, *Spec) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	c, err := hostCgroups()
	if err != nil {
		t.Fatal(err)
	}
	spec := testSpec()
	spec.ClusterUID, spec.Name = testUID, "t-"+strings.ToLower(strings.Map(onlyLetters, t.Name()))
	sweep := func() {
		if err := killCgroup(context.WithoutCancel(t.Context()), spec); err != nil {
			t.Error(err)
		}
	}
	sweep()
	t.Cleanup(sweep)
	return c, spec
}

func onlyLetters(r rune) rune {
	if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
		return r
	}
	return -1
}

// testUID marks what these tests make on the machine.
const testUID = "7e57ed9e"
