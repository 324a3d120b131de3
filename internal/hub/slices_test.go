package hub

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

const slicesURL = "/apis/discovery.k8s.io/v1/endpointslices"

// wantSlice is the synthetic slice as clients must see it.
func wantSlice(version string) discoveryv1.EndpointSlice {
	return discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "kubernetes", UID: sliceUID, ResourceVersion: version,
			Labels: map[string]string{
				"kubernetes.io/service-name":             "kubernetes",
				"endpointslice.kubernetes.io/managed-by": "edge-hub",
			},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"169.254.20.11"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}},
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("https"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To(int32(443))}},
	}
}

func names(items []discoveryv1.EndpointSlice) []string {
	var out []string
	for _, i := range items {
		out = append(out, i.Namespace+"/"+i.Name)
	}
	slices.Sort(out)
	return out
}

// fill stores two slices and, of three, one default/kubernetes as an endpoint
// reconciler would.
func fill(f *fakeAPI, real bool) {
	f.put("default", "a", map[string]string{"app": "a"}, "10.0.0.1")
	if real {
		f.put("default", "kubernetes", map[string]string{"kubernetes.io/service-name": "kubernetes"}, "192.0.2.1")
	}
	f.put("shop", "b", map[string]string{"app": "b"}, "10.0.0.2")
}

func TestListSlices(t *testing.T) {
	for _, media := range []string{wire.MediaJSON, wire.MediaProtobuf} {
		for _, real := range []bool{false, true} {
			r := newRig(t, nil)
			fill(r.api, real)
			client, err := kubernetes.NewForConfig(r.restConfig(CallerKubeProxy, media))
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				name      string
				namespace string
				options   metav1.ListOptions
				want      []string
			}{
				{"everywhere", "", metav1.ListOptions{}, []string{"default/a", "default/kubernetes", "shop/b"}},
				{"from the cache", "", metav1.ListOptions{ResourceVersion: "0"}, []string{"default/a", "default/kubernetes", "shop/b"}},
				{"default", "default", metav1.ListOptions{}, []string{"default/a", "default/kubernetes"}},
				{"another namespace", "shop", metav1.ListOptions{}, []string{"shop/b"}},
				{"kube-proxy's selector", "", metav1.ListOptions{LabelSelector: "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name"}, []string{"default/a", "default/kubernetes", "shop/b"}},
				{"another label", "", metav1.ListOptions{LabelSelector: "app=a"}, []string{"default/a"}},
				{"its service", "", metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=kubernetes"}, []string{"default/kubernetes"}},
				{"its name", "", metav1.ListOptions{FieldSelector: "metadata.name=kubernetes"}, []string{"default/kubernetes"}},
				{"another name", "", metav1.ListOptions{FieldSelector: "metadata.name=a"}, []string{"default/a"}},
				{"another namespace by field", "", metav1.ListOptions{FieldSelector: "metadata.namespace=shop"}, []string{"shop/b"}},
			} {
				list, err := client.DiscoveryV1().EndpointSlices(c.namespace).List(t.Context(), c.options)
				if err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
				if d := cmp.Diff(c.want, names(list.Items)); d != "" {
					t.Errorf("%s, %s, real %v: %s", media, c.name, real, d)
				}
				for _, item := range list.Items {
					switch item.Name {
					case "kubernetes":
						if d := cmp.Diff(wantSlice(list.ResourceVersion), item); d != "" {
							t.Errorf("%s, %s: %s", media, c.name, d)
						}
					default:
						if item.Annotations["note"] != "<a&b>" || len(item.Endpoints) != 1 {
							t.Errorf("%s, %s: %s is damaged: %v", media, c.name, item.Name, item)
						}
					}
				}
			}
			got, err := client.DiscoveryV1().EndpointSlices("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(wantSlice(got.ResourceVersion), *got); d != "" || got.ResourceVersion == "" {
				t.Errorf("get by name: %s", d)
			}
			if _, err := client.DiscoveryV1().EndpointSlices("").List(t.Context(), metav1.ListOptions{LabelSelector: "a=("}); err == nil {
				t.Error("a broken selector is accepted")
			}
		}
	}
}

