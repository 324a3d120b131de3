//go:build linux

package edgenode

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"
)

// A daemon whose first program cannot be started ends, so that its parent starts
// it again.
func TestRunEndsWhenTheRuntimeCannotStart(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, confDir), "a file where containerd's configuration should be")
	n := &node{dir: dir, spec: testSpec(), log: slog.New(slog.DiscardHandler)}
	n.status = &statusWriter{dir: dir, log: n.log, now: time.Now}
	n.status.last.Processes = map[string]string{}
	done := make(chan error, 1)
	go func() { done <- n.run(t.Context()) }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("it ends as if nothing was wrong")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it hangs")
	}
}
