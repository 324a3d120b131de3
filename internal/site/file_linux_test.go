//go:build linux

package site

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func testSite(t *testing.T, uid, pool string) *Site {
	t.Helper()
	s, err := New(Options{ClusterDir: t.TempDir(), ClusterUID: uid, Pool: pool})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRecordOutlivesAndForgetsCutsAtReboot(t *testing.T) {
	s := testSite(t, "0a1b2c3d", "berlin")
	unlock, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	r, err := s.load()
	if err != nil {
		t.Fatal(err)
	}
	r.WAN = wanLink(7)
	r.Cut = true
	r.Nodes["b-1"] = &nodeRecord{Address: netip.MustParseAddr("192.168.1.11"), Attached: true, Cut: true}
	if err := s.save(r); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(s.recordPath())
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("record %v, %v", st.Mode(), err)
	}
	same, err := s.load()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r, same, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
	s.bootID = "another boot"
	after, err := s.load()
	if err != nil {
		t.Fatal(err)
	}
	if after.Cut || after.Nodes["b-1"].Cut {
		t.Error("a cut outlives a reboot")
	}
	if after.WAN != r.WAN || !after.Nodes["b-1"].Attached {
		t.Error("the plan does not outlive a reboot")
	}
	delete(after.Nodes, "b-1")
	if err := s.save(after); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.recordPath()); !os.IsNotExist(err) {
		t.Errorf("the record of a site without nodes stays: %v", err)
	}
}

func TestRemembered(t *testing.T) {
	a := testSite(t, "0a1b2c3d", "a")
	b, err := New(Options{ClusterDir: a.o.ClusterDir, ClusterUID: "0a1b2c3d", Pool: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(a.o.ClusterDir, sitesDir), 0o700); err != nil {
		t.Fatal(err)
	}
	r := &record{WAN: wanLink(1), Nodes: map[string]*nodeRecord{"n": {Address: netip.MustParseAddr("192.168.1.11")}}}
	if err := b.save(r); err != nil {
		t.Fatal(err)
	}
	links, err := a.remembered()
	if err != nil || len(links) != 1 || links[0] != wanLink(1) {
		t.Errorf("site a knows of %v (%v)", links, err)
	}
	links, err = b.remembered()
	if err != nil || len(links) != 0 {
		t.Errorf("site b counts itself: %v (%v)", links, err)
	}
}

func TestRules(t *testing.T) {
	r := &record{Nodes: map[string]*nodeRecord{
		"a": {Address: netip.MustParseAddr("192.168.1.11"), Cut: true},
		"b": {Address: netip.MustParseAddr("192.168.1.12")},
	}}
	want := `table ip edge
delete table ip edge
table ip edge {
	chain forward {
		type filter hook forward priority filter; policy accept;
		oifname "wan0" ip saddr 192.168.1.11 drop
		iifname "wan0" ip daddr 192.168.1.11 drop
		ct state established,related accept
		iifname "wan0" drop
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "wan0" masquerade
	}
}
`
	if d := cmp.Diff(want, rules(r)); d != "" {
		t.Error(d)
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"pool":"berlin","wan":"198.18.0.12/30","nodes":{"b-1":{"address":"192.168.1.11","attached":true}}}`))
	f.Add([]byte(`{"wan":"10.0.0.0/8","nodes":{"x; drop":{"address":"1.2.3.4"}}}`))
	f.Add([]byte(`{"nodes":{"a":null}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data)
		if err != nil {
			return
		}
		for name, n := range r.Nodes {
			if !nameForm.MatchString(name) || !lanRange.Contains(n.Address) {
				t.Fatalf("node %q at %v passes", name, n)
			}
		}
		if r.WAN.IsValid() && !wanRange.Contains(r.WAN.Addr()) {
			t.Fatalf("link %s passes", r.WAN)
		}
		rules(r)
	})
}

// Who waits for another command can be told to stop.
func TestLockEndsWithItsContext(t *testing.T) {
	s := testSite(t, "7e57ed9e", "berlin")
	unlock, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	stopped := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stopped)
	if _, err := s.lock(ctx); !errors.Is(err, stopped) {
		t.Errorf("got %v", err)
	}
}

func TestDirectoriesOfOthersAreRefused(t *testing.T) {
	tests := map[string]struct {
		spoil func(t *testing.T, cluster string) error
		want  string
	}{
		"sites is a link": {func(t *testing.T, cluster string) error {
			return os.Symlink(t.TempDir(), filepath.Join(cluster, sitesDir))
		}, "is not a directory"},
		"everybody may write": {func(_ *testing.T, cluster string) error {
			return errors.Join(os.Mkdir(filepath.Join(cluster, sitesDir), 0o700), os.Chmod(filepath.Join(cluster, sitesDir), 0o777))
		}, "chmod go-w"},
		"another's": {func(t *testing.T, cluster string) error {
			if os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			return errors.Join(os.Mkdir(filepath.Join(cluster, sitesDir), 0o700), os.Chown(filepath.Join(cluster, sitesDir), 4242, 4242))
		}, "user 4242"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := tt.spoil(t, dir); err != nil {
				t.Fatal(err)
			}
			if _, err := newSite(t, dir, "berlin").lock(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestRecordIsNoLink(t *testing.T) {
	dir := t.TempDir()
	s := newSite(t, dir, "berlin")
	unlock, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := os.Symlink("/etc/hostname", s.recordPath()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.load(); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link is read: %v", err)
	}
}

func newSite(t *testing.T, dir, pool string) *Site {
	t.Helper()
	s, err := New(Options{ClusterDir: dir, ClusterUID: "7e57ed9e", Pool: pool})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
