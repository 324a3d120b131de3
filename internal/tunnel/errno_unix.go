//go:build unix

package tunnel

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrnoName is the constant's name where there is one, for labels.
func ErrnoName(e syscall.Errno) string {
	if n := unix.ErrnoName(e); n != "" {
		return n
	}
	return e.Error()
}
