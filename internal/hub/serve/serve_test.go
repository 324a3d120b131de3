package serve

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/pager"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

func (r *rig) client(media string) *kubernetes.Clientset {
	r.t.Helper()
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: r.http.URL, Transport: r.http.Client().Transport, QPS: -1,
		ContentConfig: rest.ContentConfig{ContentType: media, AcceptContentTypes: media},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return client
}

func shop() []*corev1.Service {
	return []*corev1.Service{
		service("default", "kubernetes", "10.96.0.1", 5, nil),
		service("shop", "head", "None", 11, map[string]string{"service.kubernetes.io/headless": ""}),
		service("shop", "till", "10.96.0.9", 12, map[string]string{"app": "till"}),
		service("shop", "web", "10.96.0.8", 9, map[string]string{"app": "web", "tier": "front"}),
	}
}

func objects(services []*corev1.Service) []runtime.Object {
	var out []runtime.Object
	for _, s := range services {
		out = append(out, s)
	}
	return out
}

// TestSelectors compares what is served with what apimachinery's own selectors
// leave, in both encodings.
func TestSelectors(t *testing.T) {
	r := newRig(t, nil)
	all := shop()
	r.load(20, objects(all)...)
	for _, c := range []struct{ labels, fields, namespace string }{
		{},
		{namespace: "shop"},
		{namespace: "nowhere"},
		{fields: "spec.clusterIP!=None"},
		{labels: "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name"},
		{labels: "!service.kubernetes.io/service-proxy-name", fields: "spec.clusterIP!=None"},
		{labels: "app in (web, till),tier"},
		{labels: "app notin (web)"},
		{fields: "metadata.name=till"},
		{fields: "metadata.name!=till,metadata.namespace=shop"},
		{fields: "spec.type=ClusterIP,metadata.name=web"},
		{fields: "spec.type=NodePort"},
	} {
		l, err := labels.Parse(c.labels)
		if err != nil {
			t.Fatal(err)
		}
		f, err := fields.ParseSelector(c.fields)
		if err != nil {
			t.Fatal(err)
		}
		var want []corev1.Service
		for _, s := range all {
			set := fields.Set{"metadata.name": s.Name, "metadata.namespace": s.Namespace, "spec.clusterIP": s.Spec.ClusterIP, "spec.type": string(s.Spec.Type)}
			if l.Matches(labels.Set(s.Labels)) && f.Matches(set) && (c.namespace == "" || c.namespace == s.Namespace) {
				s := *s
				s.TypeMeta = metav1.TypeMeta{} // items of a typed list have none
				want = append(want, s)
			}
		}
		for _, media := range []string{wire.MediaJSON, wire.MediaProtobuf} {
			got, err := r.client(media).CoreV1().Services(c.namespace).List(t.Context(), metav1.ListOptions{LabelSelector: c.labels, FieldSelector: c.fields})
			if err != nil {
				t.Fatalf("%+v %s: %v", c, media, err)
			}
			if got.ResourceVersion != "20" {
				t.Errorf("%+v %s: at %s", c, media, got.ResourceVersion)
			}
			if d := cmp.Diff(want, append([]corev1.Service(nil), got.Items...)); d != "" {
				t.Errorf("%+v %s: %s", c, media, d)
			}
		}
	}
	if got := r.status("/api/v1/services?fieldSelector=status.loadBalancer%3Dx"); got != "upstream" {
		t.Errorf("an unknown field: %s", got)
	}
	if got := r.status("/api/v1/services?labelSelector=%3D%3D"); got != "400 BadRequest" {
		t.Errorf("a broken selector: %s", got)
	}
}

// TestSelectablePods: every selectable field of pods, nodes and so on is read
// from protobuf where JSON has it.
func TestSelectableFields(t *testing.T) {
	for _, o := range []runtime.Object{
		&corev1.Pod{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Name: "p"},
			Spec:   corev1.PodSpec{NodeName: "n1", RestartPolicy: "Always", SchedulerName: "s", ServiceAccountName: "sa", HostNetwork: true},
			Status: corev1.PodStatus{Phase: "Running", NominatedNodeName: "n2", PodIP: "10.1.1.1"},
		},
		&corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Name: "empty"}},
		&corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{ClusterIP: "None", Type: "NodePort"}},
		&corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{Unschedulable: true}},
		&corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: "n"}},
		&corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Name: "x"}, Type: "Opaque"},
		&corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: "x"}, Status: corev1.NamespaceStatus{Phase: "Active"}},
	} {
		kind := o.GetObjectKind().GroupVersionKind().Kind
		for resource, paths := range selectable {
			if resource.Resource != strings.ToLower(kind)+"s" {
				continue
			}
			s := &selection{paths: paths}
			for field := range paths {
				fromJSON, err := s.field(stored(t, wire.MediaJSON, o), field)
				if err != nil {
					t.Fatal(err)
				}
				fromProtobuf, err := s.field(pb(t, o), field)
				if err != nil {
					t.Fatal(err)
				}
				named := o.(metav1.Object).GetName()
				if fromJSON != fromProtobuf || named != "empty" && named != "n" && fromJSON == "" {
					t.Errorf("%s of %s %s: %q in JSON, %q in protobuf", field, kind, named, fromJSON, fromProtobuf)
				}
			}
		}
	}
}

