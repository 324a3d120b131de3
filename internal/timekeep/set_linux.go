package timekeep

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// SetMachine sets the machine's clock, which needs CAP_SYS_TIME.
func SetMachine(to time.Time) error {
	ts := unix.NsecToTimespec(to.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the machine's clock: %w", err)
	}
	return nil
}
