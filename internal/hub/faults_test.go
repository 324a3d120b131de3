package hub

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/edgewright/terraform-provider-edge/internal/hub/mirror"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// idleHub has opened its replica in a directory, and is not served.
func idleHub(t *testing.T, dir string) *Hub {
	t.Helper()
	local, cluster := newAuthority(t, "local"), newAuthority(t, "cluster")
	pair := func(c *tls.Certificate) func() (*tls.Certificate, error) {
		return func() (*tls.Certificate, error) { return c, nil }
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	serving, end := local.server("localhost"), time.Now().Add(365*24*time.Hour)
	h, err := New(Config{
		NodeName: "n1", Listener: listener, ServingCertificate: pair(serving), LocalCA: local.pool(),
		DialUpstream: func(context.Context) (net.Conn, error) { return nil, errors.New("there is no apiserver") },
		UpstreamCA:   cluster.pool(), UpstreamServerName: "localhost",
		NodeCertificate: pair(cluster.client("system:node:n1", end)), HubCertificate: pair(cluster.client("edge:hub:n1", end)),
		KubernetesEndpoint: netip.MustParseAddrPort("169.254.20.11:443"),
		DataDir:            dir, RootCA: "x", PodCertificate: pair(serving), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.data.store.Close() }) // a test may have taken its disk away
	return h
}

// faultsOf are a hub's, a line each.
func faultsOf(h *Hub) string {
	var out []string
	for _, f := range h.Faults() {
		out = append(out, f.Reason+": "+f.Message)
	}
	return strings.Join(out, "\n")
}

// emptyAPI is an apiserver of a cluster without objects, which refuses what is about
// a resource; "": nothing.
type emptyAPI struct {
	mu      sync.Mutex // guards what follows
	refused string
	watches []*io.PipeWriter
}

// refuse has watches end, and their like refused from now on.
func (a *emptyAPI) refuse(resource string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refused = resource
	for _, w := range a.watches {
		w.Close()
	}
	a.watches = nil
}

func (a *emptyAPI) RoundTrip(r *http.Request) (*http.Response, error) {
	answer := func(code int, media string, body io.ReadCloser) (*http.Response, error) {
		return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {media}}, Body: body}, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refused != "" && strings.Contains(r.URL.Path, a.refused) {
		status := `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"` + a.refused + ` is forbidden"}`
		return answer(http.StatusForbidden, wire.MediaJSON, io.NopCloser(strings.NewReader(status)))
	}
	if r.URL.Query().Get("watch") == "" {
		list, err := (&corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: "7"}}).Marshal()
		if err != nil {
			return nil, err
		}
		envelope := wire.Envelope{APIVersion: "v1", Kind: "PodList", Message: list}.Append(nil)
		return answer(http.StatusOK, wire.MediaProtobuf, io.NopCloser(strings.NewReader(string(envelope))))
	}
	pipe, w := io.Pipe()
	a.watches = append(a.watches, w)
	context.AfterFunc(r.Context(), func() { w.CloseWithError(context.Cause(r.Context())) })
	if r.URL.Query().Get("sendInitialEvents") != "" {
		end, err := (&corev1.Pod{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "7", Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}}).Marshal()
		if err != nil {
			return nil, err
		}
		event, err := wire.AppendEvent(wire.MediaProtobuf, nil, wire.Event{
			Type: "BOOKMARK", Object: wire.Envelope{APIVersion: "v1", Kind: "Pod", Message: end}.Append(nil),
		})
		if err != nil {
			return nil, err
		}
		go func() { _, _ = w.Write(event) }() // a reader that is gone has seen enough
	}
	return answer(http.StatusOK, wire.MediaProtobuf+";stream=watch", pipe)
}

// TestFaultOfWhatGrowsOld: a collection that is whole and no longer followed, though
// the link is there, is a fault after two minutes, in words that stay the same.
func TestFaultOfWhatGrowsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := idleHub(t, t.TempDir())
		api := &emptyAPI{}
		m, err := mirror.New(mirror.Options{
			NodeName: "n1", Host: "localhost", Store: h.data.store, Logger: slog.New(slog.DiscardHandler),
			Upstreams: map[mirror.Identity]http.RoundTripper{mirror.NodeIdentity: api, mirror.HubIdentity: api},
		})
		if err != nil {
			t.Fatal(err)
		}
		h.data.mirror = m
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		defer func() {
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		after := func(d time.Duration) string {
			time.Sleep(d)
			synctest.Wait()
			return faultsOf(h)
		}
		if got := after(time.Second); !strings.HasPrefix(got, "CacheIncomplete: not read whole yet: ") {
			t.Errorf("before there was a link: %q", got)
		}
		m.SetLink(true, time.Now())
		if got := after(time.Minute); got != "" {
			t.Fatalf("at first: %q", got)
		}
		api.refuse("endpointslices")
		if got := after(2*time.Minute - time.Second); got != "" {
			t.Errorf("for less than two minutes: %q", got)
		}
		got := after(time.Minute)
		for _, part := range []string{"CacheIncomplete: ", " endpointslices.v1.discovery.k8s.io: ", "endpointslices is forbidden"} {
			if !strings.Contains(got, part) || strings.Contains(got, "\n") {
				t.Errorf("then: %q lacks %q", got, part)
			}
		}
		if later := after(time.Hour); later != got {
			t.Errorf("%q became %q", got, later)
		}
		api.refuse("")
		if got := after(time.Minute); got != "" {
			t.Errorf("mended: %q", got)
		}
	})
}