// TestEncodings asks for one object and for a list in every form, stored in
// either encoding.
func TestEncodings(t *testing.T) {
	for _, storedAs := range []string{wire.MediaJSON, wire.MediaProtobuf} {
		r := newRig(t, nil)
		s := service("shop", "till", "10.96.0.9", 12, map[string]string{"app": "till"})
		if err := r.cache.Load(services, replica.Content{Version: 12, Objects: []*replica.Object{stored(t, storedAs, s)}}); err != nil {
			t.Fatal(err)
		}
		for _, media := range []string{wire.MediaJSON, wire.MediaProtobuf} {
			got, err := r.client(media).CoreV1().Services("shop").Get(t.Context(), "till", metav1.GetOptions{ResourceVersion: "0"})
			if err != nil {
				t.Fatal(err)
			}
			want := s.DeepCopy()
			if media == wire.MediaProtobuf {
				want.TypeMeta = got.TypeMeta // client-go clears it, or not
			}
			want.TypeMeta = got.TypeMeta
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("stored %s, got %s: %s", storedAs, media, d)
			}
			partial := media + ";as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
			response, body := r.get("/api/v1/namespaces/shop/services/till?resourceVersion=0", partial)
			if response.Header.Get("Content-Type") != media {
				t.Errorf("%s: %s", partial, response.Header.Get("Content-Type"))
			}
			checkPartial(t, body, s.ObjectMeta)
			_, body = r.get("/api/v1/services", media+";as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
			object, _, err := metaDecoder.Decode(body, nil, nil)
			if err != nil {
				t.Fatalf("a partial list as %s: %v", media, err)
			}
			list := object.(*metav1.PartialObjectMetadataList)
			if len(list.Items) != 1 || cmp.Diff(list.Items[0].ObjectMeta, s.ObjectMeta) != "" || list.ResourceVersion != "12" {
				t.Errorf("a partial list as %s: %+v", media, list)
			}
		}
		if got := r.status("/api/v1/namespaces/shop/services/none?resourceVersion=0"); got != "404 NotFound" {
			t.Errorf("a name that is not there: %s", got)
		}
		for _, accept := range []string{tableAccept, tableAccept + ",application/json"} {
			if got := r.table("/api/v1/services", accept); len(got.Rows) != 1 || got.Rows[0].Cells[2] != "10.96.0.9" {
				t.Errorf("stored %s, got %+v", storedAs, got)
			}
		}
		for _, accept := range []string{
			"application/json;as=Table;v=v1beta1;g=meta.k8s.io", "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", "application/json;as=Table;v=v1;g=apps",
		} {
			if response, _ := r.get("/api/v1/services", accept); response.StatusCode != http.StatusNotAcceptable {
				t.Errorf("%s: %s", accept, response.Status)
			}
		}
	}
}

var metaDecoder = func() runtime.Decoder {
	s := runtime.NewScheme()
	metav1.AddToGroupVersion(s, metav1.SchemeGroupVersion)
	if err := metav1.AddMetaToScheme(s); err != nil {
		panic(err)
	}
	return newCodecs(s).UniversalDeserializer()
}()

func checkPartial(t *testing.T, body []byte, want metav1.ObjectMeta) {
	t.Helper()
	object, _, err := metaDecoder.Decode(body, nil, nil)
	if err != nil {
		t.Fatalf("partial: %v", err)
	}
	if d := cmp.Diff(want, object.(*metav1.PartialObjectMetadata).ObjectMeta); d != "" {
		t.Errorf("partial: %s", d)
	}
}