// TestListInPages: the slice is on the first page, whatever the real one's place.
func TestListInPages(t *testing.T) {
	r := newRig(t, nil)
	fill(r.api, true)
	client, err := kubernetes.NewForConfig(r.restConfig(CallerCoreDNS, wire.MediaProtobuf))
	if err != nil {
		t.Fatal(err)
	}
	var pages [][]string
	o := metav1.ListOptions{Limit: 1}
	for {
		list, err := client.DiscoveryV1().EndpointSlices("").List(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, names(list.Items))
		if o.Continue = list.Continue; o.Continue == "" {
			break
		}
	}
	if d := cmp.Diff([][]string{{"default/a", "default/kubernetes"}, nil, {"shop/b"}}, pages); d != "" {
		t.Error(d)
	}
}

func TestMetadataOnly(t *testing.T) {
	for _, media := range []string{wire.MediaJSON, wire.MediaProtobuf} {
		r := newRig(t, nil)
		fill(r.api, true)
		// The metadata client asks for protobuf by itself.
		transport := r.caller(CallerKubeProxy)
		if media == wire.MediaJSON {
			transport.Transport = acceptJSON{transport.Transport}
		}
		client, err := metadata.NewForConfigAndClient(r.restConfig(CallerKubeProxy, ""), transport)
		if err != nil {
			t.Fatal(err)
		}
		resource := client.Resource(discoveryv1.SchemeGroupVersion.WithResource("endpointslices"))
		list, err := resource.List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range list.Items {
			got = append(got, i.Namespace+"/"+i.Name)
			if i.Name == "kubernetes" && i.Labels["endpointslice.kubernetes.io/managed-by"] != "edge-hub" {
				t.Errorf("%s: labels %v", media, i.Labels)
			}
		}
		slices.Sort(got)
		if d := cmp.Diff([]string{"default/a", "default/kubernetes", "shop/b"}, got); d != "" {
			t.Errorf("%s: %s", media, d)
		}
		one, err := resource.Namespace("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err != nil || one.Name != "kubernetes" || one.ResourceVersion == "" {
			t.Errorf("%s: get: %v, %v", media, one, err)
		}
		w, err := resource.Watch(t.Context(), metav1.ListOptions{
			SendInitialEvents: ptr.To(true), AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
		})
		if err != nil {
			t.Fatal(err)
		}
		var events []string
		for e := range w.ResultChan() {
			o, ok := e.Object.(*metav1.PartialObjectMetadata)
			if !ok {
				t.Fatalf("%s: got a %T", media, e.Object)
			}
			events = append(events, string(e.Type)+" "+o.Name+" "+o.ResourceVersion)
			if e.Type == "BOOKMARK" {
				break
			}
		}
		w.Stop()
		if d := cmp.Diff([]string{"ADDED a 101", "ADDED b 103", "ADDED kubernetes 103", "BOOKMARK  103"}, events); d != "" {
			t.Errorf("%s: %s", media, d)
		}
	}
}

// acceptJSON leaves only JSON in a client's Accept header.
type acceptJSON struct{ next http.RoundTripper }

func (a acceptJSON) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	var kept []string
	for part := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
		if strings.HasPrefix(strings.TrimSpace(part), wire.MediaJSON) {
			kept = append(kept, part)
		}
	}
	r.Header.Set("Accept", strings.Join(kept, ","))
	return a.next.RoundTrip(r)
}

// kubectlAccept is what kubectl get sends.
const kubectlAccept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"

