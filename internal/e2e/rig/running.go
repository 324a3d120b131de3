//go:build linux

package rig

import (
	"bytes"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// Running is a program that runs beside the test, in a process group of its own
// as a shell would start it.
type Running struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	ended          chan error
}

// Start starts a program in the Terraform working directory. It is killed when
// the test ends before it does.
func (r *Rig) Start(t testing.TB, env []string, program string, args ...string) *Running {
	t.Helper()
	p := &Running{cmd: exec.Command(program, args...), ended: make(chan error, 1)}
	p.cmd.Dir, p.cmd.Env = r.work, r.env(env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		p.ended <- p.cmd.Wait()
		close(done)
	}()
	t.Cleanup(func() {
		select {
		case <-done:
		default:
			_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may just have ended
			<-done
		}
	})
	return p
}

// CtrlC does what a terminal does: every process of the group gets SIGINT.
func (p *Running) CtrlC(t testing.TB) {
	t.Helper()
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatalf("interrupt: %v\n%s%s", err, p.stdout.String(), p.stderr.String())
	}
}

// Wait waits for the program's end and returns what it said.
func (p *Running) Wait(t testing.TB, within time.Duration) Result {
	t.Helper()
	late := time.NewTimer(within)
	defer late.Stop()
	select {
	case err := <-p.ended:
		return Result{p.stdout.String(), p.stderr.String(), err}
	case <-late.C:
		t.Fatalf("%s has not ended within %s", p.cmd.Path, within)
		return Result{}
	}
}

// Ended says whether the program has ended by itself already.
func (p *Running) Ended() bool { return len(p.ended) > 0 }

// PID is the process id of the program.
func (p *Running) PID() int { return p.cmd.Process.Pid }
