package component

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

var (
	// errNotInMirror: the mirror answers and does not have it.
	errNotInMirror = errors.New("not on the mirror")
	// errUnreachable: the mirror does not answer, or not with what was asked for.
	errUnreachable = errors.New("mirror cannot be read")
	// errDigest: the mirror has something else than the index, or the pin, says.
	// Never a reason to go on with another source: someone should look.
	errDigest = errors.New("digest differs")
)

// mirrorStall is how long a mirror may send nothing. A download as such has no
// limit, because links are slow.
const mirrorStall = time.Minute

// pinPrefix begins the fragment of a mirror's address that pins its index.
const pinPrefix = "sha256="

// mirror reads a directory or web server with the layout of a cache.
type mirror struct {
	dir    string   // or
	base   *url.URL // without fragment
	pin    string   // sha256 of index.json, or empty
	client *http.Client

	mu    sync.Mutex // guards index
	index *Index
}

// openMirror checks a mirror's address. It does not ask it anything.
func openMirror(ref string, client *http.Client) (*mirror, error) {
	m := &mirror{}
	address, pin, pinned := strings.Cut(ref, "#")
	if pinned {
		m.pin = strings.TrimPrefix(pin, pinPrefix)
		if m.pin == pin || !isSHA256(m.pin) {
			return nil, fmt.Errorf("mirror: what follows # must be %s and 64 lower case hex digits (EDGE_COMPONENT_MIRROR)", pinPrefix)
		}
	}
	if !strings.Contains(address, "://") {
		if !filepath.IsAbs(address) {
			return nil, fmt.Errorf("mirror %q is neither an absolute path nor a URL (EDGE_COMPONENT_MIRROR)", address)
		}
		m.dir = address
		return m, nil
	}
	u, err := url.Parse(address)
	if err != nil {
		// The error holds the address, and the address may hold a password.
		return nil, errors.New("mirror: the URL cannot be read (EDGE_COMPONENT_MIRROR)")
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("mirror %s: use a path, https or http (EDGE_COMPONENT_MIRROR)", u.Redacted())
	case u.Scheme == "http" && m.pin == "":
		return nil, fmt.Errorf("mirror %s: anyone on the way can change what http carries; use https, or pin the index: %s#%s<digest of index.json>", u.Redacted(), u.Redacted(), pinPrefix)
	}
	m.base = u
	c := *client
	c.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if len(via) >= 10 {
			return errors.New("stopped after 10 redirects")
		}
		if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" && m.pin == "" {
			return errors.New("refusing to follow a redirect from https to http")
		}
		return nil
	}
	m.client = &c
	return m, nil
}

// String returns the address without a password.
func (m *mirror) String() string {
	if m.base == nil {
		return m.dir
	}
	return m.base.Redacted()
}

// open opens a file of the layout. Errors are errNotInMirror or errUnreachable.
func (m *mirror) open(ctx context.Context, name string) (io.ReadCloser, error) {
	if m.base == nil {
		f, err := os.Open(filepath.Join(m.dir, filepath.FromSlash(name)))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("%s: %w", name, errNotInMirror)
		case err != nil:
			return nil, fmt.Errorf("%w: %w", errUnreachable, err)
		}
		return f, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.base.JoinPath(name).String(), nil)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("%w: %s", errUnreachable, m)
	}
	timer := time.AfterFunc(mirrorStall, cancel)
	resp, err := m.client.Do(req)
	if err != nil {
		timer.Stop()
		cancel()
		return nil, fmt.Errorf("%w: %w", errUnreachable, err)
	}
	if resp.StatusCode != http.StatusOK {
		timer.Stop()
		cancel()
		resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone {
			return nil, fmt.Errorf("%s: %w", name, errNotInMirror)
		}
		return nil, fmt.Errorf("%w: %s answers %s for %s", errUnreachable, m, resp.Status, name)
	}
	return &stallReader{body: resp.Body, timer: timer, cancel: cancel}, nil
}

// stallReader gives up on a body that sends nothing for mirrorStall.
type stallReader struct {
	body   io.ReadCloser
	timer  *time.Timer
	cancel context.CancelFunc
}

func (r *stallReader) Read(p []byte) (int, error) {
	r.timer.Reset(mirrorStall)
	return r.body.Read(p)
}

func (r *stallReader) Close() error {
	r.timer.Stop()
	r.cancel()
	return r.body.Close()
}

