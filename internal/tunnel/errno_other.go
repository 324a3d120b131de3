//go:build !unix

package tunnel

import "syscall"

// ErrnoName is the error's text: both ends of the tunnel run on Linux.
func ErrnoName(e syscall.Errno) string { return e.Error() }
