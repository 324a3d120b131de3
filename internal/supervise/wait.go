//go:build linux

package supervise

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// errorLines is how many lines of its log an unready program's error carries.
const errorLines = 15

// NotReadyError says why a program that was waited for does not serve.
type NotReadyError struct {
	Status Status
	Lines  []string // the last of its log, oldest first
	Err    error    // why waiting ended: crash loop, or the context's cause
}

// Error implements error. It is written for a user to read.
func (e *NotReadyError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is not ready: %v", e.Status.Name, e.Err)
	if e.Status.ProbeError != "" {
		fmt.Fprintf(&b, "; %s", e.Status.ProbeError)
	}
	if e.Status.LastExit != nil && !errors.Is(e.Err, ErrCrashLoop) {
		fmt.Fprintf(&b, "; before, it %s", e.Status.LastExit)
	}
	if len(e.Lines) == 0 {
		fmt.Fprintf(&b, "; its log %s is empty", e.Status.LogFile)
		return b.String()
	}
	fmt.Fprintf(&b, "; last lines of %s:\n\t%s", e.Status.LogFile, strings.Join(e.Lines, "\n\t"))
	return b.String()
}

// Unwrap returns why waiting ended.
func (e *NotReadyError) Unwrap() error { return e.Err }

// ErrCrashLoop is wrapped by errors about a program that has failed five times
// in a row.
var ErrCrashLoop = errors.New("it keeps failing")

// WaitReady waits until the named programs (all when there are none) are ready
// at the same time. It returns a *NotReadyError when ctx ends first, and as soon
// as one of them, or one that it waits for, has failed five times in a row, at
// least once of them since the call. It may be called before Run.
func (s *Supervisor) WaitReady(ctx context.Context, names ...string) error {
	select {
	case <-s.begun:
	case <-ctx.Done():
		return fmt.Errorf("wait for programs: not started: %w", context.Cause(ctx))
	}
	s.mu.Lock()
	if len(names) == 0 {
		names = s.order
	}
	needed, err := s.withDependencies(names)
	seen := map[string]int{}
	for _, name := range needed {
		seen[name] = s.units[name].failedSeq
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	for {
		s.mu.Lock()
		changed, runErr, stopping := s.changed, s.runErr, s.stopping
		ended := isClosed(s.ended)
		var unready, looping *Status
		for _, name := range needed {
			u := s.units[name]
			st := u.statusLocked()
			if looping == nil && st.CrashLoop && st.State != StateReady && u.failedSeq > seen[name] {
				looping = &st
			}
			if unready == nil && st.State != StateReady && (slices.Contains(names, name) || !u.onceReady) {
				unready = &st
			}
		}
		s.mu.Unlock()
		switch {
		case runErr != nil:
			return runErr
		case looping != nil:
			return s.notReady(*looping, fmt.Errorf("%w: %s, %d times in a row", ErrCrashLoop, looping.LastExit, looping.Failures))
		case unready == nil:
			return nil
		case stopping:
			return s.notReady(*unready, errors.New("it is being stopped"))
		case ended:
			return s.notReady(*unready, errors.New("nothing looks after it any more"))
		}
		select {
		case <-changed:
		case <-s.ended:
		case <-ctx.Done():
			return s.notReady(*unready, fmt.Errorf("still %s: %w", unready.State, context.Cause(ctx)))
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// withDependencies adds what names wait for, dependencies first; mu is held.
func (s *Supervisor) withDependencies(names []string) ([]string, error) {
	if s.runErr != nil {
		return nil, s.runErr
	}
	want := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		u := s.units[name]
		if u == nil {
			return fmt.Errorf("wait for %q: no such program", name)
		}
		want[name] = true
		for _, dep := range u.spec.After {
			if err := add(dep); err != nil {
				return err
			}
		}
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	var all []string
	for _, name := range s.order {
		if want[name] {
			all = append(all, name)
		}
	}
	return all, nil
}

func (s *Supervisor) notReady(st Status, cause error) error {
	// The status may be older than the newest probe's error.
	s.mu.Lock()
	if u := s.units[st.Name]; u != nil && u.probeErr != nil {
		st.ProbeError = u.probeErr.Error()
	}
	s.mu.Unlock()
	lines, err := LastLines(st.LogFile, errorLines)
	if err != nil {
		lines = []string{err.Error()}
	}
	return &NotReadyError{Status: st, Lines: lines, Err: cause}
}
