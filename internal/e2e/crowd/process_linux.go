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

// settleTime is the time over which memory may not have changed by more than a
// hundredth to count as settled: what a runtime has freed goes back to the
// kernel over seconds.
const settleTime = 2 * time.Second

// Settled waits until a process's memory has settled and returns it, in KiB.
func Settled(ctx context.Context, pid int) (int, error) {
	tick := time.NewTicker(settleTime)
	defer tick.Stop()
	for last := -1; ; {
		now, err := Memory(pid, Resident)
		if err != nil {
			return 0, err
		}
		if d := now - last; last >= 0 && d <= now/100 && -d <= now/100 {
			return now, nil
		}
		last = now
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("memory of process %d has not settled: %w", pid, ctx.Err())
		case <-tick.C:
		}
	}
}
