package component

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/image"
)

// embedded are the build modules and our own sources. Go does not embed a
// directory that holds a go.mod, hence the .txt.
//
//go:embed recipes programs/pause/main.go programs/userland/main.go programs/userland/tar.go programs/userland/programs.go
var embedded embed.FS

// recipeFormat is part of every recipe's hash. Raise it when the builder changes
// what it makes out of the same recipe.
const recipeFormat = 1

// Recipe is everything that decides what the build of a component makes.
type Recipe struct {
	// Module is the directory under recipes/ with go.mod.txt and go.sum.txt.
	// Every module that the build needs has its checksum in the latter, so the
	// build resolves nothing and takes nothing unverified.
	Module string
	// Sources maps a path in the build module to the embedded file it is
	// copied from.
	Sources map[string]string
	Targets []Target
	// Image packs targets into an archive; nil for programs.
	Image *ImageRecipe

	// The rest does not decide what is made.

	// Libraries are needed on the host to build.
	Libraries []CLibrary `json:"-"`
	// Probe is module@version of the biggest download. Where it is in the module
	// cache already, less disk is asked for.
	Probe string `json:"-"`
	// Estimate is how long the build took with empty caches on 2 cores.
	Estimate time.Duration `json:"-"`
	// Disk is how many bytes the build adds to module and build caches when
	// both are empty.
	Disk uint64 `json:"-"`

	// files replaces the embedded files in tests.
	files fs.FS
}

// Target is one `go build`.
type Target struct {
	Package string
	Output  string // name of the file
	// Links are names under which the same file is installed too.
	Links   []string
	Tags    []string
	LDFlags []string // beside -s -w
	CGO     bool
	// Intermediate files go into the image only.
	Intermediate bool
}

// ImageRecipe packs built files into an archive.
type ImageRecipe struct {
	Output string
	// Spec has in File.From the name of a target's output, or
	// "module:<module path>/<file>" for a file of a module of the build.
	Spec image.Spec
}

// CLibrary is a C library with its headers.
type CLibrary struct {
	PkgConfig string // name for pkg-config
	Debian    string // package that has it
}

func (r Recipe) fs() fs.FS {
	if r.files != nil {
		return r.files
	}
	return embedded
}

// moduleFiles returns the build module's files by path.
func (r Recipe) moduleFiles() (map[string][]byte, error) {
	from := map[string]string{
		"go.mod": path.Join("recipes", r.Module, "go.mod.txt"),
		"go.sum": path.Join("recipes", r.Module, "go.sum.txt"),
	}
	for to, src := range r.Sources {
		from[to] = src
	}
	out := make(map[string][]byte, len(from))
	for to, src := range from {
		data, err := fs.ReadFile(r.fs(), src)
		if err != nil {
			return nil, fmt.Errorf("read recipe %s: %w", r.Module, err)
		}
		out[to] = data
	}
	return out, nil
}

// hash identifies the recipe: 12 hex digits of the sha256 over its declaration
// and the files it names, for one platform.
func (r Recipe) hash(p Platform) (string, error) {
	files, err := r.moduleFiles()
	if err != nil {
		return "", err
	}
	sums := make(map[string]string, len(files))
	for name, data := range files {
		s := sha256.Sum256(data)
		sums[name] = hex.EncodeToString(s[:])
	}
	// Marshalling sorts the keys of maps.
	text, err := json.Marshal(struct {
		Format   int
		Platform Platform
		Recipe   Recipe
		Files    map[string]string
	}{recipeFormat, p, r, sums})
	if err != nil {
		return "", fmt.Errorf("hash recipe %s: %w", r.Module, err)
	}
	s := sha256.Sum256(text)
	return hex.EncodeToString(s[:])[:12], nil
}

// outputs are the files an entry of this recipe has.
func (r Recipe) outputs(p Platform) []string {
	if r.Image != nil {
		return []string{r.Image.Output}
	}
	var out []string
	for _, t := range r.Targets {
		if t.Intermediate {
			continue
		}
		out = append(out, p.file(t.Output))
		for _, l := range t.Links {
			out = append(out, p.file(l))
		}
	}
	return out
}

// usesCGO reports whether a target needs a C compiler.
func (r Recipe) usesCGO() bool {
	for _, t := range r.Targets {
		if t.CGO {
			return true
		}
	}
	return false
}
