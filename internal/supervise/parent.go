//go:build linux

package supervise

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"
)

// parentEnv tells a daemon where its parent's record is.
const parentEnv = "EDGE_SUPERVISE_RECORD"

// parentRecord is the parent's pidfile.
type parentRecord struct {
	Identity
	Command []string `json:"command"`
	LogFile string   `json:"logFile,omitempty"`
	Daemon  Identity `json:"daemon,omitzero"` // as started or adopted
}

// ParentOptions of RunParent. Command is required.
type ParentOptions struct {
	Command []string
	// LogFile receives the daemon's output and is rotated; the parent's own
	// output when empty.
	LogFile string
	// PIDFile is where the parent records itself; <runDir>/supervise.json of the
	// daemon. Without it a daemon cannot start a parent again.
	PIDFile string
	// Adopt is a running daemon to look after, "<pid>:<start time>": it has
	// started this parent. If it has ended on purpose meanwhile, or its directory
	// is gone, there is nothing to do.
	Adopt  string
	Logger *slog.Logger
	Clock  clock.WithTicker
}

// RunParent keeps one daemon running: `edge supervise`. The daemon is started
// again with backoff whenever it ends, except with exit code 0, which means that
// it is done. The end of ctx asks the daemon to end and waits for it. It fails
// with ErrRunning if another parent holds the same PIDFile.
func RunParent(ctx context.Context, opts ParentOptions) (err error) {
	p, err := newParent(opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if p.daemon, err = p.findDaemon(); err != nil {
		return err
	}
	if p.daemon == nil && opts.Adopt != "" {
		due, err := p.adoptedIsDue()
		if err != nil || !due {
			return err
		}
	}
	failures := 0
	for {
		begin := p.clock.Now()
		var err error
		if p.daemon == nil {
			p.daemon, err = p.start()
		}
		var exit Exit
		if err != nil {
			exit = Exit{Reason: "could not be started: " + err.Error()}
		} else {
			if err := p.record(); err != nil {
				p.log.Error("daemon not recorded", "error", err)
			}
			exit = p.attend(ctx)
			if p.done(exit) {
				p.log.Info("daemon is done", "pid", p.daemon.id.PID)
				return nil
			}
			p.daemon = nil
		}
		if ctx.Err() != nil {
			return nil
		}
		if p.clock.Since(begin) >= healthyAfter {
			failures = 0
		}
		failures++
		delay := backoff(failures, rand.Float64())
		p.log.Warn("daemon failed", "exit", exit.String(), "failures", failures, "restart_in", delay)
		select {
		case <-ctx.Done():
			return nil
		case <-p.clock.After(delay):
		}
	}
}

type parent struct {
	opts    ParentOptions
	log     *slog.Logger
	clock   clock.WithTicker
	program string
	self    Identity
	lock    *os.File // nil without a PIDFile
	daemon  *process
}

func newParent(opts ParentOptions) (*parent, error) {
	p := &parent{opts: opts, log: opts.Logger, clock: opts.Clock}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if p.clock == nil {
		p.clock = clock.RealClock{}
	}
	if len(opts.Command) == 0 {
		return nil, errors.New("supervise: no command given")
	}
	var err error
	if p.program, err = resolveProgram(opts.Command[0]); err != nil {
		return nil, fmt.Errorf("supervise: %w", err)
	}
	// Absolute in the record too: a parent started by the daemon may begin in
	// another working directory.
	p.opts.Command = append([]string{p.program}, opts.Command[1:]...)
	if p.self, err = IdentityOf(os.Getpid()); err != nil {
		return nil, fmt.Errorf("supervise: %w", err)
	}
	for _, path := range []*string{&p.opts.LogFile, &p.opts.PIDFile} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, fmt.Errorf("supervise: %w", err)
		}
		if opts.Adopt != "" {
			continue // the daemon has had the directory; if it is gone, so be it
		}
		if err := os.MkdirAll(filepath.Dir(*path), 0o700); err != nil {
			return nil, fmt.Errorf("supervise: %w", err)
		}
	}
	if p.opts.PIDFile != "" {
		lock := strings.TrimSuffix(p.opts.PIDFile, ".json") + ".lock"
		if p.lock, err = awaitLock(lock); err != nil {
			return nil, fmt.Errorf("supervise %s: %w", strings.Join(opts.Command, " "), err)
		}
		if err := p.record(); err != nil {
			return nil, errors.Join(err, p.lock.Close())
		}
	}
	return p, nil
}

