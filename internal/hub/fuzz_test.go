package hub

import (
	"bytes"
	"encoding/json"
	"io"
	"net/url"
	"strings"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// sample is an apiserver's watch stream with everything that occurs in one.
func sample(media string) []byte {
	f := &fakeAPI{}
	slice := func(name, version string) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{
			TypeMeta:   metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, ResourceVersion: version, Annotations: map[string]string{"a": "b"}},
		}
	}
	var b []byte
	for _, e := range []struct {
		kind   string
		object runtime.Object
	}{
		{"ADDED", slice("a", "1")},
		{"ADDED", slice("kubernetes", "2")},
		{"BOOKMARK", bookmark(2, true)},
		{"MODIFIED", slice("kubernetes", "3")},
		{"DELETED", slice("a", "4")},
		{"BOOKMARK", bookmark(5, false)},
		{"ERROR", &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Code: 410}},
	} {
		b = append(b, f.frame(media, e.kind, e.object)...)
	}
	return b
}

// fuzzWatch: no stream makes the rewriter panic, and what it emits is a stream
// of whole events it understands itself, none about the stored slice.
func fuzzWatch(f *testing.F, protobuf bool) {
	e := codec.Encoding{Protobuf: protobuf}
	whole := sample(e.Media())
	f.Add(whole, byte(injectLast))
	f.Add(whole, byte(injectFirst))
	f.Add(whole[:len(whole)-3], byte(injectNever))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1}, byte(0))
	f.Add([]byte(`{"type":"ADDED","object":null}{"type":"ADDED"}`), byte(2))
	f.Fuzz(func(t *testing.T, stream []byte, inject byte) {
		wr := watchRewriter{
			synthetic: newSyntheticSlice(wantEndpoint), encoding: e,
			inject: injection(inject % 3), matches: inject < 128, firstVersion: "1",
		}
		var out bytes.Buffer
		_ = wr.run(bytes.NewReader(stream), func(b []byte) error {
			out.Write(b)
			return nil
		})
		frames := codec.NewWatchCodec(e, &out)
		for {
			frame, err := frames.Read()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatalf("emitted a broken stream: %v", err)
			}
			event, err := frames.Parse(frame)
			if err != nil {
				t.Fatalf("emitted an event that is none: %v", err)
			}
			if event.Kind != "ERROR" && isKubernetes(event.Meta) && !bytes.Contains(frame, []byte(sliceManager)) {
				t.Fatalf("a stored default/kubernetes passed: %q", frame)
			}
		}
	})
}

func FuzzWatchProtobuf(f *testing.F) { fuzzWatch(f, true) }
func FuzzWatchJSON(f *testing.F)     { fuzzWatch(f, false) }

func FuzzRewriteList(f *testing.F) {
	api := &fakeAPI{}
	list := &discoveryv1.EndpointSliceList{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSliceList"},
		ListMeta: metav1.ListMeta{ResourceVersion: "7"},
		Items: []discoveryv1.EndpointSlice{
			{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"}},
			{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}},
		},
	}
	f.Add(api.encode(wire.MediaProtobuf, list), true)
	f.Add(api.encode(wire.MediaJSON, list), false)
	f.Add([]byte("k8s\x00"), true)
	f.Add([]byte(`{"kind":"List","metadata":{},"items":[{}]}`), false)
	f.Fuzz(func(t *testing.T, body []byte, protobuf bool) {
		e := codec.Encoding{Protobuf: protobuf}
		s := newSyntheticSlice(wantEndpoint)
		once, err := s.rewriteList(e, body, true)
		if err != nil {
			return
		}
		// What came out is a list with one default/kubernetes: rewriting it
		// again without adding takes exactly that one away.
		without, err := s.rewriteList(e, once, false)
		if err != nil {
			t.Fatalf("the rewritten list is none: %v", err)
		}
		again, err := s.rewriteList(e, without, false)
		if err != nil || !bytes.Equal(without, again) {
			t.Fatalf("taking it away twice differs: %v", err)
		}
		if bytes.Contains(without, []byte(sliceUID)) && !bytes.Contains(body, []byte(sliceUID)) {
			t.Fatal("the synthetic slice is still there")
		}
		if !protobuf && !json.Valid(once) {
			t.Fatal("not JSON")
		}
	})
}

func FuzzParseRequest(f *testing.F) {
	for _, s := range []string{
		"/api/v1/namespaces/default/pods/p/log?follow=true", "/apis/discovery.k8s.io/v1/endpointslices?watch=1",
		"/api/v1/namespaces/x", "/api/v1/namespaces/x/status", "/api/v1/watch/pods", "/version", "/", "/api", "/api/v1/../x", "/a?%zz",
	} {
		f.Add("GET", s)
	}
	f.Add("DELETE", "/api/v1/nodes/n")
	f.Add("BREW", "/api/v1/nodes/n")
	f.Fuzz(func(t *testing.T, method, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		r, err := parseRequest(method, u)
		if err != nil {
			return
		}
		if !strings.HasPrefix(r.path, "/") || strings.Contains(r.path, "//") || strings.Contains(r.path+"/", "/../") {
			t.Fatalf("accepted the path %q", r.path)
		}
		if r.isResource() != (r.verb != "") {
			t.Fatalf("resource %q with verb %q", r.resource, r.verb)
		}
		// What is sent upstream is read there as what was authorized here.
		sent := &url.URL{Scheme: "https", Host: "h", Path: r.path, RawQuery: r.query.Encode()}
		back, err := url.Parse(sent.String())
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseRequest(method, back)
		if err != nil || again.path != r.path || again.resourceName() != r.resourceName() || again.verb != r.verb || again.namespace != r.namespace || again.name != r.name {
			t.Fatalf("%q became %q: %v", target, sent, err)
		}
		for _, c := range []Caller{CallerKubeProxy, CallerCoreDNS, CallerNode, CallerAdmin} {
			if _, err := authorize(c, r); err == nil && r.isResource() && !r.reads() && r.verb != "create" && r.verb != "patch" {
				t.Fatalf("%s may %s", c, r.verb)
			}
		}
	})
}

func FuzzNegotiate(f *testing.F) {
	f.Add(kubectlAccept, true)
	f.Add("application/vnd.kubernetes.protobuf;q=0.3,*/*", false)
	f.Fuzz(func(t *testing.T, accept string, list bool) {
		e, ok := codec.Negotiate(accept, list)
		if again, ok2 := codec.Negotiate(e.Accept(list), list); ok && (!ok2 || again != e) {
			t.Fatalf("%q: chose %q, which is not acceptable to itself", accept, e.Accept(list))
		}
	})
}
