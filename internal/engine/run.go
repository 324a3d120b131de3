package engine

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// installEdge copies the edge program below the state directory and links it as
// bin/edge: a daemon never runs from a plugin cache that may be emptied, and
// whoever got the plugin from a registry has the command line that way.
func (e *Engine) installEdge() (string, error) {
	src := e.opts.EdgeBinary
	if src == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find this program: %w", err)
		}
		src = self
	}
	in, err := os.Open(src)
	if err != nil {
		return "", fmt.Errorf("open the edge program: %w", err)
	}
	defer in.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, in); err != nil {
		return "", fmt.Errorf("read the edge program %s: %w", src, err)
	}
	dir := e.state.bin(hex.EncodeToString(sum.Sum(nil))[:12])
	dst := filepath.Join(dir, "edge")
	if _, err := os.Stat(dst); errors.Is(err, os.ErrNotExist) {
		if err := copyProgram(in, dst); err != nil {
			return "", err
		}
	} else if err != nil {
		return "", fmt.Errorf("look for the edge program: %w", err)
	}
	link := e.state.bin("edge")
	if target, err := os.Readlink(link); err != nil || target != dst {
		tmp := fmt.Sprintf("%s.%d", link, os.Getpid())
		if err := os.Symlink(dst, tmp); err != nil {
			return "", fmt.Errorf("link the edge program: %w", err)
		}
		if err := os.Rename(tmp, link); err != nil {
			return "", errors.Join(fmt.Errorf("link the edge program: %w", err), os.Remove(tmp))
		}
	}
	return dst, nil
}

func copyProgram(in io.ReadSeeker, dst string) error {
	if err := os.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
		return fmt.Errorf("make the program directory: %w", err)
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("copy the edge program: %w", err)
	}
	out, err := os.CreateTemp(filepath.Dir(dst), ".edge-*")
	if err != nil {
		return fmt.Errorf("copy the edge program: %w", err)
	}
	_, err = io.Copy(out, in)
	err = errors.Join(err, out.Chmod(0o755), out.Close())
	if err == nil {
		err = os.Rename(out.Name(), dst)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("copy the edge program to %s: %w", dst, err), os.Remove(out.Name()))
	}
	return nil
}

// edgeCommand is one run of the edge program on this host.
type edgeCommand struct {
	Binary string
	Args   []string
	Stdin  string // may hold a secret; never an argument
	Root   bool   // through sudo where this process is not root
}

// stopPatience is how long a command that was asked to stop may take to its next
// safe point, which may be a clean end of etcd.
const stopPatience = 30 * time.Second

// commandLine is a line that `edge control-plane|node up|down` prints: progress,
// or on the last line an error.
type commandLine struct {
	Phase   string `json:"phase"`
	Message string `json:"message"`
	Error   string `json:"error"`
	Next    string `json:"next"`
}

// runEdge runs the edge program, passes its progress on, and returns its last
// error line as the error. The child gets a minimal environment: nothing of
// Terraform's (TF_*) and no cloud key reaches a daemon.
func (e *Engine) runEdge(ctx context.Context, report *reporter, c edgeCommand) error {
	argv := append(append([]string{c.Binary}, c.Args...), "--until-eof")
	if c.Root && os.Geteuid() != 0 {
		sudo, err := exec.LookPath("sudo")
		if err != nil {
			return errors.New("local nodes need root, and there is no sudo on this machine")
		}
		argv = append([]string{sudo, "-n", "--"}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = minimalEnv(os.Getenv)
	cmd.Dir = "/"
	var stderr tail
	cmd.Stderr = &stderr
	ownGroup(cmd)
	// The child's input stays open for as long as the child is wanted, also by a
	// process that is killed. Its end asks the child to stop at its next safe
	// point; what it has started goes on without it and is found again. A signal
	// would not do: sudo is root's and may not be signalled.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("run %s: %w", strings.Join(c.Args, " "), err)
	}
	cmd.Cancel = stdin.Close
	cmd.WaitDelay = stopPatience
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("run %s: %w", strings.Join(c.Args, " "), err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run %s: %w", strings.Join(c.Args, " "), err)
	}
	if _, err := io.WriteString(stdin, c.Stdin); err != nil {
		// The child is gone before it has read; its last line says why.
		e.opts.Logger.DebugContext(ctx, "input of a command not taken", "command", c.Args, "error", err)
	}
	var last commandLine
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line commandLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			continue // a line that is not ours, from sudo or the shell
		}
		if line.Error != "" {
			last = line
			continue
		}
		report.phase(ctx, line.Phase, line.Message)
	}
	err = cmd.Wait()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case last.Error != "":
		if last.Next != "" {
			return fmt.Errorf("%s. %s", last.Error, last.Next)
		}
		return errors.New(last.Error)
	default:
		return fmt.Errorf("edge %s: %w: %s", strings.Join(c.Args[:min(2, len(c.Args))], " "), err, stderr.String())
	}
}

// minimalEnv is the whole environment of what the engine starts.
func minimalEnv(getenv func(string) string) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, name := range []string{"HOME", "USER", "LANG", "TMPDIR", "XDG_RUNTIME_DIR"} {
		if v := getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// tail keeps the last 4 KiB written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if n := len(t.b) - 4096; n > 0 {
		t.b = t.b[n:]
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.b)) }
