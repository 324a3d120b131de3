//go:build linux

package site

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
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
	unlock, err := s.lock()
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
