//go:build linux

package edgenode

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgewright/terraform-provider-edge/internal/site"
)

// halves of a node that a crash, or a person, may have left.
func TestDownOfHalves(t *testing.T) {
	tests := map[string]func(t *testing.T, dir string, spec *Spec){
		"only a spec":   func(*testing.T, string, *Spec) {},
		"no spec":       func(t *testing.T, dir string, _ *Spec) { remove(t, filepath.Join(dir, specFile)) },
		"damaged spec":  func(t *testing.T, dir string, _ *Spec) { put(t, filepath.Join(dir, specFile), "{") },
		"no node dir":   func(t *testing.T, dir string, _ *Spec) { removeAll(t, dir) },
		"a lost record": func(t *testing.T, dir string, _ *Spec) { removeAll(t, filepath.Join(clusterDir(dir), "sites")) },
		"nothing but names": func(t *testing.T, dir string, _ *Spec) {
			removeAll(t, clusterDir(dir))
		},
		"a mount in its data": func(t *testing.T, dir string, _ *Spec) {
			m := filepath.Join(dir, dataDir, "var", "a b")
			if err := os.MkdirAll(m, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("tmpfs", m, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			c, _ := realCgroups(t)
			dir, spec := nodeDir(t, "t-half")
			s, err := siteOf(spec, dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := site.Sweep(testUID, spec.Name); err != nil {
					t.Error(err)
				}
			})
			if _, err := s.Attach(t.Context(), spec.Name); err != nil {
				t.Fatal(err)
			}
			if err := c.ensure(nodeCgroup(spec) + "/" + cgroupHost); err != nil {
				t.Fatal(err)
			}
			if left := Leftovers(dir); len(left) < 3 {
				t.Errorf("of a node that stands only this is seen: %v", left)
			}
			damage(t, dir, spec)
			var out bytes.Buffer
			for range 2 { // the second time finds nothing, and does not mind
				err := Down(t.Context(), DownOptions{Dir: dir, Purge: true, Report: NewReporter(&out, time.Now)})
				if err != nil {
					t.Errorf("%v\n%s", err, &out)
				}
			}
			if left := Leftovers(dir); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("the node dir is left: %v", err)
			}
			if !strings.Contains(out.String(), "nothing is left of node t-half") {
				t.Errorf("it says %s", &out)
			}
		})
	}
}

func TestDownRefusesWhatIsNoNode(t *testing.T) {
	for _, dir := range []string{"/", "/etc", "relative", t.TempDir(), filepath.Join(t.TempDir(), "lab-7e57ed9e", "x", "node")} {
		if err := Down(t.Context(), DownOptions{Dir: dir, Purge: true}); err == nil {
			t.Errorf("%s was taken for a node's directory", dir)
		}
	}
}

func TestDownKeepsData(t *testing.T) {
	realCgroups(t)
	dir, _ := nodeDir(t, "t-keep")
	disk := filepath.Join(dir, dataDir, "var", "disk")
	put(t, disk, "x")
	if err := Down(t.Context(), DownOptions{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if get(t, disk) != "x" {
		t.Error("the node's data is gone")
	}
}

func TestUnescapeMount(t *testing.T) {
	for in, want := range map[string]string{`/a\040b`: "/a b", "/plain": "/plain", `/a\`: `/a\`, `/a\0`: `/a\0`, `/\134`: `/\`} {
		if got := unescapeMount(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func removeAll(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}
