package endpoints

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	testingclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

var (
	podsHere = replica.Collection{Resource: corev1.SchemeGroupVersion.WithResource("pods"), Node: "n1"}
	services = replica.Collection{Resource: corev1.SchemeGroupVersion.WithResource("services")}
	slicesOf = replica.Collection(allSlices)
)

// bench is a corrector over a cache that the test feeds.
type bench struct {
	*replica.Cache
	t       *testing.T
	c       *Corrector
	clock   *testingclock.FakeClock
	online  bool
	version replica.Version // of the overlay
	below   replica.Content // of the slices
	lifts   int
}

func (b *bench) Lay(c replica.Collection, e *replica.Event) error {
	return b.Publish(c, []*replica.Event{e}, e.Version())
}

func (b *bench) Lift(collections []replica.Collection) {
	b.lifts++
	if d := cmp.Diff([]replica.Collection{slicesOf}, collections); d != "" {
		b.t.Error(d)
	}
	if err := b.Reset(slicesOf, b.below); err != nil {
		b.t.Error(err)
	}
}

func (b *bench) Below(_ replica.Collection, namespace, name string) (*replica.Object, error) {
	for _, o := range b.below.Objects {
		if o.Namespace == namespace && o.Name == name {
			return o, nil
		}
	}
	return nil, nil
}

func newBench(t *testing.T, objects ...runtime.Object) *bench {
	t.Helper()
	b := &bench{Cache: replica.NewCache(), t: t, clock: testingclock.NewFakeClock(time.Unix(1e9, 0)), version: replica.OverlayBase}
	contents := map[replica.Collection]*replica.Content{podsHere: {Version: 10}, services: {Version: 10}, slicesOf: {Version: 10}}
	for _, o := range objects {
		var c replica.Collection
		switch o.(type) {
		case *corev1.Pod:
			c = podsHere
		case *corev1.Service:
			c = services
		default:
			c = slicesOf
		}
		contents[c].Objects = append(contents[c].Objects, object(t, o))
	}
	kinds := map[replica.Collection]schema.GroupVersionKind{
		podsHere: corev1.SchemeGroupVersion.WithKind("Pod"), services: corev1.SchemeGroupVersion.WithKind("Service"),
		slicesOf: discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"),
	}
	for c, content := range contents {
		b.Open(c, kinds[c])
		if err := b.Load(c, *content); err != nil {
			t.Fatal(err)
		}
	}
	b.below = *contents[slicesOf]
	b.c = New(Options{
		Replica: b, Layer: b, NodeName: "n1", Online: func() bool { return b.online }, Clock: b.clock,
		Version: func() replica.Version { b.version++; return b.version },
	})
	return b
}

func object(t *testing.T, o runtime.Object) *replica.Object {
	t.Helper()
	var raw bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(o, &raw); err != nil {
		t.Fatal(err)
	}
	out, err := replica.NewObject(wire.MediaProtobuf, raw.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// newPod is a pod of the node that is ready at these addresses.
func newPod(name string, addresses ...string) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), ResourceVersion: "8"},
		Spec:       corev1.PodSpec{NodeName: "n1"},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	for _, a := range addresses {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a})
	}
	if len(addresses) > 0 {
		p.Status.PodIP = addresses[0]
	}
	return p
}

// conditionsOf are ready, serving, terminating: "+" true, "-" false, " " not said.
func conditionsOf(s string) discoveryv1.EndpointConditions {
	said := func(i int) *bool {
		if s[i] == ' ' {
			return nil
		}
		return ptr.To(s[i] == '+')
	}
	return discoveryv1.EndpointConditions{Ready: said(0), Serving: said(1), Terminating: said(2)}
}

func endpoint(pod, conditions string, addresses ...string) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses: addresses, Conditions: conditionsOf(conditions), NodeName: ptr.To("n1"), Zone: ptr.To("z"), Hostname: ptr.To("h"),
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: pod, UID: types.UID("uid-" + pod)},
		Hints:     &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "z"}}},
	}
}

func newSlice(name string, family discoveryv1.AddressType, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name, UID: types.UID(name), ResourceVersion: "7", Labels: map[string]string{discoveryv1.LabelServiceName: name},
		},
		AddressType: family, Endpoints: endpoints, Ports: []discoveryv1.EndpointPort{{Port: ptr.To[int32](80)}},
	}
}

