//go:build linux

package supervise

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"syscall"
	"time"

	"k8s.io/utils/clock"
)

const (
	// defaultStopTimeout is how long a child may take to end on its stop signal.
	// etcd and containerd need about a second; a kube-apiserver drains its
	// requests for longer.
	defaultStopTimeout = 30 * time.Second
	// defaultMaxLogBytes bounds one log file. With the kept ones a program uses
	// at most 64 MiB of a small device's disk.
	defaultMaxLogBytes = 16 << 20
	// defaultKeepLogs is how many rotated files are kept beside the live one.
	defaultKeepLogs = 3
)

// Spec is one program to keep running.
type Spec struct {
	// Name is the name of the log file and the record, and how other specs and
	// callers speak of this one: lower case letters, digits, '-', '.', '_'.
	Name string
	// Path of the executable, absolute or relative to Dir.
	Path string
	// Args without the program's own name. Never put a secret here: every user
	// of the machine can read it.
	Args []string
	// Argv0 is what the program sees as its own name; Path when empty. Multi-call
	// programs choose by it.
	Argv0 string
	// Env is the whole environment ("NAME=value"); nothing is inherited.
	Env []string
	// Dir is the working directory; the daemon's own when empty.
	Dir string
	// After names the specs that must have been ready once before this one is
	// started for the first time.
	After []string
	// Ready says when the program serves. Nil: as soon as it is started.
	Ready Probe
	// ReadyTimeout bounds the time from start to ready. A program that is not
	// ready by then is stopped and counts as failed. Zero: no bound.
	ReadyTimeout time.Duration
	// StopSignal asks the program to end; SIGTERM when zero.
	StopSignal syscall.Signal
	// StopTimeout is the time from StopSignal to SIGKILL; 30 s when zero.
	StopTimeout time.Duration
	// CgroupPaths are existing cgroup directories that the program is in from
	// its first instruction on: any number of v1, at most one v2.
	CgroupPaths []string
	// OOMScoreAdj is written to the child's oom_score_adj. Lowering it needs
	// CAP_SYS_RESOURCE; where that is missing a warning is logged and the child
	// runs all the same.
	OOMScoreAdj *int
	// Revision stands for everything else whose change must restart the
	// program, such as the hash of its configuration files.
	Revision string
}

// Probe reports nil once a program serves, and otherwise why it does not yet.
type Probe func(ctx context.Context) error

// Options of a Supervisor. RunDir and LogDir are required.
type Options struct {
	RunDir string // records, 0700, made if missing
	LogDir string // <name>.log, 0700, made if missing
	Logger *slog.Logger
	Clock  clock.WithTicker
	// Rand returns a number in [0,1) for the jitter of restarts.
	Rand func() float64
	// MaxLogBytes is the size at which a log file is rotated (16 MiB when zero)
	// and KeepLogs how many rotated files are kept (3 when zero).
	MaxLogBytes int64
	KeepLogs    int
	// OnEvent is told of every change of state, one call at a time. It must
	// return quickly and must not call the Supervisor.
	OnEvent func(Event)
}

// State of a supervised program; see the drawing in the package's doc.
type State string

// The states.
const (
	StateWaiting  State = "waiting"
	StateStarting State = "starting"
	StateReady    State = "ready"
	StateBackoff  State = "backoff"
	StateStopped  State = "stopped"
)

// Status is what is known of one program.
type Status struct {
	Name     string    `json:"name"`
	PID      int       `json:"pid,omitempty"` // 0 when it does not run
	State    State     `json:"state"`
	Restarts int       `json:"restarts"` // starts by this daemon after the first
	Started  time.Time `json:"started,omitzero"`
	LastExit *Exit     `json:"lastExit,omitempty"`
	Adopted  bool      `json:"adopted,omitempty"` // started by an earlier daemon
	// Failures counts exits in a row without 30 s of health between them.
	Failures int `json:"failures,omitempty"`
	// CrashLoop is Failures having reached five.
	CrashLoop  bool   `json:"crashLoop,omitempty"`
	ProbeError string `json:"probeError,omitempty"` // why it is not ready yet
	LogFile    string `json:"logFile"`
}

// Event is one change of state.
type Event struct {
	Time   time.Time
	Status Status
}

// Exit is how a process ended.
type Exit struct {
	Time   time.Time `json:"time"`
	Code   int       `json:"code"`             // exit code, when Signal and Reason are empty
	Signal string    `json:"signal,omitempty"` // "SIGKILL"
	// Reason replaces code and signal where there are none: the process could
	// not be started, was not ready in time, or was adopted, so that its status
	// went to another parent.
	Reason string `json:"reason,omitempty"`
}

// String says how the process ended, as the end of a sentence.
func (e Exit) String() string {
	switch {
	case e.Reason != "":
		return e.Reason
	case e.Signal != "":
		return "killed by " + e.Signal
	default:
		return fmt.Sprintf("exited with code %d", e.Code)
	}
}

// validName keeps names usable as file names and inside the marker, which ends
// with ":<name>".
var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// reservedNames are the records of the daemon itself in the same directory.
var reservedNames = []string{"daemon", "supervise"}

func (s *Spec) argv() []string {
	argv0 := s.Argv0
	if argv0 == "" {
		argv0 = s.Path
	}
	return append([]string{argv0}, s.Args...)
}

func (s *Spec) stopSignal() syscall.Signal {
	if s.StopSignal == 0 {
		return syscall.SIGTERM
	}
	return s.StopSignal
}

func (s *Spec) stopTimeout() time.Duration {
	if s.StopTimeout == 0 {
		return defaultStopTimeout
	}
	return s.StopTimeout
}

// digest is equal for two specs exactly if a process started for one may serve
// for the other. The order of Env does not matter.
func (s *Spec) digest() (string, error) {
	env := slices.Clone(s.Env)
	slices.Sort(env)
	data, err := json.Marshal([]any{s.Path, s.argv(), env, s.Dir, s.CgroupPaths, s.Revision})
	if err != nil {
		return "", fmt.Errorf("digest of %s: %w", s.Name, err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16]), nil
}

// checkSpecs returns the specs in an order in which each comes after all that
// it names in After.
func checkSpecs(specs []Spec) ([]string, error) {
	byName := make(map[string]*Spec, len(specs))
	for i := range specs {
		s := &specs[i]
		switch {
		case !validName.MatchString(s.Name) || slices.Contains(reservedNames, s.Name):
			return nil, fmt.Errorf("supervise: %q cannot be the name of a program", s.Name)
		case s.Path == "":
			return nil, fmt.Errorf("supervise %s: no path of an executable", s.Name)
		case byName[s.Name] != nil:
			return nil, fmt.Errorf("supervise %s: declared twice", s.Name)
		}
		byName[s.Name] = s
	}
	var order []string
	const visiting, done = 1, 2
	mark := make(map[string]int, len(specs))
	var visit func(name string) error
	visit = func(name string) error {
		switch mark[name] {
		case done:
			return nil
		case visiting:
			return fmt.Errorf("supervise %s: waits for itself", name)
		}
		mark[name] = visiting
		for _, dep := range byName[name].After {
			if byName[dep] == nil {
				return fmt.Errorf("supervise %s: waits for %q, which is not declared", name, dep)
			}
			if err := visit(dep); err != nil {
				return err
			}
		}
		mark[name] = done
		order = append(order, name)
		return nil
	}
	for i := range specs {
		if err := visit(specs[i].Name); err != nil {
			return nil, err
		}
	}
	return order, nil
}
