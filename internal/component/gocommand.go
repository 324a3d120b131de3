package component

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// stopGrace is how long the go command and its compilers get to end after they
// were asked to.
const stopGrace = 3 * time.Second

// passedOn are the variables of the go command, of C builds and of downloads that
// are the user's choice. What would change the result is set by environment,
// and nothing else (credentials of a cloud, TF_* …) reaches a build.
var passedOn = []string{
	"PATH", "HOME", "USER", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME",
	"GOPATH", "GOMODCACHE", "GOCACHE", "GOENV", "GOTMPDIR", "GOTOOLCHAIN", "GOROOT",
	"GOPROXY", "GONOPROXY", "GOPRIVATE", "GOSUMDB", "GONOSUMDB", "GOVCS", "GOAUTH", "GOINSECURE", "NETRC",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
	"SSL_CERT_FILE", "SSL_CERT_DIR",
	"CC", "PKG_CONFIG", "PKG_CONFIG_PATH",
	// Without these the go command and compilers do not run on Windows.
	"SystemRoot", "USERPROFILE", "LOCALAPPDATA", "APPDATA", "TEMP", "TMP", "ComSpec", "PATHEXT",
}

// environment returns the environment of a build. GOFLAGS is set rather than
// left out, because an empty one falls back to the user's `go env -w`.
func environment(getenv func(string) string, p Platform, cgo bool) []string {
	var env []string
	for _, name := range passedOn {
		if v := getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	enabled := "0"
	if cgo {
		enabled = "1"
	}
	return append(env,
		"GOFLAGS=-mod=readonly", "GOWORK=off", "GO111MODULE=on",
		"GOOS="+p.OS, "GOARCH="+p.Arch, "GOAMD64=v1", "GOARM64=v8.0",
		"CGO_ENABLED="+enabled, "CGO_CFLAGS=-O2 -g", "CGO_CPPFLAGS=", "CGO_LDFLAGS=-O2 -g",
		"GODEBUG=", "GOEXPERIMENT=", "LC_ALL=C",
	)
}

// goCommand is one call of the go command.
type goCommand struct {
	path, dir string
	env, args []string
	line      func(string) // takes each line of standard error
}

// runGo runs the go command at low priority and in a process group of its own,
// which ends with ctx, and where the system can do that, with this process.
func runGo(ctx context.Context, c goCommand) (stdout string, err error) {
	// The signal for a lost parent is tied to the thread that started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := exec.CommandContext(ctx, c.path, c.args...)
	cmd.Dir = c.dir
	cmd.Env = c.env
	var out strings.Builder
	cmd.Stdout = &out
	pr, pw := io.Pipe()
	cmd.Stderr = pw
	cmd.WaitDelay = stopGrace
	ownGroup(cmd)
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewReader(pr)
		for {
			line, err := lines.ReadString('\n')
			if line = strings.TrimRight(line, "\r\n"); line != "" && c.line != nil {
				c.line(line)
			}
			if err != nil {
				return
			}
		}
	}()
	finish := func() {
		pw.Close() // never fails
		<-read
	}
	if err := cmd.Start(); err != nil {
		finish()
		return "", fmt.Errorf("start %s: %w", c.path, err)
	}
	lowerPriority(cmd.Process.Pid)
	err = cmd.Wait()
	finish()
	return out.String(), err
}
