package cli

import (
	"bytes"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a gateway records becomes a file of the caller's alone; what it refuses is
// told in its words, and makes none.
func TestGatewayQlog(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "admin.sock")
	ln, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var asked string
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.String()
		if r.URL.Query().Get("node") != "berlin-1" {
			http.Error(w, "node is not connected", http.StatusNotFound)
			return
		}
		_, _ = w.Write([]byte("\x1e{}\n"))
	})}
	go func() { _ = server.Serve(ln) }() // ends with Close
	defer server.Close()
	var told bytes.Buffer
	a := &app{streams: streams{Out: &bytes.Buffer{}, Err: &told}}
	run := func(args ...string) error {
		c := a.newGatewayQlogCommand()
		c.SilenceErrors, c.SilenceUsage = true, true
		c.SetArgs(args)
		return c.ExecuteContext(t.Context())
	}
	out := filepath.Join(dir, "a.sqlog")
	if err := run(socket, "berlin-1", "--for", "90s", "-o", out); err != nil {
		t.Fatal(err)
	}
	if asked != "/qlog?for=1m30s&node=berlin-1" {
		t.Errorf("asked for %s", asked)
	}
	data, err := os.ReadFile(out)
	if err != nil || string(data) != "\x1e{}\n" || !strings.Contains(told.String(), out) {
		t.Errorf("file %q, %v; told %q", data, err, told.String())
	}
	if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if err := run(socket, "berlin-1", "-o", out); err == nil || !strings.Contains(err.Error(), out) {
		t.Errorf("a file that exists: %v", err)
	}
	other := filepath.Join(dir, "b.sqlog")
	if err := run(socket, "berlin-9", "-o", other); err == nil || !strings.Contains(err.Error(), "node is not connected") {
		t.Errorf("refused: %v", err)
	}
	for _, d := range []string{"0s", "2h"} {
		if err := run(socket, "berlin-1", "-o", other, "--for", d); err == nil || !strings.Contains(err.Error(), "at most 1h") {
			t.Errorf("for %s: %v", d, err)
		}
	}
	if _, err := os.Stat(other); !os.IsNotExist(err) {
		t.Errorf("a refused recording made a file: %v", err)
	}
}
