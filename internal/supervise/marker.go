//go:build linux

package supervise

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	// markerEnv says whose child a process is: <RunDir>:<name>.
	markerEnv = "EDGE_SUPERVISED"
	// digestEnv is <digest of the spec>.<hash of the command line>.
	digestEnv = "EDGE_SUPERVISED_DIGEST"
)

// Marked is a running process that carries the marker of a run directory,
// whether or not the directory still exists.
type Marked struct {
	Identity
	RunDir string
	Name   string
	digest string
}

func markers(runDir, name, digest string, argv []string) []string {
	return []string{
		markerEnv + "=" + runDir + ":" + name,
		digestEnv + "=" + digest + "." + hashArgv(argv),
	}
}

func hashArgv(argv []string) string {
	return hashCmdline([]byte(strings.Join(argv, "\x00") + "\x00"))
}

// hashCmdline hashes the content of /proc/<pid>/cmdline.
func hashCmdline(cmdline []byte) string {
	sum := sha256.Sum256(cmdline)
	return hex.EncodeToString(sum[:16])
}

// parseMarker reads the markers out of /proc/<pid>/environ. ok is false unless
// both are there and the command line is the one the marker was made for, which
// tells a child from what the child itself has started.
func parseMarker(environ, cmdline []byte) (m Marked, ok bool) {
	var argvHash string
	for v := range bytes.SplitSeq(environ, []byte{0}) {
		name, value, found := strings.Cut(string(v), "=")
		if !found {
			continue
		}
		switch name {
		case markerEnv:
			i := strings.LastIndexByte(value, ':')
			if i < 0 {
				return Marked{}, false
			}
			m.RunDir, m.Name = value[:i], value[i+1:]
		case digestEnv:
			m.digest, argvHash, _ = strings.Cut(value, ".")
		}
	}
	ok = filepath.IsAbs(m.RunDir) && validName.MatchString(m.Name) &&
		m.digest != "" && argvHash == hashCmdline(cmdline)
	return m, ok
}

// FindMarked lists the running children of every supervisor whose run directory
// is dir or lies below it. It sees the processes whose environment the caller
// may read: its own user's, or all as root.
func FindMarked(dir string) ([]Marked, error) {
	dir, err := resolveDir(dir)
	if err != nil {
		return nil, fmt.Errorf("find supervised processes: %w", err)
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("find supervised processes: %w", err)
	}
	var found []Marked
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// Processes come and go and some are not ours to read: what cannot be
		// read is not a child of ours that runs.
		st, err := readStat(pid)
		if err != nil || st.session != pid || st.dead() {
			continue
		}
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil || !bytes.Contains(environ, []byte(markerEnv+"=")) {
			continue
		}
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue
		}
		m, ok := parseMarker(environ, cmdline)
		if !ok || (m.RunDir != dir && !strings.HasPrefix(m.RunDir, dir+"/")) {
			continue
		}
		m.Identity = Identity{PID: pid, StartTime: st.startTime, BootID: boot}
		found = append(found, m)
	}
	return found, nil
}
