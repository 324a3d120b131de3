package component

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/version"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
)

// estimateCores is the machine on which Recipe.Estimate was measured; beyond
// usefulCores a Go build hardly gets faster, because it links on one.
const (
	estimateCores = 2
	usefulCores   = 8
)

// onThisMachine scales an estimate to the cores there are.
func onThisMachine(d time.Duration) time.Duration {
	return d * estimateCores / time.Duration(min(runtime.NumCPU(), usefulCores))
}

// goTools is what preflight learned about the go command.
type goTools struct {
	version  string // "go1.26.8"
	modCache string
	cache    string
	proxy    string
}

// preflight looks for everything that is missing for the builds before any of
// them begins, and names it all in one error.
func (s *Store) preflight(ctx context.Context, jobs []job) (goTools, error) {
	var problems []error
	tools, err := s.goTools(ctx, jobs)
	if err != nil {
		problems = append(problems, err)
	}
	problems = append(problems, s.checkC(ctx, jobs)...)
	if err == nil {
		problems = append(problems, s.checkDisk(jobs, tools)...)
	}
	if len(problems) > 0 {
		return tools, fmt.Errorf("cannot build %s on this machine (set EDGE_COMPONENT_MIRROR to a copy of another machine's component cache to build nothing here): %w", labels(jobs), errors.Join(problems...))
	}
	return tools, nil
}

// goTools checks that the go command is there and, with the toolchain it may
// download, new enough.
func (s *Store) goTools(ctx context.Context, jobs []job) (goTools, error) {
	need := ""
	for _, j := range jobs {
		files, err := j.recipe.moduleFiles()
		if err != nil {
			return goTools{}, err
		}
		mod, err := modfile.ParseLax("go.mod", files["go.mod"], nil)
		if err != nil {
			return goTools{}, fmt.Errorf("recipe of %s: %w", j.label(), err)
		}
		if mod.Go != nil && (need == "" || version.Compare("go"+mod.Go.Version, need) > 0) {
			need = "go" + mod.Go.Version
		}
	}
	path, err := exec.LookPath(s.opts.Go)
	if err != nil {
		return goTools{}, fmt.Errorf("the go command (%s or newer) is not installed or not on PATH: see https://go.dev/dl", need)
	}
	var stderr bytes.Buffer
	out, err := runGo(ctx, goCommand{
		path: path, dir: s.opts.Cache, env: environment(s.opts.Getenv, s.opts.Platform, false),
		args: []string{"env", "GOVERSION", "GOTOOLCHAIN", "GOMODCACHE", "GOCACHE", "GOPROXY"},
		line: func(l string) { stderr.WriteString(l + "\n") },
	})
	lines := strings.Split(strings.TrimRight(out, "\r\n"), "\n")
	if err != nil || len(lines) != 5 {
		return goTools{}, fmt.Errorf("%s env does not answer as expected: %w: %s", path, err, strings.TrimSpace(stderr.String()))
	}
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	have, _, _ := strings.Cut(lines[0], " ") // experiments follow after a space
	t := goTools{version: have, modCache: lines[2], cache: lines[3], proxy: lines[4]}
	fetches := lines[1] == "" || lines[1] == "auto" || strings.HasSuffix(lines[1], "+auto")
	if need != "" && version.Compare(have, need) < 0 && !fetches {
		return t, fmt.Errorf("%s is %s, but %s is needed and GOTOOLCHAIN=%s forbids fetching it: install a newer Go (https://go.dev/dl) or run `go env -w GOTOOLCHAIN=auto`", path, have, need, lines[1])
	}
	return t, nil
}

// checkC checks the C compiler and libraries by linking a program with them, the
// way the build does.
func (s *Store) checkC(ctx context.Context, jobs []job) []error {
	var problems []error
	for _, j := range jobs {
		if !j.recipe.usesCGO() {
			continue
		}
		host := Platform{runtime.GOOS, runtime.GOARCH}
		if j.platform != host {
			problems = append(problems, fmt.Errorf("%s has C code and cannot be built for %s on %s: fetch it on such a host and copy that cache, or name it as mirror", j.label(), j.platform, host))
			continue
		}
		if err := s.linkC(ctx, j); err != nil {
			problems = append(problems, err)
		}
	}
	return problems
}

