package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/edgewright/terraform-provider-edge/internal/image"
)

func TestImageLoad(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "images")
	archive := filepath.Join(from, "web.tar")
	err := image.WriteArchive(archive, image.Spec{
		Name: "example.test/web:1", OS: "linux", Architecture: "amd64", Command: []string{"/web"},
		Files: []image.File{{Path: "web", Mode: 0o755, Data: []byte("x")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	load := func(output string, args ...string) error {
		out.Reset()
		c := newImageCommand(imageDeps{Out: &out, Output: func() string { return output }, Directory: func() (string, error) { return to, nil }})
		c.SilenceErrors, c.SilenceUsage = true, true
		c.SetArgs(append([]string{"load"}, args...))
		return c.ExecuteContext(t.Context())
	}
	if err := load("table", archive); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "example.test/web:1") || !strings.Contains(out.String(), "linux/amd64") {
		t.Errorf("printed:\n%s", out.String())
	}
	if _, err := os.Stat(filepath.Join(to, "web.tar")); err != nil {
		t.Error(err)
	}
	if err := load("json", archive); err != nil || !strings.Contains(out.String(), `"name": "example.test/web:1"`) {
		t.Errorf("%v:\n%s", err, out.String())
	}
	if err := load("table", filepath.Join(from, "absent.tar")); err == nil {
		t.Error("absent archive: no error")
	}
}
