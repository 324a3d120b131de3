package bench

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSample(t *testing.T) {
	for _, c := range []struct {
		sample           Sample
		median, min, max float64
	}{
		{nil, 0, 0, 0},
		{Sample{3}, 3, 3, 3},
		{Sample{9, 1, 2}, 2, 1, 9},
		{Sample{4, 1, 3, 2}, 2.5, 1, 4},
	} {
		if got := [3]float64{c.sample.Median(), c.sample.Min(), c.sample.Max()}; got != [3]float64{c.median, c.min, c.max} {
			t.Errorf("%v: median, min, max %v", c.sample, got)
		}
	}
	if got := (Sample{2, 9, 5}).Ratios(Sample{4, 0}); !cmp.Equal(got, Sample{0.5}) {
		t.Errorf("ratios %v", got)
	}
}

func TestAimAndPeer(t *testing.T) {
	for _, c := range []struct {
		unit               string
		ours, aim          float64
		met, worseThanPeer bool
	}{
		{"s", 4, 5, true, false},
		{"s", 5, 5, true, false},
		{"s", 6, 5, false, true},
		{"MB/s", 6, 5, true, false},
		{"requests/s", 4, 5, false, true},
	} {
		r := Row{Unit: c.unit, Ours: c.ours}.Aiming(c.aim).With("peer", c.aim)
		if *r.Met != c.met || r.WorseThanPeer() != c.worseThanPeer {
			t.Errorf("%+v: met %v, worse than the peer %v", c, *r.Met, r.WorseThanPeer())
		}
	}
}

func TestMisses(t *testing.T) {
	rows := []Row{{Name: "none", Unit: "s", Ours: 1}, Row{Name: "met", Unit: "s", Ours: 1}.Aiming(2), Row{Name: "missed", Unit: "MB", Ours: 60}.Aiming(40)}
	if got, want := Misses(rows), "aim missed: missed: 60 MB, the aim is 40 (+50 %)\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestRowsSurviveTheFile(t *testing.T) {
	rows := Spread("create", "s", Sample{1, 2, 3}, "peer", Sample{2, 2, 2})
	var p Phases
	p.Add([]Phase{{"pki", time.Second}, {"etcd", 2 * time.Second}})
	p.Add([]Phase{{"pki", 3 * time.Second}})
	rows = append(rows, p.Rows("create")...)
	path := filepath.Join(t.TempDir(), "bench", "create.json")
	if err := Write(path, rows); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(rows, got); diff != "" {
		t.Error(diff)
	}
	if len(rows) != 5 || rows[3].Name != "phase of create: pki" || rows[3].Ours != 2 {
		t.Errorf("rows %+v", rows)
	}
}

// The page names what is worse before anything else is shown.
func TestPage(t *testing.T) {
	rows := Spread("create", "s", Sample{5, 6, 7}, "kwokctl", Sample{4, 4, 4})
	rows[0] = rows[0].Aiming(4)
	rows = append(rows, Row{Name: "join", Unit: "s", Ours: 2}, Row{Name: PhasePrefix + "create: pki", Unit: "s", Ours: 0.1})
	page := Page{Date: time.Unix(0, 0), Machine: Machine{CPU: "a CPU", Cores: 2, MemoryGB: 24, Kernel: "Linux 6", System: "Debian"}, Areas: []Area{{"create", rows}}}
	text, err := page.Markdown()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"- create: 6.00 s; kwokctl has 4.00 s, the aim is 4.00 s.\n",
		"| create | s | 6.00 | 5.00–7.00 | 4.00 | 4.00–4.00 | kwokctl | 4.00 | **no** |",
		"| join | s | 2.00 |  |  |  |  |  |  |",
		"| create: pki | s | 0.100 |",
		"2 cores (a CPU), 24 GB",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, Fastest) {
		t.Error("spreads are rows of their own")
	}
	page.Areas[0].Name = "unheard-of"
	if _, err := page.Markdown(); err == nil {
		t.Error("an area without notes makes a page")
	}
}
