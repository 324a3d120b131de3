package component

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// atOnce is how many components are fetched or built at a time. The go command
// uses every core by itself; a second build fills the gaps that downloads and
// the single-threaded linker leave, a third only costs memory.
const atOnce = 2

// Paths maps a program's name ("kube-apiserver", "bridge", ImageKey("pause")) to
// the absolute path of its file. Files of one component share a directory.
type Paths map[string]string

// Store is the cache of components with the sources that fill it. It may be used
// from several goroutines, and several processes may use the same cache.
type Store struct {
	opts   Options
	mirror *mirror // nil without one

	// progressMu guards the call of opts.Progress.
	progressMu sync.Mutex
}

// Open checks the options and makes the cache's directory. It reads nothing else.
func Open(opts Options) (*Store, error) {
	opts, err := opts.complete()
	if err != nil {
		return nil, err
	}
	s := &Store{opts: opts}
	if opts.Mirror != "" && (opts.Source == SourceAuto || opts.Source == SourceMirror) {
		if s.mirror, err = openMirror(opts.Mirror, opts.HTTP); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(opts.Cache, 0o700); err != nil {
		return nil, fmt.Errorf("make component cache: %w", err)
	}
	return s, nil
}

// Cache returns the directory of the cache.
func (s *Store) Cache() string { return s.opts.Cache }

// job is one entry that Ensure needs.
type job struct {
	Component
	platform Platform
	key      string // place in the layout, with slashes
	programs []string
}

func (j job) label() string { return j.Name + " " + j.Version }

func (s *Store) newJob(c Component, p Platform, programs []string) (job, error) {
	hash, err := c.recipe.hash(p)
	if err != nil {
		return job{}, err
	}
	return job{Component: c, platform: p, key: entryKey(c.Name, c.Version, p, hash), programs: programs}, nil
}

func (s *Store) dir(j job) string { return filepath.Join(s.opts.Cache, filepath.FromSlash(j.key)) }

// jobs returns the entries that hold a set's programs on the store's platform.
func (s *Store) jobs(r Release, set Set) ([]job, error) {
	var out []job
	have := map[string]bool{}
	var missing []string
	for _, c := range r.Components {
		wanted := c.wanted(set)
		p, ok := c.platform(s.opts.Platform)
		if !ok {
			missing = append(missing, wanted...)
			continue
		}
		wanted = slices.DeleteFunc(wanted, func(n string) bool { return have[n] })
		if len(wanted) == 0 {
			continue
		}
		for _, n := range wanted {
			have[n] = true
		}
		j, err := s.newJob(c, p, wanted)
		if err != nil {
			return nil, err
		}
		out = append(out, j)
	}
	for _, n := range missing {
		if !have[n] {
			return nil, fmt.Errorf("%s of Kubernetes %s does not exist for %s: control planes and nodes run on linux", n, r.Version, s.opts.Platform)
		}
	}
	return out, nil
}

// jobsOf are the jobs of a set for a Kubernetes version.
func (s *Store) jobsOf(kubernetesVersion string, set Set) ([]job, error) {
	r, err := lookup(s.opts.releases, kubernetesVersion)
	if err != nil {
		return nil, err
	}
	if set&All == 0 {
		return nil, fmt.Errorf("get components of Kubernetes %s: no set is named", kubernetesVersion)
	}
	return s.jobs(r, set)
}

// Ensure returns the paths of a set's programs for a Kubernetes version, after
// getting what is missing from the sources in their order. Work that others do
// on the same cache at the same time is shared, not repeated.
//
// Cancelling ctx stops downloads and builds; what they left is removed by the
// next call.
func (s *Store) Ensure(ctx context.Context, kubernetesVersion string, set Set) (Paths, error) {
	jobs, err := s.jobsOf(kubernetesVersion, set)
	if err != nil {
		return nil, err
	}
	paths := Paths{}
	var missing []job
	for _, j := range jobs {
		switch err := s.verify(s.dir(j), j.key, quick); {
		case err == nil:
			s.addPaths(paths, j)
		case errors.Is(err, errAbsent):
			missing = append(missing, j)
		default:
			s.notice(j, fmt.Sprintf("%s in the cache is damaged and is fetched again: %v", j.label(), err))
			missing = append(missing, j)
		}
	}
	if len(missing) == 0 {
		return paths, nil
	}
	if s.opts.Source == SourceCache {
		return nil, fmt.Errorf("component source is %q and the cache %s lacks %s: run `edge component fetch --kubernetes %s --set %s` without EDGE_COMPONENT_SOURCE=%s, or copy the cache of another machine",
			SourceCache, s.opts.Cache, labels(missing), kubernetesVersion, set, SourceCache)
	}
	rest := missing
	if s.mirror != nil {
		if rest, err = s.fromMirror(ctx, missing); err != nil {
			return nil, err
		}
	}
	if len(rest) > 0 {
		if s.opts.Source == SourceMirror {
			return nil, fmt.Errorf("component source is %q and mirror %s lacks %s: copy a cache that has it, or set EDGE_COMPONENT_SOURCE=%s", SourceMirror, s.mirror, labels(rest), SourceAuto)
		}
		if err := s.fromModules(ctx, rest); err != nil {
			return nil, err
		}
	}
	for _, j := range missing {
		s.addPaths(paths, j)
	}
	return paths, nil
}

// Find returns the paths of a set's programs as the cache has them, and gets
// nothing that it lacks: for who may have no network. The error names the command
// that fills the cache.
func (s *Store) Find(kubernetesVersion string, set Set) (Paths, error) {
	jobs, err := s.jobsOf(kubernetesVersion, set)
	if err != nil {
		return nil, err
	}
	paths := Paths{}
	for _, j := range jobs {
		if err := s.verify(s.dir(j), j.key, quick); err != nil {
			return nil, fmt.Errorf("%s in the cache %s: %w; run `edge component fetch --kubernetes %s --set %s` where there is a network, or copy the cache of another machine",
				j.label(), s.opts.Cache, err, kubernetesVersion, set)
		}
		s.addPaths(paths, j)
	}
	return paths, nil
}

func (s *Store) addPaths(paths Paths, j job) {
	for _, n := range j.programs {
		name := n
		if j.recipe.Image == nil {
			name = j.platform.file(n)
		}
		paths[n] = filepath.Join(s.dir(j), name)
	}
}

// fromMirror fetches what the mirror has and returns the rest.
func (s *Store) fromMirror(ctx context.Context, jobs []job) ([]job, error) {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	lacking := make([]bool, len(jobs))
	for i, j := range jobs {
		g.Go(func() error {
			err := s.obtain(gctx, j, "mirror", func(ctx context.Context, work string) (Manifest, error) {
				return s.mirror.fetch(ctx, j.key, work, func(done, total int64) {
					s.emit(Event{Kind: Progress, Component: j.Name, Version: j.Version, Source: "mirror", Done: done, Total: total, Unit: Bytes})
				})
			})
			switch {
			case err == nil:
				return nil
			case errors.Is(err, errNotInMirror):
				lacking[i] = true
				return nil
			case errors.Is(err, errUnreachable) && s.opts.Source == SourceAuto && gctx.Err() == nil:
				s.notice(j, fmt.Sprintf("%v: trying the Go module instead", err))
				lacking[i] = true
				return nil
			}
			return fmt.Errorf("get %s from mirror: %w", j.label(), err)
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var rest []job
	for i, j := range jobs {
		if lacking[i] {
			rest = append(rest, j)
		}
	}
	return rest, nil
}

// fromModules builds jobs after checking what can be checked beforehand.
func (s *Store) fromModules(ctx context.Context, jobs []job) error {
	tools, err := s.preflight(ctx, jobs)
	if err != nil {
		return err
	}
	var names []string
	var estimate time.Duration
	for _, j := range jobs {
		names = append(names, j.label())
		estimate += j.recipe.Estimate
	}
	s.emit(Event{
		Kind: Planned, Source: "module", Components: names, Estimate: onThisMachine(estimate),
		Message: "not in the cache" + s.mirrorWord() + "; building from the Go modules (a publisher's release is not a source yet)",
	})
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, j := range jobs {
		g.Go(func() error {
			err := s.obtain(gctx, j, "module", func(ctx context.Context, work string) (Manifest, error) {
				return s.build(ctx, j, work, tools)
			})
			if err != nil {
				return fmt.Errorf("build %s: %w", j.label(), err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (s *Store) mirrorWord() string {
	if s.mirror == nil {
		return ", no mirror is set"
	}
	return ", not on the mirror"
}

// obtain fills one entry under its lock, unless someone else has meanwhile.
func (s *Store) obtain(ctx context.Context, j job, source string, fill func(ctx context.Context, work string) (Manifest, error)) error {
	start := s.opts.Now()
	unlock, err := s.lock(ctx, flatKey(j.key), func() {
		s.emit(Event{Kind: Waiting, Component: j.Name, Version: j.Version, Source: source, Message: "another process is getting it"})
	})
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	defer unlock()
	if s.verify(s.dir(j), j.key, quick) == nil {
		s.emit(Event{Kind: Installed, Component: j.Name, Version: j.Version, Source: source, Elapsed: s.opts.Now().Sub(start)})
		return nil
	}
	work, err := s.workDir(flatKey(j.key))
	if err != nil {
		return err
	}
	defer func() {
		if err := os.RemoveAll(work); err != nil {
			s.opts.Logger.Warn("remove temporary directory", slog.String("path", work), slog.Any("error", err))
		}
	}()
	s.opts.Logger.Debug("get component", slog.String("component", j.label()), slog.String("platform", j.platform.String()), slog.String("source", source))
	m, err := fill(ctx, work)
	if err != nil {
		return err
	}
	if err := s.install(work, m, j.key); err != nil {
		return err
	}
	s.emit(Event{Kind: Installed, Component: j.Name, Version: j.Version, Source: source, Elapsed: s.opts.Now().Sub(start)})
	return nil
}

func (s *Store) emit(e Event) {
	s.progressMu.Lock()
	defer s.progressMu.Unlock()
	s.opts.Progress(e)
}

func (s *Store) notice(j job, message string) {
	s.opts.Logger.Warn(message, slog.String("component", j.label()))
	s.emit(Event{Kind: Notice, Component: j.Name, Version: j.Version, Message: message})
}

func labels(jobs []job) string {
	var out []string
	for _, j := range jobs {
		out = append(out, j.label())
	}
	return strings.Join(out, ", ")
}

// flatKey is a key as the name of one file.
func flatKey(key string) string { return strings.ReplaceAll(key, "/", "_") }
