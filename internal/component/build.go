package component

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/image"
)

// downloadTries is how often a build starts again after the network failed:
// modules that arrived are kept, so each try gets further.
const downloadTries = 3

// build makes a component from its Go module in work, with output in a log whose
// last lines are part of an error.
func (s *Store) build(ctx context.Context, j job, work string, tools goTools) (Manifest, error) {
	s.emit(Event{Kind: Started, Component: j.Name, Version: j.Version, Source: "module"})
	src := filepath.Join(work, "src")
	files, err := j.recipe.moduleFiles()
	if err != nil {
		return Manifest{}, err
	}
	for name, data := range files {
		path := filepath.Join(src, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return Manifest{}, err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return Manifest{}, err
		}
	}
	log, err := openBuildLog(s.opts.Cache, flatKey(j.key))
	if err != nil {
		return Manifest{}, err
	}
	defer func() {
		if err := log.Close(); err != nil {
			s.opts.Logger.Warn("close build log", slog.String("path", log.path), slog.Any("error", err))
		}
	}()
	b := &builder{store: s, job: j, src: src, work: work, log: log}
	for try := 1; ; try++ {
		if err = b.run(ctx); err == nil {
			break
		}
		if ctx.Err() != nil {
			return Manifest{}, fmt.Errorf("stopped: %w", context.Cause(ctx))
		}
		if !b.log.networkFailed() {
			return Manifest{}, fmt.Errorf("%w; the end of %s:\n%s", err, log.path, log.tail())
		}
		if try == downloadTries {
			return Manifest{}, fmt.Errorf("a Go module could not be downloaded from GOPROXY=%s (%d tries): check the network and the proxy settings, or set EDGE_COMPONENT_MIRROR: %w; the end of %s:\n%s",
				tools.proxy, try, err, log.path, log.tail())
		}
		s.notice(j, fmt.Sprintf("a download for %s failed, trying again: %s", j.label(), log.last()))
		if err := s.opts.pause(ctx, time.Duration(try)*2*time.Second); err != nil {
			return Manifest{}, err
		}
		log.forget()
	}
	links := map[string]string{}
	dir := filepath.Join(work, filesDir)
	for _, t := range j.recipe.Targets {
		for _, l := range t.Links {
			from, to := j.platform.file(t.Output), j.platform.file(l)
			if err := linkOrCopy(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
				return Manifest{}, err
			}
			links[to] = from
		}
	}
	if j.recipe.Image != nil {
		if err := b.pack(ctx); err != nil {
			return Manifest{}, err
		}
	}
	hash, err := j.recipe.hash(j.platform)
	if err != nil {
		return Manifest{}, err
	}
	return describe(Manifest{
		Component: j.Name, Version: j.Version, OS: j.platform.OS, Arch: j.platform.Arch, Recipe: hash, Builder: tools.version,
	}, dir, j.recipe.outputs(j.platform), links)
}

// builder is one build in progress.
type builder struct {
	store *Store
	job   job
	src   string
	work  string
	log   *buildLog

	done, total int64 // packages
}

// run counts what is stale, which downloads what is missing, and builds every
// target.
func (b *builder) run(ctx context.Context) error {
	b.done, b.total = 0, 0
	for _, t := range b.job.recipe.Targets {
		args := append([]string{"list", "-deps", "-f", "{{if .Stale}}stale{{end}}"}, b.flags(t)...)
		out, err := b.command(ctx, t, append(args, t.Package))
		if err != nil {
			return fmt.Errorf("go list %s: %w", t.Package, err)
		}
		b.total += int64(strings.Count(out, "stale"))
	}
	b.progress("")
	for _, t := range b.job.recipe.Targets {
		to := filepath.Join(b.work, filesDir, b.job.platform.file(t.Output))
		if t.Intermediate {
			to = filepath.Join(b.work, t.Output)
		}
		args := append([]string{"build", "-v", "-o", to}, b.flags(t)...)
		if _, err := b.command(ctx, t, append(args, t.Package)); err != nil {
			return fmt.Errorf("go build %s: %w", t.Package, err)
		}
	}
	return nil
}

// flags decide what is made, beside the environment. -trimpath keeps paths of
// this machine out; there is no version control to stamp.
func (b *builder) flags(t Target) []string {
	return []string{
		"-trimpath", "-buildvcs=false",
		"-tags=" + strings.Join(t.Tags, ","),
		"-ldflags=" + strings.Join(append([]string{"-s", "-w"}, t.LDFlags...), " "),
	}
}

// command runs the go command in the build module and returns its standard
// output. Its standard error goes to the log and moves the progress on.
func (b *builder) command(ctx context.Context, t Target, args []string) (string, error) {
	b.log.line("$ go " + strings.Join(args, " "))
	return runGo(ctx, goCommand{
		path: b.store.opts.Go,
		dir:  b.src,
		env:  environment(b.store.opts.Getenv, b.job.platform, t.CGO),
		args: args,
		line: func(line string) {
			b.log.line(line)
			switch {
			case strings.HasPrefix(line, "go: downloading "):
				b.progress("downloading " + strings.TrimPrefix(line, "go: downloading "))
			case args[0] == "build" && !strings.ContainsAny(line, " \t:"):
				// -v prints the import path of each package as its compilation begins.
				b.done++
				b.progress("")
			}
		},
	})
}

func (b *builder) progress(message string) {
	b.store.emit(Event{
		Kind: Progress, Component: b.job.Name, Version: b.job.Version, Source: "module",
		Message: message, Done: min(b.done, b.total), Total: b.total, Unit: Packages,
	})
}

// pack makes the archive of an image recipe.
func (b *builder) pack(ctx context.Context) error {
	spec := b.job.recipe.Image.Spec
	spec.OS, spec.Architecture = b.job.platform.OS, b.job.platform.Arch
	spec.Files = append([]image.File(nil), spec.Files...)
	for i, f := range spec.Files {
		if f.From == "" {
			continue
		}
		path := filepath.Join(b.work, f.From)
		if rest, ok := strings.CutPrefix(f.From, "module:"); ok {
			var err error
			if path, err = b.moduleFile(ctx, rest); err != nil {
				return err
			}
		}
		spec.Files[i].From = path
	}
	if err := image.WriteArchive(filepath.Join(b.work, filesDir, b.job.recipe.Image.Output), spec); err != nil {
		return fmt.Errorf("pack %s: %w", spec.Name, err)
	}
	return nil
}

// moduleFile returns the path of a file of a package that the build module
// requires ("k8s.io/kubernetes/test/images/agnhost/porter/localhost.crt").
func (b *builder) moduleFile(ctx context.Context, name string) (string, error) {
	dir, file := name[:strings.LastIndex(name, "/")], name[strings.LastIndex(name, "/")+1:]
	out, err := b.command(ctx, Target{}, []string{"list", "-f", "{{.Dir}}", dir})
	if err != nil {
		return "", fmt.Errorf("go list %s: %w", dir, err)
	}
	out = strings.TrimSpace(out)
	if out == "" {
		return "", errors.New("go list " + dir + " printed no directory")
	}
	return filepath.Join(out, file), nil
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
