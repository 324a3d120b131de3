package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// spec returns an image whose program is a file with some content.
func spec(t *testing.T, name, content string) Spec {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return Spec{
		Name: name, OS: "linux", Architecture: "arm64", Entrypoint: []string{"/bin/program"}, Env: []string{"A=b"}, User: "1:1", Ports: []string{"80/tcp", "53/udp"},
		Files: []File{
			{Path: "bin/program", Mode: 0o755, From: program},
			{Path: "bin/alias", Link: "program"},
			{Path: "tmp", Dir: true, Mode: 0o1777},
			{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0::/:\n")},
		},
	}
}

func write(t *testing.T, dir, file string, s Spec) string {
	t.Helper()
	path := filepath.Join(dir, file)
	if err := WriteArchive(path, s); err != nil {
		t.Fatal(err)
	}
	return path
}

// entries returns what an archive, or a layer, holds.
func entries(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = data
	}
}

func TestArchiveIsTheSameEachTime(t *testing.T) {
	a := write(t, t.TempDir(), "a.tar", spec(t, "example.test/web:1", "code"))
	s := spec(t, "example.test/web:1", "code")
	if err := os.Chtimes(s.Files[0].From, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	// Order of files does not matter either.
	s.Files[0], s.Files[3] = s.Files[3], s.Files[0]
	dir := t.TempDir()
	b := write(t, dir, "b.tar", s)
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Error("two archives of the same files differ")
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 1 {
		t.Errorf("left in the directory: %v", left)
	}
}

func TestArchiveContent(t *testing.T) {
	path := write(t, t.TempDir(), "a.tar", spec(t, "example.test/web:1.2", "code"))
	infos, err := Check(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(infos) != 1 || infos[0].Name != "example.test/web:1.2" || infos[0].Platform != "linux/arm64" || !strings.HasPrefix(infos[0].Digest, "sha256:") {
		t.Errorf("archive holds %+v", infos)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := entries(t, f)
	for _, want := range []string{`"io.containerd.image.name":"example.test/web:1.2"`, `"org.opencontainers.image.ref.name":"1.2"`} {
		if !bytes.Contains(all["index.json"], []byte(want)) {
			t.Errorf("index.json lacks %s: %s", want, all["index.json"])
		}
	}
	var config, layer []byte
	for name, data := range all {
		switch {
		case bytes.Contains(data, []byte(`"Entrypoint"`)):
			config = data
		case strings.HasPrefix(name, "blobs/") && len(data) > 0 && data[0] != '{':
			layer = data
		}
	}
	for _, want := range []string{`"architecture":"arm64"`, `"User":"1:1"`, `"Entrypoint":["/bin/program"]`, `"53/udp":{}`, `"created":"1970-01-01T00:00:00Z"`} {
		if !bytes.Contains(config, []byte(want)) {
			t.Errorf("configuration lacks %s: %s", want, config)
		}
	}
	tr := tar.NewReader(bytes.NewReader(layer))
	var got []string
	for {
		h, err := tr.Next()
		if err != nil {
			break
		}
		got = append(got, h.FileInfo().Mode().String()+" "+h.Name+" "+h.Linkname)
	}
	want := []string{
		"drwxr-xr-x bin/ ", "Lrwxrwxrwx bin/alias program", "-rwxr-xr-x bin/program ",
		"drwxr-xr-x etc/ ", "-rw-r--r-- etc/passwd ", "dtrwxrwxrwx tmp/ ",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
}

func TestWriteArchiveRefuses(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"no tag":       func(s *Spec) { s.Name = "example.test/web" },
		"no host":      func(s *Spec) { s.Name = "web:1" },
		"no platform":  func(s *Spec) { s.Architecture = "" },
		"no program":   func(s *Spec) { s.Entrypoint = nil },
		"escape":       func(s *Spec) { s.Files[1].Path = "../x" },
		"twice":        func(s *Spec) { s.Files[1].Path = "bin/program" },
		"below a file": func(s *Spec) { s.Files[1].Path = "bin/program/x" },
		"no such file": func(s *Spec) { s.Files[0].From = "/nonexistent" },
	} {
		dir := t.TempDir()
		s := spec(t, "example.test/web:1", "code")
		change(&s)
		if err := WriteArchive(filepath.Join(dir, "a.tar"), s); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
}

func TestCheckFindsDamage(t *testing.T) {
	path := write(t, t.TempDir(), "a.tar", spec(t, "example.test/web:1", strings.Repeat("code", 1000)))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// One bit inside the layer.
	at := bytes.Index(good, []byte("codecode"))
	bad := bytes.Clone(good)
	bad[at] ^= 1
	if _, err := check(bytes.NewReader(bad)); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("changed layer: %v", err)
	}
	for _, n := range []int{0, 100, 1024, len(good) / 2, len(good) - 3000} {
		if _, err := check(bytes.NewReader(good[:n])); err == nil {
			t.Errorf("first %d of %d bytes accepted", n, len(good))
		}
	}
	if _, err := check(strings.NewReader("this is no archive")); err == nil {
		t.Error("text accepted")
	}
}

// fakeRuntime remembers what was imported.
type fakeRuntime struct {
	images   map[string]string
	imported []string
	failures int // how many imports fail first
}

func (f *fakeRuntime) Images(context.Context) (map[string]string, error) { return f.images, nil }

func (f *fakeRuntime) Import(_ context.Context, archive string) error {
	if f.failures > 0 {
		f.failures--
		return errors.New("containerd is starting")
	}
	f.imported = append(f.imported, filepath.Base(archive))
	infos, err := Check(archive)
	for _, i := range infos {
		f.images[i.Name] = i.Digest
	}
	return err
}

func TestSyncImportsWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.tar", spec(t, "example.test/a:1", "a"))
	write(t, dir, "b.tar", spec(t, "example.test/b:1", "b"))
	for _, other := range []string{"notes.txt", ".load-1.tar"} {
		if err := os.WriteFile(filepath.Join(dir, other), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	infos, err := Check(filepath.Join(dir, "a.tar"))
	if err != nil {
		t.Fatal(err)
	}
	rt := &fakeRuntime{images: map[string]string{"example.test/a:1": infos[0].Digest, "example.test/b:1": "sha256:old"}}
	d := &Dir{Paths: []string{dir, filepath.Join(dir, "absent")}, Runtime: rt}
	got, err := d.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Name != "example.test/b:1" {
		t.Errorf("imported %+v", got)
	}
	if diff := cmp.Diff([]string{"b.tar"}, rt.imported); diff != "" {
		t.Errorf("imported (-want +got):\n%s", diff)
	}
	// A bad archive does not keep others out.
	if err := os.WriteFile(filepath.Join(dir, "0bad.tar"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "c.tar", spec(t, "example.test/c:1", "c"))
	if _, err := d.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "0bad.tar") {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff([]string{"b.tar", "c.tar"}, rt.imported); diff != "" {
		t.Errorf("imported (-want +got):\n%s", diff)
	}
}

func TestRunTakesNewArchives(t *testing.T) {
	dir := t.TempDir()
	a := spec(t, "example.test/a:1", "a")
	b := spec(t, "example.test/b:1", "b")
	synctest.Test(t, func(t *testing.T) {
		rt := &fakeRuntime{images: map[string]string{}, failures: 1}
		write(t, dir, "a.tar", a)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- (&Dir{Paths: []string{dir}, Runtime: rt}).Run(ctx, time.Second) }()
		synctest.Wait()
		time.Sleep(time.Second) // the bubble's clock
		synctest.Wait()
		write(t, dir, "b.tar", b)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"a.tar", "b.tar"}, rt.imported); diff != "" {
			t.Errorf("imported (-want +got):\n%s", diff)
		}
	})
}

func TestLoad(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "images")
	path := write(t, from, "web.tar", spec(t, "example.test/web:1", "code"))
	infos, err := Load(path, to)
	if err != nil {
		t.Fatal(err)
	}
	if len(infos) != 1 || infos[0].Name != "example.test/web:1" {
		t.Errorf("loaded %+v", infos)
	}
	bad := filepath.Join(from, "bad.tar")
	if err := os.WriteFile(bad, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(bad, to); err == nil || !strings.Contains(err.Error(), bad) || strings.Contains(err.Error(), ".load-") {
		t.Errorf("bad archive: %v", err)
	}
	if _, err := Load(filepath.Join(from, "absent.tar"), to); err == nil {
		t.Error("absent archive: no error")
	}
	left, err := os.ReadDir(to)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 1 || left[0].Name() != "web.tar" {
		t.Errorf("directory has %v", left)
	}
}

func TestParseList(t *testing.T) {
	got := ParseList("REF TYPE DIGEST SIZE PLATFORMS LABELS\nexample.test/a:1 application/vnd.oci.image.manifest.v1+json sha256:12 1.4 MiB linux/amd64 -\n\nbroken\n")
	if diff := cmp.Diff(map[string]string{"example.test/a:1": "sha256:12"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":1,"annotations":{"io.containerd.image.name":"example.test/web:1"}}]}`))
	f.Add([]byte(`{"manifests":[{"annotations":{"io.containerd.image.name":"../x:1"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		infos, err := ParseIndex(data)
		if err != nil {
			return
		}
		for _, i := range infos {
			if CheckReference(i.Name) != nil {
				t.Errorf("accepted %q", i.Name)
			}
		}
	})
}

func FuzzCheck(f *testing.F) {
	dir := f.TempDir()
	program := filepath.Join(dir, "p")
	if err := os.WriteFile(program, []byte("p"), 0o755); err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(dir, "a.tar")
	if err := WriteArchive(path, Spec{Name: "example.test/a:1", OS: "linux", Architecture: "amd64", Command: []string{"/p"}, Files: []File{{Path: "p", From: program}}}); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		infos, err := check(bytes.NewReader(data))
		if err == nil && len(infos) == 0 {
			t.Error("accepted an archive without images")
		}
	})
}

func FuzzParseList(f *testing.F) {
	f.Add("REF TYPE DIGEST\na b sha256:1\n")
	f.Fuzz(func(t *testing.T, text string) {
		for name, digest := range ParseList(text) {
			if name == "" || !strings.HasPrefix(digest, "sha256:") {
				t.Errorf("%q is %q", name, digest)
			}
		}
	})
}