// TestTables: kubectl online is told of slices as of all else, the synthetic one
// among them.
func TestTables(t *testing.T) {
	r := newRig(t, nil)
	fill(r.api, false)
	admin := r.caller(CallerAdmin)
	read := func(url string) (*http.Response, metav1.Table) {
		t.Helper()
		resp, body := r.do(admin, "GET", url, nil, http.Header{"Accept": {kubectlAccept}, "Accept-Encoding": {"gzip"}})
		var table metav1.Table
		if err := json.Unmarshal([]byte(body), &table); err != nil || resp.StatusCode != 200 || table.Kind != "Table" || table.APIVersion != "meta.k8s.io/v1" {
			t.Fatalf("%s: %s %v %s", url, resp.Status, err, body)
		}
		return resp, table
	}
	resp, list := read(slicesURL + "?limit=500")
	if d := cmp.Diff([]string{"default/a 10.0.0.1", "default/kubernetes 169.254.20.11", "shop/b 10.0.0.2"}, sliceRowsOf(t, list)); d != "" {
		t.Error(d)
	}
	if resp.Header.Get("Audit-Id") != "list" || resp.Header.Get("Content-Type") != wire.MediaJSON || list.ResourceVersion == "" || len(list.ColumnDefinitions) != 5 {
		t.Errorf("headers: %v, version %q, columns %v", resp.Header, list.ResourceVersion, list.ColumnDefinitions)
	}
	_, one := read("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes")
	if d := cmp.Diff([]string{"default/kubernetes 169.254.20.11"}, sliceRowsOf(t, one)); d != "" || one.ResourceVersion == "" {
		t.Errorf("get at %q: %s", one.ResourceVersion, d)
	}
	resp, body := r.do(admin, "GET", slicesURL+"?includeObject=All", nil, http.Header{"Accept": {kubectlAccept}})
	if s := statusOf(t, resp, body); s.Code != 400 {
		t.Errorf("includeObject=All: %d", s.Code)
	}
	for _, accept := range []string{"application/json;as=Table;v=v1beta1;g=meta.k8s.io", "application/yaml", "application/cbor"} {
		resp, body := r.do(admin, "GET", slicesURL, nil, http.Header{"Accept": {accept}})
		if s := statusOf(t, resp, body); s.Code != 406 {
			t.Errorf("%s: %d", accept, s.Code)
		}
	}
}

// sliceRowsOf names the slices of a table and their endpoints.
func sliceRowsOf(t *testing.T, table metav1.Table) []string {
	t.Helper()
	var out []string
	for _, row := range table.Rows {
		var o metav1.PartialObjectMetadata
		if err := json.Unmarshal(row.Object.Raw, &o); err != nil || o.Kind != "PartialObjectMetadata" || o.Name != row.Cells[0] {
			t.Errorf("%v: %v", row, err)
		}
		out = append(out, fmt.Sprintf("%s/%s %v", o.Namespace, o.Name, row.Cells[3]))
	}
	slices.Sort(out)
	return out
}

// TestTablesOfAWatch: each event is the table of one slice, and the first names the
// columns.
func TestTablesOfAWatch(t *testing.T) {
	r := newRig(t, nil)
	fill(r.api, true)
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
		"https://"+r.address+slicesURL+"?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Accept", kubectlAccept)
	response, err := r.caller(CallerAdmin).Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if ct := response.Header.Get("Content-Type"); ct != wire.MediaJSON {
		t.Errorf("Content-Type %q", ct)
	}
	var got []string
	for events := json.NewDecoder(response.Body); len(got) < 4; {
		var event struct {
			Type   string
			Object metav1.Table
		}
		if err := events.Decode(&event); err != nil {
			t.Fatal(err)
		}
		if len(event.Object.Rows) != 1 || (len(event.Object.ColumnDefinitions) > 0) != (len(got) == 0) || event.Object.ResourceVersion == "" {
			t.Errorf("event %d: %+v", len(got), event)
		}
		got = append(got, fmt.Sprint(event.Type, " ", event.Object.Rows[0].Cells[0]))
	}
	if d := cmp.Diff([]string{"ADDED a", "ADDED b", "ADDED kubernetes", "BOOKMARK "}, got); d != "" {
		t.Error(d)
	}
}

func TestNegotiate(t *testing.T) {
	for _, c := range []struct {
		accept string
		list   bool
		want   string
	}{
		{"", true, wire.MediaJSON},
		{"*/*", true, wire.MediaJSON},
		{kubectlAccept, true, wire.MediaJSON + ";as=Table;g=meta.k8s.io;v=v1"},
		{"application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", true, wire.MediaJSON},
		{"application/json;as=Table;v=v1;g=meta.k8s.io;q=0.5,application/json", false, wire.MediaJSON},
		{"application/json;as=Table;v=v1", false, ""},
		{"application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", false, ""},
		{"application/vnd.kubernetes.protobuf", true, wire.MediaProtobuf},
		{"application/vnd.kubernetes.protobuf,application/json", false, wire.MediaProtobuf},
		{"application/cbor, application/json", false, wire.MediaJSON},
		{"application/json;q=0.5, application/vnd.kubernetes.protobuf", false, wire.MediaProtobuf},
		{"application/json;stream=watch", false, wire.MediaJSON},
		{"application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json", true, wire.MediaProtobuf + ";as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"},
		{"application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json", false, wire.MediaProtobuf + ";as=PartialObjectMetadata;g=meta.k8s.io;v=v1"},
		{"application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1beta1,application/json", false, wire.MediaJSON},
		{"application/json;q=0", false, ""},
		{"text/html", false, ""},
		{";;;", false, ""},
	} {
		e, ok := codec.Negotiate(c.accept, c.list)
		got := ""
		if ok {
			got = e.Accept(c.list)
		}
		if got != c.want {
			t.Errorf("negotiate(%q, %v) = %q, want %q", c.accept, c.list, got, c.want)
		}
	}
}

