//go:build linux

package oneapply

import (
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

// What marks the test's own dials, and the routing table they use: a cloud side
// that tries its best, with routes to each site that a real one does not have.
// Nothing of it leaves this machine: the routes end at the sites' routers.
const (
	dialMark  = "0xed6e"
	dialTable = "60510"
)

// dialsFromCloud returns a function that dials an address behind a pool's router
// from this machine's side of the router's link and fails the test if anything
// answers.
func dialsFromCloud(t *testing.T, r *rig.Rig) func(t *testing.T, pool, addr string) {
	t.Helper()
	must := func(args ...string) {
		t.Helper()
		if res := r.AsRoot(t, "ip", args...); res.Err != nil {
			t.Fatalf("ip %v: %s", args, res.Stderr)
		}
	}
	must("rule", "add", "fwmark", dialMark, "lookup", dialTable)
	t.Cleanup(func() {
		must("rule", "del", "fwmark", dialMark, "lookup", dialTable)
		must("route", "flush", "table", dialTable)
	})
	return func(t *testing.T, pool, addr string) {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(r.StateDir, "clusters", "*", "sites", pool+".json"))
		if err != nil || len(files) != 1 {
			t.Fatalf("site of pool %s: %v, %v", pool, files, err)
		}
		raw, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		var site struct{ WAN netip.Prefix }
		if err := json.Unmarshal(raw, &site); err != nil {
			t.Fatal(err)
		}
		router := site.WAN.Masked().Addr().Next().Next()
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		must("route", "replace", "table", dialTable, host+"/32", "via", router.String())
		d := net.Dialer{Timeout: time.Second, Control: func(_, _ string, c syscall.RawConn) error {
			var sockErr error
			err := c.Control(func(fd uintptr) { sockErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, 0xed6e) })
			if err != nil {
				return err
			}
			return sockErr
		}}
		c, err := d.DialContext(t.Context(), "tcp", addr)
		if err == nil {
			c.Close()
			t.Errorf("%s in pool %s can be dialled from the cloud side", addr, pool)
			return
		}
		t.Logf("a dial of %s from the cloud side: %v", addr, err)
	}
}

func nodeAddress(t *testing.T, r *rig.Rig, node string) string {
	t.Helper()
	for _, n := range get[nodeList](t, r, "nodes").Items {
		for _, a := range n.Status.Addresses {
			if n.Metadata.Name == node && a.Type == "InternalIP" {
				return a.Address
			}
		}
	}
	t.Fatalf("node %s has no address", node)
	return ""
}
