package podnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// pools serves one NodePool as an apiserver serves a custom resource.
type pools struct {
	t testing.TB

	mu      sync.Mutex // guards what follows
	version int
	pool    *v1alpha1.NodePool
	events  []metav1.WatchEvent
	changed chan struct{}
	down    bool
	// legacy refuses streamed lists, as an apiserver before 1.34.
	legacy bool
}

func (p *pools) set(kind string, members ...v1alpha1.PoolMember) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.version++
	pool := &v1alpha1.NodePool{
		TypeMeta:   metav1.TypeMeta{APIVersion: "edgewright.dev/v1alpha1", Kind: "NodePool"},
		ObjectMeta: metav1.ObjectMeta{Name: "berlin", ResourceVersion: fmt.Sprint(p.version)},
		Spec:       v1alpha1.NodePoolSpec{Labels: map[string]string{"version": fmt.Sprint(p.version)}},
		Status:     v1alpha1.NodePoolStatus{Members: members},
	}
	if p.pool = pool; kind == "DELETED" {
		p.pool = nil
	}
	p.events = append(p.events, p.event(kind, pool))
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *pools) event(kind string, o any) metav1.WatchEvent {
	raw, err := json.Marshal(o)
	if err != nil {
		p.t.Error(err)
	}
	return metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Raw: raw}}
}

func (p *pools) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if r.URL.Path != "/apis/edgewright.dev/v1alpha1/nodepools" || q.Get("fieldSelector") != "metadata.name=berlin" {
		p.t.Errorf("asked for %s", r.URL)
	}
	p.mu.Lock()
	down, version, pool := p.down, p.version, p.pool
	sent := len(p.events)
	var changed chan struct{}
	legacy := p.legacy
	p.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	stream := q.Get("sendInitialEvents") == "true"
	switch {
	case down:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case stream && legacy:
		w.WriteHeader(http.StatusUnprocessableEntity)
		json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Code: 422, Reason: metav1.StatusReasonInvalid})
		return
	case q.Get("watch") == "":
		list := v1alpha1.NodePoolList{
			TypeMeta: metav1.TypeMeta{APIVersion: "edgewright.dev/v1alpha1", Kind: "NodePoolList"},
			ListMeta: metav1.ListMeta{ResourceVersion: fmt.Sprint(version)},
		}
		if pool != nil {
			list.Items = append(list.Items, *pool)
		}
		json.NewEncoder(w).Encode(list)
		return
	}
	send := func(e metav1.WatchEvent) {
		json.NewEncoder(w).Encode(e)
		w.(http.Flusher).Flush()
	}
	w.(http.Flusher).Flush()
	if stream {
		if pool != nil {
			send(p.event("ADDED", pool))
		}
		end := &v1alpha1.NodePool{TypeMeta: metav1.TypeMeta{APIVersion: "edgewright.dev/v1alpha1", Kind: "NodePool"}}
		end.ResourceVersion = fmt.Sprint(version)
		end.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
		send(p.event("BOOKMARK", end))
	} else {
		fmt.Sscan(q.Get("resourceVersion"), &sent) // versions count events
	}
	for {
		p.mu.Lock()
		changed = p.changed
		events := p.events[sent:]
		p.mu.Unlock()
		for _, e := range events {
			send(e)
		}
		sent += len(events)
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// TestWatch: members arrive when they change, none before the pool was read, and
// none when it is gone, by either list protocol.
func TestWatch(t *testing.T) {
	for _, legacy := range []bool{false, true} {
		t.Run(fmt.Sprintf("legacy=%v", legacy), func(t *testing.T) {
			p := &pools{t: t, changed: make(chan struct{}), legacy: legacy}
			p.set("ADDED", member("n1", "192.168.1.11", "10.42.1.0/24"))
			server := httptest.NewServer(p)
			defer server.Close()
			applied := make(chan []v1alpha1.PoolMember, 16)
			var specs []string // read once Watch has returned
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				done <- Watch(ctx, WatchOptions{
					Config: &rest.Config{Host: server.URL, QPS: -1}, Pool: "berlin", Resync: time.Hour,
					Apply:  func(m []v1alpha1.PoolMember) error { applied <- m; return nil },
					Spec:   func(s v1alpha1.NodePoolSpec) { specs = append(specs, s.Labels["version"]) },
					Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
				})
			}()
			next := func(want ...string) {
				t.Helper()
				select {
				case m := <-applied:
					var got []string
					for _, m := range m {
						got = append(got, m.Name)
					}
					if d := cmp.Diff(want, got); d != "" {
						t.Error(d)
					}
				case <-time.After(20 * time.Second):
					t.Fatalf("%v never arrived", want)
				}
			}
			next("n1")
			p.set("MODIFIED", member("n1", "192.168.1.11"), member("n2", "192.168.1.12"))
			next("n1", "n2")
			p.set("DELETED")
			next()
			p.set("ADDED", member("n3", "192.168.1.13"))
			next("n3")
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			// All but the third, in which the pool was deleted.
			if d := cmp.Diff([]string{"1", "2", "4"}, specs); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestFollow: the last members are applied again each Resync, sooner after a
// failure, and nothing before they are known.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		var calls []time.Duration
		start := time.Now()
		var fail atomic.Bool
		fail.Store(true)
		o := WatchOptions{
			Pool: "berlin", Resync: 10 * time.Second, Clock: clock.RealClock{},
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
			Apply: func(m []v1alpha1.PoolMember) error {
				calls = append(calls, time.Since(start))
				if fail.Load() {
					return errors.New("the link is down")
				}
				return nil
			},
		}
		changed := make(chan []v1alpha1.PoolMember, 1)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); follow(ctx, o, changed) }()
		time.Sleep(time.Minute) // the bubble's clock, not a wait
		synctest.Wait()
		if len(calls) != 0 {
			t.Errorf("applied %v before anything was known", calls)
		}
		changed <- nil
		time.Sleep(5 * time.Second)
		synctest.Wait()
		fail.Store(false)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		cancel()
		<-done
		want := []time.Duration{60, 62, 64, 66, 76}
		for i := range want {
			want[i] *= time.Second
		}
		if d := cmp.Diff(want, calls); d != "" {
			t.Error(d)
		}
		if n := strings.Count(log.String(), "the link is down"); n != 1 {
			t.Errorf("the trouble is told %d times", n)
		}
	})
}

// TestStoreKeepsTheLatest: what was not taken is replaced, not queued, and other
// pools mean nothing.
func TestStoreKeepsTheLatest(t *testing.T) {
	s := &poolStore{name: "berlin", changed: make(chan []v1alpha1.PoolMember, 1)}
	pool := func(name, m string) *v1alpha1.NodePool {
		return &v1alpha1.NodePool{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.NodePoolStatus{Members: []v1alpha1.PoolMember{{Name: m}}}}
	}
	for _, err := range []error{
		s.Add(pool("berlin", "a")), s.Update(pool("berlin", "b")), s.Update(pool("tokyo", "c")), s.Delete(pool("tokyo", "c")),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if m := <-s.changed; len(m) != 1 || m[0].Name != "b" {
		t.Errorf("got %v", m)
	}
	if err := s.Replace([]any{pool("tokyo", "c")}, "1"); err != nil {
		t.Error(err)
	}
	if m := <-s.changed; m != nil {
		t.Errorf("got %v", m)
	}
	if err := s.Add("x"); err == nil {
		t.Error("a string is accepted")
	}
}

func TestWatchNeedsOptions(t *testing.T) {
	if err := Watch(t.Context(), WatchOptions{}); err == nil {
		t.Error("Watch of nothing")
	}
}
