//go:build linux

package edgenode

import (
	"log/slog"
	"path/filepath"
	"sync"
	"time"
)

// statusWriter keeps status.json up to date.
type statusWriter struct {
	dir      string
	uid, gid int
	log      *slog.Logger
	now      func() time.Time

	mu   sync.Mutex // guards what follows, and the file
	last Status
}

// update changes the status and writes it.
func (w *statusWriter) update(change func(*Status)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.last)
	w.write()
}

// step notes a milestone, once.
func (w *statusWriter) step(name, message string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.last.Steps {
		if s.Name == name {
			return
		}
	}
	elapsed := w.now().Sub(w.last.Started)
	w.last.Steps = append(w.last.Steps, Step{Name: name, ElapsedMS: elapsed.Milliseconds()})
	if message != "" {
		w.last.Message = message
	}
	w.log.Info("reached", "step", name, "elapsed", elapsed.Round(time.Millisecond))
	w.write()
}

// write is called with mu held. A status that cannot be written (a full disk)
// stops nothing: the node's work does not depend on it.
func (w *statusWriter) write() {
	w.last.Updated = w.now()
	path := filepath.Join(w.dir, statusFile)
	if err := writeJSON(path, &w.last); err != nil {
		w.log.Error("write the status", "error", err)
		return
	}
	if err := giveTo(path, w.uid, w.gid); err != nil {
		w.log.Error("give the status to its owner", "error", err)
	}
}
