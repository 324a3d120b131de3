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

// releaseFiles lets go of the pages of the program's own file, and of what it has
// mapped of other files to read, its database's. A start touches most of a large
// program and waiting little of it; each write of a database touches other pages.
// What is needed again comes back from the page cache at a fault, sixteen pages at
// once. Until then the kernel may take those pages first when memory is short: while
// they are mapped as code it keeps them longer than others.
func releaseFiles() error {
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
		// Of a mapping of a file that is never written to it drops nothing that
		// the file does not have.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("madvise: %w", errno)
		}
	}
	return nil
}

// mapping is a range of addresses.
type mapping struct{ from, to uintptr }

// readOnlyMappings finds the private ones of a program's file, and those of any file
// that are shared, as proc(5) has them:
//
//	00400000-02a61000 r-xp 00000000 fe:00 1234   /usr/local/bin/edge
//	7f0000000000-7f0000400000 r--s 00000000 fe:00 1240   /var/lib/edge/replica.db
func readOnlyMappings(maps io.Reader, program string) (found []mapping, err error) {
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || len(fields[1]) < 4 || !strings.HasPrefix(fields[1], "r-") {
			continue
		}
		ofProgram, shared := strings.HasSuffix(lines.Text(), " "+program), fields[1][3] == 's' && strings.HasPrefix(fields[5], "/")
		if !ofProgram && !shared {
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
