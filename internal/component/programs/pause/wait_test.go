//go:build linux

package main

import "golang.org/x/sys/unix"

// waitNoReap blocks until a child has ended and leaves it to be collected.
func waitNoReap(pid int) error {
	return unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
}
