//go:build linux

package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// difference is one way in which hub and apiserver are allowed to differ.
type difference struct {
	name string
	// hide takes it out of what a client has seen.
	hide func([]seenEvent) []seenEvent
	// show brings it about, and returns what a client of the hub has seen and one of
	// the apiserver.
	show func(*beside, *testing.T) (ours, theirs []seenEvent)
}

// differences are all there are in the objects that are read, and when. Each is shown
// to be there, alone, by a subtest of TestSameEvents. Those of how a read is asked for
// (tables, tokens of pages) are in the tests of package serve.
var differences = []difference{
	{
		"managedFields are dropped at ingest",
		func(events []seenEvent) []seenEvent {
			return edited(events, func(o map[string]any) { delete(object(o, "metadata"), "managedFields") })
		},
		func(b *beside, t *testing.T) (ours, theirs []seenEvent) {
			return b.initial(t, CallerKubeProxy, watchServices, metav1.ListOptions{})
		},
	},
	{
		// What they may be is held by checkBookmarks.
		"bookmarks come when they come, at the collection's version",
		func(events []seenEvent) []seenEvent {
			return without(events, func(e seenEvent) bool { return e.Type == "BOOKMARK" })
		},
		func(b *beside, t *testing.T) (ours, theirs []seenEvent) {
			// The apiserver's version goes on with whatever changes.
			if _, err := b.admin.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "c-"}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			return b.initial(t, CallerKubeProxy, watchServices, metav1.ListOptions{})
		},
	},
	{
		"default/kubernetes names the node",
		func(events []seenEvent) []seenEvent {
			return without(events, func(e seenEvent) bool {
				return e.Key == "default/kubernetes" && strings.Contains(e.Object, `"addressType"`)
			})
		},
		func(b *beside, t *testing.T) (ours, theirs []seenEvent) {
			return b.initial(t, CallerKubeProxy, watchSlices, metav1.ListOptions{})
		},
	},
	{"changes of a Node's heartbeats alone are dropped", hideHeartbeats, showHeartbeats},
	{
		"kube-root-ca.crt has the node's authority too",
		func(events []seenEvent) []seenEvent {
			return edited(events, func(o map[string]any) {
				if data := object(o, "data"); data != nil && object(o, "metadata")["name"] == rootBundle {
					data["ca.crt"] = strings.TrimSuffix(fmt.Sprint(data["ca.crt"]), besideCA+"\n")
				}
			})
		},
		showRootCA,
	},
	{
		"no version means the replica's state",
		func(events []seenEvent) []seenEvent {
			return without(events, func(e seenEvent) bool { return e.Type == "LISTED" && e.Key == "default/"+lateService })
		},
		showNoVersion,
	},
}

// object is a member of another, nil where it is none.
func object(o map[string]any, name string) map[string]any {
	member, _ := o[name].(map[string]any)
	return member
}

// edited are events with their objects changed.
func edited(events []seenEvent, edit func(o map[string]any)) []seenEvent {
	out := slices.Clone(events)
	for i := range out {
		var o map[string]any
		if json.Unmarshal([]byte(out[i].Object), &o) != nil {
			continue
		}
		edit(o)
		if b, err := json.Marshal(o); err == nil {
			out[i].Object = string(b)
		}
	}
	return out
}

// without are events but for some.
func without(events []seenEvent, which func(seenEvent) bool) []seenEvent {
	return slices.DeleteFunc(slices.Clone(events), which)
}

// hide takes all differences out but one.
func hide(events []seenEvent, but string) []seenEvent {
	for _, d := range differences {
		if d.name != but {
			events = d.hide(events)
		}
	}
	return events
}

// shows: a difference is there, and hides nothing but itself.
func (b *beside) shows(t *testing.T, d difference) {
	ours, theirs := d.show(b, t)
	if len(ours) == 0 || len(theirs) == 0 {
		t.Fatalf("the hub showed %d events, and the apiserver %d", len(ours), len(theirs))
	}
	if cmp.Equal(sortInitial(hide(theirs, d.name)), sortInitial(hide(ours, d.name))) {
		t.Error("it is no difference: nothing need be hidden for it")
	}
	if diff := cmp.Diff(sortInitial(hide(theirs, "")), sortInitial(hide(ours, ""))); diff != "" {
		t.Errorf("hidden, apiserver - hub +\n%s", diff)
	}
}

// watches of a resource.
type watches func(*kubernetes.Clientset, context.Context, metav1.ListOptions) (watch.Interface, error)

func watchServices(c *kubernetes.Clientset, ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return c.CoreV1().Services("").Watch(ctx, o)
}

func watchSlices(c *kubernetes.Clientset, ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return c.DiscoveryV1().EndpointSlices("").Watch(ctx, o)
}

func watchNodes(c *kubernetes.Clientset, ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return c.CoreV1().Nodes().Watch(ctx, o)
}

func watchBundles(c *kubernetes.Clientset, ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	return c.CoreV1().ConfigMaps("default").Watch(ctx, o)
}