// close gives the pidfile up.
func (p *parent) close() error {
	if p.lock == nil {
		return nil
	}
	err := os.Remove(p.opts.PIDFile)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // the daemon's directory may be removed already
	}
	return errors.Join(err, p.lock.Close())
}

// record writes the pidfile.
func (p *parent) record() error {
	if p.opts.PIDFile == "" {
		return nil
	}
	rec := parentRecord{Identity: p.self, Command: p.opts.Command, LogFile: p.opts.LogFile}
	if p.daemon != nil {
		rec.Daemon = p.daemon.id
	}
	return writeJSON(p.opts.PIDFile, rec)
}

// findDaemon opens the daemon that runs already: the one named by Adopt, or the
// one whose record lies beside the pidfile. It returns nil if there is none.
func (p *parent) findDaemon() (*process, error) {
	var candidates []Identity
	if p.opts.Adopt != "" {
		id, err := parseAdopt(p.opts.Adopt)
		if err != nil {
			return nil, err
		}
		id.BootID = p.self.BootID
		candidates = append(candidates, id)
	}
	if p.opts.PIDFile != "" {
		rec, err := readJSON[daemonRecord](p.daemonFile())
		if err != nil {
			return nil, fmt.Errorf("supervise: find daemon: %w", err)
		}
		candidates = append(candidates, rec.Identity)
	}
	for _, id := range candidates {
		proc, err := openProcess(id, p.clock)
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("supervise: adopt daemon: %w", err)
		}
		p.log.Info("adopted daemon", "pid", id.PID)
		return proc, nil
	}
	return nil, nil
}

// adoptedIsDue reports whether the daemon named by Adopt, which is gone, is to be
// started again: not if it, or StopDaemon, has noted that it is done, and not if
// its record is gone or another's.
func (p *parent) adoptedIsDue() (bool, error) {
	if p.opts.PIDFile == "" {
		return false, nil
	}
	id, err := parseAdopt(p.opts.Adopt)
	if err != nil {
		return false, err
	}
	id.BootID = p.self.BootID
	rec, err := readJSON[daemonRecord](p.daemonFile())
	if err != nil {
		return false, fmt.Errorf("supervise: find daemon: %w", err)
	}
	return rec.Identity == id && !rec.Done, nil
}

func (p *parent) daemonFile() string { return filepath.Join(filepath.Dir(p.opts.PIDFile), daemonFile) }

// parseAdopt reads "<pid>:<start time>".
func parseAdopt(text string) (Identity, error) {
	pidText, startText, _ := strings.Cut(text, ":")
	pid, err := strconv.ParseInt(pidText, 10, 32)
	if err != nil || pid <= 0 {
		return Identity{}, fmt.Errorf("supervise: %q is not <pid>:<start time>", text)
	}
	start, err := strconv.ParseUint(startText, 10, 64)
	if err != nil {
		return Identity{}, fmt.Errorf("supervise: %q is not <pid>:<start time>", text)
	}
	return Identity{PID: int(pid), StartTime: start}, nil
}

func (p *parent) start() (*process, error) {
	out := os.Stderr
	if p.opts.LogFile != "" {
		log, err := openLog(p.opts.LogFile)
		if err != nil {
			return nil, err
		}
		defer log.Close()
		out = log
	}
	env := withoutOwn(os.Environ())
	if p.opts.PIDFile != "" {
		env = append(env, parentEnv+"="+p.opts.PIDFile)
	}
	proc, err := startProcess(command{path: p.program, argv: p.opts.Command, env: env, output: out}, p.clock)
	if err != nil {
		return nil, err
	}
	p.log.Info("started daemon", "pid", proc.id.PID)
	return proc, nil
}

// attend waits for the daemon's end, keeping its log within bounds. The end of
// ctx becomes SIGTERM for the daemon; how long it may take is its own affair.
func (p *parent) attend(ctx context.Context) Exit {
	tick := p.clock.NewTicker(rotateEvery)
	defer tick.Stop()
	stop := ctx.Done()
	for {
		select {
		case <-p.daemon.done:
			return p.daemon.exit
		case <-stop:
			stop = nil
			if err := p.daemon.signal(unix.SIGTERM); err != nil {
				p.log.Error("daemon not asked to end", "error", err)
			}
		case <-tick.C():
			if p.opts.LogFile == "" {
				continue
			}
			if err := rotateLog(p.opts.LogFile, defaultMaxLogBytes, defaultKeepLogs); err != nil {
				p.log.Warn("log not rotated", "error", err)
			}
		}
	}
}

