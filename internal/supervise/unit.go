//go:build linux

package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"
)

// unit keeps one program running. Its run method is the only one that changes
// its state while Run lasts; Stop takes over afterwards.
type unit struct {
	sup      *Supervisor
	spec     Spec
	digest   string
	restarts chan chan error // requests of Restart, answered when the new process runs

	// Guarded by sup.mu.
	proc      *process // nil when none runs
	state     State
	started   time.Time // of proc
	readyAt   time.Time // zero unless ready
	onceReady bool
	starts    int
	failures  int
	failedSeq int // counts failures over the whole run, for WaitReady
	lastExit  *Exit
	probeErr  error
}

func newUnit(s *Supervisor, spec Spec) (*unit, error) {
	digest, err := spec.digest()
	if err != nil {
		return nil, err
	}
	return &unit{sup: s, spec: spec, digest: digest, state: StateWaiting, restarts: make(chan chan error)}, nil
}

// outcome is why attend returned.
type outcome int

const (
	outcomeLeft    outcome = iota // ctx has ended; the process, if any, runs on
	outcomeFailed                 // the process has ended or could not start
	outcomeRestart                // it was stopped on request
)

// run is the life of the unit as drawn in the package's doc.
func (u *unit) run(ctx context.Context) {
	if u.process() == nil && !u.awaitDependencies(ctx) {
		return
	}
	var reply chan error // of a Restart that waits for the new process
	for {
		var exit *Exit
		if u.process() == nil {
			if ctx.Err() != nil {
				answer(reply, context.Cause(ctx))
				return
			}
			err := u.start()
			if err != nil {
				exit = &Exit{Time: u.sup.opts.Clock.Now(), Reason: "could not be started: " + err.Error()}
			}
			answer(reply, err)
		} else {
			answer(reply, nil)
		}
		result := outcomeFailed
		reply = nil
		if exit == nil {
			result, exit, reply = u.attend(ctx)
		}
		switch result {
		case outcomeLeft:
			return
		case outcomeRestart:
			continue
		}
		delay := u.fail(*exit)
		timer := u.sup.opts.Clock.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case reply = <-u.restarts:
		case <-timer.C():
		}
		timer.Stop()
		u.lookForLost(ctx)
	}
}

func answer(reply chan error, err error) {
	if reply != nil {
		reply <- err
	}
}

// awaitDependencies waits until every unit in After has been ready once.
func (u *unit) awaitDependencies(ctx context.Context) bool {
	for {
		u.sup.mu.Lock()
		missing := slices.ContainsFunc(u.spec.After, func(name string) bool { return !u.sup.units[name].onceReady })
		changed := u.sup.changed
		u.sup.mu.Unlock()
		if !missing {
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return false
		case reply := <-u.restarts:
			answer(reply, fmt.Errorf("restart %s: it still waits for %v", u.spec.Name, u.spec.After))
		case <-changed:
		}
	}
}

// start starts the process and writes its record at once.
func (u *unit) start() error {
	log, err := openLog(u.sup.LogFile(u.spec.Name))
	if err != nil {
		return err
	}
	defer log.Close() // the child has its own
	argv := u.spec.argv()
	env := append(slices.Clone(u.spec.Env), markers(u.sup.runDir, u.spec.Name, u.digest, argv)...)
	proc, err := startProcess(command{
		path: u.spec.Path, argv: argv, env: env, dir: u.spec.Dir,
		output: log, cgroups: u.spec.CgroupPaths,
	}, u.sup.opts.Clock)
	if err != nil {
		return err
	}
	now := u.sup.opts.Clock.Now()
	u.writeRecord(proc.id, now)
	if u.spec.OOMScoreAdj != nil {
		// The child may have ended already; that is told by its exit.
		path := fmt.Sprintf("/proc/%d/oom_score_adj", proc.id.PID)
		if err := os.WriteFile(path, []byte(strconv.Itoa(*u.spec.OOMScoreAdj)), 0o600); err != nil {
			u.sup.opts.Logger.Warn("OOM score not set", "program", u.spec.Name, "error", err)
		}
	}
	u.update(func() {
		u.starts++
		u.hasProcess(proc, now)
	})
	u.sup.opts.Logger.Info("started", "program", u.spec.Name, "pid", proc.id.PID)
	return nil
}

