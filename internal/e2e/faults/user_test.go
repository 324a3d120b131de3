//go:build linux

package faults

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

// account is a user of this machine that exists for one test.
type account struct {
	name     string
	uid, gid int
	dir      string // everything of theirs
	env      []string
}

const accountName = "edge-e2e"

// newAccount makes a user without any right, and the parts of the repository
// that they need.
func newAccount(t *testing.T, root string) *account {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes a user, which needs root")
	}
	if _, err := exec.LookPath("sudo"); err != nil {
		t.Skip("there is no sudo on this machine")
	}
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	dir, err := os.MkdirTemp("", "edge-e2e-user-")
	if err != nil {
		t.Fatal(err)
	}
	removeAccount(t) // of a test that was killed
	run("useradd", "--system", "--no-create-home", "--home-dir", filepath.Join(dir, "home"), "--shell", "/bin/bash", accountName)
	t.Cleanup(func() {
		removeAccount(t)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	u, err := user.Lookup(accountName)
	if err != nil {
		t.Fatal(err)
	}
	a := &account{name: accountName, dir: dir}
	if a.uid, err = strconv.Atoi(u.Uid); err != nil {
		t.Fatal(err)
	}
	if a.gid, err = strconv.Atoi(u.Gid); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"home", "repository/examples"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cache := os.Getenv("EDGE_COMPONENT_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(base, "edge", "components")
	}
	run("cp", "-r", "--preserve=timestamps,mode", filepath.Join(root, "bin"), filepath.Join(root, "scripts"), filepath.Join(dir, "repository"))
	run("cp", "-r", filepath.Join(root, "examples", "quickstart"), filepath.Join(dir, "repository", "examples"))
	run("cp", "-r", "--preserve=timestamps,mode,links", cache, filepath.Join(dir, "components"))
	run("chown", "-hR", accountName, dir)
	a.env = []string{
		"HOME=" + filepath.Join(dir, "home"), "USER=" + a.name, "PATH=" + os.Getenv("PATH"),
		"EDGE_STATE_DIR=" + a.state(), "EDGE_COMPONENT_CACHE=" + filepath.Join(dir, "components"), "EDGE_COMPONENT_SOURCE=cache",
		"TF_IN_AUTOMATION=1", "CHECKPOINT_DISABLE=1", "GOTOOLCHAIN=local",
	}
	return a
}

func (a *account) state() string { return filepath.Join(a.dir, "state") }

func sudoersFile() string { return filepath.Join("/etc/sudoers.d", accountName) }

func removeAccount(t *testing.T) {
	t.Helper()
	if err := os.Remove(sudoersFile()); err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	if _, err := user.Lookup(accountName); err != nil {
		return
	}
	if out, err := exec.Command("userdel", accountName).CombinedOutput(); err != nil {
		t.Errorf("userdel: %v\n%s", err, out)
	}
}

// maySudo lets the user become root without a password.
func (a *account) maySudo(t *testing.T) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(sudoersFile()), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sudoersFile(), []byte(a.name+" ALL=(ALL) NOPASSWD: ALL\n"), 0o440); err != nil {
		t.Fatal(err)
	}
}

// start runs a program as the user, in a process group of its own.
func (a *account) start(t *testing.T, out *bytes.Buffer, name string, args ...string) (*exec.Cmd, chan error) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = a.dir, a.env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:    true,
		Credential: &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}, //nolint:gosec // ids are small
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return cmd, ended
}

func (a *account) run(t *testing.T, within time.Duration, name string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd, ended := a.start(t, &out, name, args...)
	select {
	case err := <-ended:
		return out.String(), err
	case <-time.After(within):
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it may just have ended
		<-ended
		t.Fatalf("%s %v: not within %s\n%s", name, args, within, out.String())
		return "", nil
	}
}