// done reports whether the daemon ended on purpose.
func (p *parent) done(exit Exit) bool {
	if !p.daemon.adopted {
		return exit.Code == 0 && exit.Signal == "" && exit.Reason == ""
	}
	if p.opts.PIDFile == "" {
		return false
	}
	rec, err := readJSON[daemonRecord](p.daemonFile())
	if err != nil {
		p.log.Error("cannot tell whether the daemon is done", "error", err)
		return false
	}
	return rec.Identity == p.daemon.id && rec.Done
}

// WatchParent is the daemon's side: when the parent is gone it starts a new one,
// which adopts this daemon, and goes on with that. It returns nil at once in a
// daemon that has no parent to watch (systemd, a shell), and otherwise when ctx
// ends; end ctx before the daemon ends itself. reexec starts the new parent and
// returns its pid; nil starts this program's own `edge supervise` with the
// command and log file that the old parent had.
func WatchParent(ctx context.Context, logger *slog.Logger, reexec func(ctx context.Context) (pid int, err error)) error {
	path := os.Getenv(parentEnv)
	if path == "" {
		return nil
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	w := &parentWatch{path: path, log: logger, reexec: reexec}
	if w.reexec == nil {
		w.reexec = w.startParent
	}
	clk := clock.RealClock{}
	failures := 0
	for {
		gone, err := w.untilGone(ctx, clk)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			if gone {
				failures = 0
			}
			logger.Warn("the parent is gone, starting another", "record", path)
			var pid int
			if pid, err = w.reexec(ctx); err == nil {
				logger.Info("started parent", "pid", pid)
				err = w.awaitRecord(ctx, clk, pid)
			}
		}
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		failures++
		delay := backoff(failures, rand.Float64())
		logger.Error("no parent", "error", err, "retry_in", delay)
		select {
		case <-ctx.Done():
			return nil
		case <-clk.After(delay):
		}
	}
}

type parentWatch struct {
	path   string
	log    *slog.Logger
	last   parentRecord // newest that could be read
	reexec func(ctx context.Context) (int, error)
}

// untilGone waits for the end of the parent in the record. gone is false if it
// was not there to begin with.
func (w *parentWatch) untilGone(ctx context.Context, clk clock.PassiveClock) (gone bool, err error) {
	rec, err := readJSON[parentRecord](w.path)
	if err != nil {
		return false, fmt.Errorf("read the parent's record: %w", err)
	}
	if len(rec.Command) > 0 {
		w.last = rec
	}
	proc, err := openProcess(rec.Identity, clk)
	if errors.Is(err, errGone) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("watch parent: %w", err)
	}
	select {
	case <-proc.done:
		return true, nil
	case <-ctx.Done():
		return false, nil
	}
}

// parentStart bounds the time in which a new parent must have recorded itself.
const parentStart = 10 * time.Second

// awaitRecord waits until the record names a living parent: the one just
// started, or another that was quicker.
func (w *parentWatch) awaitRecord(ctx context.Context, clk clock.Clock, pid int) error {
	deadline := clk.Now().Add(parentStart)
	started, err := IdentityOf(pid)
	if err != nil {
		return fmt.Errorf("parent %d has ended at once: %w", pid, err)
	}
	for {
		rec, err := readJSON[parentRecord](w.path)
		if err != nil {
			return fmt.Errorf("read the parent's record: %w", err)
		}
		if rec.Alive() {
			return nil
		}
		if !started.Alive() {
			return fmt.Errorf("parent %d has ended at once", pid)
		}
		if clk.Now().After(deadline) {
			return fmt.Errorf("parent %d has not recorded itself in %s", pid, w.path)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-clk.After(probeFirst):
		}
	}
}

// startParent starts `edge supervise` as the old parent was started.
func (w *parentWatch) startParent(context.Context) (int, error) {
	if len(w.last.Command) == 0 {
		return 0, errors.New("start parent: its command is not known, because its record was never readable")
	}
	self, err := IdentityOf(os.Getpid())
	if err != nil {
		return 0, err
	}
	exe, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("start parent: %w", err)
	}
	args := []string{"supervise", "--pidfile", w.path, "--adopt", fmt.Sprintf("%d:%d", self.PID, self.StartTime)}
	if w.last.LogFile != "" {
		args = append(args, "--log", w.last.LogFile)
	}
	args = append(append(args, "--"), w.last.Command...)
	return StartDetached(DetachOptions{
		Path: exe, Args: args, Env: withoutOwn(os.Environ()), LogFile: w.last.LogFile,
	})
}