func (s *Store) linkC(ctx context.Context, j job) error {
	packages := []string{"gcc", "libc6-dev", "pkg-config"}
	var libraries []string
	for _, l := range j.recipe.Libraries {
		packages = append(packages, l.Debian)
		libraries = append(libraries, l.PkgConfig)
	}
	advice := fmt.Sprintf("on Debian and Ubuntu: apt-get install %s", strings.Join(packages, " "))
	cc, pkgConfig := s.opts.Getenv("CC"), s.opts.Getenv("PKG_CONFIG")
	if cc == "" {
		cc = "gcc"
	}
	if pkgConfig == "" {
		pkgConfig = "pkg-config"
	}
	compiler := strings.Fields(cc) // CC may carry flags
	for _, program := range []string{compiler[0], pkgConfig} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s needs %s, which is not installed (%s)", j.label(), program, advice)
		}
	}
	env := environment(s.opts.Getenv, j.platform, true)
	query := exec.CommandContext(ctx, pkgConfig, append([]string{"--static", "--cflags", "--libs"}, libraries...)...)
	query.Env = env
	flags, err := query.Output()
	if err != nil {
		return fmt.Errorf("%s needs the headers of %s, which %s does not find (%s)", j.label(), strings.Join(libraries, ", "), pkgConfig, advice)
	}
	dir, err := os.MkdirTemp(s.opts.Cache, ".link-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	args := append(slices.Clone(compiler[1:]), "-x", "c", "-", "-static", "-o", filepath.Join(dir, "probe"))
	link := exec.CommandContext(ctx, compiler[0], append(args, strings.Fields(string(flags))...)...)
	link.Env = env
	link.Stdin = strings.NewReader("int main(void) { return 0; }\n")
	if out, err := link.CombinedOutput(); err != nil {
		return fmt.Errorf("%s needs a C compiler that links %s statically (%s): %s", j.label(), strings.Join(libraries, ", "), advice, strings.TrimSpace(string(out)))
	}
	return nil
}

// checkDisk adds up what the builds need per file system.
func (s *Store) checkDisk(jobs []job, tools goTools) []error {
	var modules, objects, files uint64
	probed := map[string]bool{}
	for _, j := range jobs {
		// Measured: a third of what a build adds is source, two thirds objects.
		objects += j.recipe.Disk / 3 * 2
		files += j.recipe.Disk / 20
		if p := j.recipe.Probe; p != "" && !probed[p] && !inModuleCache(tools.modCache, p) {
			probed[p] = true
			modules += j.recipe.Disk / 3
		}
	}
	need, free, where := map[string]uint64{}, map[string]uint64{}, map[string][]string{}
	for _, d := range []struct {
		dir   string
		bytes uint64
	}{{tools.modCache, modules}, {tools.cache, objects}, {s.opts.Cache, files}} {
		n, name, err := freeSpace(existing(d.dir))
		if err != nil {
			return []error{err}
		}
		need[name] += d.bytes
		free[name] = n
		where[name] = append(where[name], d.dir)
	}
	var problems []error
	for name, n := range need {
		if free[name] < n {
			problems = append(problems, fmt.Errorf("the build needs about %s of disk for %s, and %s are free there: make room, or point GOMODCACHE, GOCACHE or EDGE_COMPONENT_CACHE elsewhere",
				gigabytes(n), strings.Join(where[name], ", "), gigabytes(free[name])))
		}
	}
	return problems
}

func gigabytes(n uint64) string { return fmt.Sprintf("%.1f GB", float64(n)/1e9) }

// existing returns the nearest directory above a path that exists.
func existing(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || path == filepath.Dir(path) {
			return path
		}
		path = filepath.Dir(path)
	}
}

// inModuleCache reports whether module@version has been downloaded.
func inModuleCache(dir, probe string) bool {
	path, v, _ := strings.Cut(probe, "@")
	escaped, err := module.EscapePath(path)
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(dir, "cache", "download", filepath.FromSlash(escaped), "@v", v+".zip"))
	return err == nil
}
