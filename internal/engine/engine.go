package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/component"
)

// Options say where an Engine keeps what it must remember and how it reaches
// what it does not hold itself.
type Options struct {
	// StateDir is the state directory; empty: DefaultStateDir.
	StateDir string
	// Clusters says how clusters are reached that are not in the state directory.
	Clusters map[string]ClusterAccess
	// Components says where upstream programs come from.
	Components component.Options
	// EdgeBinary is the edge program that hosts are given; empty: this program.
	EdgeBinary string
	// Version of this program, recorded in what it makes.
	Version string
	// FieldManager names this face in server-side apply; empty: "edge".
	FieldManager string
	// Progress, where set, is told of each phase as it begins.
	Progress func(Progress)
	Logger   *slog.Logger
	// GOOS is the operating system of this machine; empty: runtime.GOOS.
	GOOS string
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Progress is one step of a long use case.
type Progress struct {
	Time    time.Time     `json:"time"`
	Object  string        `json:"object"` // cluster or node id
	Phase   string        `json:"phase"`
	Message string        `json:"message,omitempty"`
	Elapsed time.Duration `json:"elapsed_ns"` // since the use case began
}

// Engine runs the use cases. It is safe for concurrent use, also by several
// processes on one state directory.
type Engine struct {
	opts  Options
	state stateDir

	components struct {
		once  sync.Once
		store *component.Store
		err   error
	}

	mu         sync.Mutex             // guards the fields below
	conns      map[string]*connection // by cluster id
	localNodes bool                   // CheckLocalNode has found nothing wrong
	fetching   map[*reporter]bool     // use cases that wait for components now
}

// New returns an Engine. It touches neither disk nor network.
func New(opts Options) (*Engine, error) {
	if opts.StateDir == "" {
		dir, err := DefaultStateDir(os.Getenv)
		if err != nil {
			return nil, err
		}
		opts.StateDir = dir
	}
	abs, err := filepath.Abs(opts.StateDir)
	if err != nil {
		return nil, fmt.Errorf("state directory %q: %w", opts.StateDir, err)
	}
	opts.StateDir = abs
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.GOOS == "" {
		opts.GOOS = runtime.GOOS
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.FieldManager == "" {
		opts.FieldManager = "edge"
	}
	return &Engine{opts: opts, state: stateDir{abs}, conns: map[string]*connection{}, fetching: map[*reporter]bool{}}, nil
}

// DefaultStateDir is $EDGE_STATE_DIR, or .edge in the home directory.
func DefaultStateDir(getenv func(string) string) (string, error) {
	if dir := getenv("EDGE_STATE_DIR"); dir != "" {
		return dir, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the state directory: %w; set EDGE_STATE_DIR", err)
	}
	return filepath.Join(home, ".edge"), nil
}

// StateDir is the absolute path of the state directory in use.
func (e *Engine) StateDir() string { return e.opts.StateDir }

// ImageDir is the directory of archives that local nodes import.
func (e *Engine) ImageDir() string { return e.state.images() }

func (e *Engine) componentStore() (*component.Store, error) {
	c := &e.components
	c.once.Do(func() {
		opts := e.opts.Components
		opts.Progress = e.componentEvent
		c.store, c.err = component.Open(opts)
	})
	return c.store, c.err
}

// programs returns the paths of a set of components and tells the use case that
// waits for them when minutes of work begin.
func (e *Engine) programs(ctx context.Context, report *reporter, version string, set component.Set) (component.Paths, error) {
	store, err := e.componentStore()
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	e.fetching[report] = true
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.fetching, report)
		e.mu.Unlock()
	}()
	return store.Ensure(ctx, version, set)
}

// componentEvent passes what a person should know of components on to the use
// cases that wait for some. The store is shared, and so is its work: two nodes
// that wait for one build are both told.
func (e *Engine) componentEvent(ev component.Event) {
	if e.opts.Components.Progress != nil {
		e.opts.Components.Progress(ev)
	}
	message := eventMessage(ev)
	if message == "" {
		return
	}
	e.mu.Lock()
	waiting := slices.Collect(maps.Keys(e.fetching))
	e.mu.Unlock()
	for _, r := range waiting {
		r.phase(context.Background(), phaseComponents, message)
	}
}

// eventMessage is the sentence for an event, empty for one that is only for bars.
func eventMessage(ev component.Event) string {
	name := strings.TrimSpace(ev.Component + " " + ev.Version)
	switch ev.Kind {
	case component.Planned:
		message := "building " + strings.Join(ev.Components, ", ") + ", once"
		if ev.Estimate > 0 {
			message += fmt.Sprintf(": about %s on a machine that has built none of it before", ev.Estimate.Round(time.Minute))
		}
		return message
	case component.Notice, component.Waiting:
		if ev.Message == "" && ev.Kind == component.Waiting {
			return "another process is getting " + name
		}
		return ev.Message
	case component.Started:
		if ev.Source == "mirror" {
			return "fetching " + name
		}
		return "building " + name
	case component.Installed:
		return fmt.Sprintf("%s is in the cache after %s", name, ev.Elapsed.Round(time.Second))
	}
	return ""
}

// reporter tells the progress of one use case on one object.
type reporter struct {
	engine *Engine
	object string
	file   string // progress.ndjson, appended to
	start  time.Time
}

func (e *Engine) report(object, file string) *reporter {
	return &reporter{engine: e, object: object, file: file, start: e.opts.Now()}
}

// phase records that a phase begins. A progress file that cannot be written is
// logged and does not stop the work it describes.
func (r *reporter) phase(ctx context.Context, phase, message string) {
	now := r.engine.opts.Now()
	p := Progress{Time: now, Object: r.object, Phase: phase, Message: message, Elapsed: now.Sub(r.start)}
	r.engine.opts.Logger.InfoContext(ctx, "progress", "object", p.Object, "phase", p.Phase, "message", p.Message, "elapsed", p.Elapsed)
	if r.file != "" {
		if err := appendJSONLine(r.file, p); err != nil {
			r.engine.opts.Logger.WarnContext(ctx, "progress file not written", "file", r.file, "error", err)
		}
	}
	if r.engine.opts.Progress != nil {
		r.engine.opts.Progress(p)
	}
}

// interrupted says whether err is the caller's own end: a Ctrl-C or a wait that
// ran out, after which the work can be taken up again.
func interrupted(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
