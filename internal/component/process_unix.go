//go:build unix

package component

import (
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// niceness of builds: they take minutes of every core, and someone works on
// that machine.
const niceness = 10

// ownGroup puts a command into its own process group, so that its compilers end
// with it.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(cmd.SysProcAttr)
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
}

// lowerPriority lowers it for the group. Failing to is no reason to stop.
func lowerPriority(pid int) { _ = unix.Setpriority(unix.PRIO_PGRP, pid, niceness) }