// TestUserWithSudo shows the quickstart to a user who is not root: told in the
// plan that they may not, and, once they may sudo, with everything of theirs
// staying theirs.
func TestUserWithSudo(t *testing.T) {
	r := rig.New(t) // for the repository, and for what is left when this fails
	a := newAccount(t, r.Root)
	scripts := filepath.Join(a.dir, "repository", "scripts")
	t.Cleanup(func() { // before the user goes
		if records, err := filepath.Glob(filepath.Join(a.state(), "clusters", "*", "cluster.json")); err != nil || len(records) == 0 {
			return
		}
		out, err := a.run(t, 2*time.Minute, filepath.Join(a.dir, "repository", "bin", "edge"), "destroy", "--yes", "quickstart")
		t.Errorf("the test left a cluster; destroying it: %v\n%s", err, out)
	})

	began := time.Now()
	out, err := a.run(t, time.Minute, filepath.Join(scripts, "quickstart.sh"))
	if err == nil {
		t.Fatal("a user without rights got local nodes")
	}
	t.Logf("a user without rights is told after %.1f s", time.Since(began).Seconds())
	contains(t, plain(out), "a local node needs root")
	contains(t, plain(out), "sudo")
	if made, err := filepath.Glob(filepath.Join(a.state(), "clusters", "*")); err != nil || len(made) > 0 {
		t.Errorf("something was made: %v, %v", made, err)
	}

	a.maySudo(t)
	// Ctrl-C while `sudo edge node up`, which this user may not signal, works.
	var said bytes.Buffer
	cmd, ended := a.start(t, &said, filepath.Join(scripts, "quickstart.sh"))
	nodes := filepath.Join(a.state(), "clusters", "*", "nodes", "*", "logs", "node.log")
	rig.Eventually(t, time.Minute, "nodes are being started", func() error {
		if found, err := filepath.Glob(nodes); err != nil || len(found) == 0 {
			return fmt.Errorf("%v %v", found, err)
		}
		return nil
	})
	began = time.Now()
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it may just have ended
		t.Fatalf("Ctrl-C does not end it: %s", said.String())
	}
	t.Logf("Ctrl-C through sudo: ended after %.1f s", time.Since(began).Seconds())
	rig.Eventually(t, 5*time.Second, "no helper is left", func() error {
		procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		for _, p := range procs {
			raw, err := os.ReadFile(p)
			if err == nil && bytes.Contains(raw, []byte("--until-eof")) && bytes.Contains(raw, []byte(a.state())) {
				return fmt.Errorf("%s runs", bytes.ReplaceAll(raw, []byte{0}, []byte{' '}))
			}
		}
		return nil
	})

	began = time.Now()
	if out, err = a.run(t, 3*time.Minute, filepath.Join(scripts, "quickstart.sh")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("quickstart.sh as a user with sudo: %.1f s", time.Since(began).Seconds())
	contains(t, out, "SITE=tokyo")
	a.ownsEverything(t)
	ids, err := filepath.Glob(filepath.Join(a.state(), "clusters", "quickstart-*"))
	if err != nil || len(ids) != 1 {
		t.Fatalf("%v, %v", ids, err)
	}
	if out, err = a.run(t, 2*time.Minute, filepath.Join(scripts, "quickstart-destroy.sh")); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	expectNothingLeft(t, r, "local/"+filepath.Base(ids[0]))
	if out, err = a.run(t, time.Minute, "rm", "-rf", a.state()); err != nil {
		t.Errorf("the user cannot remove what is left: %v\n%s", err, out)
	}
}

// ownsEverything shows that the state directory is the user's, but for the
// nodes' data, where root keeps what containers own.
func (a *account) ownsEverything(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(a.state(), func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == "data" && strings.Contains(path, "/nodes/") {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return nil // files of running nodes come and go
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != a.uid {
			t.Errorf("%s belongs to user %d", strings.TrimPrefix(path, a.state()), st.Uid)
			if d.IsDir() {
				return fs.SkipDir
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
