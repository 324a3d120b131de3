package hubload

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseMaps(t *testing.T) {
	const maps = `00400000-01e4a000 r-xp 00000000 fd:00 1234                               /opt/edge
Size:              26920 kB
Rss:               12000 kB
Pss:                6000 kB
VmFlags: rd ex mr mw me
01e4a000-01e9a000 rw-p 01a4a000 fd:00 1234                               /opt/edge
Rss:                 320 kB
Pss:                 320 kB
c000000000-c004000000 rw-p 00000000 00:00 0
Rss:                9000 kB
Pss:                9000 kB
7f0000000000-7f0004000000 r--s 00000000 fd:00 99                         /data/replica.db
Rss:                 700 kB
Pss:                 700 kB
`
	got, err := parseMaps([]byte(maps), "/opt/edge")
	if err != nil {
		t.Fatal(err)
	}
	want := Memory{Program: 12000, Own: 10020, Shared: 16020}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := parseMaps(nil, "/opt/edge"); err == nil {
		t.Error("a process without memory was measured")
	}
}

func TestMemoryOfThisProcess(t *testing.T) {
	m, err := MemoryOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if m.Program == 0 || m.Own == 0 || m.Shared == 0 {
		t.Errorf("%+v", m)
	}
}
