package component

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// The sources.
const (
	// SourceAuto tries cache, mirror and module, in this order.
	SourceAuto = "auto"
	// SourceCache takes only what is in the cache.
	SourceCache = "cache"
	// SourceMirror tries the cache, then the mirror.
	SourceMirror = "mirror"
	// SourceModule tries the cache, then builds the Go module.
	SourceModule = "module"
)

var sources = []string{SourceAuto, SourceCache, SourceMirror, SourceModule}

// Platform is what a program runs on, in Go's names.
type Platform struct {
	OS   string
	Arch string
}

// String returns "linux-amd64".
func (p Platform) String() string { return p.OS + "-" + p.Arch }

// file returns the name of a program's file.
func (p Platform) file(name string) string {
	if p.OS == "windows" {
		return name + ".exe"
	}
	return name
}

// Options say where components come from and where they are kept.
type Options struct {
	// Cache is the absolute path of the cache. It is made with mode 0700.
	Cache string
	// Mirror is a directory or an http(s) URL, see the package's doc; empty for none.
	Mirror string
	// Source is one of the Source constants; empty means SourceAuto.
	Source string
	// Platform of the programs; the zero value means this machine's.
	Platform Platform

	// Logger may be nil.
	Logger *slog.Logger
	// Progress may be nil. It must return soon.
	Progress func(Event)

	// Go is the go command; "go" if empty.
	Go string
	// Getenv reads the environment of the build; nil builds with none. Only the
	// variables that the go command documents as the user's choice are passed
	// on, see environment.
	Getenv func(string) string
	// HTTP is for mirrors; nil means a client with the system's proxy settings.
	HTTP *http.Client
	// Now is the clock for durations; nil means time.Now.
	Now func() time.Time

	// releases replaces the catalogue in tests, pause the wait before a retry.
	releases []Release
	pause    func(ctx context.Context, d time.Duration) error
}

// DefaultOptions returns what the environment asks for: EDGE_COMPONENT_SOURCE,
// EDGE_COMPONENT_MIRROR, EDGE_COMPONENT_CACHE. Without the latter the cache is
// edge/components in the user's cache directory. Open reports what is wrong
// with it.
func DefaultOptions(getenv func(string) string) Options {
	cache := getenv("EDGE_COMPONENT_CACHE")
	if cache == "" {
		// An error means that there is no home directory; Open says so.
		if dir, err := os.UserCacheDir(); err == nil {
			cache = filepath.Join(dir, "edge", "components")
		}
	}
	return Options{
		Cache:  cache,
		Mirror: getenv("EDGE_COMPONENT_MIRROR"),
		Source: getenv("EDGE_COMPONENT_SOURCE"),
		Getenv: getenv,
	}
}

// complete fills in defaults and checks what was given.
func (o Options) complete() (Options, error) {
	if o.Source == "" {
		o.Source = SourceAuto
	}
	if !slices.Contains(sources, o.Source) {
		return o, fmt.Errorf("unknown component source %q: use one of %s (EDGE_COMPONENT_SOURCE)", o.Source, strings.Join(sources, ", "))
	}
	if o.Source == SourceMirror && o.Mirror == "" {
		return o, fmt.Errorf("component source is %q but no mirror is named: set EDGE_COMPONENT_MIRROR to a directory or URL", SourceMirror)
	}
	if o.Cache == "" {
		return o, fmt.Errorf("no directory for components: there is no home directory; set EDGE_COMPONENT_CACHE")
	}
	if !filepath.IsAbs(o.Cache) {
		return o, fmt.Errorf("component cache %q is not an absolute path (EDGE_COMPONENT_CACHE)", o.Cache)
	}
	if o.Platform.OS == "" {
		o.Platform.OS = runtime.GOOS
	}
	if o.Platform.Arch == "" {
		o.Platform.Arch = runtime.GOARCH
	}
	if !slices.Contains([]string{"linux", "darwin", "windows"}, o.Platform.OS) || !slices.Contains([]string{"amd64", "arm64"}, o.Platform.Arch) {
		return o, fmt.Errorf("components cannot be made for %s: supported are linux, darwin and windows on amd64 and arm64", o.Platform)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if o.Progress == nil {
		o.Progress = func(Event) {}
	}
	if o.Go == "" {
		o.Go = "go"
	}
	if o.Getenv == nil {
		o.Getenv = func(string) string { return "" }
	}
	if o.HTTP == nil {
		o.HTTP = &http.Client{Transport: http.DefaultTransport}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.releases == nil {
		o.releases = releases()
	}
	if o.pause == nil {
		o.pause = wait
	}
	return o, nil
}