func TestInjectionFor(t *testing.T) {
	for query, want := range map[string]injection{
		"watch=1":                                                 injectFirst,
		"watch=1&resourceVersion=":                                injectFirst,
		"watch=1&resourceVersion=0":                               injectFirst,
		"watch=1&resourceVersion=00":                              injectFirst,
		"watch=1&resourceVersion=7":                               injectNever,
		"watch=1&resourceVersion=junk":                            injectNever,
		"watch=1&sendInitialEvents=true&allowWatchBookmarks=true": injectLast,
		"watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersion=70": injectLast,
		"watch=1&sendInitialEvents=true":                                             injectFirst,
		"watch=1&sendInitialEvents=false&allowWatchBookmarks=true":                   injectNever,
		"watch=1&sendInitialEvents=0":                                                injectNever,
	} {
		u, err := url.Parse(slicesURL + "?" + query)
		if err != nil {
			t.Fatal(err)
		}
		r, err := parseRequest("GET", u)
		if err != nil || r.verb != "watch" {
			t.Fatalf("%s: %q %v", query, r.verb, err)
		}
		if got := injectionFor(r); got != want {
			t.Errorf("%s: %v, want %v", query, got, want)
		}
	}
}

// TestWatchFromNothing: without a resourceVersion the slice comes first, at a
// version from before the watch.
func TestWatchFromNothing(t *testing.T) {
	for _, media := range []string{wire.MediaJSON, wire.MediaProtobuf} {
		for _, version := range []string{"", "0"} {
			r := newRig(t, nil)
			fill(r.api, true)
			client, err := kubernetes.NewForConfig(r.restConfig(CallerCoreDNS, media))
			if err != nil {
				t.Fatal(err)
			}
			w, err := client.DiscoveryV1().EndpointSlices("").Watch(t.Context(), metav1.ListOptions{ResourceVersion: version})
			if err != nil {
				t.Fatal(err)
			}
			// The stored one's initial event is older than what was sent and is
			// left out; a later one is not.
			var events []string
			for e := range w.ResultChan() {
				s := e.Object.(*discoveryv1.EndpointSlice)
				events = append(events, string(e.Type)+" "+s.Name+" "+s.Endpoints[0].Addresses[0]+" "+s.ResourceVersion)
				if len(events) == 3 {
					r.api.put("default", "kubernetes", nil, "192.0.2.7")
				}
				if len(events) == 4 {
					break
				}
			}
			w.Stop()
			want := []string{
				"ADDED kubernetes 169.254.20.11 103", "ADDED a 10.0.0.1 101", "ADDED b 10.0.0.2 103",
				"MODIFIED kubernetes 169.254.20.11 104",
			}
			if d := cmp.Diff(want, events); d != "" {
				t.Errorf("%s, version %q: %s", media, version, d)
			}
		}
	}
}

