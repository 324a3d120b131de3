//go:build unix

package component

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func TestPreflightNamesWhatIsMissing(t *testing.T) {
	bin := t.TempDir()
	for _, tt := range []struct {
		name   string
		change func(b *bench, r *Recipe)
		want   []string
	}{
		{"no go command", func(b *bench, _ *Recipe) { b.opts.Go = "/nonexistent/go" }, []string{"the go command (go1.24 or newer) is not installed", "EDGE_COMPONENT_MIRROR"}},
		{"old go command", func(b *bench, _ *Recipe) { b.write("version", "go1.19.8") }, []string{"is go1.19.8, but go1.24 is needed and GOTOOLCHAIN=local forbids"}},
		{"no C compiler", func(b *bench, r *Recipe) {
			r.Targets[0].CGO = true
			r.Libraries = []CLibrary{{"libseccomp", "libseccomp-dev"}}
			b.opts.Getenv = func(name string) string {
				return map[string]string{"CC": filepath.Join(bin, "cc"), "PATH": os.Getenv("PATH")}[name]
			}
		}, []string{"needs " + filepath.Join(bin, "cc"), "apt-get install gcc libc6-dev pkg-config libseccomp-dev"}},
		{"no library", func(b *bench, r *Recipe) {
			r.Targets[0].CGO = true
			r.Libraries = []CLibrary{{"libnosuch", "libnosuch-dev"}}
			b.opts.Getenv = func(name string) string {
				return map[string]string{"CC": "true", "PKG_CONFIG": "false", "PATH": os.Getenv("PATH")}[name]
			}
		}, []string{"needs the headers of libnosuch", "libnosuch-dev"}},
		{"other architecture", func(b *bench, r *Recipe) {
			r.Targets[0].CGO = true
			b.opts.Platform = Platform{runtime.GOOS, map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]}
		}, []string{"has C code and cannot be built for"}},
		{"no disk", func(_ *bench, r *Recipe) { r.Disk = 1 << 60 }, []string{"the build needs about", "are free there", "GOMODCACHE"}},
		{"several at once", func(b *bench, r *Recipe) {
			b.write("version", "go1.19.8")
			r.Targets[0].CGO = true
			b.opts.Platform = Platform{runtime.GOOS, map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]}
		}, []string{"go1.24 is needed", "has C code"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			tt.change(b, &b.opts.releases[0].Components[0].recipe)
			_, err := b.ensure()
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error lacks %q:\n%v", w, err)
				}
			}
			if b.builds() != 0 || slices.ContainsFunc(b.events, func(e Event) bool { return e.Kind == Planned }) {
				t.Error("began to build")
			}
		})
	}
}

func TestEnvironmentOfABuild(t *testing.T) {
	env := environment(func(name string) string { return "user:" + name }, Platform{"linux", "arm64"}, false)
	for _, want := range []string{"GOFLAGS=-mod=readonly", "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0", "GOPROXY=user:GOPROXY", "GOTOOLCHAIN=user:GOTOOLCHAIN"} {
		if !slices.Contains(env, want) {
			t.Errorf("environment lacks %s", want)
		}
	}
	for _, e := range env {
		if strings.HasPrefix(e, "TF_") || strings.HasPrefix(e, "AWS_") || strings.HasPrefix(e, "EDGE_") {
			t.Errorf("environment has %s", e)
		}
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"source":   {Cache: "/c", Source: "internet"},
		"mirror":   {Cache: "/c", Source: SourceMirror},
		"cache":    {},
		"relative": {Cache: "cache"},
		"platform": {Cache: "/c", Platform: Platform{"plan9", "amd64"}},
	} {
		if _, err := Open(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	o := DefaultOptions(func(name string) string {
		return map[string]string{"EDGE_COMPONENT_CACHE": "/x", "EDGE_COMPONENT_MIRROR": "/m", "EDGE_COMPONENT_SOURCE": "cache"}[name]
	})
	if o.Cache != "/x" || o.Mirror != "/m" || o.Source != SourceCache {
		t.Errorf("options %+v", o)
	}
}
