//go:build linux

package edgenode

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
)

// What is kept is what the agent reads, and the daemon hears of a change at once.
func TestDaemonFollowsProxyEnv(t *testing.T) {
	dir := t.TempDir()
	var log strings.Builder
	n := &node{dir: dir, log: slog.New(slog.NewTextHandler(&log, nil))}
	for _, tc := range []struct {
		name string
		env  ProxyEnv
		want string // "": none
	}{
		{"none yet", ProxyEnv{}, ""},
		{"HTTPS_PROXY", ProxyEnv{"HTTPS_PROXY": "http://u:secret@a:1"}, "http://u:secret@a:1"},
		{"https_proxy", ProxyEnv{"https_proxy": "http://b:1"}, "http://b:1"},
		{"ALL_PROXY", ProxyEnv{"ALL_PROXY": "http://c:1"}, "http://c:1"},
		{"all_proxy", ProxyEnv{"all_proxy": "http://d:1"}, "http://d:1"},
		{"NO_PROXY", ProxyEnv{"HTTPS_PROXY": "http://a:1", "NO_PROXY": "198.18.0.0/15"}, ""},
		{"no_proxy", ProxyEnv{"HTTPS_PROXY": "http://a:1", "no_proxy": "198.18.0.0/15"}, ""},
		{"for others", ProxyEnv{"HTTPS_PROXY": "http://a:1", "NO_PROXY": "10.0.0.0/8"}, "http://a:1"},
		{"none any more", ProxyEnv{}, ""},
	} {
		if err := keepProxyEnv(dir, tc.env); err != nil {
			t.Fatal(err)
		}
		u, err := n.proxy("198.18.0.13:7443")
		got := ""
		if u != nil {
			got = u.String()
		}
		if err != nil || got != tc.want {
			t.Errorf("%s: %q (%v), want %q", tc.name, got, err, tc.want)
		}
	}
	var asked []string
	agent.ProxyFromEnvironment(func(name string) string { asked = append(asked, name); return "" })
	for _, name := range asked {
		if got := ProxyEnvOf(func(string) string { return "x" })[name]; got == "" {
			t.Errorf("%s is not kept", name)
		}
	}
	if log.Len() > 0 {
		t.Error(log.String())
	}
	// A file that was damaged cuts no node off from QUIC.
	for _, text := range []string{`{"HTTPS_PROXY":"http://u:secret@a`, `{"HTTPS_PROXY":"http://u:secret@[::"}`} {
		log.Reset()
		if err := os.WriteFile(filepath.Join(dir, proxyFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if u, err := n.proxy("198.18.0.13:7443"); u != nil || err != nil {
			t.Errorf("%v, %v", u, err)
		}
		if log.Len() == 0 || strings.Contains(log.String(), "secret") {
			t.Errorf("log: %q", log.String())
		}
	}
}

// A run replaces what is kept, or has no say in it. A proxy that is none is
// refused before anything is changed.
func TestUpTakesProxyEnv(t *testing.T) {
	dir := t.TempDir()
	take := func(e ProxyEnv) ProxyEnv {
		t.Helper()
		u := &up{o: UpOptions{Dir: dir, Proxy: e}}
		if err := u.takeProxy(); err != nil {
			t.Fatal(err)
		}
		kept, err := loadProxyEnv(dir)
		if err != nil {
			t.Fatal(err)
		}
		return kept
	}
	if got := take(ProxyEnv{"HTTPS_PROXY": "http://a"}); got["HTTPS_PROXY"] != "http://a" {
		t.Errorf("kept: %v", got)
	}
	if got := take(nil); got["HTTPS_PROXY"] != "http://a" {
		t.Errorf("after a reboot: %v", got)
	}
	if got := take(ProxyEnv{"ALL_PROXY": "http://b"}); len(got) != 1 || got["ALL_PROXY"] != "http://b" {
		t.Errorf("changed: %v", got)
	}
	if got := take(ProxyEnv{}); len(got) != 0 {
		t.Errorf("removed: %v", got)
	}

	err := Up(t.Context(), UpOptions{
		Dir: tree(t), Edge: "/bin/true", Proxy: ProxyEnv{"HTTPS_PROXY": "http://u:secret@[::"},
		Preflight: func(context.Context, string) error { return errors.New("went on") },
	})
	var next *NextError
	if !errors.As(err, &next) || strings.Contains(err.Error()+next.Next, "secret") || !strings.Contains(next.Next, "HTTPS_PROXY") {
		t.Errorf("%v", err)
	}
}
