package edgenode

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func specForTest() *Spec {
	s := &Spec{
		ClusterID: "local/lab-0a1b2c3d", ClusterName: "lab", ClusterUID: "0a1b2c3d", Name: "b-1", Pool: "berlin",
		KubernetesVersion: "1.36.3", PauseImage: "pause:1", Programs: map[string]string{}, Local: &LocalPlacement{GatewayPort: 7443},
	}
	for _, p := range Programs() {
		s.Programs[p] = "/bin/" + p
	}
	return s
}

// What `up` finds out and what the engine decides do not undo each other.
func TestSpecAndPlace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "b-1")
	if _, err := LoadSpec(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing spec is %v", err)
	}
	if err := WriteSpec(dir, specForTest()); err != nil {
		t.Fatal(err)
	}
	load := func() (*Spec, string) {
		t.Helper()
		s, digest, err := readSpec(dir)
		if err != nil {
			t.Fatal(err)
		}
		return s, digest
	}
	got, before := load()
	if got.Local.Cloud.IsValid() || len(got.Gateways) != 0 {
		t.Errorf("a node without a place has one: %+v", got.Local)
	}
	p := place{ClusterUID: got.ClusterUID, Pool: got.Pool, Address: netip.MustParseAddr("192.168.1.11"), Cloud: netip.MustParseAddr("198.18.0.13")}
	if err := writeJSON(filepath.Join(dir, placeFile), p); err != nil {
		t.Fatal(err)
	}
	got, placed := load()
	if got.Local.Address != p.Address || got.Local.Cloud != p.Cloud || !slices.Equal(got.Gateways, []string{"198.18.0.13:7443"}) {
		t.Errorf("place: %+v %v", got.Local, got.Gateways)
	}
	moved := specForTest()
	moved.Local.GatewayPort = 7444
	if err := WriteSpec(dir, moved); err != nil {
		t.Fatal(err)
	}
	got, again := load()
	if !slices.Equal(got.Gateways, []string{"198.18.0.13:7444"}) {
		t.Errorf("the gateway does not follow its port: %v", got.Gateways)
	}
	if before == placed || placed == again {
		t.Errorf("digests %s %s %s", before, placed, again)
	}
	moved.Pool = "munich"
	if err := WriteSpec(dir, moved); err != nil {
		t.Fatal(err)
	}
	if got, _ = load(); got.Local.Address.IsValid() {
		t.Errorf("a place outlives its pool: %+v", got.Local)
	}
	st, err := os.Stat(filepath.Join(dir, specFile))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("spec: %v %v", st, err)
	}
}

func FuzzParsePlace(f *testing.F) {
	f.Add([]byte(`{"clusterUID":"0a1b2c3d","pool":"p","address":"192.168.1.11","cloud":"198.18.0.13"}`))
	f.Add([]byte(`{"address":"fe80::1%eth0"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := parsePlace(data); err == nil && (!p.Address.Is4() || p.Cloud.Zone() != "") {
			t.Fatalf("%+v passes", p)
		}
	})
}

func TestSpecRefuses(t *testing.T) {
	tests := map[string]struct {
		change func(*Spec)
		want   string
	}{
		"a uid that is a path":     {func(s *Spec) { s.ClusterUID = "../../.." }, "cluster uid"},
		"a name that is a path":    {func(s *Spec) { s.Name = ".." }, "node name"},
		"a pool with a slash":      {func(s *Spec) { s.Pool = "a/b" }, "pool name"},
		"a relative program":       {func(s *Spec) { s.Programs[ProgramRunc] = "runc" }, "program runc"},
		"a missing program":        {func(s *Spec) { delete(s.Programs, ProgramKubelet) }, "program kubelet"},
		"a relative kubectl":       {func(s *Spec) { s.Programs[ProgramKubectl] = "kubectl" }, "program kubectl"},
		"no placement":             {func(s *Spec) { s.Local = nil }, "placement"},
		"no port":                  {func(s *Spec) { s.Local.GatewayPort = 0 }, "gateway port"},
		"a relative image archive": {func(s *Spec) { s.Images = []string{"images"} }, "image directory"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := specForTest()
			tt.change(s)
			if err := s.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want it to say %q", err, tt.want)
			}
		})
	}
}

func TestEnrolled(t *testing.T) {
	dir := t.TempDir()
	if Enrolled(dir) {
		t.Error("an empty directory has joined")
	}
	if err := os.Mkdir(filepath.Join(dir, pkiDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, pkiDir, joinedFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !Enrolled(dir) {
		t.Error("a node that has joined has not")
	}
}

func FuzzParseSpec(f *testing.F) {
	f.Add([]byte(`{"clusterID":"local/a-0a1b2c3d","clusterUID":"0a1b2c3d","name":"n","pool":"p","pauseImage":"x","local":{"gatewayPort":1}}`))
	f.Add([]byte(`{"local":null,"programs":{"kubelet":""}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSpec(data)
		if err == nil && (!nameForm.MatchString(s.Name) || !uidForm.MatchString(s.ClusterUID)) {
			t.Fatalf("%+v passes", s)
		}
	})
}
