package members

import (
	"crypto/x509"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

func edgeNode(name, key string) *v1alpha1.EdgeNode {
	return &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.EdgeNodeStatus{Key: key}}
}

func TestMembersAdmitTheEnrolledKeyAlone(t *testing.T) {
	key, err := pki.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	fingerprint, err := pki.Fingerprint(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{PublicKey: &key.PublicKey}
	m := New()
	m.setEdgeNode(edgeNode("n", fingerprint), false)
	m.setEdgeNode(edgeNode("new", ""), false)
	refuses := func(what, node string, cert *x509.Certificate, says string) {
		t.Helper()
		if err := m.Authorize(node, cert); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refuses("before it knows its nodes", "n", leaf, "not read its nodes")
	close(m.synced)
	if err := m.Authorize("n", leaf); err != nil {
		t.Error(err)
	}
	refuses("another key", "n", &x509.Certificate{PublicKey: &other.PublicKey}, "not the one")
	refuses("a node that is not declared", "x", leaf, "not declared")
	refuses("a node that has not enrolled", "new", leaf, "not enrolled")
	leaving := edgeNode("n", fingerprint)
	leaving.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	m.setEdgeNode(leaving, false)
	if err := m.Authorize("n", leaf); err != nil {
		t.Errorf("a node that is being drained is cut off: %v", err)
	}
	m.setEdgeNode(leaving, true)
	refuses("a node that is gone", "n", leaf, "not declared")
	if m.HasNode("n") || !m.HasNode("new") {
		t.Error("HasNode")
	}
}

func TestPodOwner(t *testing.T) {
	node := func(name string, cidrs ...string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
	}
	m := New()
	m.setNode(node("a", "10.64.0.0/24", "not a range"), false)
	m.setNode(node("b", "10.64.1.0/24"), false)
	for addr, want := range map[string]string{"10.64.0.9": "a", "10.64.1.255": "b"} {
		if got, err := m.PodOwner(netip.MustParseAddr(addr)); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", addr, got, err, want)
		}
	}
	if _, err := m.PodOwner(netip.MustParseAddr("192.168.1.11")); !errors.Is(err, gateway.ErrNoRoute) {
		t.Errorf("a node's own address: %v", err)
	}
	// Two sites, one LAN address: it leads nowhere, neither does one that is known
	// once.
	for i, name := range []string{"x", "y"} {
		n := node(name)
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: "192.168.1.10"}}
		m.setNode(n, false)
		m.setNode(n, false)
		_, err := m.PodOwner(netip.MustParseAddr("192.168.1.10"))
		if err == nil || errors.Is(err, gateway.ErrNoRoute) || errors.Is(err, gateway.ErrAmbiguous) != (i == 1) || !strings.Contains(err.Error(), "use the node's name") {
			t.Errorf("address of %d nodes: %v", i+1, err)
		}
	}
	m.setNode(node("x"), true)
	m.setNode(node("y"), false)
	if _, err := m.PodOwner(netip.MustParseAddr("192.168.1.10")); !errors.Is(err, gateway.ErrNoRoute) {
		t.Errorf("an address that no node has any more: %v", err)
	}
	m.setNode(node("c", "10.64.0.0/16"), false)
	if _, err := m.PodOwner(netip.MustParseAddr("10.64.0.9")); !errors.Is(err, gateway.ErrAmbiguous) {
		t.Errorf("two owners: %v", err)
	}
	m.setNode(node("c"), true)
	m.setNode(node("a", "10.64.7.0/24"), false)
	if _, err := m.PodOwner(netip.MustParseAddr("10.64.0.9")); !errors.Is(err, gateway.ErrNoRoute) {
		t.Errorf("a range that moved: %v", err)
	}
}
