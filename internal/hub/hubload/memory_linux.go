package hubload

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Memory is what a process has in memory, in KiB.
type Memory struct {
	// Program is resident pages of its program file, which all that run it share.
	Program int
	// Own is all else that is resident: its own memory, and pages of its files.
	Own int
	// Shared is what is resident with each shared page divided among its users.
	Shared int
}

// Resident is all that is in memory.
func (m Memory) Resident() int { return m.Program + m.Own }

// MemoryOf reads what a process has in memory.
func MemoryOf(pid int) (Memory, error) {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return Memory{}, err
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return Memory{}, err
	}
	m, err := parseMaps(maps, exe)
	if err != nil {
		return m, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	return m, nil
}

// parseMaps reads proc(5)'s smaps of a process that runs the program exe.
func parseMaps(maps []byte, exe string) (Memory, error) {
	var m Memory
	ofProgram := false
	for line := range bytes.Lines(maps) {
		f := strings.Fields(string(line))
		if len(f) >= 5 && strings.Contains(f[0], "-") {
			// A mapping begins; data that was written to counts as the process's.
			ofProgram = len(f) > 5 && f[5] == exe && !strings.Contains(f[1], "w")
			continue
		}
		if len(f) != 3 || f[0] != "Rss:" && f[0] != "Pss:" {
			continue
		}
		kib, err := strconv.Atoi(f[1])
		if err != nil {
			return m, fmt.Errorf("line %q: %w", bytes.TrimSpace(line), err)
		}
		switch {
		case f[0] == "Pss:":
			m.Shared += kib
		case ofProgram:
			m.Program += kib
		default:
			m.Own += kib
		}
	}
	if m.Resident() == 0 {
		return m, fmt.Errorf("nothing is resident")
	}
	return m, nil
}
