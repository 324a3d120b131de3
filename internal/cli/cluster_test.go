package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// run types a command line on an empty state directory.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRoot("1.2.3", streams{In: strings.NewReader(""), Out: &out, Err: io.Discard})
	root.SetArgs(append([]string{"--state-dir", t.TempDir()}, args...))
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestWrongCommandsSayWhatToType(t *testing.T) {
	for line, want := range map[string]string{
		"logs":                       "edge logs <cluster> [process]; `edge status` lists them",
		"progress":                   "edge progress <cluster>; `edge status` lists them",
		"kubeconfig":                 "edge kubeconfig <cluster>; `edge status`",
		"credentials":                "edge credentials <cluster>; `edge status`",
		"destroy":                    "edge destroy <cluster>; `edge status`",
		"logs a b c":                 `"c" is one argument too many: edge logs <cluster> [process]`,
		"status a b":                 `"b" is one argument too many: edge status [cluster]`,
		"status a":                   "`edge status` lists the clusters",
		"status --what":              "`edge status --help` lists the flags",
		"status -o xml":              "write -o table or -o json",
		"kubectl get nodes":          "edge kubectl -c <cluster> get nodes",
		"kubectl -c":                 "edge kubectl -c <cluster> get nodes",
		"join-token a --pool berlin": "unknown command",
	} {
		if _, err := run(t, strings.Fields(line)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("edge %s: %v", line, err)
		}
	}
}

func TestKubectlHelp(t *testing.T) {
	for _, args := range [][]string{{"kubectl"}, {"kubectl", "--help"}, {"kubectl", "-h"}, {"help", "kubectl"}} {
		if out, err := run(t, args...); err != nil || !strings.Contains(out, "edge kubectl -c quickstart get nodes") {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
}

func TestKubectlFlags(t *testing.T) {
	for _, c := range []struct {
		args    []string
		cluster string
		dir     string
		rest    []string
	}{
		{[]string{"-c", "q", "logs", "-c", "web", "x"}, "q", "", []string{"logs", "-c", "web", "x"}},
		{[]string{"--cluster=q", "-c", "web"}, "q", "", []string{"-c", "web"}},
		{[]string{"-c=q", "--cluster", "other", "get"}, "q", "", []string{"--cluster", "other", "get"}},
		{[]string{"--state-dir", "/x", "-c", "q", "--help"}, "q", "/x", []string{"--help"}},
		{[]string{"-c", "q", "--state-dir=/x", "get"}, "q", "/x", []string{"get"}},
		{[]string{"-c", "q"}, "q", "", []string{}},
	} {
		a := &app{}
		cluster, rest := a.kubectlFlags(c.args)
		if cluster != c.cluster || a.stateDir != c.dir || !slices.Equal(rest, c.rest) {
			t.Errorf("%q: %q %q %q", c.args, cluster, a.stateDir, rest)
		}
	}
	for _, args := range [][]string{nil, {"get", "-c", "q"}, {"--state-dir", "/x"}, {"-c", ""}, {"-c"}} {
		if cluster, _ := (&app{}).kubectlFlags(args); cluster != "" {
			t.Errorf("%q: cluster %q", args, cluster)
		}
	}
}

func TestVersionAndStatusAsJSON(t *testing.T) {
	out, err := run(t, "version", "-o", "json")
	var v struct {
		Version    string   `json:"version"`
		Kubernetes []string `json:"kubernetes"`
	}
	if err != nil || json.Unmarshal([]byte(out), &v) != nil || v.Version != "1.2.3" || len(v.Kubernetes) == 0 {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := run(t, "-o", "json", "status"); err != nil || strings.TrimSpace(out) != "[]" {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestListLogs(t *testing.T) {
	var out bytes.Buffer
	a := &app{streams: streams{Out: &out}, output: "json"}
	dir := t.TempDir()
	for _, name := range []string{"etcd.log", "etcd.log.1"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("12345"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.listLogs(dir); err != nil {
		t.Fatal(err)
	}
	var rows []map[string]any
	if err := json.Unmarshal(out.Bytes(), &rows); err != nil || len(rows) != 1 || rows[0]["process"] != "etcd" || rows[0]["bytes"] != 5.0 || rows[0]["last_written"] == nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	if err := a.listLogs(filepath.Join(dir, "etcd.log")); err == nil {
		t.Error("a file is listed as a directory")
	}
}

func TestTailFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	write := func(flag int, text string) {
		t.Helper()
		f, err := os.OpenFile(path, flag|os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	same := func(s string) string { return s }
	write(0, "1\n2\n3\nhal")
	var out bytes.Buffer
	a := &app{streams: streams{Out: &out}}
	if err := a.tailFile(t.Context(), path, false, 2, same); err != nil || out.String() != "2\n3\nhal\n" {
		t.Errorf("%v %q", err, out.String())
	}
	if err := a.tailFile(t.Context(), filepath.Dir(path), false, 0, same); err == nil {
		t.Error("a directory is read without an error")
	}
	synctest.Test(t, func(t *testing.T) {
		out.Reset()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.tailFile(ctx, path, true, 1, same) }()
		step := func(flag int, text string) {
			time.Sleep(2 * look) // of the bubble's clock
			synctest.Wait()
			write(flag, text)
		}
		step(os.O_APPEND, "f\n4\n")
		step(os.O_TRUNC, "5\n") // rotated
		step(os.O_APPEND, "6")
		time.Sleep(2 * look)
		synctest.Wait()
		cancel()
		if err := <-done; err != nil || out.String() != "3\nhalf\n4\n5\n6\n" {
			t.Errorf("%v %q", err, out.String())
		}
	})
}