// TestCustomResources have no protobuf form: clients that prefer it get JSON,
// and metadata alone in either.
func TestCustomResources(t *testing.T) {
	r := newRig(t, nil)
	r.cache.Open(widgets, widgetKind)
	w := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "example.com/v1", "kind": "Widget",
		"metadata": map[string]any{"namespace": "shop", "name": "w", "resourceVersion": "7", "uid": "u"}, "spec": map[string]any{"a": "<b>"},
	}}
	raw, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	o := &replica.Object{Namespace: "shop", Name: "w", Version: 7, Media: wire.MediaJSON, Raw: raw, Message: raw}
	if err := r.cache.Load(widgets, replica.Content{Version: 9, Objects: []*replica.Object{o}}); err != nil {
		t.Fatal(err)
	}
	const path = "/apis/example.com/v1/widgets"
	response, body := r.get(path, "application/vnd.kubernetes.protobuf,application/json")
	var list unstructured.UnstructuredList
	if err := list.UnmarshalJSON(body); err != nil || response.Header.Get("Content-Type") != wire.MediaJSON {
		t.Fatalf("%v: %s %s", err, response.Header.Get("Content-Type"), body)
	}
	if list.GetKind() != "WidgetList" || len(list.Items) != 1 || cmp.Diff(list.Items[0].Object, w.Object) != "" {
		t.Errorf("got %v", list)
	}
	if response, _ := r.get(path, "application/vnd.kubernetes.protobuf"); response.StatusCode != http.StatusNotAcceptable {
		t.Errorf("protobuf only: %s", response.Status)
	}
	_, body = r.get(path+"/w", wire.MediaProtobuf+";as=PartialObjectMetadata;g=meta.k8s.io;v=v1")
	_ = body
	_, body = r.get("/apis/example.com/v1/namespaces/shop/widgets/w?resourceVersion=0", wire.MediaProtobuf+";as=PartialObjectMetadata;g=meta.k8s.io;v=v1")
	checkPartial(t, body, metav1.ObjectMeta{Namespace: "shop", Name: "w", ResourceVersion: "7", UID: "u"})
}

