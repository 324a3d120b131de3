package controlplane

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// StatusFile is the name of the Status file below a cluster directory.
const StatusFile = "run/status.json"

// Status is what the daemon says of itself.
type Status struct {
	// SpecDigest is the digest of the Spec the daemon obeys.
	SpecDigest string `json:"specDigest"`
	PID        int    `json:"pid"`
	// Program is the edge program the daemon runs from.
	Program string `json:"program"`
	// Phase is what the daemon is doing until it is "ready".
	Phase string `json:"phase"`
	// Error is why a phase does not come to its end, in the words of what fails.
	Error string    `json:"error,omitempty"`
	Since time.Time `json:"since"`
	// Phases are the times of the last start.
	Phases []PhaseTime `json:"phases,omitempty"`
}

// PhaseTime is when a phase of the start was complete.
type PhaseTime struct {
	Phase   string        `json:"phase"`
	Elapsed time.Duration `json:"elapsed_ns"` // since the daemon began
}

// PhaseReady is the last phase of a start.
const PhaseReady = "ready"

// LoadStatus reads the status of a cluster directory's daemon.
func LoadStatus(dir string) (*Status, error) {
	raw, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(StatusFile)))
	if err != nil {
		return nil, fmt.Errorf("read the control plane's status: %w", err)
	}
	s := &Status{}
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("read the control plane's status: %w", err)
	}
	return s, nil
}
