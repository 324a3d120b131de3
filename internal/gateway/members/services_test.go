package members

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
)

func slice(name string, ready *bool, port int32, addrs ...string) *discoveryv1.EndpointSlice {
	http := "http"
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: addrs, Conditions: discoveryv1.EndpointConditions{Ready: ready}}},
		Ports:      []discoveryv1.EndpointPort{{Name: &http, Port: &port}},
	}
}

func TestService(t *testing.T) {
	m := New()
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{
		ClusterIPs: []string{"10.96.0.7"},
		Ports:      []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}},
	}}
	yes, no := true, false
	at := netip.MustParseAddrPort
	if _, err := m.Service(at("10.96.0.7:80")); !errors.Is(err, gateway.ErrNoRoute) {
		t.Errorf("before it is known: %v", err)
	}
	m.setService(svc, false)
	if _, err := m.Service(at("10.96.0.7:80")); !errors.Is(err, ErrNoEndpoint) {
		t.Errorf("without endpoints: %v", err)
	}
	m.setSlice(slice("a", &no, 8080, "10.244.0.4"), false)
	if _, err := m.Service(at("10.96.0.7:80")); !errors.Is(err, ErrNoEndpoint) {
		t.Errorf("not ready: %v", err)
	}
	m.setSlice(slice("a", nil, 8080, "10.244.0.4", "not an address"), false)
	m.setSlice(slice("b", &yes, 9090, "10.244.0.5"), false)
	seen := map[netip.AddrPort]int{}
	for range 200 {
		got, err := m.Service(at("[::ffff:10.96.0.7]:80"))
		if err != nil {
			t.Fatal(err)
		}
		seen[got]++
	}
	if len(seen) != 2 || seen[at("10.244.0.4:8080")] < 50 || seen[at("10.244.0.5:9090")] < 50 {
		t.Errorf("endpoints: %v", seen)
	}
	for _, a := range []string{"10.96.0.7:81", "10.96.0.7:53"} {
		if _, err := m.Service(at(a)); !errors.Is(err, ErrNoEndpoint) {
			t.Errorf("%s: %v", a, err)
		}
	}
	m.setSlice(slice("a", nil, 8080, "10.244.0.4"), true)
	if got, err := m.Service(at("10.96.0.7:80")); err != nil || got != at("10.244.0.5:9090") {
		t.Errorf("%v, %v", got, err)
	}
	// The address becomes another's, then the first is heard of again.
	other := svc.DeepCopy()
	other.Name = "other"
	m.setService(other, false)
	m.setService(svc, true)
	if _, err := m.Service(at("10.96.0.7:80")); !errors.Is(err, ErrNoEndpoint) {
		t.Errorf("an address that changed hands: %v", err)
	}
	headless := svc.DeepCopy()
	headless.Name, headless.Spec.ClusterIPs = "headless", []string{"None"}
	m.setService(headless, false)
	m.setService(other, true)
	if _, err := m.Service(at("10.96.0.7:80")); !errors.Is(err, gateway.ErrNoRoute) {
		t.Errorf("after it is gone: %v", err)
	}
}

func TestPolicyIsPassedOn(t *testing.T) {
	m := New()
	var changed []string
	m.PolicyChanged = func(node string) { changed = append(changed, node) }
	n := edgeNode("n", "k")
	m.setEdgeNode(n, false)
	if m.Policy("n") != nil || len(changed) > 0 {
		t.Errorf("%q, %v", m.Policy("n"), changed)
	}
	n = n.DeepCopy()
	n.Annotations = map[string]string{v1alpha1.PolicyAnnotation: "signed"}
	m.setEdgeNode(n, false)
	m.setEdgeNode(n, false)
	if string(m.Policy("n")) != "signed" || len(changed) != 1 || changed[0] != "n" {
		t.Errorf("%q, %v", m.Policy("n"), changed)
	}
	m.setEdgeNode(n, true)
	if m.Policy("n") != nil || len(changed) != 1 {
		t.Errorf("%q, %v", m.Policy("n"), changed)
	}
}

func TestOutside(t *testing.T) {
	dial := Outside([]netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, addr := range []string{
		ln.Addr().String(), "[::1]:80", "[::ffff:127.0.0.1]:80", "0.0.0.0:80", "169.254.169.254:80", "224.0.0.1:80",
		"10.244.3.3:80", "[::ffff:10.244.3.3]:80", "localhost:80", "node-1:10250",
	} {
		c, err := dial(context.Background(), "tcp", addr)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, gateway.ErrNoRoute) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if err := outside(netip.MustParseAddr("192.0.2.1"), nil); err != nil {
		t.Error(err)
	}
}
