//go:build linux

package main

import (
	"testing"
	"time"
)

func TestParseHandshake(t *testing.T) {
	for _, c := range []struct{ line, address, method string }{
		{"1|6|unix|/tmp/plugin1|grpc|\n", "/tmp/plugin1", "/tfplugin6.Provider/GetProviderSchema"},
		{"1|5|unix|/tmp/plugin1|grpc\n", "/tmp/plugin1", "/tfplugin5.Provider/GetSchema"},
		{"1|4|unix|/tmp/plugin1|grpc\n", "", ""},
		{"1|6|tcp|127.0.0.1:1|grpc|\n", "", ""},
		{"panic: no", "", ""},
	} {
		address, method, err := parseHandshake(c.line)
		if address != c.address || method != c.method || (err == nil) != (c.address != "") {
			t.Errorf("%q: %q %q %v", c.line, address, method, err)
		}
	}
}

func FuzzParseHandshake(f *testing.F) {
	f.Add("1|6|unix|/tmp/plugin1|grpc|")
	f.Add("||||||")
	f.Fuzz(func(t *testing.T, line string) {
		if _, method, err := parseHandshake(line); err == nil && method == "" {
			t.Error("accepted without a method")
		}
	})
}

func TestParseRollup(t *testing.T) {
	got, err := parseRollup([]byte("00400000-7fff [rollup]\nRss:     2048 kB\nPss:  1024 kB\nShared_Clean: 9 kB\n"))
	if err != nil || got != (usage{2 << 20, 1 << 20}) {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := parseRollup(nil); err == nil {
		t.Error("nothing is accepted")
	}
}

func FuzzParseRollup(f *testing.F) {
	f.Add([]byte("Rss: 1 kB\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if u, err := parseRollup(raw); err == nil && u.rss == 0 {
			t.Error("accepted without a value")
		}
	})
}

func TestResourcePhases(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	out := `{"@timestamp":"2026-01-01T00:00:01Z","type":"apply_start","hook":{"resource":{"addr":"edge_cluster.a"}}}
not JSON
{"@timestamp":"2026-01-01T00:00:03Z","type":"apply_complete","hook":{"resource":{"addr":"edge_cluster.a"}}}
{"@timestamp":"2026-01-01T00:00:03Z","type":"apply_start","hook":{"resource":{"addr":"edge_node.a"}}}
{"@timestamp":"2026-01-01T00:00:04Z","type":"apply_start","hook":{"resource":{"addr":"edge_node.b"}}}
{"@timestamp":"2026-01-01T00:00:05Z","type":"apply_complete","hook":{"resource":{"addr":"edge_node.a"}}}
{"@timestamp":"2026-01-01T00:00:07Z","type":"apply_complete","hook":{"resource":{"addr":"edge_node.b"}}}
`
	phases, err := resourcePhases(out, began, began.Add(8*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	want := []float64{1, 2, 4, 1}
	for i, p := range phases {
		if p.Duration.Seconds() != want[i] {
			t.Errorf("%s took %s", p.Name, p.Duration)
		}
	}
	if len(phases) != len(want) {
		t.Errorf("phases %v", phases)
	}
}

func TestProcessName(t *testing.T) {
	for want, args := range map[string][]string{
		"kube-apiserver": {"/cache/kube-apiserver", "--x"},
		"edge node run (agent, hub, pod network)":       {"/s/edge", "node", "run"},
		"edge control-plane run (gateway, controllers)": {"/s/edge", "control-plane", "run"},
		"edge supervise (the daemon's parent)":          {"/s/edge", "supervise", "--"},
	} {
		if got := processName(args); got != want {
			t.Errorf("%v: %q", args, got)
		}
	}
}

func TestNodesVar(t *testing.T) {
	if got := nodesVar(); got != "-var=nodes=[]" {
		t.Error(got)
	}
	if got := nodesVar("a", "b"); got != `-var=nodes=["a","b"]` {
		t.Error(got)
	}
}
