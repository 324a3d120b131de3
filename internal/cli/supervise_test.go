//go:build linux

package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSuperviseCommand(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "logs", "daemon.log")
	tries := filepath.Join(dir, "tries")
	var stderr bytes.Buffer
	a := &app{streams: streams{Err: &stderr}}
	cmd := a.newSuperviseCommand()
	// Fails once, is started again, and is done. "-x" is the command's own.
	cmd.SetArgs([]string{
		"--log", log, "--pidfile", filepath.Join(dir, "run", "supervise.json"),
		"--", "sh", "-c", `echo "args: $*"; echo x >>"$0"; test "$(wc -l <"$0")" -ge 2`, tries, "-x",
	})
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(log)
	if err != nil || strings.Count(string(data), "args: -x") != 2 {
		t.Errorf("log: %q, %v", data, err)
	}
	if !strings.Contains(stderr.String(), "exited with code 1") {
		t.Errorf("own output: %s", &stderr)
	}

	cmd = a.newSuperviseCommand()
	cmd.SetArgs([]string{"--", filepath.Join(dir, "nothing")})
	cmd.SetErr(&stderr)
	if err := cmd.ExecuteContext(t.Context()); err == nil {
		t.Error("a missing command is not an error")
	}
}
