package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Namespace is where kubelet's images live in containerd.
const Namespace = "k8s.io"

// pinLabel keeps kubelet's garbage collector away from an image: what came from
// an archive cannot be pulled again (containerd, internal/cri/labels).
const pinLabel = "io.cri-containerd.pinned=pinned"

// Runtime is a node's containerd, as far as images go.
type Runtime interface {
	// Images returns the digest of each image by name.
	Images(ctx context.Context) (map[string]string, error)
	// Import takes all images of an archive over.
	Import(ctx context.Context, archive string) error
}

// Ctr reaches containerd through its own command line.
type Ctr struct {
	Path   string // of ctr
	Socket string // of containerd
	// Env is the environment of ctr; it needs none.
	Env []string
}

// Images implements Runtime.
func (c Ctr) Images(ctx context.Context) (map[string]string, error) {
	out, err := c.run(ctx, "images", "list")
	if err != nil {
		return nil, err
	}
	return ParseList(out), nil
}

// Import implements Runtime. Every image of the archive is pinned. Other
// platforms than the node's are left in the archive.
func (c Ctr) Import(ctx context.Context, archive string) error {
	_, err := c.run(ctx, "images", "import", "--local", "--label", pinLabel, archive)
	return err
}

func (c Ctr) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.Path, append([]string{"--address", c.Socket, "--namespace", Namespace}, args...)...)
	cmd.Env = append([]string{}, c.Env...)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// ParseList reads the table of `ctr images list`: REF TYPE DIGEST SIZE ….
func ParseList(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 3 && strings.HasPrefix(f[2], "sha256:") {
			out[f[0]] = f[2]
		}
	}
	return out
}

// Import imports one archive into the containerd that listens on a socket.
func Import(ctx context.Context, ctrPath, socket, archive string) error {
	if err := (Ctr{Path: ctrPath, Socket: socket}).Import(ctx, archive); err != nil {
		return fmt.Errorf("import %s: %w", archive, err)
	}
	return nil
}

// Dir is directories of archives (*.tar) that a node takes images from.
type Dir struct {
	Paths   []string // one that does not exist is empty
	Runtime Runtime
	Logger  *slog.Logger

	// seen is what Run knows of each archive, so that it reads only what changed.
	seen map[string]fileState
}

type fileState struct {
	size int64
	time time.Time
}

// Sync imports every image that the runtime has not under the same name and
// digest, and returns what it imported. One archive that fails does not keep the
// others out; the error names all that failed.
func (d *Dir) Sync(ctx context.Context) ([]Info, error) {
	return d.sync(ctx, nil)
}

func (d *Dir) sync(ctx context.Context, skip map[string]fileState) ([]Info, error) {
	archives, err := d.archives()
	if err != nil {
		return nil, err
	}
	archives = slices.DeleteFunc(archives, func(a archive) bool {
		state, ok := skip[a.path]
		return ok && state == a.state
	})
	if len(archives) == 0 {
		return nil, nil
	}
	have, err := d.Runtime.Images(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var imported []Info
	var failed []error
	for _, a := range archives {
		infos, err := Check(a.path)
		if skip != nil {
			// A bad archive is said to be one once, not at every look.
			skip[a.path] = a.state
		}
		if err == nil {
			infos, err = d.importMissing(ctx, a.path, infos, have)
			if err != nil && skip != nil {
				delete(skip, a.path) // the runtime may only be restarting
			}
		}
		if err != nil {
			failed = append(failed, err)
			if ctx.Err() != nil {
				break
			}
			continue
		}
		imported = append(imported, infos...)
	}
	return imported, errors.Join(failed...)
}

// importMissing imports an archive unless all its images are there, and returns
// those that were not.
func (d *Dir) importMissing(ctx context.Context, path string, infos []Info, have map[string]string) ([]Info, error) {
	missing := slices.DeleteFunc(slices.Clone(infos), func(i Info) bool { return have[i.Name] == i.Digest })
	if len(missing) == 0 {
		return nil, nil
	}
	if err := d.Runtime.Import(ctx, path); err != nil {
		return nil, fmt.Errorf("import %s: %w", path, err)
	}
	for _, i := range missing {
		have[i.Name] = i.Digest
		if d.Logger != nil {
			d.Logger.Info("imported image", slog.String("image", i.Name), slog.String("digest", i.Digest), slog.String("archive", path))
		}
	}
	return missing, nil
}

// Run imports what is new in the directories every interval until ctx ends. A
// bad archive is logged once and read again when it changes; one that the
// runtime did not take is tried again.
func (d *Dir) Run(ctx context.Context, interval time.Duration) error {
	d.seen = map[string]fileState{}
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		if _, err := d.sync(ctx, d.seen); err != nil && ctx.Err() == nil && d.Logger != nil {
			d.Logger.Warn("import images", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

type archive struct {
	path  string
	state fileState
}

func (d *Dir) archives() ([]archive, error) {
	var out []archive
	for _, dir := range d.Paths {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list image archives: %w", err)
		}
		for _, e := range entries {
			// Names with a dot in front are copies in progress.
			if !strings.HasSuffix(e.Name(), ".tar") || strings.HasPrefix(e.Name(), ".") {
				continue
			}
			path := filepath.Join(dir, e.Name())
			info, err := os.Stat(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed meanwhile
			}
			if err != nil {
				return nil, fmt.Errorf("list image archives: %w", err)
			}
			if info.Mode().IsRegular() {
				out = append(out, archive{path, fileState{info.Size(), info.ModTime()}})
			}
		}
	}
	return out, nil
}

// Load checks an archive and copies it into a directory of archives under its
// own name, replacing one of that name, in one step that a reader cannot see half.
func Load(archive, dir string) ([]Info, error) {
	name := filepath.Base(archive)
	if !strings.HasSuffix(name, ".tar") {
		name += ".tar"
	}
	if strings.HasPrefix(name, ".") {
		return nil, fmt.Errorf("image archive %s: its name begins with a dot", archive)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	in, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	tmp, err := os.CreateTemp(dir, ".load-*")
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(tmp, in)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	var infos []Info
	if err == nil {
		// What is checked is the copy: the original may change meanwhile.
		if infos, err = Check(tmp.Name()); err != nil {
			err = fmt.Errorf("%s: %w", archive, errors.Unwrap(err))
		}
	}
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(tmp.Name()))
	}
	return infos, nil
}
