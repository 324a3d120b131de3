//go:build linux

package oneapply

import (
	"strings"
	"testing"
)

// agnhost is upstream's test image, imported from the component cache.
const agnhost = "registry.k8s.io/e2e-test-images/agnhost:2.63.0"

func contains(t *testing.T, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("%q is not in:\n%s", want, got)
	}
}
