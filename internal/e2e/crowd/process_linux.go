package crowd

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// The lines of /proc/<pid>/status that Memory reads.
const (
	Resident = "VmRSS"
	Peak     = "VmHWM"
)

// Memory reads such a line, in KiB.
func Memory(pid int, field string) (int, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), field+":"); ok {
			return strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(v), " kB"))
		}
	}
	return 0, fmt.Errorf("no %s in the status of process %d", field, pid)
}

const (
	// settleTime is over what memory is averaged, and settleReadings how often it is
	// read meanwhile. What many nodes say leaves garbage: a gateway's memory grows by
	// some percent for some seconds, and then that goes back to the kernel, for ever.
	settleTime     = 6 * time.Second
	settleReadings = 12
)

// Settled waits until a process's memory does not differ by more than a hundredth
// from what it was before, each over settleTime, and returns it, in KiB.
func Settled(ctx context.Context, pid int) (int, error) {
	tick := time.NewTicker(settleTime / settleReadings)
	defer tick.Stop()
	var seen []int
	for {
		sum := 0
		for range settleReadings {
			now, err := Memory(pid, Resident)
			if err != nil {
				return 0, err
			}
			sum += now
			select {
			case <-ctx.Done():
				return 0, fmt.Errorf("memory of process %d has not settled: %w; each %s it was, in KiB, %d", pid, ctx.Err(), settleTime, seen)
			case <-tick.C:
			}
		}
		mean := sum / settleReadings
		if len(seen) > 0 {
			if d := mean - seen[len(seen)-1]; d <= mean/100 && -d <= mean/100 {
				return mean, nil
			}
		}
		seen = append(seen, mean)
	}
}
