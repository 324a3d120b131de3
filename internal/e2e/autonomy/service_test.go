//go:build linux

package autonomy

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
)

// askInRow is how many connections to a Service's address, and askByName how many by its
// name, are answered in a row, each by one of its pods by chance: one dead address among
// ten is missed by all once in 150 times, ten of them never.
const askInRow, askByName = 48, 8

// findService finds the address of the Deployment's Service.
func (l *lab) findService(t *testing.T) {
	t.Helper()
	l.service = strings.TrimSpace(l.Kubectl(t, cluster, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
	if net.ParseIP(l.service) == nil {
		t.Fatalf("the Service's address is %q", l.service)
	}
}

// answers: the Service, whose pods are all on the node, answers a pod at its address
// and by its name.
func (l *lab) answers(t *testing.T) {
	took := rig.Eventually(t, time.Minute, "the Service answers", func() error {
		pid := slices.Sorted(maps.Keys(l.servers(t)))[0]
		res := l.AsRoot(t, "nsenter", "-t", pid, "-n", "curl", "--silent", "--show-error", "--fail", "--fail-early",
			"--header", "Connection: close", "--connect-timeout", "2", fmt.Sprintf("http://%s/hostname?[1-%d]", l.service, askInRow))
		if n := strings.Count(res.Stdout, "web-"); res.Err != nil || n != askInRow {
			return fmt.Errorf("%s: %d of %d answers: %v %s", l.service, n, askInRow, res.Err, res.Stderr)
		}
		for range askByName {
			// In the container, with its resolv.conf.
			if res := l.AsRoot(t, "nsenter", "-t", pid, "-n", "-m", "/agnhost", "connect", "--timeout=2s", "web.default.svc.cluster.local:80"); res.Err != nil {
				return fmt.Errorf("its name: %w %s", res.Err, res.Stderr)
			}
		}
		return nil
	})
	t.Logf("the Service answers after %.1f s", took.Seconds())
}
