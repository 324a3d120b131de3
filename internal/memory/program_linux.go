package memory

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// releaseProgram lets go of the pages of the program's own file. A start touches
// most of a large program and waiting little of it; what is needed again comes back
// from the page cache at a fault, sixteen pages at once. Until then the kernel may
// take those pages first when memory is short: while they are mapped as code it
// keeps them longer than others.
func releaseProgram() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	mappings, err := readOnlyMappings(f, exe)
	if err != nil {
		return err
	}
	if len(mappings) == 0 {
		return errors.New("no read-only mapping of the program's file")
	}
	for _, m := range mappings {
		// Of a private mapping of a file that was never written to it drops
		// nothing that the file does not have.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("madvise: %w", errno)
		}
	}
	return nil
}

// mapping is a range of addresses.
type mapping struct{ from, to uintptr }

// readOnlyMappings finds the private ones of a file, as proc(5) has them:
//
//	00400000-02a61000 r-xp 00000000 fe:00 1234   /usr/local/bin/edge
func readOnlyMappings(maps io.Reader, file string) (found []mapping, err error) {
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || !strings.HasSuffix(lines.Text(), " "+file) || fields[1][0] != 'r' || fields[1][1] != '-' || fields[1][3] != 'p' {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		var m mapping
		for text, at := range map[string]*uintptr{from: &m.from, to: &m.to} {
			n, err := strconv.ParseUint(text, 16, strconv.IntSize)
			if err != nil {
				return nil, fmt.Errorf("mapping %q: %w", lines.Text(), err)
			}
			*at = uintptr(n)
		}
		found = append(found, m)
	}
	return found, lines.Err()
}