func (b *bench) slice(name string) *discoveryv1.EndpointSlice {
	b.t.Helper()
	o, _, err := b.Get(slicesOf, "shop", name)
	if err != nil || o == nil {
		b.t.Fatalf("slice %s: %v, %v", name, o, err)
	}
	decoded, _, err := scheme.Codecs.UniversalDeserializer().Decode(o.Raw, nil, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return decoded.(*discoveryv1.EndpointSlice)
}

// patch is a pod that its kubelet, or the apiserver, has changed.
func (b *bench) patch(p *corev1.Pod, version replica.Version, change func(*corev1.Pod)) {
	b.t.Helper()
	change(p)
	p.ResourceVersion = version.String()
	o := object(b.t, p)
	if err := b.Publish(podsHere, []*replica.Event{{Type: watch.Modified, Object: o}}, o.Version); err != nil {
		b.t.Fatal(err)
	}
	b.c.PodsChanged()
}

func notReady(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }

func at(addresses ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Status = newPod("", addresses...).Status }
}

// TestCorrected: what endpoints of a changed pod become, and that all else of a slice
// is the same.
func TestCorrected(t *testing.T) {
	const ipv4, ipv6 = discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6
	publishing := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "headless", UID: "svc", ResourceVersion: "6"},
		Spec: corev1.ServiceSpec{PublishNotReadyAddresses: true},
	}
	elsewhere := endpoint("elsewhere", "++-", "10.2.0.1")
	for name, c := range map[string]struct {
		service  string // "web" where empty
		family   discoveryv1.AddressType
		endpoint discoveryv1.Endpoint
		change   func(*corev1.Pod)
		want     discoveryv1.Endpoint
		same     bool // the slice is not touched
	}{
		"another address":     {family: ipv4, endpoint: endpoint("p", "++-", "10.1.0.1"), change: at("10.1.0.9"), want: endpoint("p", "++-", "10.1.0.9")},
		"another IPv6":        {family: ipv6, endpoint: endpoint("p", "++-", "fd00::1"), change: at("10.1.0.9", "fd00::9"), want: endpoint("p", "++-", "fd00::9")},
		"no IPv6":             {family: ipv6, endpoint: endpoint("p", "++-", "fd00::1"), change: at("10.1.0.9"), same: true},
		"nothing":             {family: ipv4, endpoint: endpoint("p", "++-", "10.1.0.1"), change: func(*corev1.Pod) {}, same: true},
		"nothing, less said":  {family: ipv4, endpoint: endpoint("p", "   ", "10.1.0.1"), change: func(*corev1.Pod) {}, same: true},
		"a name":              {family: discoveryv1.AddressTypeFQDN, endpoint: endpoint("p", "++-", "p.example"), change: at("10.1.0.9"), same: true},
		"not ready":           {family: ipv4, endpoint: endpoint("p", "++-", "10.1.0.1"), change: notReady, want: endpoint("p", "---", "10.1.0.1")},
		"not ready, unsaid":   {family: ipv4, endpoint: endpoint("p", "   ", "10.1.0.1"), change: notReady, want: endpoint("p", "-  ", "10.1.0.1")},
		"not ready, shown":    {service: "headless", family: ipv4, endpoint: endpoint("p", "++-", "10.1.0.1"), change: notReady, want: endpoint("p", "+--", "10.1.0.1")},
		"no address, shown":   {service: "headless", family: ipv4, endpoint: endpoint("p", "++-", "10.1.0.1"), change: at(), want: endpoint("p", "---", "10.1.0.1")},
		"ready again":         {family: ipv4, endpoint: endpoint("p", "---", "10.1.0.1"), change: at("10.1.0.1"), want: endpoint("p", "++-", "10.1.0.1")},
		"it has ended":        {family: ipv4, endpoint: endpoint("p", "++-", "10.1.0.1"), change: func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, want: endpoint("p", "---", "10.1.0.1")},
		"it is being deleted": {family: ipv4, endpoint: endpoint("p", "++-", "10.1.0.1"), change: func(p *corev1.Pod) { p.DeletionTimestamp = ptr.To(metav1.Unix(1e9, 0)) }, want: endpoint("p", "-++", "10.1.0.1")},
		"of the host's network": {family: ipv4, endpoint: endpoint("p", "++-", "10.1.0.1"), change: func(p *corev1.Pod) {
			at("192.0.2.9")(p)
			p.Spec.HostNetwork = true
		}, same: true},
		"of another uid":  {family: ipv4, endpoint: endpoint("older", "++-", "10.1.0.1"), change: at("10.1.0.9"), same: true},
		"of nobody":       {family: ipv4, endpoint: discoveryv1.Endpoint{Addresses: []string{"10.1.0.1"}}, change: at("10.1.0.9"), same: true},
		"no pod, its uid": {family: ipv4, endpoint: discoveryv1.Endpoint{Addresses: []string{"10.1.0.1"}, TargetRef: &corev1.ObjectReference{Kind: "Node", UID: "uid-p"}}, change: at("10.1.0.9"), same: true},
	} {
		t.Run(name, func(t *testing.T) {
			service := c.service
			if service == "" {
				service = "web"
			}
			pod, slice := newPod("p", "10.1.0.1"), newSlice(service, c.family, elsewhere, c.endpoint, elsewhere)
			b := newBench(t, publishing, slice, newSlice("other", c.family, elsewhere))
			o := object(t, pod)
			if err := b.Load(podsHere, replica.Content{Objects: []*replica.Object{o}, Version: 10}); err != nil {
				t.Fatal(err)
			}
			b.patch(pod, replica.OverlayBase+1, c.change)
			place, err := b.Watch(slicesOf, 10)
			if err != nil {
				t.Fatal(err)
			}
			b.c.step()
			b.c.PodsChanged()
			b.c.step() // nothing more comes of it
			want := slice.DeepCopy()
			events, err := place.Take(9)
			if c.same {
				if err != nil || len(events) != 0 {
					t.Errorf("events %v, %v", events, err)
				}
			} else {
				want.Endpoints[1] = c.want
				if err != nil || len(events) != 1 || events[0].Type != watch.Modified || !events[0].Version().Overlay() || events[0].Previous == nil {
					t.Fatalf("events %v, %v", events, err)
				}
				want.ResourceVersion = events[0].Version().String()
			}
			if d := cmp.Diff(want, b.slice(service)); d != "" {
				t.Error(d)
			}
			if v := b.slice("other").ResourceVersion; v != "7" {
				t.Errorf("the slice of pods elsewhere is at %s", v)
			}
		})
	}
}

