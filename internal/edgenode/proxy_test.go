package edgenode

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestProxyEnvIsKept(t *testing.T) {
	dir := t.TempDir()
	env := map[string]string{
		"HTTPS_PROXY": "http://user:secret@proxy:3128", "no_proxy": "10.0.0.0/8,.corp", "ALL_PROXY": "",
		"HTTP_PROXY": "http://other", "AWS_SECRET_ACCESS_KEY": "x", "TF_VAR_password": "x",
	}
	want := ProxyEnv{"HTTPS_PROXY": env["HTTPS_PROXY"], "no_proxy": env["no_proxy"]}
	got := ProxyEnvOf(func(name string) string { return env[name] })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	for _, e := range []ProxyEnv{want, {"ALL_PROXY": "http://next"}, {}, {}} {
		if err := keepProxyEnv(dir, e); err != nil {
			t.Fatal(err)
		}
		got, err := loadProxyEnv(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(e) > 0 || len(got) > 0 {
			if diff := cmp.Diff(e, got); diff != "" {
				t.Error(diff)
			}
		}
		info, err := os.Stat(filepath.Join(dir, proxyFile))
		if len(e) == 0 {
			if !os.IsNotExist(err) {
				t.Errorf("no variables, and there is a file (%v)", err)
			}
		} else if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v (%v)", info, err)
		}
	}
}

func TestParseProxyEnv(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		ok       bool
	}{
		{"some", `{"HTTPS_PROXY":"http://p","NO_PROXY":"*"}`, true},
		{"none", `{}`, true},
		{"nothing", ``, false},
		{"null", `null`, false},
		{"cut short", `{"HTTPS_PROXY":"http://u:secret@p`, false},
		{"no string", `{"HTTPS_PROXY":["secret"]}`, false},
		{"another variable", `{"LD_PRELOAD":"secret"}`, false},
	} {
		e, err := ParseProxyEnv([]byte(tc.in))
		if (err == nil) != tc.ok || err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", tc.name, err)
		}
		if back, err := json.Marshal(e); tc.ok && (err != nil || string(back) != tc.in) {
			t.Errorf("%s: %s (%v)", tc.name, back, err)
		}
	}
}