// TestStoredKubernetesChanges: whatever happens to a stored default/kubernetes,
// watchers hold the synthetic one, and only those whose selectors show it hear
// of it.
func TestStoredKubernetesChanges(t *testing.T) {
	r := newRig(t, nil)
	client, err := kubernetes.NewForConfig(r.restConfig(CallerCoreDNS, wire.MediaProtobuf))
	if err != nil {
		t.Fatal(err)
	}
	all, err := client.DiscoveryV1().EndpointSlices("").Watch(t.Context(), metav1.ListOptions{ResourceVersion: "100"})
	if err != nil {
		t.Fatal(err)
	}
	defer all.Stop()
	some, err := client.DiscoveryV1().EndpointSlices("").Watch(t.Context(), metav1.ListOptions{ResourceVersion: "100", LabelSelector: "app"})
	if err != nil {
		t.Fatal(err)
	}
	defer some.Stop()
	r.api.put("default", "kubernetes", map[string]string{"app": "x"}, "192.0.2.1")
	r.api.put("default", "kubernetes", map[string]string{"app": "x"}, "192.0.2.2")
	r.api.remove("default", "kubernetes")
	r.api.put("shop", "b", map[string]string{"app": "b"}, "10.0.0.2")
	for _, version := range []string{"101", "102", "103"} {
		e := <-all.ResultChan()
		if d := cmp.Diff(wantSlice(version), *e.Object.(*discoveryv1.EndpointSlice)); d != "" || e.Type != "MODIFIED" {
			t.Errorf("%s: %s", e.Type, d)
		}
	}
	if e := <-all.ResultChan(); e.Object.(*discoveryv1.EndpointSlice).Name != "b" {
		t.Errorf("got %v", e)
	}
	if e := <-some.ResultChan(); e.Object.(*discoveryv1.EndpointSlice).Name != "b" {
		t.Errorf("a watch whose selector leaves the slice out got %v", e)
	}
}

// TestBadAnswers: what cannot be rewritten is an error, never half a list.
func TestBadAnswers(t *testing.T) {
	answer := func(contentType, encoding, body string, cutOff bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", contentType)
			if encoding != "" {
				w.Header().Set("Content-Encoding", encoding)
			}
			io.WriteString(w, body)
			if cutOff {
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
		}
	}
	good := `{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","metadata":{"resourceVersion":"1"},"items":[]}`
	for _, c := range []struct {
		name string
		h    http.HandlerFunc
		code int32
	}{
		{"another type", answer("text/html", "", "<html>", false), 500},
		{"compressed", answer(wire.MediaJSON, "gzip", good, false), 500},
		{"not JSON", answer(wire.MediaJSON, "", "{", false), 500},
		{"not a list", answer(wire.MediaJSON, "", `{"kind":"Table","metadata":{}}`, false), 500},
		{"an item that is no object", answer(wire.MediaJSON, "", strings.Replace(good, "[]", "[7]", 1), false), 500},
		{"cut off", answer(wire.MediaJSON, "", good, true), 503},
	} {
		r := newRig(t, nil)
		r.api.setRefuse(c.h)
		resp, body := r.do(r.caller(CallerAdmin), "GET", slicesURL, nil, nil)
		if s := statusOf(t, resp, body); s.Code != c.code {
			t.Errorf("%s: %d, want %d", c.name, s.Code, c.code)
		}
	}
	// An apiserver's own refusal is passed on as it is.
	r := newRig(t, nil)
	r.api.setRefuse(func(w http.ResponseWriter, _ *http.Request) {
		codec.WriteStatus(w, newStatus(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden"))
	})
	resp, body := r.do(r.caller(CallerAdmin), "GET", slicesURL+"?watch=1&sendInitialEvents=true&allowWatchBookmarks=true", nil, nil)
	if s := statusOf(t, resp, body); s.Code != 422 || s.Message != "sendInitialEvents is forbidden" {
		t.Errorf("a refusal: %v", s)
	}
	// A watch that breaks off in the middle of an event must not look ended.
	r = newRig(t, nil)
	r.api.setRefuse(answer(wire.MediaJSON, "", `{"type":"ADDED","object":{"metadata":{`, false))
	watch, err := r.caller(CallerAdmin).Get(r.url(slicesURL + "?watch=1&resourceVersion=5"))
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Body.Close()
	if b, err := io.ReadAll(watch.Body); err == nil || len(b) != 0 {
		t.Errorf("a broken watch: %q, %v", b, err)
	}
}

// TestKeepsItems: bytes of other items are untouched, unknown fields included.
func TestKeepsItems(t *testing.T) {
	s := newSyntheticSlice(wantEndpoint)
	in := `{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","metadata":{"resourceVersion":"9","new":1},` +
		`"items":[{"metadata":{"name":"a","namespace":"default"},"future":"<&>"},{"metadata":{"name":"kubernetes","namespace":"default"}}]}`
	out, err := s.rewriteList(codec.Encoding{}, []byte(in), false)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(in, `,{"metadata":{"name":"kubernetes","namespace":"default"}}`, "", 1)
	if d := cmp.Diff(want, string(bytes.TrimSpace(out))); d != "" {
		t.Error(d)
	}
}