// client is a component's, of the hub.
func (b *beside) client(t *testing.T, c Caller, media string) *kubernetes.Clientset {
	t.Helper()
	client, err := kubernetes.NewForConfig(b.config(c, media))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// streamed asks for a list as a watch's initial events.
func streamed(o metav1.ListOptions) metav1.ListOptions {
	o.SendInitialEvents, o.ResourceVersionMatch, o.AllowWatchBookmarks = ptr.To(true), metav1.ResourceVersionMatchNotOlderThan, true
	return o
}

// initial is what a watch begins with, at the hub and at the apiserver.
func (b *beside) initial(t *testing.T, c Caller, open watches, o metav1.ListOptions) (ours, theirs []seenEvent) {
	t.Helper()
	var both [2][]seenEvent
	for i, client := range []*kubernetes.Clientset{b.client(t, c, wire.MediaJSON), b.admin} {
		w, err := open(client, t.Context(), streamed(o))
		if err != nil {
			t.Fatal(err)
		}
		both[i] = until(t, w, endsInitial)
		w.Stop()
	}
	return both[0], both[1]
}

func endsInitial(e watch.Event, m metav1.Object) bool {
	return e.Type == watch.Bookmark && m.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true"
}

// until are a watch's events up to one, with it.
func until(t *testing.T, w watch.Interface, last func(watch.Event, metav1.Object) bool) []seenEvent {
	t.Helper()
	var events []seenEvent
	late := time.After(time.Minute)
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				t.Fatalf("the watch ended after %d events", len(events))
			}
			m, err := meta.Accessor(e.Object)
			if err != nil {
				t.Fatal(e.Object)
			}
			events = append(events, seenEvent{string(e.Type), m.GetNamespace() + "/" + m.GetName(), m.GetResourceVersion(), canonicalJSON(t, m)})
			if last(e, m) {
				return events
			}
		case <-late:
			t.Fatalf("the last event never comes; %d events", len(events))
		}
	}
}

// hideHeartbeats takes out the changes of Nodes after which all is as before but for
// the version and the times of heartbeats.
func hideHeartbeats(events []seenEvent) []seenEvent {
	last := map[string]string{}
	return without(events, func(e seenEvent) bool {
		var o map[string]any
		if json.Unmarshal([]byte(e.Object), &o) != nil || object(object(o, "status"), "nodeInfo") == nil {
			return false
		}
		delete(object(o, "metadata"), "resourceVersion")
		delete(object(o, "metadata"), "managedFields")
		conditions, _ := object(o, "status")["conditions"].([]any)
		for _, c := range conditions {
			if c, ok := c.(map[string]any); ok {
				delete(c, "lastHeartbeatTime")
			}
		}
		b, err := json.Marshal(o)
		if err != nil {
			return false
		}
		same := e.Type == "MODIFIED" && last[e.Key] == string(b)
		last[e.Key] = string(b)
		return same
	})
}

// heartbeat says of the node that it is as it was.
func (b *beside) heartbeat(t *testing.T, at time.Time) *corev1.Node {
	t.Helper()
	body := fmt.Appendf(nil, `{"status":{"conditions":[{"type":"Ready","status":"True","lastHeartbeatTime":%q}]}}`, at.UTC().Format(time.RFC3339))
	node, err := b.admin.CoreV1().Nodes().Patch(t.Context(), "n1", types.StrategicMergePatchType, body, metav1.PatchOptions{}, "status")
	if err != nil {
		t.Fatal(err)
	}
	return node
}

func showHeartbeats(b *beside, t *testing.T) (ours, theirs []seenEvent) {
	now := time.Now()
	first := b.heartbeat(t, now)
	o := streamed(metav1.ListOptions{FieldSelector: "metadata.name=n1", ResourceVersion: first.ResourceVersion})
	var both [2]watch.Interface
	for i, client := range []*kubernetes.Clientset{b.client(t, CallerKubelet, wire.MediaJSON), b.admin} {
		w, err := watchNodes(client, t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Stop()
		both[i] = w
		ours, theirs = theirs, until(t, w, endsInitial)
	}
	for i := range 3 {
		b.heartbeat(t, now.Add(time.Duration(i+1)*10*time.Second))
	}
	// A change that is one, with a heartbeat and without.
	for _, body := range []string{
		`{"status":{"conditions":[{"type":"Ready","status":"False","lastHeartbeatTime":"2030-01-02T03:04:05Z"}]}}`,
		`{"metadata":{"annotations":{"last":"one"}}}`,
	} {
		if _, err := b.admin.CoreV1().Nodes().Patch(t.Context(), "n1", types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
	}
	last := func(_ watch.Event, m metav1.Object) bool { return m.GetAnnotations()["last"] == "one" }
	return append(ours, until(t, both[0], last)...), append(theirs, until(t, both[1], last)...)
}

// showRootCA has kubelet follow the bundle of a pod's namespace.
func showRootCA(b *beside, t *testing.T) (ours, theirs []seenEvent) {
	core := b.admin.CoreV1()
	bundle := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: rootBundle}, Data: map[string]string{"ca.crt": "cluster authority\n", "other": besideCA + "\n"}}
	if _, err := core.ConfigMaps("default").Create(t.Context(), bundle, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := core.Pods("default").Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "trusting"},
		Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i", EnvFrom: []corev1.EnvFromSource{
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: rootBundle}}},
		}}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kubelet := b.client(t, CallerKubelet, wire.MediaJSON)
	b.eventually("the Node authorizer knows of the pod", func(ctx context.Context) error {
		_, err := kubelet.CoreV1().ConfigMaps("default").Get(ctx, rootBundle, metav1.GetOptions{})
		return err
	})
	return b.initial(t, CallerKubelet, watchBundles, metav1.ListOptions{FieldSelector: "metadata.name=" + rootBundle})
}

