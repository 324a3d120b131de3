//go:build linux

package main

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// TestMain makes this binary the program itself, and one that leaves an orphan.
func TestMain(m *testing.M) {
	if os.Getenv("PAUSE_TEST_RUN") == "1" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestEndsOnSIGTERM(t *testing.T) {
	for _, s := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		signals := make(chan os.Signal, 2)
		signals <- syscall.SIGCHLD // no child: must not end it, nor hang
		signals <- s
		run(signals)
	}
}

func TestReapsChildren(t *testing.T) {
	// A child nobody waits for stays a zombie until reap.
	cmd := exec.CommandContext(t.Context(), "/bin/true")
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	pid := cmd.Process.Pid
	// Wait for its end without collecting it, which is what SIGCHLD says.
	if err := waitNoReap(pid); err != nil {
		t.Fatal(err)
	}
	reap()
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("child %d is still there after reap: %v", pid, err)
	}
}
