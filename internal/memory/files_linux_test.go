package memory

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadOnlyMappings(t *testing.T) {
	const maps = `00400000-02a61000 r-xp 00000000 fe:00 1234                       /opt/my edge
02a61000-04a00000 r--p 02661000 fe:00 1234                       /opt/my edge
04a00000-04b00000 rw-p 04600000 fe:00 1234                       /opt/my edge
04b00000-04b01000 r--s 00000000 fe:00 1240                       /var/lib/replica.db
04b01000-04b02000 rw-s 00000000 fe:00 1240                       /var/lib/replica.db
04b02000-04b03000 r--s 00000000 00:00 0                          [of nothing]
04c00000-04d00000 r-xp 00000000 fe:00 1235                       /opt/edge
7ffd1000-7ffd3000 r-xp 00000000 00:00 0                          [vdso]
c000000000-c000400000 rw-p 00000000 00:00 0
`
	got, err := readOnlyMappings(strings.NewReader(maps), "/opt/my edge")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]mapping{{0x400000, 0x2a61000}, {0x2a61000, 0x4a00000}, {0x4b00000, 0x4b01000}}, got, cmp.AllowUnexported(mapping{})); d != "" {
		t.Error(d)
	}
	if _, err := readOnlyMappings(strings.NewReader("x-y r-xp 0 fe:00 1 /opt/edge"), "/opt/edge"); err == nil {
		t.Error("no error of a mapping without addresses")
	}
}

// The program runs on, with fewer of its pages.
func TestReleaseFiles(t *testing.T) {
	before := filePages(t)
	if err := releaseFiles(); err != nil {
		t.Fatal(err)
	}
	if after := filePages(t); after >= before {
		t.Errorf("%d KiB of files before, %d after", before, after)
	}
}

// filePages is how much of files this process has resident, in KiB.
func filePages(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssFile:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib
}