// lateService is made while nothing comes from the apiserver.
const lateService = "late"

// showNoVersion lists while the hub does not hear of a service that is there.
func showNoVersion(b *beside, t *testing.T) (ours, theirs []seenEvent) {
	flow := b.stall()
	defer flow()
	late := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: lateService}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
	if _, err := b.admin.CoreV1().Services("default").Create(t.Context(), late, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	list := func(c *kubernetes.Clientset) (events []seenEvent) {
		services, err := c.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range services.Items {
			s := &services.Items[i]
			events = append(events, seenEvent{"LISTED", s.Namespace + "/" + s.Name, s.ResourceVersion, canonicalJSON(t, s)})
		}
		slices.SortFunc(events, func(a, b seenEvent) int { return strings.Compare(a.Key, b.Key) })
		return events
	}
	return list(b.client(t, CallerKubeProxy, wire.MediaJSON)), list(b.admin)
}

// version is the apiserver's.
func (b *beside) version() uint64 {
	b.t.Helper()
	list, err := b.admin.CoreV1().Services("").List(b.t.Context(), metav1.ListOptions{Limit: 1})
	if err != nil {
		b.t.Fatal(err)
	}
	return number(b.t, list.ResourceVersion)
}

func number(t *testing.T, version string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(version, 10, 64)
	if err != nil {
		t.Error(err)
	}
	return n
}

// checkBookmarks: those of a watch come only where they are asked for, and then at
// least so many; none is of a version that is not there yet, none goes back, and all
// that it says has been told has been.
func checkBookmarks(t *testing.T, who string, events []seenEvent, asked bool, least int, now uint64) {
	t.Helper()
	marks, mark, told := 0, uint64(0), uint64(0)
	for _, e := range events {
		version := number(t, e.Version)
		switch {
		case e.Type != "BOOKMARK":
			if marks > 0 && version <= mark {
				t.Errorf("%s: %s %s of version %d follows a bookmark of %d", who, e.Type, e.Key, version, mark)
			}
			told = max(told, version)
			continue
		case version < mark:
			t.Errorf("%s: a bookmark of version %d follows one of %d", who, version, mark)
		case version < told:
			t.Errorf("%s: a bookmark of version %d follows an event of %d", who, version, told)
		case version > now:
			t.Errorf("%s: a bookmark of version %d, and the apiserver is at %d", who, version, now)
		}
		marks, mark = marks+1, version
	}
	if !asked && marks > 0 || marks < least {
		t.Errorf("%s: %d bookmarks", who, marks)
	}
}

// bookmarks: a watch that ends by its time has told what it had come to.
func (b *beside) bookmarks(t *testing.T) {
	type ended struct {
		who    string
		events []seenEvent
		asked  bool
		err    error
	}
	began := strconv.FormatUint(b.version(), 10)
	const each = 4
	results := make(chan ended, 2*each)
	for _, media := range []string{wire.MediaJSON, wire.MediaProtobuf} {
		theirs, err := kubernetes.NewForConfig(b.direct(media))
		if err != nil {
			t.Fatal(err)
		}
		for who, client := range map[string]*kubernetes.Clientset{"hub": b.client(t, CallerKubeProxy, media), "apiserver": theirs} {
			for _, asked := range []bool{true, false} {
				go func() {
					r := ended{who: who + " " + media, asked: asked}
					defer func() { results <- r }()
					w, err := client.CoreV1().Services("").Watch(t.Context(), metav1.ListOptions{
						ResourceVersion: began, AllowWatchBookmarks: asked, TimeoutSeconds: ptr.To[int64](6),
					})
					if err != nil {
						r.err = err
						return
					}
					defer w.Stop()
					for e := range w.ResultChan() {
						m, err := meta.Accessor(e.Object)
						if err != nil {
							r.err = fmt.Errorf("%v", e.Object)
							return
						}
						r.events = append(r.events, seenEvent{Type: string(e.Type), Key: m.GetNamespace() + "/" + m.GetName(), Version: m.GetResourceVersion()})
					}
				}()
			}
		}
	}
	b.churn(5)
	var all []ended
	for range 2 * each {
		all = append(all, <-results)
	}
	now := b.version()
	for _, r := range all {
		if r.err != nil {
			t.Errorf("%s: %v", r.who, r.err)
			continue
		}
		least := 0
		if r.asked {
			least = 1
		}
		checkBookmarks(t, r.who, r.events, r.asked, least, now)
	}
}
