//go:build linux

package controlplane

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestWriteConf(t *testing.T) {
	l := Layout{t.TempDir()}
	if err := writeConf(l); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(l.Conf("encryption.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"egress.yaml", "audit-policy.yaml", "encryption.yaml"} {
		info, err := os.Stat(l.Conf(name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
		raw, err := os.ReadFile(l.Conf(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.UnmarshalStrict(raw, &map[string]any{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if info, err := os.Stat(l.Join("conf")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("conf: %v, %v", info.Mode(), err)
	}
	if err := writeConf(l); err != nil {
		t.Fatal(err)
	}
	again, err := os.ReadFile(l.Conf("encryption.yaml"))
	if err != nil || string(again) != string(key) {
		t.Error("the encryption key was changed: every Secret is lost")
	}
	other := Layout{t.TempDir()}
	if err := writeConf(other); err != nil {
		t.Fatal(err)
	}
	if theirs, err := os.ReadFile(other.Conf("encryption.yaml")); err != nil || string(theirs) == string(key) {
		t.Error("two clusters have one encryption key")
	}
	left, err := filepath.Glob(l.Conf(".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
}

func TestChildren(t *testing.T) {
	s, l := testSpec(), Layout{"/state/clusters/c-1f2e3d4c"}
	t.Setenv("TF_VAR_password", "do-not-leak")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "do-not-leak")
	specs, err := children(s, l, &credentials{})
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range specs {
		if c.Name != startOrder[i] {
			t.Errorf("child %d is %s, want %s", i, c.Name, startOrder[i])
		}
		if c.Path != s.Programs[c.Name] || c.Dir != l.Dir || c.Ready == nil || c.StopTimeout == 0 {
			t.Errorf("%+v", c)
		}
		if env := strings.Join(c.Env, " "); strings.Contains(env, "do-not-leak") {
			t.Errorf("%s gets %s", c.Name, env)
		}
	}
	delete(s.Programs, etcd)
	if _, err := children(s, l, &credentials{}); err == nil || !strings.Contains(err.Error(), etcd) {
		t.Errorf("a missing program: %v", err)
	}
}

func TestServiceIP(t *testing.T) {
	s := testSpec()
	ip, err := s.ServiceIP()
	if err != nil || ip != netip.MustParseAddr("10.65.0.1") {
		t.Errorf("%s, %v", ip, err)
	}
	for _, bad := range [][]string{nil, {"x"}} {
		s.ServiceCIDRs = bad
		if _, err := s.ServiceIP(); err == nil {
			t.Errorf("%v accepted", bad)
		}
	}
}

func TestDigestFollowsTheSpec(t *testing.T) {
	a, err := testSpec().digest()
	if err != nil {
		t.Fatal(err)
	}
	same, err := testSpec().digest()
	if err != nil || a != same {
		t.Errorf("%s, then %s, %v", a, same, err)
	}
	changed := testSpec()
	changed.Ports.API++
	if b, err := changed.digest(); err != nil || b == a {
		t.Errorf("a changed spec has the same digest (%v)", err)
	}
}
