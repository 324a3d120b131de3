//go:build linux

package supervise

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// rotateEvery is the distance between two looks at the sizes of the logs.
const rotateEvery = 5 * time.Second

// Supervisor keeps the programs of one daemon running. The daemon must hold
// the lock of AcquireDaemon for the same run directory.
type Supervisor struct {
	opts   Options
	runDir string // absolute, without symbolic links
	logDir string

	events sync.Mutex     // serialises OnEvent
	work   sync.WaitGroup // everything Run has started

	mu       sync.Mutex // guards what follows, and the status of each unit
	units    map[string]*unit
	order    []string      // names, dependencies first
	changed  chan struct{} // closed and replaced at each change
	begun    chan struct{} // closed when units are known or Run has failed
	ended    chan struct{} // closed when Run no longer looks after them
	running  bool
	runErr   error
	cancel   context.CancelFunc
	stopping bool
}

// New makes a Supervisor and its directories. It starts nothing.
func New(opts Options) (*Supervisor, error) {
	runDir, err := makeDir(opts.RunDir)
	if err != nil {
		return nil, fmt.Errorf("supervise: run directory: %w", err)
	}
	logDir, err := makeDir(opts.LogDir)
	if err != nil {
		return nil, fmt.Errorf("supervise: log directory: %w", err)
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	if opts.Rand == nil {
		opts.Rand = rand.Float64
	}
	if opts.MaxLogBytes == 0 {
		opts.MaxLogBytes = defaultMaxLogBytes
	}
	if opts.KeepLogs == 0 {
		opts.KeepLogs = defaultKeepLogs
	}
	return &Supervisor{
		opts: opts, runDir: runDir, logDir: logDir,
		units:   map[string]*unit{},
		changed: make(chan struct{}),
		begun:   make(chan struct{}),
		ended:   make(chan struct{}),
	}, nil
}

// LogFile is where the program of that name writes.
func (s *Supervisor) LogFile(name string) string { return filepath.Join(s.logDir, name+".log") }

// Run adopts or starts the programs, those that do not wait for each other in
// parallel, and keeps them running until ctx ends or Stop has stopped them all.
// The end of ctx leaves the programs alone: they outlive the daemon. It returns
// an error only if the specs are wrong, or what an earlier daemon left cannot be
// read or stopped. A Supervisor runs once.
func (s *Supervisor) Run(ctx context.Context, specs []Spec) error {
	ctx, err := s.begin(ctx, specs)
	if err != nil {
		return err
	}
	defer s.work.Done()
	defer close(s.ended)
	err = s.takeOver(ctx)
	if err != nil && ctx.Err() == nil {
		s.mu.Lock()
		s.runErr = err
		s.broadcast()
		s.mu.Unlock()
		return err
	}
	var units sync.WaitGroup
	for _, name := range s.order {
		units.Go(func() { s.units[name].run(ctx) })
	}
	units.Go(func() { s.rotate(ctx) })
	units.Wait()
	return nil
}

// begin checks the specs and makes the units known to the other methods.
func (s *Supervisor) begin(ctx context.Context, specs []Spec) (context.Context, error) {
	order, err := checkSpecs(specs)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running {
		return nil, errors.New("supervise: run twice")
	}
	s.running = true
	defer close(s.begun)
	if s.stopping {
		err = errors.New("supervise: stopped before it ran")
	}
	if err != nil {
		s.runErr = err
		return nil, err
	}
	for i := range specs {
		u, err := newUnit(s, specs[i])
		if err != nil {
			s.runErr = err
			return nil, err
		}
		s.units[u.spec.Name] = u
	}
	s.order = order
	ctx, s.cancel = context.WithCancel(ctx)
	s.work.Add(1)
	return ctx, nil
}

// takeOver finds what earlier daemons left running in this run directory: units
// get the processes that fit them, everything else is stopped, dependents first.
func (s *Supervisor) takeOver(ctx context.Context) error {
	survivors, err := findSurvivors(s.runDir, s.opts.Clock)
	if err != nil {
		return err
	}
	stale := map[string][]*survivor{}
	for _, v := range survivors {
		u := s.units[v.rec.Name]
		if u != nil && u.process() == nil && v.rec.Digest == u.digest {
			u.adopt(v)
			continue
		}
		stale[v.rec.Name] = append(stale[v.rec.Name], v)
	}
	return stopSurvivors(ctx, s.runDir, stale, s.order, s.opts.Logger, s.opts.Clock)
}

// survivor is a process that an earlier daemon started.
type survivor struct {
	rec  record
	proc *process
}

// findSurvivors returns the living processes of a run directory: those with a
// record first, then those known only by their marker. Records of the dead are
// removed.
func findSurvivors(runDir string, clk clock.PassiveClock) ([]*survivor, error) {
	names, err := recordedNames(runDir)
	if err != nil {
		return nil, err
	}
	var found []*survivor
	known := map[Identity]bool{}
	for _, name := range names {
		rec, err := readRecord(runDir, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var proc *process
		if err == nil && rec.Name == name {
			proc, err = openProcess(rec.Identity, clk)
		}
		if err != nil && !errors.Is(err, errGone) && !errors.Is(err, errDamaged) {
			return nil, fmt.Errorf("take over %s: %w", name, err)
		}
		if proc == nil { // dead, or a damaged record: its process has a marker too
			if err := removeRecord(runDir, name); err != nil {
				return nil, err
			}
			continue
		}
		known[rec.Identity] = true
		found = append(found, &survivor{rec: rec, proc: proc})
	}
	marked, err := FindMarked(runDir)
	if err != nil {
		return nil, err
	}
	for _, m := range marked {
		if m.RunDir != runDir || known[m.Identity] {
			continue
		}
		v, err := openMarked(m, clk)
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("take over %s: %w", m.Name, err)
		}
		found = append(found, v)
	}
	return found, nil
}

// openMarked opens a process that is known only by its marker. How it wants to
// be stopped is not known.
func openMarked(m Marked, clk clock.PassiveClock) (*survivor, error) {
	proc, err := openProcess(m.Identity, clk)
	if err != nil {
		return nil, err
	}
	return &survivor{proc: proc, rec: record{
		Identity: m.Identity, Name: m.Name, Digest: m.digest,
		Started:    m.startedAt(clk.Now()),
		StopSignal: (&Spec{}).stopSignal(), StopTimeout: defaultStopTimeout,
	}}, nil
}

// rotate keeps the log files within their bounds.
func (s *Supervisor) rotate(ctx context.Context) {
	tick := s.opts.Clock.NewTicker(rotateEvery)
	defer tick.Stop()
	for {
		for _, name := range s.order {
			if err := rotateLog(s.LogFile(name), s.opts.MaxLogBytes, s.opts.KeepLogs); err != nil {
				s.opts.Logger.Warn("log not rotated", "program", name, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
	}
}

// Status returns the state of every program, dependencies first.
func (s *Supervisor) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Status, 0, len(s.order))
	for _, name := range s.order {
		all = append(all, s.units[name].statusLocked())
	}
	return all
}

// broadcast wakes everyone who waits for a change; mu is held.
func (s *Supervisor) broadcast() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// emit tells OnEvent; mu is not held.
func (s *Supervisor) emit(st Status) {
	if s.opts.OnEvent == nil {
		return
	}
	s.events.Lock()
	defer s.events.Unlock()
	s.opts.OnEvent(Event{Time: s.opts.Clock.Now(), Status: st})
}

// dependents returns the names of the units that name u in After.
func (s *Supervisor) dependents(name string) []string {
	var names []string
	for _, other := range s.order {
		if slices.Contains(s.units[other].spec.After, name) {
			names = append(names, other)
		}
	}
	return names
}
