//go:build linux

package edgenode

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgewright/terraform-provider-edge/internal/host"
	"github.com/edgewright/terraform-provider-edge/internal/site"
	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

// UpOptions of Up. Dir and Edge are required.
type UpOptions struct {
	// Dir is the node dir, absolute.
	Dir string
	// Token is the join token, a secret; empty for a node that has joined.
	Token string
	// Proxy replaces the proxy variables that the node keeps, by none if it is
	// empty; nil: those of the run before stay, as after a reboot.
	Proxy ProxyEnv
	// Edge is the edge program that becomes the daemon, absolute.
	Edge   string
	Report *Reporter
	Logger *slog.Logger
	// Preflight judges the machine before anything is made; host.Preflight of
	// this machine where nil.
	Preflight func(ctx context.Context, stateDir string) error
}

const (
	// statusPoll is how often Up looks at what the daemon says.
	statusPoll = 50 * time.Millisecond
	// daemonGrace is how long a daemon may take from its start until it is seen:
	// long enough for its parent's first restarts.
	daemonGrace = 10 * time.Second
	// daemonStop is how long the daemon and its parent may take to end. It stops
	// no child, so it has little to do.
	daemonStop = 15 * time.Second
	// logTail is how many lines of the daemon's log an error quotes.
	logTail = 15
)

// Subdirectories of a node dir.
const (
	runDir  = "run"
	logsDir = "logs"
	confDir = "conf"
)

// daemonLogName names the daemon's own log in logs/.
const daemonLogName = "node.log"

// Up makes a node run on this machine: whatever of it stands already is kept,
// whatever is missing is made. It returns when the node is up, when the daemon
// says that it cannot be, or when ctx ends; the daemon goes on in the last case.
func Up(ctx context.Context, o UpOptions) (err error) {
	if o, err = o.withDefaults(); err != nil {
		return err
	}
	if err := checkProxyEnv(o.Proxy); err != nil {
		return err
	}
	owner, err := checkTree(o.Dir, sudoUID())
	if err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(o.Dir, specFile)); errors.Is(err, fs.ErrNotExist) {
		return notNode(o.Dir) // before a lock is made beside it
	}
	lock, err := lockNode(ctx, o.Dir)
	if err != nil {
		return err
	}
	defer lock.unlock()
	for {
		u, err := newUp(o, owner)
		if err != nil {
			return errors.Join(err, dropOrphan(o.Dir, lock))
		}
		err = u.run(ctx)
		if !errors.Is(err, errSpecChanged) {
			return err
		}
		o.Report.Say("daemon", "the node has got a new spec meanwhile, starting its daemon again")
		if err := supervise.StopDaemon(ctx, filepath.Join(o.Dir, runDir), daemonStop); err != nil {
			return err
		}
	}
}

// notNode is the error of a directory without a spec.
func notNode(dir string) error {
	return fmt.Errorf("%s is not a node's directory: it has no %s", dir, specFile)
}

// dropOrphan removes the lock of a node that was purged while it was waited for.
func dropOrphan(dir string, lock *nodeLock) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return lock.discard()
	}
	return nil
}

// errSpecChanged means that somebody wrote another spec while Up worked on the
// one before it.
var errSpecChanged = errors.New("the node's spec changed")

type up struct {
	o      UpOptions
	log    *slog.Logger
	spec   *Spec
	digest string // of spec; see readSpec
	cg     cgroups
	site   *site.Site
}

func (o UpOptions) withDefaults() (UpOptions, error) {
	if !filepath.IsAbs(o.Dir) || !filepath.IsAbs(o.Edge) {
		return o, fmt.Errorf("node dir %q and program %q must be absolute", o.Dir, o.Edge)
	}
	o.Dir = locate(o.Dir)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Report == nil {
		o.Report = NewReporter(discard{}, time.Now)
	}
	if o.Preflight == nil {
		o.Preflight = func(ctx context.Context, dir string) error {
			m, err := host.LocalMachine()
			if err != nil {
				return err
			}
			return host.Preflight(ctx, m, dir)
		}
	}
	return o, nil
}

// newUp reads the spec, under the node's lock.
func newUp(o UpOptions, owner int) (*up, error) {
	spec, digest, err := readSpec(o.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notNode(o.Dir)
	}
	if err != nil {
		return nil, err
	}
	if err := checkOwner(spec, o.Dir, owner); err != nil {
		return nil, err
	}
	u := &up{o: o, log: o.Logger, spec: spec, digest: digest}
	u.site, err = siteOf(spec, o.Dir, o.Logger)
	return u, err
}

// run makes the node and waits for it. Whatever comes of it, what it made is its
// owner's, and no token is left that no daemon will use.
func (u *up) run(ctx context.Context) (err error) {
	defer func() {
		err = errors.Join(err, handOver(u.o.Dir, u.spec.OwnerUID, u.spec.OwnerGID))
	}()
	if err := u.converge(ctx); err != nil {
		return errors.Join(err, u.dropToken())
	}
	return u.await(ctx)
}