// writeRecord records the running process. If that fails the process stays
// supervised, and a later daemon finds it by its marker.
func (u *unit) writeRecord(id Identity, started time.Time) {
	err := writeJSON(recordPath(u.sup.runDir, u.spec.Name), record{
		Identity: id, Name: u.spec.Name, Digest: u.digest, Path: u.spec.Path, Started: started,
		LogFile: u.sup.LogFile(u.spec.Name), StopSignal: u.spec.stopSignal(), StopTimeout: u.spec.stopTimeout(),
	})
	if err != nil {
		u.sup.opts.Logger.Error("process not recorded", "program", u.spec.Name, "pid", id.PID, "error", err)
	}
}

// adopt takes over a process that an earlier daemon, or start itself in an
// earlier life, has started.
func (u *unit) adopt(v *survivor) {
	u.writeRecord(v.rec.Identity, v.rec.Started)
	u.update(func() { u.hasProcess(v.proc, v.rec.Started) })
	u.sup.opts.Logger.Info("adopted", "program", u.spec.Name, "pid", v.rec.PID)
}

// hasProcess enters the state starting; mu is held.
func (u *unit) hasProcess(p *process, started time.Time) {
	u.proc, u.started, u.state = p, started, StateStarting
	u.readyAt, u.probeErr = time.Time{}, nil
}

// attend probes the running process until it is ready and waits for its end.
func (u *unit) attend(ctx context.Context) (outcome, *Exit, chan error) {
	proc, clk := u.process(), u.sup.opts.Clock
	probing, cancel := context.WithCancel(ctx)
	defer cancel()
	ready := make(chan struct{})
	broken := make(chan error, 1)
	go func() {
		err := poll(probing, clk, u.spec.Ready, u.setProbeError)
		switch {
		case err == nil:
			close(ready)
		case probing.Err() == nil:
			broken <- err
		}
	}()
	var tooLate <-chan time.Time
	if u.spec.ReadyTimeout > 0 {
		timer := clk.NewTimer(u.spec.ReadyTimeout)
		defer timer.Stop()
		tooLate = timer.C()
	}
	for {
		select {
		case <-ctx.Done():
			return outcomeLeft, nil, nil
		case <-proc.done:
			return outcomeFailed, &proc.exit, nil
		case <-ready:
			ready, tooLate = nil, nil
			u.update(func() {
				u.state, u.onceReady, u.readyAt, u.probeErr = StateReady, true, clk.Now(), nil
			})
			u.sup.opts.Logger.Info("ready", "program", u.spec.Name, "pid", proc.id.PID)
		case <-tooLate:
			cancel()
			return u.giveUp(ctx, proc, fmt.Sprintf("not ready within %s (%v)", u.spec.ReadyTimeout, u.probeError()))
		case err := <-broken:
			return u.giveUp(ctx, proc, fmt.Sprintf("it will not serve (%v)", err))
		case reply := <-u.restarts:
			cancel()
			if err := proc.stop(ctx, u.spec.stopSignal(), u.spec.stopTimeout(), clk); err != nil {
				answer(reply, fmt.Errorf("restart %s: %w", u.spec.Name, err))
				<-either(proc.done, ctx.Done())
				if ctx.Err() != nil {
					return outcomeLeft, nil, nil
				}
				return outcomeFailed, &proc.exit, nil
			}
			u.update(func() { u.noProcess(proc.exit, StateStarting) })
			return outcomeRestart, nil, reply
		}
	}
}

// giveUp stops a process that is not ready and will not be.
func (u *unit) giveUp(ctx context.Context, proc *process, reason string) (outcome, *Exit, chan error) {
	exit := &Exit{Reason: reason}
	if err := proc.stop(ctx, u.spec.stopSignal(), u.spec.stopTimeout(), u.sup.opts.Clock); err != nil {
		if ctx.Err() != nil {
			return outcomeLeft, nil, nil
		}
		u.sup.opts.Logger.Error("process cannot be stopped", "program", u.spec.Name, "error", err)
		<-either(proc.done, ctx.Done()) // a second one beside it would only do harm
		if ctx.Err() != nil {
			return outcomeLeft, nil, nil
		}
	}
	exit.Time = u.sup.opts.Clock.Now()
	return outcomeFailed, exit, nil
}

