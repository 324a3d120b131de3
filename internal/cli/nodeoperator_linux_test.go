package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/component"
	"github.com/edgewright/terraform-provider-edge/internal/edgenode"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

func TestLeadingFlags(t *testing.T) {
	for _, c := range []struct {
		args     string
		dir      string
		rest     string
		complain bool
	}{
		{args: "get pods", rest: "get pods"},
		{args: "--dir /n get pods", dir: "/n", rest: "get pods"},
		{args: "--dir=/n logs p -c web --dir x", dir: "/n", rest: "logs p -c web --dir x"},
		{args: "--dir /n -- get pods -- x", dir: "/n", rest: "get pods -- x"},
		{args: "-- get pods", rest: "get pods"},
		{args: "--dir", complain: true},
	} {
		var dir string
		rest, err := leadingFlags(strings.Fields(c.args), map[string]*string{"--dir": &dir})
		if (err != nil) != c.complain || err == nil && (dir != c.dir || strings.Join(rest, " ") != c.rest) {
			t.Errorf("%q: dir %q, rest %q, %v", c.args, dir, rest, err)
		}
	}
}

func TestNodeDir(t *testing.T) {
	state := t.TempDir()
	a := &app{streams: streams{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}}, stateDir: state}
	if dir, err := a.nodeDir("/n"); err != nil || dir != "/n" {
		t.Errorf("a given one: %q %v", dir, err)
	}
	if _, err := a.nodeDir(""); err == nil || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("none: %v", err)
	}
	add := func(name string) string {
		dir := filepath.Join(state, "clusters", "c-01234567", "nodes", name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "node.json"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	one := add("one")
	if dir, err := a.nodeDir(""); err != nil || dir != one {
		t.Errorf("the only one: %q %v", dir, err)
	}
	two := add("two")
	if _, err := a.nodeDir(""); err == nil || !strings.Contains(err.Error(), one) || !strings.Contains(err.Error(), two) {
		t.Errorf("two: %v", err)
	}
}

// TestClientProgram: a node's kubectl is the one it was set up with, whatever cache
// the caller has, and none is ever fetched.
func TestClientProgram(t *testing.T) {
	there := filepath.Join(t.TempDir(), "kubectl")
	if err := os.WriteFile(there, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		recorded, want string
	}{
		"set up with it":       {recorded: there, want: there},
		"set up before":        {},
		"removed after set-up": {recorded: there + "-gone"},
	} {
		t.Run(name, func(t *testing.T) {
			// Nothing listens there: whoever fetches says so.
			cache := component.Options{Cache: t.TempDir(), Source: component.SourceMirror, Mirror: "https://127.0.0.1:1", Platform: component.Platform{OS: "linux", Arch: "amd64"}}
			spec := &edgenode.Spec{Name: "n1", KubernetesVersion: "1.36.3", Programs: map[string]string{}}
			if c.recorded != "" {
				spec.Programs[edgenode.ProgramKubectl] = c.recorded
			}
			got, err := clientProgram(spec, cache)
			if got != c.want || (err == nil) != (c.want != "") {
				t.Fatalf("%q, %v; want %q", got, err, c.want)
			}
			if err == nil {
				return
			}
			for _, want := range []string{"node n1", cache.Cache, "edge component fetch --kubernetes 1.36.3 --set client"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
		})
	}
}

func TestPrintNode(t *testing.T) {
	now := time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC)
	told := nodeTold{
		Status: &edgenode.Status{
			Node: "n1", Pool: "site", Phase: edgenode.PhaseRunning, Link: edgenode.LinkCut, Started: now.Add(-time.Hour),
			Processes: map[string]string{"kubelet": "ready", "coredns": "ready"},
		},
		Live: &edgenode.Live{
			Link:         edgenode.LiveLink{Since: now.Add(-5 * time.Minute), Reason: "the tunnel has no session"},
			Tunnel:       &edgenode.LiveTunnel{Wanted: "tcp", Trouble: "over TCP: connection refused\nover TCP: no route"},
			Faults:       []edgenode.Fault{{Reason: "CacheIncomplete", Message: "not read whole yet: services.v1"}},
			Collections:  []edgenode.LiveCollection{{Name: "pods.v1 node=n1", Complete: true, Objects: 3, Bytes: 4096, Heard: now.Add(-6 * time.Minute)}, {Name: "services.v1"}},
			Certificates: []edgenode.LiveCertificate{{Name: "system:node:n1", File: "node.crt", Ends: now.Add(10 * 24 * time.Hour)}, {Name: "edge:hub:n1", File: "hub.crt", Ends: now.Add(-time.Hour)}},
			Traffic:      edgenode.LiveTraffic{Sent: 10, Received: 20},
		},
	}
	out := &bytes.Buffer{}
	a := &app{streams: streams{Out: out}, output: "table"}
	if err := a.printNode(told, now); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"NODE POOL PHASE LINK ADDRESS PODS VERSION MESSAGE", "n1 site running cut", "",
		"Link: cut 5m ago: the tunnel has no session",
		"Tunnel: no session; the pool's transport is tcp: over TCP: connection refused; over TCP: no route",
		"Autonomy: CacheIncomplete: not read whole yet: services.v1",
		"Program: coredns ready", "Program: kubelet ready",
		"Certificate: system:node:n1 (node.crt) ends in 10d", "Certificate: edge:hub:n1 (hub.crt) ended 60m ago",
		"Bytes: 20 from and 10 to the cluster's API since the daemon started 60m ago", "",
		"HELD OF THE API WHOLE OBJECTS HEARD BYTES", "pods.v1 node=n1 true 3 6m ago 4096", "services.v1 false 0 - 0",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	out.Reset()
	a.output = "json"
	if err := a.printNode(told, now); err != nil || !strings.Contains(out.String(), `"live": {`) || !strings.Contains(out.String(), `"phase": "running"`) {
		t.Errorf("as JSON: %v %s", err, out)
	}
}

func TestTunnelLine(t *testing.T) {
	for _, c := range []struct {
		tunnel edgenode.LiveTunnel
		want   string
	}{
		{edgenode.LiveTunnel{Transport: "quic", Wanted: "auto"}, "a session over quic; the pool's transport is auto"},
		{edgenode.LiveTunnel{Transport: "tcp", Wanted: "auto", Fallback: true}, "a session over tcp; the pool's transport is auto, and UDP does not get through"},
		{edgenode.LiveTunnel{Transport: "quic", Wanted: "tcp", Trouble: "refused"}, "a session over quic; the pool's transport is tcp: refused"},
		{edgenode.LiveTunnel{Wanted: "quic"}, "no session; the pool's transport is quic"},
	} {
		if got := tunnelLine(&c.tunnel); got != c.want {
			t.Errorf("%+v: %q, want %q", c.tunnel, got, c.want)
		}
	}
}

func TestPrintHistory(t *testing.T) {
	at := time.Date(2026, 5, 4, 3, 2, 1, 5e6, time.Local)
	happened := []tunnel.Happened{
		{At: at, Count: 1, Event: tunnel.EventConnected, Session: 1, Detail: "to 192.0.2.1:443 over quic"},
		{At: at, Last: at.Add(time.Minute), Count: 12, Event: tunnel.EventLost, Session: 1,
			Path: &tunnel.PathState{RTT: 61_234_567, Window: 40960, Sent: 200, Lost: 12}},
		{At: at, Last: at.Add(time.Hour), Count: 60, Event: tunnel.EventFailed, Detail: "gateway a: refused\ngateway b: silent"},
	}
	var out bytes.Buffer
	a := &app{streams: streams{Out: &out, Err: &bytes.Buffer{}}}
	if err := a.printHistory(happened); err != nil {
		t.Fatal(err)
	}
	want := `TIME                      SESSION   EVENT       TIMES   RTT      WINDOW   LOST        DETAIL
2026-05-04 03:02:01.005   1         connected   1       -        -        -           to 192.0.2.1:443 over quic
2026-05-04 03:02:01.005   1         lost        12      61.2ms   40960    12 of 200   until 03:03:01
2026-05-04 03:02:01.005   -         failed      60      -        -        -           gateway a: refused; gateway b: silent, until 04:02:01
`
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
}