// TestUnknownFieldsStay: what a later version of the API says of an endpoint is served
// as it came.
func TestUnknownFieldsStay(t *testing.T) {
	b := newBench(t, newPod("p", "10.1.0.9"))
	later := protowire.AppendString(protowire.AppendTag(nil, 99, protowire.BytesType), "later")
	e := endpoint("p", "++-", "10.1.0.1")
	raw, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	message, err := newSlice("web", discoveryv1.AddressTypeIPv4).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	message = protowire.AppendTag(message, fieldEndpoints, protowire.BytesType)
	message = protowire.AppendBytes(message, append(raw, later...))
	o, err := replica.NewObject(wire.MediaProtobuf, wire.Envelope{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice", Message: append(message, later...)}.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Load(slicesOf, replica.Content{Objects: []*replica.Object{o}, Version: 10}); err != nil {
		t.Fatal(err)
	}
	b.c.step()
	got, _, err := b.Get(slicesOf, "shop", "web")
	if err != nil {
		t.Fatal(err)
	}
	if a := b.slice("web").Endpoints[0].Addresses; !cmp.Equal(a, []string{"10.1.0.9"}) || bytes.Count(got.Message, later) != 2 {
		t.Errorf("%s, and %d of two fields", a, bytes.Count(got.Message, later))
	}
}

// TestHeldAndLifted: corrections stay after the link is back until the apiserver's pod
// is as kubelet had it and slices have had time, and are lifted once; a cut meanwhile
// does not bring the dead address back.
func TestHeldAndLifted(t *testing.T) {
	cloud := newPod("p", "10.1.0.1")
	pod := cloud.DeepCopy()
	b := newBench(t, cloud, newSlice("web", discoveryv1.AddressTypeIPv4, endpoint("p", "++-", "10.1.0.1")))
	is := func(when, want string, held bool) {
		t.Helper()
		if got := b.c.step(); got != held {
			t.Errorf("%s: held %v", when, got)
		}
		if a := b.slice("web").Endpoints[0].Addresses[0]; a != want {
			t.Errorf("%s: %s, want %s", when, a, want)
		}
	}
	back := func() { // as the hub does when the link is back
		b.online = true
		b.c.LinkChanged(true)
		b.c.Finish()
		if err := b.Reset(podsHere, replica.Content{Objects: []*replica.Object{object(t, cloud)}, Version: 10}); err != nil {
			t.Fatal(err)
		}
	}
	cut := func() {
		b.online = false
		b.c.LinkChanged(false)
	}
	is("before", "10.1.0.1", false)
	b.patch(pod, replica.OverlayBase+1, at("10.1.0.8"))
	is("cut", "10.1.0.8", false)
	b.patch(pod, replica.OverlayBase+2, at("10.1.0.9"))
	back() // what was written last is not lost
	is("the link is back", "10.1.0.9", true)
	b.clock.Step(2 * settle)
	is("kubelet has not written", "10.1.0.9", true)
	cut()
	is("cut again", "10.1.0.9", false)
	back()
	is("the link is back again", "10.1.0.9", true)
	b.patch(cloud, 11, notReady) // the cloud's, with the address from before
	b.clock.Step(2 * settle)
	is("the cloud has written", "10.1.0.9", true)
	b.patch(cloud, 12, at("10.1.0.9"))
	is("kubelet has written", "10.1.0.9", true)
	b.clock.Step(settle - 1)
	is("slices have not settled", "10.1.0.9", true)
	if b.lifts != 0 {
		t.Fatal("lifted")
	}
	followed := newSlice("web", discoveryv1.AddressTypeIPv4, endpoint("p", "++-", "10.1.0.9"))
	followed.ResourceVersion = "13"
	b.below = replica.Content{Objects: []*replica.Object{object(t, followed)}, Version: 13}
	b.clock.Step(1)
	is("settled", "10.1.0.9", false)
	if v := b.slice("web").ResourceVersion; v != "13" || b.lifts != 1 {
		t.Errorf("at version %s, lifted %d times", v, b.lifts)
	}
	b.clock.Step(time.Hour)
	is("later", "10.1.0.9", false)
	if b.lifts != 1 {
		t.Errorf("lifted %d times", b.lifts)
	}
	// In the next cut nothing differs, and nothing is laid.
	cut()
	is("the next cut", "10.1.0.9", false)
	if v := b.slice("web").ResourceVersion; v != "13" {
		t.Errorf("at version %s", v)
	}
}

// TestSlicesFollow: what is held is let go of as soon as the cluster's slices are as
// shown, and not while one of them is not.
func TestSlicesFollow(t *testing.T) {
	cloud := newPod("p", "10.1.0.1")
	pod := cloud.DeepCopy()
	web := newSlice("web", discoveryv1.AddressTypeIPv4, endpoint("p", "++-", "10.1.0.1"))
	api := newSlice("api", discoveryv1.AddressTypeIPv4, endpoint("p", "++-", "10.1.0.1"))
	b := newBench(t, cloud, web, api)
	b.patch(pod, replica.OverlayBase+1, at("10.1.0.9"))
	b.c.step()
	b.online = true
	follow := func(version string, slices ...*discoveryv1.EndpointSlice) {
		b.below = replica.Content{Version: 20}
		for _, s := range slices {
			s.ResourceVersion = version
			b.below.Objects = append(b.below.Objects, object(t, s))
		}
	}
	moved := func(name string) *discoveryv1.EndpointSlice {
		return newSlice(name, discoveryv1.AddressTypeIPv4, endpoint("p", "++-", "10.1.0.9"))
	}
	follow("11", web, api)
	if !b.c.step() || b.lifts != 0 {
		t.Error("not held before the slices follow")
	}
	follow("12", moved("web"), api)
	if !b.c.step() || b.lifts != 0 {
		t.Error("not held while one does not follow")
	}
	follow("13", moved("web"), moved("api"))
	if b.c.step() || b.lifts != 1 || b.slice("api").ResourceVersion != "13" {
		t.Errorf("held, lifted %d times", b.lifts)
	}
}

// TestHeldNoLonger: a kubelet that does not write ends what is held all the same.
func TestHeldNoLonger(t *testing.T) {
	cloud := newPod("p", "10.1.0.1")
	pod := cloud.DeepCopy()
	b := newBench(t, cloud, newSlice("web", discoveryv1.AddressTypeIPv4, endpoint("p", "++-", "10.1.0.1")))
	b.patch(pod, replica.OverlayBase+1, at("10.1.0.9"))
	b.c.step()
	b.online = true
	if !b.c.step() {
		t.Error("not held")
	}
	b.clock.Step(longest - 1)
	if !b.c.step() || b.lifts != 0 {
		t.Error("not held to the end")
	}
	b.clock.Step(1)
	if b.c.step() || b.lifts != 1 || b.slice("web").Endpoints[0].Addresses[0] != "10.1.0.1" {
		t.Errorf("held, lifted %d times", b.lifts)
	}
}
