package edgenode

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Phase is where a node is in its life; see the drawing in the package's doc.
type Phase string

// The phases.
const (
	PhaseJoining  Phase = "joining"
	PhaseStarting Phase = "starting"
	PhaseRunning  Phase = "running"
	PhaseFailed   Phase = "failed"
	// PhaseStopped is never written: it is what a reader concludes when no
	// daemon is alive.
	PhaseStopped Phase = "stopped"
)

// Link states of a node's tunnel.
const (
	LinkConnecting = "connecting"
	LinkConnected  = "connected"
	LinkCut        = "cut" // was connected since the daemon started, and is not now
)

// Status is what the daemon says of its node: <node dir>/status.json, for
// `edge node status` and `edge node up`. It holds no secret.
type Status struct {
	Node    string `json:"node"`
	Cluster string `json:"cluster"`
	Pool    string `json:"pool"`
	Phase   Phase  `json:"phase"`
	// Message says what is done or waited for, as a sentence.
	Message string `json:"message"`
	// Error and Next are set in PhaseFailed: what failed, and what to type.
	Error string `json:"error,omitempty"`
	Next  string `json:"next,omitempty"`
	// Attempt is the number of the join token the failure is about; see
	// tokenAttempt.
	Attempt int64 `json:"attempt,omitempty"`

	Link      string    `json:"link"`
	LinkSince time.Time `json:"linkSince,omitzero"`
	// CutReason is why the hub answers from the node's own replica; empty while
	// it can ask the apiserver.
	CutReason string `json:"cutReason,omitempty"`
	// Faults are what would keep the node from going on through a cut and a
	// reboot in it, the gravest first; none: nothing would.
	Faults []Fault `json:"faults,omitempty"`
	// Started is when the daemon started, Running when the node was first up
	// after that, Updated when this was written.
	Started time.Time `json:"started"`
	Running time.Time `json:"running,omitzero"`
	Updated time.Time `json:"updated"`

	KubernetesVersion string   `json:"kubernetesVersion"`
	EngineVersion     string   `json:"engineVersion,omitempty"`
	Address           string   `json:"address,omitempty"`
	PodCIDRs          []string `json:"podCIDRs,omitempty"`
	// DaemonPID and Executable tell which program runs as the daemon.
	DaemonPID  int    `json:"daemonPID"`
	Executable string `json:"executable"`
	// LastFailure is why the daemon before this one ended; empty once the node
	// has been running.
	LastFailure string `json:"lastFailure,omitempty"`
	// SpecDigest is of the spec the daemon started with.
	SpecDigest string `json:"specDigest"`
	// Steps are the milestones reached, in order, with the time since Started.
	Steps []Step `json:"steps,omitempty"`
	// Processes are the supervised programs: name to state.
	Processes map[string]string `json:"processes,omitempty"`
}

// Fault is one reason why the node is not autonomous; see internal/hub.
type Fault struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Step is one milestone of a start.
type Step struct {
	Name      string `json:"name"`
	ElapsedMS int64  `json:"elapsedMS"`
}

// statusFile is the name of the status in a node dir.
const statusFile = "status.json"

// LoadStatus reads what the daemon last said. Without any the error is
// fs.ErrNotExist. Whether that daemon is still alive it does not say.
func LoadStatus(dir string) (*Status, error) {
	path := filepath.Join(dir, statusFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var s Status
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &s, nil
}
