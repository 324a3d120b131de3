//go:build linux

package controllers_test

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/signed"
)

// A node's policy follows its pod range, is for that node alone, and what
// somebody else wrote there does not stay.
func TestPolicies(t *testing.T) {
	w := real(t)
	_, _, _ = w.joined(t, "policies", "policies-1")
	var node corev1.Node
	w.get(t, &node, "policies-1")
	node.Spec.PodCIDR, node.Spec.PodCIDRs = "10.244.77.0/24", []string{"10.244.77.0/24"}
	if err := w.admin.Update(t.Context(), &node); err != nil {
		t.Fatal(err)
	}
	policy := func() (*signed.Policy, error) {
		var edge v1alpha1.EdgeNode
		if err := w.admin.Get(t.Context(), objectKey("policies-1"), &edge); err != nil {
			return nil, err
		}
		return signed.VerifyPolicy(w.server.CA.Certificate, "policies-1", []byte(edge.Annotations[v1alpha1.PolicyAnnotation]))
	}
	var first *signed.Policy
	eventually(t, "policy", func() (err error) {
		first, err = policy()
		return err
	})
	for addr, want := range map[string]bool{"10.244.77.9:80": true, "10.244.78.9:80": false, "127.0.0.1:10250": false} {
		if got := first.Allows(signed.TCP, netip.MustParseAddrPort(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	var edge v1alpha1.EdgeNode
	w.get(t, &edge, "policies-1")
	edge.Annotations[v1alpha1.PolicyAnnotation] = `{"kind":"edge-node-policy/1","payload":"e30=","signature":"AAAA"}`
	if err := w.admin.Update(t.Context(), &edge); err != nil {
		t.Fatal(err)
	}
	eventually(t, "policy again", func() error {
		again, err := policy()
		if err == nil && again.Version <= first.Version {
			err = fmt.Errorf("version %d after %d", again.Version, first.Version)
		}
		return err
	})
}
