package component

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"

	"github.com/google/go-cmp/cmp"
)

var linux = Platform{"linux", "amd64"}

func TestCatalogue(t *testing.T) {
	if diff := cmp.Diff([]string{"1.36.3", "1.37.1"}, Versions()); diff != "" {
		t.Errorf("versions (-want +got):\n%s", diff)
	}
	r, err := Lookup("1.36.3")
	if err != nil {
		t.Fatal(err)
	}
	if !r.Tested {
		t.Error("the default release is not marked as tested")
	}
	s := &Store{opts: Options{Platform: linux}}
	for set, want := range map[Set]string{
		ControlPlane: "kube-apiserver kube-controller-manager kube-scheduler etcd etcdutl",
		Node:         "kubelet kube-proxy coredns containerd containerd-shim-runc-v2 ctr runc bridge loopback host-local portmap",
		Client:       "kubectl",
		Images:       "agnhost.tar pause.tar",
	} {
		jobs, err := s.jobs(r, set)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, j := range jobs {
			got = append(got, j.programs...)
			for _, p := range j.programs {
				if !slices.Contains(j.recipe.outputs(linux), p) {
					t.Errorf("%s says it has %s and its recipe does not make it", j.Name, p)
				}
			}
		}
		if diff := cmp.Diff(want, strings.Join(got, " ")); diff != "" {
			t.Errorf("set %s (-want +got):\n%s", set, diff)
		}
	}
	if got := r.Image("agnhost"); got != AgnhostRepository+":2.63.0" {
		t.Errorf("agnhost is %s", got)
	}
	if _, err := Lookup("1.2.3"); !errors.Is(err, ErrUnknownVersion) || !strings.Contains(err.Error(), "1.36.3, 1.37.1") {
		t.Errorf("unknown version: %v", err)
	}
}

func TestOtherPlatforms(t *testing.T) {
	r, err := Lookup("1.36.3")
	if err != nil {
		t.Fatal(err)
	}
	s := &Store{opts: Options{Platform: Platform{"darwin", "arm64"}}}
	jobs, err := s.jobs(r, Client|Images)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, j := range jobs {
		got = append(got, j.Name+" "+j.platform.String())
	}
	if diff := cmp.Diff([]string{"kubectl darwin-arm64", "image-agnhost linux-arm64", "image-pause linux-arm64"}, got); diff != "" {
		t.Errorf("on darwin (-want +got):\n%s", diff)
	}
	if _, err := s.jobs(r, Node); err == nil || !strings.Contains(err.Error(), "kubelet of Kubernetes 1.36.3 does not exist for darwin-arm64") {
		t.Errorf("nodes on darwin: %v", err)
	}
}

// TestRecipes checks that each build module is complete by itself: it requires
// what its targets are of, and its go.sum knows every module of the go.mod.
func TestRecipes(t *testing.T) {
	for _, r := range releases() {
		for _, c := range r.Components {
			t.Run(r.Version+" "+c.Name, func(t *testing.T) {
				files, err := c.recipe.moduleFiles()
				if err != nil {
					t.Fatal(err)
				}
				mod, err := modfile.Parse("go.mod", files["go.mod"], nil)
				if err != nil {
					t.Fatal(err)
				}
				replaced := map[string]string{}
				for _, x := range mod.Replace {
					replaced[x.Old.Path] = x.New.Path + " " + x.New.Version
				}
				for _, req := range mod.Require {
					want := req.Mod.Path + " " + req.Mod.Version
					if to, ok := replaced[req.Mod.Path]; ok {
						want = to
					}
					if !strings.Contains(string(files["go.sum"]), want) {
						t.Errorf("go.sum lacks %s", want)
					}
				}
				if path, v, ok := strings.Cut(c.recipe.Probe, "@"); ok {
					if !slices.ContainsFunc(mod.Require, func(r *modfile.Require) bool { return r.Mod.Path == path && r.Mod.Version == v }) {
						t.Errorf("go.mod does not require %s", c.recipe.Probe)
					}
				}
				p, _ := c.platform(linux)
				a, err := c.recipe.hash(p)
				if err != nil {
					t.Fatal(err)
				}
				again, err := c.recipe.hash(p)
				if err != nil {
					t.Fatal(err)
				}
				arm, err := c.recipe.hash(Platform{"linux", "arm64"})
				if err != nil {
					t.Fatal(err)
				}
				if a != again || a == arm {
					t.Errorf("hashes: %s, again %s, for arm64 %s", a, again, arm)
				}
			})
		}
	}
}

func TestMultiCallNamesAreThoseOfTheCatalogue(t *testing.T) {
	for file, names := range map[string][]string{
		"recipes/kubernetes.go.txt": kubernetesPrograms, "programs/userland/main.go": userlandPrograms,
	} {
		data, err := fs.ReadFile(embedded, file)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if !strings.Contains(string(data), `"`+n+`":`) {
				t.Errorf("%s does not dispatch on %s", file, n)
			}
		}
	}
}

// TestPauseVersion fails when the program changes under the same image name:
// nodes that have the old one would keep it.
func TestPauseVersion(t *testing.T) {
	data, err := fs.ReadFile(embedded, "programs/pause/main.go")
	if err != nil {
		t.Fatal(err)
	}
	raw := sha256.Sum256(data)
	sum := hex.EncodeToString(raw[:])
	if want := "3002d2bfff05c58dce17579b2fc093f4d967cd11405824957ccc535154bfc93e"; sum != want {
		t.Errorf("programs/pause is %s, was %s at version %s: raise pauseVersion and write the new sum here", sum, want, pauseVersion)
	}
}

func TestParseSet(t *testing.T) {
	for text, want := range map[string]Set{
		"node": Node, "nodes,client": Node | Client, "all": All, "control-plane, images": ControlPlane | Images,
	} {
		if got, err := ParseSet(text); err != nil || got != want {
			t.Errorf("ParseSet(%q) = %s, %v", text, got, err)
		}
	}
	if _, err := ParseSet("node,cloud"); err == nil || !strings.Contains(err.Error(), `"cloud"`) {
		t.Errorf("error %v", err)
	}
	if got := All.String(); got != "control-plane,node,client,images" {
		t.Errorf("All is %s", got)
	}
}
