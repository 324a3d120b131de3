//go:build linux

package engine

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/component"
)

func TestMinimalEnvLeavesSecretsBehind(t *testing.T) {
	env := map[string]string{
		"HOME": "/home/u", "USER": "u", "LANG": "C.UTF-8", "TMPDIR": "/t", "XDG_RUNTIME_DIR": "/run/user/1",
		"TF_VAR_password": "x", "TF_LOG": "TRACE", "AWS_SECRET_ACCESS_KEY": "x", "GOOGLE_CREDENTIALS": "x", "KUBECONFIG": "x",
		"LD_PRELOAD": "x", "PATH": "/evil", "SSH_AUTH_SOCK": "x", "EDGE_SSH_PRIVATE_KEY": "x",
	}
	got := minimalEnv(func(name string) string { return env[name] })
	want := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/home/u", "USER=u", "LANG=C.UTF-8", "TMPDIR=/t", "XDG_RUNTIME_DIR=/run/user/1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// script is a stand-in for the edge program.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "edge")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func newTestEngine(t *testing.T, o Options) *Engine {
	t.Helper()
	o.StateDir = t.TempDir()
	e, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestRunEdgePassesProgressAndTheError(t *testing.T) {
	var told []string
	e := newTestEngine(t, Options{Progress: func(p Progress) { told = append(told, p.Phase+": "+p.Message) }})
	edge := script(t, `
echo 'a line of another program'
echo '{"phase":"etcd","message":"starting"}'
echo '{"error":"etcd is not ready","next":"Look at its log"}'
exit 1`)
	err := e.runEdge(t.Context(), e.report("c", ""), edgeCommand{Binary: edge, Args: []string{"control-plane", "up"}})
	if err == nil || err.Error() != "etcd is not ready. Look at its log" {
		t.Errorf("%v", err)
	}
	if diff := cmp.Diff([]string{"etcd: starting"}, told); diff != "" {
		t.Error(diff)
	}
	edge = script(t, `echo 'sudo: a password is required' >&2; exit 1`)
	err = e.runEdge(t.Context(), e.report("c", ""), edgeCommand{Binary: edge, Args: []string{"node", "up", "--dir", "/d"}})
	if err == nil || !strings.Contains(err.Error(), "edge node up") || !strings.Contains(err.Error(), "a password is required") {
		t.Errorf("%v", err)
	}
}

// TestRunEdgeEndsByInput shows how a command ends that may not be signalled: its
// input does. It reads its secret first, and never sees it as an argument.
func TestRunEdgeEndsByInput(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	edge := script(t, `
trap '' TERM INT
read token
echo "$token $*" > `+out+`
echo '{"phase":"waiting","message":"for its end"}'
cat > /dev/null
echo ended >> `+out+`
exit 1`)
	ctx, cancel := context.WithCancel(t.Context())
	e := newTestEngine(t, Options{Progress: func(p Progress) {
		if p.Phase == "waiting" {
			cancel()
		}
	}})
	began := time.Now()
	err := e.runEdge(ctx, e.report("c", ""), edgeCommand{Binary: edge, Args: []string{"node", "up"}, Stdin: "secret\n"})
	if !interrupted(ctx, err) || err == nil {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > stopPatience/2 {
		t.Errorf("it took %s to end", took)
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("secret node up --until-eof\nended\n", string(raw)); diff != "" {
		t.Error(diff)
	}
}

// A node learns the HTTP proxy of Terraform's environment, or that there is none,
// and nobody else does: a proxy's URL may hold a password.
func TestNodeUpCommand(t *testing.T) {
	env := map[string]string{"HTTPS_PROXY": "http://user:secret@proxy:3128", "NO_PROXY": "10.0.0.0/8", "AWS_SECRET_ACCESS_KEY": "x"}
	const lines = `{"HTTPS_PROXY":"http://user:secret@proxy:3128","NO_PROXY":"10.0.0.0/8"}` + "\n"
	for _, tc := range []struct {
		name, token string
		getenv      func(string) string
		args        []string
		stdin       string
	}{
		{"joins", "token", func(n string) string { return env[n] }, []string{"--proxy-stdin", "--token-stdin"}, "token\n" + lines},
		{"has joined", "", func(n string) string { return env[n] }, []string{"--proxy-stdin"}, lines},
		{"without a proxy", "", func(string) string { return "" }, []string{"--proxy-stdin"}, "{}\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := edgeCommand{Binary: "/edge", Root: true, Args: append([]string{"node", "up", "--dir", "/d"}, tc.args...), Stdin: tc.stdin}
			got, err := nodeUpCommand("/edge", "/d", tc.token, tc.getenv)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			for _, v := range minimalEnv(tc.getenv) {
				if strings.Contains(v, "secret") {
					t.Errorf("environment: %s", v)
				}
			}
		})
	}
}

func TestInstallEdge(t *testing.T) {
	e := newTestEngine(t, Options{EdgeBinary: script(t, "exit 0")})
	first, err := e.installEdge()
	if err != nil {
		t.Fatal(err)
	}
	again, err := e.installEdge()
	if err != nil || again != first {
		t.Errorf("%q, then %q, %v", first, again, err)
	}
	e.opts.EdgeBinary = script(t, "exit 1")
	second, err := e.installEdge()
	if err != nil || second == first {
		t.Errorf("%q, then %q, %v", first, second, err)
	}
	link, err := os.Readlink(filepath.Join(e.opts.StateDir, "bin", "edge"))
	if err != nil || link != second {
		t.Errorf("bin/edge leads to %q, %v; want %q", link, err, second)
	}
	if _, err := os.Stat(first); err != nil {
		t.Errorf("daemons of the old version lose their program: %v", err)
	}
}

func TestComponentEventsReachThoseWhoWait(t *testing.T) {
	var told []string
	var passed int
	e := newTestEngine(t, Options{
		Progress:   func(p Progress) { told = append(told, p.Object+" "+p.Phase+": "+p.Message) },
		Components: component.Options{Progress: func(component.Event) { passed++ }},
	})
	waits, done := e.report("c", ""), e.report("d", "")
	e.fetching[waits] = true
	_ = done
	for _, ev := range []component.Event{
		{Kind: component.Planned, Components: []string{"kubernetes 1.36.3", "etcd 3.6.8"}, Estimate: 6*time.Minute + 31*time.Second},
		{Kind: component.Started, Component: "etcd", Version: "3.6.8", Source: "module"},
		{Kind: component.Progress, Component: "etcd", Done: 3, Total: 9},
		{Kind: component.Notice, Message: "the cache is damaged"},
		{Kind: component.Installed, Component: "etcd", Version: "3.6.8", Elapsed: 25 * time.Second},
	} {
		e.componentEvent(ev)
	}
	want := []string{
		"c components: building kubernetes 1.36.3, etcd 3.6.8, once: about 7m0s on a machine that has built none of it before",
		"c components: building etcd 3.6.8",
		"c components: the cache is damaged",
		"c components: etcd 3.6.8 is in the cache after 25s",
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Error(diff)
	}
	if passed != 5 {
		t.Errorf("%d events went on to the face, want all 5", passed)
	}
}

func TestBelongs(t *testing.T) {
	id := clusterID{Placement: "local", Name: "c", UID: "1f2e3d4c"}
	const d = "/home/u/.edge/clusters/c-1f2e3d4c"
	for _, tc := range []struct {
		name      string
		args      []string
		dir, node string
		ok        bool
	}{
		{"daemon", []string{"/x/edge", "control-plane", "run", "--dir", d}, d, "", true},
		{"parent", []string{"/x/edge", "supervise", "--pidfile", d + "/run/supervise.json", "--", "/x/edge", "control-plane", "run", "--dir", d}, d, "", true},
		{"node daemon", []string{"/x/edge", "node", "run", "--dir", d + "/nodes/n-1"}, d, "n-1", true},
		{"program", []string{"/c/etcd", "--data-dir=" + d + "/etcd"}, d, "", true},
		{"program of a node", []string{"/c/containerd", "--config", d + "/nodes/n-1/conf/c.toml"}, d, "n-1", true},
		{"command that converges", []string{"/x/edge", "node", "down", "--dir", d + "/nodes/n-1"}, "", "", false},
		{"sudo of it", []string{"sudo", "-n", "--", "/x/edge", "node", "up", "--dir", d + "/nodes/n-1"}, "", "", false},
		{"somebody reading a log", []string{"tail", "-f", d + "/logs/etcd.log"}, "", "", false},
		{"another cluster", []string{"/c/etcd", "--data-dir=" + d + "0/etcd"}, "", "", false},
	} {
		dir, node, ok := belongs(tc.args, id)
		if dir != tc.dir || node != tc.node || ok != tc.ok {
			t.Errorf("%s: %q, %q, %v", tc.name, dir, node, ok)
		}
	}
}
