//go:build linux

package controlplane

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestDaemonOf(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"/x/edge", "control-plane", "run", "--dir", "/d/c-1"}, "/d/c-1"},
		{[]string{"/x/edge", "supervise", "--pidfile", "/d/c-1/run/s.json", "--", "/x/edge", "control-plane", "run", "--dir", "/d/c-1"}, "/d/c-1"},
		{[]string{"/x/edge", "control-plane", "down", "--dir", "/d/c-1"}, ""},
		{[]string{"/x/edge", "node", "run", "--dir", "/d/c-1"}, ""},
		{[]string{"/x/edge", "control-plane", "run", "--dir", "relative"}, ""},
		{[]string{"--dir", "/d/c-1"}, ""},
	} {
		if got := daemonOf(tc.args); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.args, got, tc.want)
		}
	}
}

// TestStopSurvivorsEndsWhatNoRecordTellsOf: the directory of the daemons is
// gone, one of them ignores SIGTERM, and a daemon of another directory runs on.
func TestStopSurvivorsEndsWhatNoRecordTellsOf(t *testing.T) {
	base := t.TempDir()
	program := filepath.Join(base, "edge")
	body := "#!/bin/sh\n[ \"$EDGE_TEST_STUBBORN\" ] && trap '' TERM\necho started\nwhile read line; do :; done\n"
	if err := os.WriteFile(program, []byte(body), 0o700); err != nil {
		t.Fatal(err)
	}
	start := func(dir string, env ...string) (*exec.Cmd, chan error) {
		cmd := exec.Command(program, "control-plane", "run", "--dir", dir)
		cmd.Env = env
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 8)); err != nil { // it has set its trap
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		return cmd, ended
	}
	dir := filepath.Join(base, "clusters", "c-1f2e3d4c")
	_, polite := start(dir)
	_, stubborn := start(dir, "EDGE_TEST_STUBBORN=1")
	bystander, alive := start(filepath.Join(base, "clusters", "other-1f2e3d4c"))
	if err := stopSurvivors(t.Context(), dir, 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]chan error{"polite": polite, "stubborn": stubborn} {
		select {
		case err := <-c:
			t.Logf("%s: %v", name, err)
		case <-time.After(5 * time.Second):
			t.Errorf("%s runs on", name)
		}
	}
	select {
	case err := <-alive:
		t.Errorf("a daemon of another directory was ended: %v", err)
	default:
	}
	if err := bystander.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-alive
}