// TestResourceVersions: who gets what for which version, online and cut.
func TestResourceVersions(t *testing.T) {
	const list, one = "/api/v1/services", "/api/v1/namespaces/shop/services/till"
	for _, c := range []struct {
		name, path       string
		component, stale bool
		want             string
	}{
		{"component, no version", list, true, false, "200"},
		{"other, no version", list, false, false, "upstream"},
		{"other, no version, cut", list, false, true, "200"},
		{"get without a version", one, true, false, "upstream"},
		{"get without a version, cut", one, true, true, "200"},
		{"get any", one + "?resourceVersion=0", false, false, "200"},
		{"list any", list + "?resourceVersion=0", false, false, "200"},
		{"older", list + "?resourceVersion=3", false, false, "200"},
		{"older, said so", list + "?resourceVersion=3&resourceVersionMatch=NotOlderThan", false, false, "200"},
		{"the very one", list + "?resourceVersion=20&resourceVersionMatch=Exact", false, false, "200"},
		{"unchanged since", list + "?resourceVersion=15&resourceVersionMatch=Exact", false, true, "200"},
		{"not there", list + "?resourceVersion=11&resourceVersionMatch=Exact", false, false, "upstream"},
		{"not there, cut", list + "?resourceVersion=11&resourceVersionMatch=Exact", false, true, "410 Expired"},
		{"not there, as of old", list + "?resourceVersion=11&limit=5", false, true, "410 Expired"},
		{"future", list + "?resourceVersion=99", true, false, "504 Timeout"},
		{"future, cut", list + "?resourceVersion=99", true, true, "410 Expired"},
		{"of an overlay that is over", list + "?resourceVersion=" + (replica.OverlayBase + 3).String(), true, false, "410 Expired"},
		{"no number", list + "?resourceVersion=x", true, false, "400 BadRequest"},
		{"a match without a version", list + "?resourceVersionMatch=Exact", true, false, "422 Invalid"},
		{"an unknown match", list + "?resourceVersion=1&resourceVersionMatch=Sometimes", true, false, "422 Invalid"},
		{"initial events of a list", list + "?sendInitialEvents=true", true, false, "422 Invalid"},
		{"initial events without a match", list + "?watch=1&sendInitialEvents=true", true, false, "422 Invalid"},
		{"a bad limit", list + "?limit=many", true, false, "400 BadRequest"},
		{"a negative limit", list + "?limit=-1", true, false, "400 BadRequest"},
		{"a token and a version", list + "?limit=1&continue=x&resourceVersion=5", true, false, "400 BadRequest"},
		{"an apiserver's token", list + "?limit=1&continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJhIn0", false, false, "upstream"},
		{"an apiserver's token, cut", list + "?limit=1&continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJhIn0", false, true, "410 Expired"},
		{"another list's token", list + "?limit=1&continue=" + token{Version: 20, Collection: ownPods.String(), Name: "a"}.String(), true, false, "400 BadRequest"},
		{"a token of pages no longer held", list + "?limit=1&continue=" + token{Version: 20, Collection: services.String(), Name: "a"}.String(), true, false, "410 Expired"},
		{"not mirrored", "/api/v1/secrets", true, false, "upstream"},
		{"all pods", "/api/v1/pods?resourceVersion=0", true, false, "upstream"},
		{"own pods, not complete", "/api/v1/pods?resourceVersion=0&fieldSelector=spec.nodeName%3Dn1", true, true, "503 ServiceUnavailable"},
		{"own pod, not complete", "/api/v1/namespaces/shop/pods/p?resourceVersion=0", true, true, "503 ServiceUnavailable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			clk := testingclock.NewFakeClock(time.Now())
			r := newRig(t, clk)
			// Added one after the other: the last change was 12, the collection is at 20.
			r.load(4)
			all := shop()
			for _, i := range []int{0, 3, 1, 2} {
				r.publish(nil, all[i])
			}
			if err := r.cache.Advance(services, 20); err != nil {
				t.Fatal(err)
			}
			r.cache.Open(ownPods, podKind)
			r.component.Store(c.component)
			r.stale.Store(c.stale)
			done := make(chan struct{})
			defer close(done)
			go func() { // whoever waits has waited
				for {
					select {
					case <-done:
						return
					case <-time.After(time.Millisecond):
						clk.Step(versionPatience)
					}
				}
			}()
			if got := r.status(c.path); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// TestWaits: what is not there yet is waited for.
func TestWaits(t *testing.T) {
	r := newRig(t, testingclock.NewFakeClock(time.Now()))
	got := make(chan string, 1)
	ask := func(path string) { go func() { got <- r.status(path) }() }
	answer := func() string {
		select {
		case s := <-got:
			return s
		case <-time.After(patience):
			t.Fatal("no answer")
			return ""
		}
	}
	ask("/api/v1/services")
	r.load(20, objects(shop())...)
	if s := answer(); s != "200" {
		t.Errorf("a collection that becomes complete: %s", s)
	}
	ask("/api/v1/services?resourceVersion=30")
	if err := r.cache.Advance(services, 31); err != nil {
		t.Fatal(err)
	}
	if s := answer(); s != "200" {
		t.Errorf("a version that comes: %s", s)
	}
}

// TestPages: client-go's pager sees one state however much changes meanwhile.
func TestPages(t *testing.T) {
	clk := testingclock.NewFakeClock(time.Now())
	r := newRig(t, clk)
	var all []*corev1.Service
	for i := range 25 {
		all = append(all, service(fmt.Sprintf("ns%d", i%3), fmt.Sprintf("s%02d", i), "10.0.0.1", 5, map[string]string{"odd": fmt.Sprint(i % 2)}))
	}
	r.load(50, objects(all)...)
	version := replica.Version(50)
	for _, media := range []string{wire.MediaJSON, wire.MediaProtobuf} {
		for _, selector := range []string{"", "odd=1"} {
			client := r.client(media).CoreV1().Services("")
			whole, err := client.List(t.Context(), metav1.ListOptions{LabelSelector: selector})
			if err != nil {
				t.Fatal(err)
			}
			began := version
			pages := 0
			p := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				list, err := client.List(ctx, o)
				if err != nil {
					return nil, err
				}
				pages++
				if rest := list.RemainingItemCount; list.Continue != "" && selector == "" {
					if rest == nil || int(*rest) != len(whole.Items)-4*pages {
						t.Errorf("page %d: remaining %v", pages, rest)
					}
				} else if rest != nil {
					t.Errorf("page %d of a selection, or the last, counts what remains: %d", pages, *rest)
				}
				version++
				r.publish(nil, service("ns1", fmt.Sprintf("new-%s", version), "10.0.0.1", version, map[string]string{"odd": "1"}))
				return list, nil
			})
			p.PageSize, p.FullListIfExpired = 4, false
			got, _, err := p.List(t.Context(), metav1.ListOptions{LabelSelector: selector})
			if err != nil {
				t.Fatal(err)
			}
			list := got.(*internalversion.List)
			if list.ResourceVersion != began.String() || len(list.Items) != len(whole.Items) {
				t.Errorf("%s %q: %d items at %s, want %d at %s", media, selector, len(list.Items), list.ResourceVersion, len(whole.Items), began)
			}
			if want := (len(whole.Items) + 3) / 4; pages != want {
				t.Errorf("%d pages, want %d", pages, want)
			}
		}
	}
	first, err := r.client(wire.MediaJSON).CoreV1().Services("").List(t.Context(), metav1.ListOptions{Limit: 4})
	if err != nil {
		t.Fatal(err)
	}
	clk.Step(heldFor + time.Second)
	if got := r.status("/api/v1/services?limit=4&continue=" + url.QueryEscape(first.Continue)); got != "410 Expired" {
		t.Errorf("a page that comes late: %s", got)
	}
	any, err := r.client(wire.MediaJSON).CoreV1().Services("").List(t.Context(), metav1.ListOptions{Limit: 4, ResourceVersion: "0"})
	if err != nil || any.Continue != "" || len(any.Items) < 25 {
		t.Errorf("a limit where any version will do: %d items, %v", len(any.Items), err)
	}
}

func FuzzQuery(f *testing.F) {
	for _, q := range []string{
		"labelSelector=a%3Db&fieldSelector=spec.clusterIP!%3DNone", "limit=1&resourceVersion=20&resourceVersionMatch=Exact",
		"continue=" + token{Version: 20, Collection: services.String(), Namespace: "shop", Name: "till"}.String() + "&limit=2",
		"resourceVersion=18446744073709551615", "timeoutSeconds=-1&watch=1", "limit=9223372036854775807", "sendInitialEvents=maybe",
	} {
		f.Add(q)
	}
	cache := replica.NewCache()
	cache.Open(services, serviceKind)
	var content replica.Content
	for _, s := range shop() {
		content.Objects = append(content.Objects, pb(f, s))
	}
	content.Version = 20
	if err := cache.Load(services, content); err != nil {
		f.Fatal(err)
	}
	clk := testingclock.NewFakeClock(time.Now())
	s := New(Options{Replica: cache, Clock: clk})
	f.Fuzz(func(t *testing.T, raw string) {
		query, err := url.ParseQuery(raw)
		if err != nil {
			return
		}
		// A version that never comes must not be waited for here.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		w := &recorder{header: http.Header{}}
		served := func() (ok bool) {
			defer func() {
				if p := recover(); p != nil {
					if p != http.ErrAbortHandler {
						panic(p)
					}
					ok = true
				}
			}()
			return s.Serve(ctx, w, Request{Verb: "list", Resource: services.Resource, Query: query, Component: true, Stale: true})
		}()
		if !served && w.code != 0 {
			t.Fatalf("answered %d, and said it had not", w.code)
		}
		if w.code != 200 {
			return
		}
		var list corev1.ServiceList
		if _, _, err := scheme.Codecs.UniversalDeserializer().Decode(w.body, nil, &list); err != nil {
			t.Fatalf("what was served is no list: %v", err)
		}
		for _, item := range list.Items {
			if item.Name == "" || item.ResourceVersion == "" {
				t.Fatalf("served %+v", item)
			}
		}
	})
}

type recorder struct {
	header http.Header
	code   int
	body   []byte
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(code int) {
	if r.code == 0 {
		r.code = code
	}
}
func (r *recorder) Write(b []byte) (int, error) {
	r.WriteHeader(200)
	r.body = append(r.body, b...)
	return len(b), nil
}

func FuzzToken(f *testing.F) {
	f.Add(token{Version: 20, Collection: services.String(), Namespace: "shop", Name: "till"}.String())
	f.Add("eyJ2IjoiZWRnZS8xIn0")
	f.Add("%%")
	var list []*replica.Object
	for _, s := range shop() {
		list = append(list, pb(f, s))
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseToken(s)
		if err != nil {
			return
		}
		again, err := parseToken(got.String())
		if err != nil || again != got {
			t.Fatalf("%+v became %+v: %v", got, again, err)
		}
		for _, o := range got.after(list) {
			if replica.Compare(o, &replica.Object{Namespace: got.Namespace, Name: got.Name}) <= 0 {
				t.Fatalf("%s/%s follows %+v", o.Namespace, o.Name, got)
			}
		}
	})
}
