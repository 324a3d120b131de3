package hub

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	testingclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/hub/link"
	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

var endpointSlices = replica.Collection{Resource: discoveryv1.SchemeGroupVersion.WithResource("endpointslices")}

// newEndpointsRig is a hub that mirrors a pod of the node at 10.1.0.1, and two slices:
// "till" of that pod and one elsewhere, "other" of that one only.
func newEndpointsRig(t *testing.T, m *memo.Memo) (*rig, *layered, *testingclock.FakeClock) {
	t.Helper()
	slice := func(name string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{
			TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "shop", Name: name, UID: types.UID(name), ResourceVersion: "7", Labels: map[string]string{discoveryv1.LabelServiceName: name},
			},
			AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints,
		}
	}
	endpoint := func(uid, address string) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{
			Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", UID: types.UID(uid)},
		}
	}
	l := &layered{Cache: replica.NewCache(), base: map[replica.Collection]replica.Content{}}
	l.fill(t, ownPods, 10, ownPodAt("10.1.0.1", "8"))
	l.fill(t, endpointSlices, 10, slice("till", endpoint("pod", "10.1.0.1"), endpoint("elsewhere", "10.2.0.1")), slice("other", endpoint("elsewhere", "10.2.0.1")))
	pods := newAuthority(t, "pods")
	certificate := pods.server("kubernetes.default.svc")
	clk := testingclock.NewFakeClock(time.Now())
	return newRigWith(t, clk, &Local{
		PodCertificate: func() (*tls.Certificate, error) { return certificate, nil },
		Replica:        l, Layer: l, Memo: m, OnLink: func(s link.State) { l.SetLink(s.Online, s.Since) },
	}), l, clk
}

func ownPodAt(address, version string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", UID: "pod", ResourceVersion: version},
		Spec: corev1.PodSpec{NodeName: "n1"},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
}

// TestEndpointsOfOwnPods: a pod that has another address after a restart of the node in
// a cut has it in its slices too, in every encoding, in lists and in watches, and over
// a restart of the hub; and after the cut they are the apiserver's again.
func TestEndpointsOfOwnPods(t *testing.T) {
	const (
		readdressed = `{"status":{"podIP":"10.1.0.9","podIPs":[{"$patch":"replace"},{"ip":"10.1.0.9"}]}}`
		unready     = `{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`
		ready       = `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`
	)
	encodings := []string{wire.MediaJSON, wire.MediaProtobuf}
	m := memo.New(nil, nil, nil)
	r, _, _ := newEndpointsRig(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client := func(c Caller, media string) *kubernetes.Clientset {
		t.Helper()
		k, err := kubernetes.NewForConfig(r.restConfig(c, media))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	patch := func(status string) {
		t.Helper()
		_, err := client(CallerKubelet, wire.MediaProtobuf).CoreV1().Pods("shop").Patch(ctx, "p", types.StrategicMergePatchType, []byte(status), metav1.PatchOptions{}, "status")
		if err != nil {
			t.Fatal(err)
		}
	}
	list := func(media string) *discoveryv1.EndpointSliceList {
		t.Helper()
		all, err := client(CallerKubeProxy, media).DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{})
		if err != nil || len(all.Items) != 2 || all.Items[0].Name != "other" || all.Items[1].Name != "till" {
			t.Fatalf("a list: %+v, %v", all, err)
		}
		return all
	}
	shows := func(s *discoveryv1.EndpointSlice, address string, ready bool) {
		t.Helper()
		own, elsewhere := s.Endpoints[0], s.Endpoints[1]
		if !slices.Equal(own.Addresses, []string{address}) || *own.Conditions.Ready != ready || *own.Conditions.Serving != ready || *own.Conditions.Terminating {
			t.Errorf("the own pod's endpoint: %v, want %s ready=%v", own, address, ready)
		}
		if !slices.Equal(elsewhere.Addresses, []string{"10.2.0.1"}) || !*elsewhere.Conditions.Ready {
			t.Errorf("the endpoint elsewhere: %v", elsewhere)
		}
	}
	next := func(w watch.Interface) watch.Event {
		t.Helper()
		select {
		case e := <-w.ResultChan():
			return e
		case <-ctx.Done():
			t.Fatal("no event comes")
		}
		panic("unreachable")
	}

	var watches []watch.Interface
	follow := func(from string) {
		t.Helper()
		watches = nil
		for _, c := range []Caller{CallerKubeProxy, CallerCoreDNS} {
			for _, media := range encodings {
				w, err := client(c, media).DiscoveryV1().EndpointSlices("").Watch(ctx, metav1.ListOptions{ResourceVersion: from})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(w.Stop)
				watches = append(watches, w)
			}
		}
	}
	told := func(address string, ready bool) (version string) {
		t.Helper()
		for _, w := range watches {
			e := next(w)
			s, ok := e.Object.(*discoveryv1.EndpointSlice)
			if !ok || e.Type != watch.Modified || s.Name != "till" {
				t.Fatalf("event %s %+v", e.Type, e.Object)
			}
			shows(s, address, ready)
			version = s.ResourceVersion
		}
		return version
	}
	follow(list(wire.MediaJSON).ResourceVersion)
	patch(readdressed)
	told("10.1.0.9", true)
	patch(unready)
	told("10.1.0.9", false)
	patch(ready)
	version := told("10.1.0.9", true) // and nothing between: neither of what does not change
	patch(`{"status":{"conditions":[{"type":"Initialized","status":"True"}]}}`)
	check := func(when string) {
		t.Helper()
		for _, media := range encodings {
			all := list(media)
			shows(&all.Items[1], "10.1.0.9", true)
			if other := all.Items[0].ResourceVersion; other != "7" {
				t.Errorf("%s: the slice elsewhere is at %s", when, other)
			}
		}
	}
	check("in the cut")
	resp, body := r.do(r.caller(CallerKubeProxy), http.MethodGet, "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/till", io.Reader(nil), nil)
	if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"10.1.0.9"`) || strings.Contains(body, `"10.1.0.1"`) {
		t.Errorf("a get: %s %s", resp.Status, body)
	}

	// The hub starts anew in the same cut. Whoever held what was shown goes on.
	r.stop()
	r.served <- <-r.served
	r2, l, clk := newEndpointsRig(t, m)
	r = r2
	follow(version)
	if again := told("10.1.0.9", true); again == version {
		t.Errorf("still at %s", again)
	}
	check("in the cut, after a restart")

	// The link is back: the slice is shown as it was until the apiserver's has come.
	r.online(true)
	for limit := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if o, _, err := l.Get(ownPods, "shop", "p"); err == nil && !o.Version.Overlay() {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("the pod is never the apiserver's again")
		}
	}
	for range 20 {
		clk.Step(time.Second)
	}
	check("online, before kubelet has written")
	o, err := replica.NewObject(wire.MediaProtobuf, encoded(t, ownPodAt("10.1.0.9", "11")))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Publish(ownPods, []*replica.Event{{Type: watch.Modified, Object: o}}, 11); err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(patience); list(wire.MediaJSON).Items[1].ResourceVersion != "7"; clk.Step(time.Second) {
		if time.Now().After(limit) {
			t.Fatal("the slice is never the apiserver's again")
		}
	}
	for _, w := range watches {
		e := next(w)
		if status, ok := e.Object.(*metav1.Status); e.Type != watch.Error || !ok || status.Code != http.StatusGone {
			t.Errorf("event %s %+v", e.Type, e.Object)
		}
	}
}