// dropToken removes the token that this run has brought, unless a daemon is
// alive that joins with it.
func (u *up) dropToken() error {
	if u.o.Token == "" {
		return nil
	}
	state, err := supervise.FindDaemon(filepath.Join(u.o.Dir, runDir))
	if err == nil && !state.Alive() {
		err = removeFile(tokenPath(u.o.Dir))
	}
	return err
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func siteOf(s *Spec, dir string, log *slog.Logger) (*site.Site, error) {
	return site.New(site.Options{ClusterDir: clusterDir(dir), ClusterUID: s.ClusterUID, Pool: s.Pool, Logger: log})
}

// converge makes what is missing, up to a running daemon.
func (u *up) converge(ctx context.Context) error {
	running, err := u.current()
	if err != nil {
		return err
	}
	if !running {
		u.o.Report.Say("preflight", "looking at what this machine can do")
		if err := u.o.Preflight(ctx, u.o.Dir); err != nil {
			return err
		}
	}
	for _, d := range []string{runDir, logsDir, pkiDir, confDir, dataDir} {
		if err := os.MkdirAll(filepath.Join(u.o.Dir, d), 0o700); err != nil {
			return err
		}
	}
	if err := u.takeToken(); err != nil {
		return err
	}
	if err := u.takeProxy(); err != nil {
		return err
	}
	u.o.Report.Say("network", "connecting the node to site "+u.spec.Pool)
	if err := u.connect(ctx); err != nil {
		return err
	}
	if u.cg, err = hostCgroups(); err != nil {
		return err
	}
	for _, leaf := range []string{cgroupHost, cgroupPods} {
		if err := u.cg.ensure(nodeCgroup(u.spec) + "/" + leaf); err != nil {
			return err
		}
	}
	if err := u.cg.delegate(nodeCgroup(u.spec) + "/" + cgroupPods); err != nil {
		return err
	}
	return u.startDaemon(ctx)
}

// takeToken keeps the token for the daemon until the node has joined.
func (u *up) takeToken() error {
	if u.o.Token == "" {
		return nil
	}
	return writeFile(tokenPath(u.o.Dir), []byte(u.o.Token+"\n"), 0o600)
}

// takeProxy keeps the proxy variables, for as long as the node is there: whoever
// starts it after a reboot has others, or none.
func (u *up) takeProxy() error {
	if u.o.Proxy == nil {
		return nil
	}
	if err := keepProxyEnv(u.o.Dir, u.o.Proxy); err != nil {
		return fmt.Errorf("keep the proxy variables: %w", err)
	}
	return nil
}

func tokenPath(dir string) string { return filepath.Join(dir, pkiDir, "join-token") }

// connect makes the node's place at its site and writes it down. The spec is the
// engine's, which may have written another by now: that one then counts.
func (u *up) connect(ctx context.Context) error {
	at, err := u.site.Attach(ctx, u.spec.Name)
	if err != nil {
		return err
	}
	now := place{ClusterUID: u.spec.ClusterUID, Pool: u.spec.Pool, Address: at.Address.Addr(), Cloud: at.Cloud}
	if have, err := readPlace(u.o.Dir); err != nil || have != now {
		if err := writeJSON(filepath.Join(u.o.Dir, placeFile), now); err != nil {
			return err
		}
	}
	owner := u.spec.OwnerUID
	if u.spec, u.digest, err = readSpec(u.o.Dir); err != nil {
		return err
	}
	if u.spec.OwnerUID != owner || u.spec.Local.Cloud != now.Cloud {
		return errSpecChanged // another pool: another site
	}
	return checkOwner(u.spec, u.o.Dir, 0)
}

// current says whether the daemon runs as this program with this spec.
func (u *up) current() (bool, error) {
	state, err := supervise.FindDaemon(filepath.Join(u.o.Dir, runDir))
	if err != nil || !state.Running() {
		return false, err
	}
	st, err := LoadStatus(u.o.Dir)
	if err != nil {
		return false, nil // it has not said who it is: started again, it will
	}
	_, digest, err := readSpec(u.o.Dir)
	if err != nil {
		return false, err
	}
	edge, err := filepath.EvalSymlinks(u.o.Edge)
	if err != nil {
		return false, fmt.Errorf("program %s: %w", u.o.Edge, err)
	}
	return st.DaemonPID == state.Daemon.PID && st.Executable == edge && st.SpecDigest == digest, nil
}

// startDaemon starts the daemon inside of the node, unless the right one runs.
// One that is of another version or has another spec is replaced; its children
// stay and are adopted.
func (u *up) startDaemon(ctx context.Context) error {
	running, err := u.current()
	if err != nil {
		return err
	}
	pid, err := survivor(u.cg, u.spec)
	if err != nil {
		return err
	}
	if running && pid != 0 {
		return nil
	}
	run := filepath.Join(u.o.Dir, runDir)
	if err := supervise.StopDaemon(ctx, run, daemonStop); err != nil {
		return err
	}
	// The old daemon may have been the only process in the node's namespaces.
	if pid, err = survivor(u.cg, u.spec); err != nil {
		return err
	}
	edge, err := filepath.EvalSymlinks(u.o.Edge)
	if err != nil {
		return fmt.Errorf("program %s: %w", u.o.Edge, err)
	}
	plan, err := planRoot(u.spec, u.o.Dir, edge)
	if err != nil {
		return err
	}
	u.o.Report.Say("daemon", "starting the node's daemon")
	log := filepath.Join(u.o.Dir, logsDir, daemonLogName)
	enterNetwork := supervise.EnterNamespaces(site.NamespacePath(site.NodeNamespace(u.spec.ClusterUID, u.spec.Name)), "")
	parent, err := supervise.StartDetached(supervise.DetachOptions{
		Path: edge,
		Args: supervise.ParentArgs(run, log, edge, "node", "run", "--dir", u.o.Dir),
		Dir:  "/",
		Env:  append(supervise.MinimalEnv(func(string) (string, bool) { return "", false }), listEnv()),
		// The parent's own words go to the same log as the daemon's.
		LogFile: log,
		OnThread: func() error {
			if err := enterNetwork(); err != nil {
				return err
			}
			if pid != 0 {
				return enterRootOf(pid, plan)
			}
			return enterNewRoot(plan)
		},
	})
	if err != nil {
		return fmt.Errorf("start the daemon of node %s: %w", u.spec.Name, err)
	}
	// The daemon moves itself. Its parent is moved here, so that a session's end
	// does not take it along and a power cut finds it.
	if err := u.cg.join(nodeCgroup(u.spec)+"/"+cgroupHost, parent); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// await passes on what the daemon says until the node is up.
func (u *up) await(ctx context.Context) error {
	attempt := tokenAttempt(u.o.Dir)
	seen := time.Now()
	said, failure := "", ""
	for {
		state, err := supervise.FindDaemon(filepath.Join(u.o.Dir, runDir))
		if err != nil {
			return err
		}
		if state.Alive() {
			seen = time.Now()
		}
		st, err := LoadStatus(u.o.Dir)
		if err == nil && st.LastFailure != failure {
			failure = st.LastFailure
			if failure != "" {
				u.o.Report.Say(string(PhaseStarting), "the daemon starts again: "+failure)
			}
		}
		if err == nil && state.Running() && st.DaemonPID == state.Daemon.PID {
			if st.SpecDigest != u.digest {
				return errSpecChanged
			}
			if line := string(st.Phase) + st.Message; line != said {
				said = line
				u.o.Report.Say(string(st.Phase), st.Message)
			}
			switch {
			case st.Phase == PhaseRunning:
				return nil
			case st.Phase == PhaseFailed && (st.Attempt == attempt || attempt == 0):
				return &NextError{Err: fmt.Errorf("node %s: %s", u.spec.Name, st.Error), Next: st.Next}
			}
		}
		if time.Since(seen) > daemonGrace {
			return u.notUp(errors.New("its daemon has ended"), st)
		}
		select {
		case <-ctx.Done():
			return u.notUp(context.Cause(ctx), st)
		case <-time.After(statusPoll):
		}
	}
}

// notUp says why a node is not up: what it waits for and its last words.
func (u *up) notUp(cause error, st *Status) error {
	log := filepath.Join(u.o.Dir, logsDir, daemonLogName)
	what := "it has said nothing yet"
	if st != nil {
		what = st.Message
		if st.LastFailure != "" && !strings.Contains(what, st.LastFailure) {
			what += "; its daemon has ended before: " + st.LastFailure
		}
	}
	err := fmt.Errorf("node %s is not up: %w; last state: %s", u.spec.Name, cause, what)
	if lines, lerr := supervise.LastLines(log, logTail); lerr == nil && len(lines) > 0 {
		err = fmt.Errorf("%w; last lines of its log:\n%s", err, strings.Join(lines, "\n"))
	}
	next := "Running the same command again goes on from here. The log is " + log + "."
	if st != nil && st.Link == LinkConnecting && len(u.spec.Gateways) > 0 {
		next = fmt.Sprintf("The node cannot reach its gateway at %s (UDP). See that the control plane runs (`edge status`) and that no firewall of this machine drops input from %s; then run the same command again.",
			u.spec.Gateways[0], wanNet(u.spec))
	}
	return &NextError{Err: err, Next: next}
}

func wanNet(s *Spec) netip.Prefix {
	p, err := s.Local.Cloud.Prefix(30)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// tokenAttempt tells one token put into the node dir from the next without
// naming either: the time it was written, 0 if there is none.
func tokenAttempt(dir string) int64 {
	st, err := os.Stat(tokenPath(dir))
	if err != nil {
		return 0
	}
	return st.ModTime().UnixNano()
}

// handOver gives a node dir's files to the owner of the state directory, except
// for data/, which stays root's: containers' files keep their own owners there,
// and root mounts on directories in it.
func handOver(dir string, uid, gid int) error {
	root, err := os.OpenRoot(dir) // no link in the owner's directory leads outside
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && path == dataDir {
			return fs.SkipDir
		}
		if err == nil {
			err = root.Lchown(path, uid, gid)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // replaced meanwhile
		}
		return err
	})
}
