//go:build linux

package supervise

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// errGone means that the process is not there any more: never was, has ended,
// is a zombie, or its pid now belongs to another.
var errGone = errors.New("process is gone")

// ticksPerSecond is USER_HZ, the unit of start times in /proc; it is 100 on
// every architecture this project is built for.
const ticksPerSecond = 100

// Identity names one process for ever: a pid alone is used again.
type Identity struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // clock ticks since boot, field 22 of /proc/<pid>/stat
	BootID    string `json:"bootID"`    // /proc/sys/kernel/random/boot_id
}

// procStat are the fields of /proc/<pid>/stat that are used here; see
// proc_pid_stat(5).
type procStat struct {
	state     byte
	parent    int
	session   int
	startTime uint64
}

// parseStat reads the content of /proc/<pid>/stat. The second field is the
// program's name in parentheses and may itself contain spaces and parentheses.
func parseStat(data []byte) (procStat, error) {
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return procStat{}, errors.New("stat: no program name")
	}
	fields := strings.Fields(string(data[end+1:]))
	const fieldsUpToStartTime = 20 // fields 3 to 22
	if len(fields) < fieldsUpToStartTime || len(fields[0]) != 1 {
		return procStat{}, errors.New("stat: too few fields")
	}
	var st procStat
	var err error
	st.state = fields[0][0]
	if st.parent, err = strconv.Atoi(fields[1]); err != nil {
		return procStat{}, fmt.Errorf("stat: parent: %w", err)
	}
	if st.session, err = strconv.Atoi(fields[3]); err != nil {
		return procStat{}, fmt.Errorf("stat: session: %w", err)
	}
	if st.startTime, err = strconv.ParseUint(fields[19], 10, 64); err != nil {
		return procStat{}, fmt.Errorf("stat: start time: %w", err)
	}
	return st, nil
}

func readStat(pid int) (procStat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	st, err := parseStat(data)
	if err != nil {
		return procStat{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return st, nil
}

func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// IdentityOf returns the identity of a running process.
func IdentityOf(pid int) (Identity, error) {
	boot, err := bootID()
	if err != nil {
		return Identity{}, err
	}
	st, err := readStat(pid)
	if err != nil {
		return Identity{}, fmt.Errorf("identity of process %d: %w", pid, err)
	}
	return Identity{PID: pid, StartTime: st.startTime, BootID: boot}, nil
}

// Alive reports whether this very process runs. One that has ended and is not
// yet reaped does not; one that is ending does, until its last thread, and with
// it every file, lock and port, is gone.
func (id Identity) Alive() bool {
	fd, err := id.open()
	if err != nil {
		return false
	}
	return unix.Close(fd) == nil
}

// open returns a pidfd of this very process, or errGone.
func (id Identity) open() (int, error) {
	if id.PID <= 0 {
		return -1, errGone
	}
	fd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: a thread
		return -1, errGone
	}
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", id.PID, err)
	}
	// Compared after opening: from here on the pidfd cannot change its meaning.
	now, err := IdentityOf(id.PID)
	if err != nil || now != id || ended(fd, 0) {
		unix.Close(fd)
		return -1, errGone
	}
	return fd, nil
}

// ended reports whether the process of a pidfd has ended, waiting up to timeout
// milliseconds (-1: for ever). The state in /proc is no answer: it shows a
// zombie while threads other than the first still run.
func ended(pidfd, timeout int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, timeout)
	return err == nil && n > 0
}

func (st procStat) dead() bool { return st.state == 'Z' || st.state == 'X' || st.state == 'x' }

// startedAt turns a start time into wall clock time, as of now.
func (id Identity) startedAt(now time.Time) time.Time {
	data, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return now
	}
	first, _, _ := strings.Cut(string(data), " ")
	up, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return now
	}
	age := up - float64(id.StartTime)/ticksPerSecond
	return now.Add(-time.Duration(age * float64(time.Second)))
}
