//go:build linux

package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"k8s.io/utils/clock"
)

// Restart stops the program cleanly and returns when a new process runs; use
// WaitReady for the rest. A program that waits for its next start is started at
// once.
func (s *Supervisor) Restart(ctx context.Context, name string) error {
	select {
	case <-s.begun:
	case <-ctx.Done():
		return fmt.Errorf("restart %s: %w", name, context.Cause(ctx))
	}
	s.mu.Lock()
	u, stopping, runErr := s.units[name], s.stopping, s.runErr
	s.mu.Unlock()
	switch {
	case runErr != nil:
		return runErr
	case u == nil:
		return fmt.Errorf("restart %q: no such program", name)
	case stopping:
		return fmt.Errorf("restart %s: it is being stopped", name)
	}
	reply := make(chan error, 1) // buffered: the unit never waits for the caller
	select {
	case u.restarts <- reply:
	case <-s.ended:
		return fmt.Errorf("restart %s: nothing looks after it any more", name)
	case <-ctx.Done():
		return fmt.Errorf("restart %s: %w", name, context.Cause(ctx))
	}
	select {
	case err := <-reply:
		return err
	case <-s.ended:
		return fmt.Errorf("restart %s: nothing looks after it any more", name)
	case <-ctx.Done():
		return fmt.Errorf("restart %s: %w", name, context.Cause(ctx))
	}
}

// Stop stops every program, each after those that wait for it, and removes the
// records. It may be called while Run runs, which then returns, or after. When
// ctx ends first the programs that are left go on running and keep their
// records.
func (s *Supervisor) Stop(ctx context.Context) error {
	s.mu.Lock()
	s.stopping = true
	if s.cancel != nil {
		s.cancel()
	}
	s.broadcast()
	s.mu.Unlock()
	s.work.Wait() // the units let go of their processes at once

	stopped := map[string]chan struct{}{}
	for _, name := range s.order {
		stopped[name] = make(chan struct{})
	}
	errs := make([]error, len(s.order))
	var all sync.WaitGroup
	for i, name := range s.order {
		all.Go(func() {
			defer close(stopped[name])
			for _, dependent := range s.dependents(name) {
				<-stopped[dependent]
			}
			errs[i] = s.stopUnit(ctx, s.units[name])
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// What takeOver had found and not yet stopped.
	return StopRecorded(ctx, s.runDir, s.order, StopRecordedOptions{Logger: s.opts.Logger, Clock: s.opts.Clock})
}

func (s *Supervisor) stopUnit(ctx context.Context, u *unit) error {
	if proc := u.process(); proc != nil {
		if err := proc.stop(ctx, u.spec.stopSignal(), u.spec.stopTimeout(), s.opts.Clock); err != nil {
			return fmt.Errorf("stop %s: %w", u.spec.Name, err)
		}
		u.update(func() { u.noProcess(proc.exit, StateStopped) })
		s.opts.Logger.Info("stopped", "program", u.spec.Name, "exit", proc.exit.String())
	}
	u.update(func() { u.state = StateStopped })
	return removeRecord(s.runDir, u.spec.Name)
}

// StopRecordedOptions of StopRecorded; the zero value works.
type StopRecordedOptions struct {
	Logger *slog.Logger
	Clock  clock.Clock
}

// StopRecorded stops what a dead daemon left running in runDir, in the reverse
// of order; programs that order does not name go first. Each gets the stop
// signal and time of its spec, as recorded. Only processes whose identity is
// proved are signalled. It also finds processes whose record, or whose whole
// run directory, is lost. The caller makes sure that no daemon runs: hold the
// lock of AcquireDaemon, or call StopDaemon before.
func StopRecorded(ctx context.Context, runDir string, order []string, opts StopRecordedOptions) error {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	runDir, err := resolveDir(runDir)
	if err != nil {
		return fmt.Errorf("stop programs: %w", err)
	}
	survivors, err := findSurvivors(runDir, opts.Clock)
	if err != nil {
		return err
	}
	byName := map[string][]*survivor{}
	for _, v := range survivors {
		byName[v.rec.Name] = append(byName[v.rec.Name], v)
	}
	return stopSurvivors(ctx, runDir, byName, order, opts.Logger, opts.Clock)
}

// stopSurvivors stops processes: first, at the same time, those whose name is
// not in order, then the others in its reverse.
func stopSurvivors(ctx context.Context, runDir string, byName map[string][]*survivor, order []string, log *slog.Logger, clk clock.Clock) error {
	var unknown, groups [][]string
	for name := range byName {
		if !slices.Contains(order, name) {
			if unknown == nil {
				unknown = [][]string{{}}
			}
			unknown[0] = append(unknown[0], name)
		}
	}
	groups = append(groups, unknown...)
	for _, name := range slices.Backward(order) {
		if len(byName[name]) > 0 {
			groups = append(groups, []string{name})
		}
	}
	for _, group := range groups {
		var errs []error
		var mu sync.Mutex // guards errs
		var all sync.WaitGroup
		for _, name := range group {
			for _, v := range byName[name] {
				all.Go(func() {
					err := stopSurvivor(ctx, runDir, v, log, clk)
					mu.Lock()
					defer mu.Unlock()
					errs = append(errs, err)
				})
			}
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}

func stopSurvivor(ctx context.Context, runDir string, v *survivor, log *slog.Logger, clk clock.Clock) error {
	log.Info("stopping", "program", v.rec.Name, "pid", v.rec.PID)
	if err := v.proc.stop(ctx, v.rec.StopSignal, v.rec.StopTimeout, clk); err != nil {
		return fmt.Errorf("stop %s: %w", v.rec.Name, err)
	}
	// Only its own record: another process of this name may have been adopted.
	rec, err := readRecord(runDir, v.rec.Name)
	if err != nil || rec.Identity != v.rec.Identity {
		return nil
	}
	return removeRecord(runDir, v.rec.Name)
}