// small reads a whole file of at most limit bytes.
func (m *mirror) small(ctx context.Context, name string, limit int64) ([]byte, error) {
	r, err := m.open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %s of %s: %w", errUnreachable, name, m, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: %s of %s is bigger than %d bytes", errUnreachable, name, m, limit)
	}
	return data, nil
}

// readIndex fetches the index once.
func (m *mirror) readIndex(ctx context.Context) (Index, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.index != nil {
		return *m.index, nil
	}
	data, err := m.small(ctx, indexName, maxIndex)
	if errors.Is(err, errNotInMirror) {
		return Index{}, fmt.Errorf("%w: %s has no %s: it is made by copying a cache, with that file", errUnreachable, m, indexName)
	}
	if err != nil {
		return Index{}, err
	}
	if err := compare(data, m.pin, indexName); m.pin != "" && err != nil {
		return Index{}, err
	}
	index, err := ParseIndex(data)
	if err != nil {
		return Index{}, fmt.Errorf("%w: %s: %w", errUnreachable, m, err)
	}
	m.index = &index
	return index, nil
}

func compare(data []byte, want, name string) error {
	sum := sha256.Sum256(data)
	if got := hex.EncodeToString(sum[:]); got != want {
		return fmt.Errorf("%w: %s has sha256 %s, wanted %s", errDigest, name, got, want)
	}
	return nil
}

// fetch copies an entry's files to work/files, each checked against the
// manifest, and the manifest against the index.
func (m *mirror) fetch(ctx context.Context, key, work string, progress func(done, total int64)) (Manifest, error) {
	index, err := m.readIndex(ctx)
	if err != nil {
		return Manifest{}, err
	}
	want, ok := index.Entries[key]
	if !ok {
		return Manifest{}, errNotInMirror
	}
	data, err := m.small(ctx, key+"/"+manifestName, maxManifest)
	if err != nil {
		return Manifest{}, err
	}
	if err := compare(data, want, key+"/"+manifestName); err != nil {
		return Manifest{}, err
	}
	manifest, err := ParseManifest(data)
	if err != nil {
		return Manifest{}, err
	}
	if manifest.key() != key {
		return Manifest{}, fmt.Errorf("%w: manifest at %s is that of %s", errDigest, key, manifest.key())
	}
	var done, total int64
	for _, f := range manifest.Files {
		if f.Link == "" {
			total += f.Size
		}
	}
	dir := filepath.Join(work, filesDir)
	for _, f := range manifest.Files {
		to := filepath.Join(dir, f.Name)
		if f.Link != "" {
			if err := linkOrCopy(filepath.Join(dir, f.Link), to); err != nil {
				return Manifest{}, err
			}
			continue
		}
		if err := m.file(ctx, key+"/"+f.Name, to, f, func(n int64) {
			done += n
			progress(done, total)
		}); err != nil {
			return Manifest{}, err
		}
	}
	return manifest, nil
}

// file copies one file and checks size and hash on the way.
func (m *mirror) file(ctx context.Context, name, to string, f ManifestFile, progress func(n int64)) error {
	r, err := m.open(ctx, name)
	if err != nil {
		return err
	}
	defer r.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.Mode)
	if err != nil {
		return err
	}
	h := sha256.New()
	n, err := copyProgress(ctx, io.MultiWriter(out, h), io.LimitReader(r, f.Size+1), progress)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", errUnreachable, name, err)
	}
	if n < f.Size {
		return fmt.Errorf("%w: %s ended after %d of %d bytes", errUnreachable, name, n, f.Size)
	}
	if got := hex.EncodeToString(h.Sum(nil)); n > f.Size || got != f.SHA256 {
		return fmt.Errorf("%w: %s has sha256 %s, the manifest says %s", errDigest, name, got, f.SHA256)
	}
	return nil
}

// copyProgress is io.Copy that reports each piece and stops when ctx ends, also
// for files of a directory.
func copyProgress(ctx context.Context, w io.Writer, r io.Reader, progress func(n int64)) (int64, error) {
	buf := make([]byte, 1<<20)
	var total int64
	for {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := io.Copy(w, bytes.NewReader(buf[:n])); werr != nil {
				return total, werr
			}
			total += int64(n)
			progress(int64(n))
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// linkOrCopy makes a hard link, or a copy where the file system has none.
func linkOrCopy(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}
