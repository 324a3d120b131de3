package hub

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// watched is a real client-go reflector's store that tells of every change.
type watched struct {
	cache.Store
	changed chan struct{}
	// synced is the resourceVersion of the last list, streamed or not.
	synced atomic.Value
}

func (w *watched) tell(err error) error {
	select {
	case w.changed <- struct{}{}:
	default:
	}
	return err
}
func (w *watched) Add(o any) error    { return w.tell(w.Store.Add(o)) }
func (w *watched) Update(o any) error { return w.tell(w.Store.Update(o)) }
func (w *watched) Delete(o any) error { return w.tell(w.Store.Delete(o)) }
func (w *watched) Replace(o []any, rv string) error {
	w.synced.Store(rv)
	return w.tell(w.Store.Replace(o, rv))
}

// until waits for the store to satisfy the condition.
func (w *watched) until(t *testing.T, what string, condition func(*watched) bool) {
	t.Helper()
	limit := time.After(patience)
	for !condition(w) {
		select {
		case <-w.changed:
		case <-limit:
			t.Fatalf("%s: never; the store holds %v", what, w.ListKeys())
		}
	}
}

// holds says whether the store has exactly the synthetic slice and these others
// (name=address).
func holds(others ...string) func(*watched) bool {
	return func(w *watched) bool {
		got := map[string]bool{}
		for _, o := range w.List() {
			s := o.(*discoveryv1.EndpointSlice)
			got[s.Name+"="+s.Endpoints[0].Addresses[0]] = true
		}
		for _, o := range append(others, "kubernetes=169.254.20.11") {
			if !got[o] {
				return false
			}
		}
		return len(got) == len(others)+1
	}
}

// legacy is a ListWatch that asks reflectors to list and then watch.
type legacy struct{ *cache.ListWatch }

func (legacy) IsWatchListSemanticsUnSupported() bool { return true }

// TestReflectors runs client-go's own reflector through the hub, in both
// protocols and both encodings, with and without a stored default/kubernetes,
// across changes, broken watches, a cut and a compaction.
func TestReflectors(t *testing.T) {
	for _, media := range []string{wire.MediaJSON, wire.MediaProtobuf} {
		for _, watchList := range []bool{true, false} {
			for _, real := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/watchlist=%v/real=%v", media[len("application/"):], watchList, real), func(t *testing.T) {
					t.Parallel()
					reflect(t, media, watchList, real)
				})
			}
		}
	}
}

func reflect(t *testing.T, media string, watchList, real bool) {
	r := newRig(t, nil)
	fill(r.api, real)
	client, err := kubernetes.NewForConfig(r.restConfig(CallerKubeProxy, media))
	if err != nil {
		t.Fatal(err)
	}
	const selector = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name"
	slices := client.DiscoveryV1().EndpointSlices("")
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = selector
			return slices.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = selector
			return slices.Watch(ctx, o)
		},
	}
	var source cache.ListerWatcher = lw
	if !watchList {
		source = legacy{lw}
	}
	store := &watched{Store: cache.NewStore(cache.MetaNamespaceKeyFunc), changed: make(chan struct{}, 1)}
	reflector := cache.NewReflectorWithOptions(source, &discoveryv1.EndpointSlice{}, store, cache.ReflectorOptions{
		Backoff: &wait.Backoff{Duration: 10 * time.Millisecond, Factor: 1, Steps: 1, Cap: 10 * time.Millisecond},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); reflector.RunWithContext(ctx) }()
	defer func() { cancel(); <-done }()

	store.until(t, "first sync", holds("a=10.0.0.1", "b=10.0.0.2"))
	if got := store.synced.Load(); got != fmt.Sprint(r.api.version) {
		t.Errorf("synced at %s, the apiserver is at %d", got, r.api.version)
	}
	synced := len(r.api.sawAll())

	r.api.put("shop", "c", nil, "10.0.0.3")
	store.until(t, "an addition", holds("a=10.0.0.1", "b=10.0.0.2", "c=10.0.0.3"))
	r.api.put("default", "kubernetes", nil, "192.0.2.9")
	r.api.put("default", "a", nil, "10.0.0.9")
	store.until(t, "a change beside the stored one's", holds("a=10.0.0.9", "b=10.0.0.2", "c=10.0.0.3"))
	r.api.remove("default", "kubernetes")
	r.api.remove("shop", "c")
	store.until(t, "a removal beside the stored one's", holds("a=10.0.0.9", "b=10.0.0.2"))

	// Watches end; the reflector resumes where it was and lists nothing anew.
	r.api.breakWatches()
	r.api.put("shop", "d", nil, "10.0.0.4")
	store.until(t, "after a broken watch", holds("a=10.0.0.9", "b=10.0.0.2", "d=10.0.0.4"))
	for _, s := range r.api.sawAll()[synced:] {
		if !strings.Contains(s.query, "watch=true") || strings.Contains(s.query, "sendInitialEvents=true") {
			t.Errorf("the reflector began anew: %s?%s", s.path, s.query)
		}
	}

	// A cut, with changes meanwhile.
	r.setCut(true)
	r.api.put("shop", "e", nil, "10.0.0.5")
	r.api.remove("shop", "d")
	r.setCut(false)
	store.until(t, "after a cut", holds("a=10.0.0.9", "b=10.0.0.2", "e=10.0.0.5"))

	// Too old to resume: the reflector gets everything anew, the slice included.
	r.setCut(true)
	r.api.remove("shop", "e")
	r.api.compact()
	r.setCut(false)
	store.until(t, "after a compaction", holds("a=10.0.0.9", "b=10.0.0.2"))
}
