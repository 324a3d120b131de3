package edgenode

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
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

func TestSpecKeepsWhatUpFilledIn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "b-1")
	if _, err := LoadSpec(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing spec is %v", err)
	}
	filled := specForTest()
	filled.Gateways = []string{"198.18.0.13:7443"}
	filled.Local.Address, filled.Local.Cloud = netip.MustParseAddr("192.168.1.11"), netip.MustParseAddr("198.18.0.13")
	if err := WriteSpec(dir, filled); err != nil {
		t.Fatal(err)
	}
	if err := WriteSpec(dir, specForTest()); err != nil {
		t.Fatal(err)
	}
	got, err := LoadSpec(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Gateways) != 1 || got.Local.Address != filled.Local.Address || got.Local.Cloud != filled.Local.Cloud {
		t.Errorf("lost: %+v %+v", got, got.Local)
	}
	moved := specForTest()
	moved.Local.GatewayPort = 7444
	if err := WriteSpec(dir, moved); err != nil {
		t.Fatal(err)
	}
	if got, err = LoadSpec(dir); err != nil || len(got.Gateways) != 0 {
		t.Errorf("an old gateway outlives its port: %v (%v)", got.Gateways, err)
	}
	st, err := os.Stat(filepath.Join(dir, specFile))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("spec: %v %v", st, err)
	}
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