// either returns a channel that is closed when a or b is.
func either(a, b <-chan struct{}) <-chan struct{} {
	out := make(chan struct{})
	go func() {
		defer close(out)
		select {
		case <-a:
		case <-b:
		}
	}()
	return out
}

// noProcess forgets the ended process; mu is held.
func (u *unit) noProcess(exit Exit, next State) {
	u.proc, u.lastExit, u.state = nil, &exit, next
	u.readyAt, u.started, u.probeErr = time.Time{}, time.Time{}, nil
}

// fail records a failure and returns the wait before the next start.
func (u *unit) fail(exit Exit) time.Duration {
	var delay time.Duration
	var failures int
	u.update(func() {
		if u.healthyLocked() {
			u.failures = 0
		}
		u.failures++
		u.failedSeq++
		failures = u.failures
		delay = backoff(failures, u.sup.opts.Rand())
		u.noProcess(exit, StateBackoff)
	})
	u.sup.opts.Logger.Warn("failed", "program", u.spec.Name, "exit", exit.String(),
		"failures", failures, "restart_in", delay, "log", u.sup.LogFile(u.spec.Name))
	return delay
}

// lookForLost adopts a process of this unit that is running without being
// known. A daemon that was killed between fork and exec may leave one which
// appears only after takeOver has looked; it would hold the ports of its
// successor for ever.
func (u *unit) lookForLost(ctx context.Context) {
	err := func() error {
		marked, err := FindMarked(u.sup.runDir)
		if err != nil {
			return err
		}
		for _, m := range marked {
			if m.RunDir != u.sup.runDir || m.Name != u.spec.Name {
				continue
			}
			v, err := openMarked(m, u.sup.opts.Clock)
			switch {
			case errors.Is(err, errGone):
			case err != nil:
				return err
			case u.process() == nil && v.rec.Digest == u.digest:
				u.adopt(v)
			default:
				if err := stopSurvivor(ctx, u.sup.runDir, v, u.sup.opts.Logger, u.sup.opts.Clock); err != nil {
					return err
				}
			}
		}
		return nil
	}()
	if err != nil {
		u.sup.opts.Logger.Warn("lost processes not looked for", "program", u.spec.Name, "error", err)
	}
}

func (u *unit) process() *process {
	u.sup.mu.Lock()
	defer u.sup.mu.Unlock()
	return u.proc
}

func (u *unit) setProbeError(err error) {
	u.sup.mu.Lock()
	defer u.sup.mu.Unlock()
	u.probeErr = err
}

func (u *unit) probeError() error {
	u.sup.mu.Lock()
	defer u.sup.mu.Unlock()
	return u.probeErr
}

// update changes the unit's state and tells everyone.
func (u *unit) update(change func()) {
	u.sup.mu.Lock()
	change()
	st := u.statusLocked()
	u.sup.broadcast()
	u.sup.mu.Unlock()
	u.sup.emit(st)
}

// healthyLocked reports whether earlier failures are to be forgotten.
func (u *unit) healthyLocked() bool {
	return !u.readyAt.IsZero() && u.sup.opts.Clock.Since(u.readyAt) >= healthyAfter
}

func (u *unit) statusLocked() Status {
	st := Status{
		Name: u.spec.Name, State: u.state, Restarts: max(0, u.starts-1), Started: u.started,
		LastExit: u.lastExit, Failures: u.failures, LogFile: u.sup.LogFile(u.spec.Name),
	}
	if u.proc != nil {
		st.PID, st.Adopted = u.proc.id.PID, u.proc.adopted
	}
	if u.probeErr != nil {
		st.ProbeError = u.probeErr.Error()
	}
	if u.healthyLocked() {
		st.Failures = 0
	}
	st.CrashLoop = st.Failures >= crashLoopFailures
	return st
}
