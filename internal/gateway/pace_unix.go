//go:build unix

package gateway

import (
	"syscall"
	"time"
)

// processorTime is how much of it this process has used; 0: the system does not say.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
