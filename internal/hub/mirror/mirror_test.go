package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/store"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

var ownPods = replica.Collection{Resource: core("pods"), Node: "n1"}

// memory is a store that a test looks into.
type memory struct {
	mu          sync.Mutex // guards what follows
	collections map[replica.Collection]*store.Stored
	// committing is called in every Commit.
	committing func(store.Change)
}

func newMemory() *memory { return &memory{collections: map[replica.Collection]*store.Stored{}} }

func (m *memory) Write(c store.Change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.Drop {
		delete(m.collections, c.Collection)
		return
	}
	s := m.collections[c.Collection]
	if s == nil || c.Replace {
		s = &store.Stored{Collection: c.Collection}
		m.collections[c.Collection] = s
	}
	s.State = c.State
	for _, o := range slices.Concat(c.Put, c.Delete) {
		s.Objects = slices.DeleteFunc(slices.Clone(s.Objects), func(was *replica.Object) bool { return replica.Compare(was, o) == 0 })
	}
	s.Objects = append(s.Objects, c.Put...)
}

func (m *memory) Move(c replica.Collection, state store.State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.collections[c]; s != nil {
		s.State = state
	}
}

func (m *memory) Commit(_ context.Context, c store.Change) error {
	if m.committing != nil {
		m.committing(c)
	}
	m.Write(c)
	return nil
}

func (m *memory) found() (found []store.Stored) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.collections {
		found = append(found, *s)
	}
	return found
}

// world is a mirror between a fake apiserver and a store.
type world struct {
	t       *testing.T
	api     *fakeAPI
	store   *memory
	mirror  *Mirror
	options func(*Options)
	stop    func()
}

// newWorld starts a mirror in a synctest bubble, with the link there.
func newWorld(t *testing.T) *world {
	w := &world{t: t, api: newFakeAPI(t), store: newMemory()}
	w.start()
	return w
}

func (w *world) start() {
	w.t.Helper()
	o := Options{
		NodeName: "n1", Host: "kubernetes.default.svc", Store: w.store, Found: w.store.found(),
		Upstreams: map[Identity]http.RoundTripper{NodeIdentity: w.api, HubIdentity: w.api},
		Logger:    slog.New(slog.DiscardHandler),
	}
	if w.options != nil {
		w.options(&o)
	}
	m, err := New(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mirror = m
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	m.SetLink(true, time.Now())
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	}
}

func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.start()
}

// settle lets everything happen that happens within a while.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// state of a collection as fakeAPI tells it.
func (w *world) state(c replica.Collection) map[string]string {
	w.t.Helper()
	s, err := w.mirror.Snapshot(c)
	if err != nil {
		w.t.Fatal(err)
	}
	state := map[string]string{}
	for _, o := range s.Objects {
		state[o.Name] = describe(w.t, o)
	}
	return state
}

func describe(t testing.TB, o *replica.Object) string {
	t.Helper()
	var p corev1.Pod
	if err := p.Unmarshal(o.Message); err != nil {
		t.Fatal(err)
	}
	if len(p.ManagedFields) != 0 || p.ResourceVersion != o.Version.String() {
		t.Errorf("%s has %d managedFields and version %s, and says %s", o.Name, len(p.ManagedFields), p.ResourceVersion, o.Version)
	}
	return p.ResourceVersion + " " + string(p.UID) + " " + p.Spec.SchedulerName
}

func (w *world) converged() {
	w.t.Helper()
	if diff := cmp.Diff(w.api.state(podsTable), w.state(ownPods)); diff != "" {
		w.t.Error(diff)
	}
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		w.api.put(podsTable, "a", "1")
		settle(time.Second)
		w.converged()
		w.api.put(podsTable, "b", "1")
		w.api.put(podsTable, "a", "2")
		w.api.remove(podsTable, "b")
		w.api.put(podsTable, "b", "3")
		settle(time.Second)
		w.converged()
		// One stream each, and a list before it where there may be many, whoever reads.
		for range 20 {
			if _, err := w.mirror.Watch(ownPods, w.api.version); err != nil {
				t.Error(err)
			}
		}
		w.api.put("/api/v1/services", "other", "")
		w.api.bookmark()
		settle(time.Second)
		if s, err := w.mirror.Snapshot(ownPods); err != nil || s.Version != w.api.version {
			t.Errorf("after a bookmark: %v, %v", s, err)
		}
		for i := range w.mirror.rules {
			if c, ok := w.mirror.rules[i].always("n1"); ok {
				table := path(c)
				if s := selector(c); s != "" {
					table += " " + s
				}
				want := 1
				if w.mirror.rules[i].listed {
					want = 2
				}
				if n := w.api.requests(table); n != want {
					t.Errorf("%d requests for %s, want %d", n, c, want)
				}
				if s := w.mirror.stream(c).tell(time.Now()); !s.Complete || s.Err != nil || s.Bytes == 0 || s.Requests != int64(want) {
					t.Errorf("%+v", s)
				}
			}
		}
	})
}

// TestResume: a mirror that starts anew serves what was stored at once, and goes
// on from there.
func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		w.api.put(podsTable, "a", "1")
		w.api.put(podsTable, "b", "1")
		settle(time.Second)
		w.stop()
		before := len(w.api.asked)
		w.api.put(podsTable, "c", "1")
		w.api.remove(podsTable, "a")
		w.options = func(o *Options) {
			o.Upstreams = map[Identity]http.RoundTripper{NodeIdentity: cut{}, HubIdentity: cut{}}
		}
		w.start()
		settle(time.Minute)
		if got := w.state(ownPods); len(got) != 2 {
			t.Errorf("cut off, it serves %v", got)
		}
		w.options = nil
		w.restart()
		settle(time.Second)
		w.converged()
		w.api.mu.Lock()
		defer w.api.mu.Unlock()
		for _, a := range w.api.asked[before:] {
			if strings.Contains(a, "sendInitialEvents") || !strings.Contains(a, "watch=true") {
				t.Errorf("it began anew: %s", a)
			}
		}
	})
}

// cut is a link that is cut.
type cut struct{}

func (cut) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("the link is cut")
}

// TestNeverPartial: whatever breaks while a collection comes for the first time,
// nothing of it is served; and what was whole stays so when it comes anew.
func TestNeverPartial(t *testing.T) {
	classes := replica.Collection{Resource: schema.GroupVersionResource{Group: "node.k8s.io", Version: "v1", Resource: "runtimeclasses"}}
	for _, tt := range []struct {
		name       string
		table      string
		collection replica.Collection
		watchList  bool
		breakAfter int
		anew       string // what a request that begins has in its query
	}{
		{"list", podsTable, ownPods, true, 600, "limit="},
		{"stream", path(classes), classes, true, 20_000, "sendInitialEvents="},
		{"list where streams are refused", path(classes), classes, false, 600, "limit="},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{t: t, api: newFakeAPI(t), store: newMemory()}
				for i := range 1200 {
					w.api.put(tt.table, fmt.Sprint("p", i), "1")
				}
				if !tt.watchList {
					w.api.refuse = func(_, query string) int {
						if strings.Contains(query, "sendInitialEvents") {
							return http.StatusUnprocessableEntity
						}
						return 0
					}
				}
				breakAfter := func(n int) {
					w.api.mu.Lock()
					defer w.api.mu.Unlock()
					w.api.breakAfter = n
				}
				breakAfter(tt.breakAfter)
				w.start()
				defer func() { w.stop() }()
				for range 60 {
					settle(time.Second)
					if _, err := w.mirror.Snapshot(tt.collection); !errors.Is(err, replica.ErrIncomplete) {
						t.Fatalf("a partial list is served: %v", err)
					}
				}
				for _, f := range w.store.found() {
					if f.Collection == tt.collection {
						t.Error("a partial list is stored")
					}
				}
				breakAfter(0)
				settle(time.Minute)
				converged := func() {
					t.Helper()
					if diff := cmp.Diff(w.api.state(tt.table), w.state(tt.collection)); diff != "" {
						t.Error(diff)
					}
				}
				converged()
				w.api.mu.Lock()
				if !slices.ContainsFunc(w.api.asked, func(a string) bool { return strings.HasPrefix(a, tt.table) && strings.Contains(a, tt.anew) }) {
					t.Errorf("it was not read by %s", tt.anew)
				}
				w.api.mu.Unlock()
				// Anew, and it breaks again.
				w.api.compact()
				w.api.put(tt.table, "p0", "2")
				breakAfter(tt.breakAfter)
				w.api.mu.Lock()
				w.api.compacted = w.api.version
				w.api.mu.Unlock()
				w.api.breakWatches()
				settle(5 * time.Minute)
				if got := w.state(tt.collection); len(got) != 1200 {
					t.Errorf("it serves %d objects of 1200", len(got))
				}
				breakAfter(0)
				settle(time.Minute)
				converged()
			})
		})
	}
}

// TestBrokenList: a list that is broken off between its pages goes on where it was,
// unless that cannot be, and is whole either way.
func TestBrokenList(t *testing.T) {
	const pods = 3*pageSize + 100 // four pages
	for _, tt := range []struct {
		name string
		// meet is called when the third page is asked for the first time, with the
		// apiserver's lock held: with what the apiserver answers; 0 breaks the link.
		meet func(*fakeAPI) int
		// pause is how long the link is gone then.
		pause time.Duration
		// firsts is how often the first page is asked for, limits of which size the
		// pages that follow the break are.
		firsts int
		limits []int
	}{
		{name: "link broken", firsts: 1, limits: []int{pageSize / 2, pageSize / 2, pageSize / 2}},
		{name: "link gone for a while", pause: pagesLast - time.Minute, firsts: 1, limits: []int{pageSize / 2, pageSize / 2, pageSize / 2}},
		{name: "link gone for longer than versions are kept", pause: pagesLast + time.Minute, firsts: 2, limits: []int{pageSize, pageSize, pageSize, pageSize}},
		{
			name: "changed meanwhile, token expired", firsts: 2, limits: []int{pageSize, pageSize, pageSize, pageSize},
			meet: func(f *fakeAPI) int { f.version++; delete(f.table(podsTable).objects, "p0"); return http.StatusGone },
		},
		{
			name: "apiserver overloaded", firsts: 1, limits: []int{pageSize, pageSize},
			meet: func(*fakeAPI) int { return http.StatusTooManyRequests },
		},
		{
			name: "apiserver starting, without roles", firsts: 1, limits: []int{pageSize, pageSize},
			meet: func(*fakeAPI) int { return http.StatusForbidden },
		},
		{
			name: "apiserver too slow", firsts: 1, limits: []int{pageSize / 2, pageSize / 2, pageSize / 2},
			meet: func(*fakeAPI) int { return http.StatusGatewayTimeout },
		},
		{
			name: "apiserver fails", firsts: 2, limits: []int{pageSize, pageSize, pageSize, pageSize},
			meet: func(*fakeAPI) int { return http.StatusInternalServerError },
		},
		{
			name: "token refused", firsts: 2, limits: []int{pageSize, pageSize, pageSize, pageSize},
			meet: func(*fakeAPI) int { return http.StatusBadRequest },
		},
		{
			name: "page of another version", firsts: 2, limits: []int{pageSize, pageSize, pageSize, pageSize},
			meet: func(f *fakeAPI) int { f.mixed = true; return 0 },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{t: t, api: newFakeAPI(t), store: newMemory()}
				for i := range pods {
					w.api.put(podsTable, fmt.Sprint("p", i), "1")
				}
				continued, met := 0, false
				var limits []int
				firsts := 0
				w.api.refuse = func(table, query string) int {
					if table != podsTable || !strings.Contains(query, "limit=") {
						return 0
					}
					if !strings.Contains(query, "continue=") {
						firsts++
					} else {
						continued++
					}
					if met {
						values, err := url.ParseQuery(query)
						if err != nil {
							t.Error(err)
						}
						limit, err := strconv.Atoi(values.Get("limit"))
						if err != nil {
							t.Error(err)
						}
						limits = append(limits, limit)
						w.api.breakAfter, w.api.mixed = 0, false
						return 0
					}
					if continued < 2 {
						return 0
					}
					met = true
					if tt.meet == nil {
						w.api.breakAfter = 1000
						return 0
					}
					return tt.meet(w.api)
				}
				w.start()
				defer func() { w.stop() }()
				if tt.pause > 0 {
					for broken := false; !broken; {
						settle(time.Millisecond)
						w.api.mu.Lock()
						broken = met
						w.api.mu.Unlock()
					}
					w.mirror.SetLink(false, time.Now())
					settle(tt.pause)
					w.mirror.SetLink(true, time.Now())
				}
				settle(10 * time.Second)
				w.converged()
				if firsts != tt.firsts {
					t.Errorf("the first page was asked for %d times, want %d", firsts, tt.firsts)
				}
				if diff := cmp.Diff(tt.limits, limits); diff != "" {
					t.Errorf("sizes of the pages after the break: %s", diff)
				}
				if n := w.api.requests(podsTable); n != 3+len(limits)+1 {
					t.Errorf("%d requests, of which %d after the break", n, len(limits))
				}
			})
		})
	}
}

// TestEndlessList: a list of which the first page comes and another never does is not
// begun again as if something had come of it.
func TestEndlessList(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int // of all pages but the first
		most   int // lists in an hour
	}{
		{"an object cannot be read", http.StatusInternalServerError, int(2 * time.Hour / trialEvery)},
		{"a page is of another version", 0, int(time.Hour / backoffLast)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{t: t, api: newFakeAPI(t), store: newMemory()}
				for i := range pageSize + 1 {
					w.api.put(podsTable, fmt.Sprint("p", i), "1")
				}
				firsts := 0
				w.api.mixed = tt.status == 0
				w.api.refuse = func(table, query string) int {
					switch {
					case table != podsTable || !strings.Contains(query, "limit="):
						return 0
					case strings.Contains(query, "continue="):
						return tt.status
					}
					firsts++
					return 0
				}
				w.start()
				defer func() { w.stop() }()
				count := func() int {
					w.api.mu.Lock()
					defer w.api.mu.Unlock()
					return firsts
				}
				settle(10 * time.Minute)
				before := count()
				settle(time.Hour)
				if n := count() - before; n > tt.most || n == 0 {
					t.Errorf("%d lists were begun in an hour, want at most %d", n, tt.most)
				}
			})
		})
	}
}

// follower is a client: it lists and watches, and begins anew when it must.
type follower struct {
	w      *world
	watch  *replica.Watch
	held   map[string]string
	at     replica.Version
	begins int
}

func (f *follower) begin() {
	s, err := f.w.mirror.Snapshot(ownPods)
	if err != nil {
		f.w.t.Fatal(err)
	}
	f.begins++
	f.held, f.at = map[string]string{}, s.Version
	for _, o := range s.Objects {
		f.held[o.Name] = describe(f.w.t, o)
	}
	if f.watch, err = f.w.mirror.Watch(ownPods, s.Version); err != nil {
		f.w.t.Fatal(err)
	}
}

func (f *follower) follow() {
	for {
		events, err := f.watch.Take(100)
		if errors.Is(err, replica.ErrExpired) {
			f.begin()
			continue
		}
		if err != nil {
			f.w.t.Fatal(err)
		}
		if len(events) == 0 {
			return
		}
		for _, e := range events {
			if e.Version() <= f.at {
				f.w.t.Errorf("an event of %s after %s", e.Version(), f.at)
			}
			f.at = e.Version()
			was, ok := f.held[e.Object.Name]
			if (e.Type == watch.Added) == ok {
				f.w.t.Errorf("%s of %s, which is %q", e.Type, e.Object.Name, was)
			}
			if e.Type == watch.Deleted {
				delete(f.held, e.Object.Name)
			} else {
				f.held[e.Object.Name] = describe(f.w.t, e.Object)
			}
		}
	}
}

// TestDifference: after a compaction clients get what has changed as events, and
// none has to begin anew.
func TestDifference(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		for i := range 50 {
			w.api.put(podsTable, fmt.Sprint("p", i), "1")
		}
		settle(time.Second)
		f := &follower{w: w}
		f.begin()
		w.mirror.SetLink(false, time.Now())
		w.api.breakWatches()
		for i := range 10 {
			w.api.remove(podsTable, fmt.Sprint("p", i))
		}
		for i := range 5 {
			w.api.put(podsTable, fmt.Sprint("p", i), "again")
		}
		w.api.put(podsTable, "p20", "2")
		w.api.put(podsTable, "new", "1")
		w.api.compact()
		before := w.api.requests(podsTable)
		settle(time.Hour)
		if n := w.api.requests(podsTable) - before; n != 0 {
			t.Errorf("%d requests while the link is cut", n)
		}
		w.mirror.SetLink(true, time.Now())
		settle(2 * time.Second)
		f.follow()
		w.converged()
		if diff := cmp.Diff(w.api.state(podsTable), f.held); diff != "" || f.begins != 1 {
			t.Errorf("a client that began %d times: %s", f.begins, diff)
		}
	})
}

// TestRestoredCluster: the cluster goes back to what it was, with its versions
// gone forward, or back. Clients begin anew, and hold what the cluster holds; so does
// what is watched without bookmarks.
func TestRestoredCluster(t *testing.T) {
	for _, bump := range []int{1_000_000_000, -20} {
		t.Run(fmt.Sprint("versions ", bump), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer func() { w.stop() }()
				const secretTable = "/api/v1/namespaces/shop/secrets metadata.name=key"
				w.api.put(podsTable, "kept", "1")
				w.api.put(podsTable, "changed", "1")
				w.api.put(podsTable, "deleted", "1")
				w.api.put(secretTable, "key", "1")
				backup := map[string]map[string]fakeObject{}
				w.api.mu.Lock()
				for _, table := range []string{podsTable, secretTable} {
					backup[table] = maps.Clone(w.api.table(table).objects)
				}
				w.api.mu.Unlock()
				w.api.put(secretTable, "key", "2")
				for range 30 {
					w.api.put(podsTable, "changed", "2")
				}
				w.api.remove(podsTable, "deleted")
				w.api.put(podsTable, "made", "1")
				secret, cover := w.mirror.Cover(secretQuery("key"))
				settle(time.Second)
				if got := w.state(secret)["key"]; cover != replica.CoverWhole || !strings.HasSuffix(got, " 2") {
					t.Fatalf("the Secret is %q", got)
				}
				f := &follower{w: w}
				f.begin()

				w.api.mu.Lock()
				for table, objects := range backup {
					w.api.table(table).objects, w.api.table(table).history = objects, nil
				}
				w.api.version = replica.Version(int(w.api.version) + bump)
				if bump > 0 {
					w.api.compacted = w.api.version
				}
				w.api.mu.Unlock()
				w.api.breakWatches()
				settle(2 * time.Second)
				w.api.bookmark()
				settle(2 * time.Second)
				f.follow()
				w.converged()
				if diff := cmp.Diff(w.api.state(podsTable), f.held); diff != "" {
					t.Error(diff)
				}
				if diff := cmp.Diff(w.api.state(secretTable), w.state(secret)); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// TestAnyHistory: changes, breaks, compactions, cuts and restarts in any order;
// every client ends with what the apiserver has, and so does the store.
func TestAnyHistory(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(seed, 3))
				w := newWorld(t)
				defer func() { w.stop() }()
				settle(time.Second)
				clients := []*follower{{w: w}, {w: w}, {w: w}}
				for _, f := range clients {
					f.begin()
				}
				for range 400 {
					name := fmt.Sprint("p", random.IntN(12))
					switch random.IntN(24) {
					case 0:
						w.api.breakWatches()
					case 1:
						w.api.compact()
					case 2:
						w.mirror.SetLink(random.IntN(2) == 0, time.Now())
					case 3:
						w.api.bookmark()
					case 4:
						w.api.mu.Lock()
						w.api.breakAfter = random.IntN(2) * 4000
						w.api.mu.Unlock()
					case 5:
						w.restart()
						for _, f := range clients {
							f.begin()
						}
					case 6, 7, 8, 9:
						w.api.remove(podsTable, name)
					case 10:
						settle(time.Duration(random.IntN(3000)) * time.Millisecond)
					case 11:
						clients[random.IntN(3)].follow()
					default:
						w.api.put(podsTable, name, fmt.Sprint(random.IntN(1000)))
					}
				}
				w.api.mu.Lock()
				w.api.breakAfter = 0
				w.api.mu.Unlock()
				w.api.breakWatches()
				w.mirror.SetLink(true, time.Now())
				settle(2 * time.Minute)
				w.converged()
				for i, f := range clients {
					f.follow()
					if diff := cmp.Diff(w.api.state(podsTable), f.held); diff != "" {
						t.Errorf("client %d: %s", i, diff)
					}
				}
				w.options = func(o *Options) {
					o.Upstreams = map[Identity]http.RoundTripper{NodeIdentity: cut{}, HubIdentity: cut{}}
				}
				w.restart()
				w.converged()
			})
		})
	}
}

// TestDurableFirst: a pod that comes, changes its spec or goes is on disk before
// anybody sees it.
func TestDurableFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, api: newFakeAPI(t), store: newMemory()}
		hold := make(chan struct{})
		var held sync.Mutex
		blocking := false
		w.store.committing = func(c store.Change) {
			held.Lock()
			b := blocking
			held.Unlock()
			if b && c.Collection == ownPods {
				<-hold
			}
		}
		w.start()
		defer func() { w.stop() }()
		settle(time.Second)
		held.Lock()
		blocking = true
		held.Unlock()
		for _, change := range []func(){
			func() { w.api.put(podsTable, "a", "1") },
			func() { w.api.put(podsTable, "a", "2") },
			func() { w.api.remove(podsTable, "a") },
		} {
			before := w.state(ownPods)
			change()
			settle(time.Minute)
			if diff := cmp.Diff(before, w.state(ownPods)); diff != "" {
				t.Errorf("it is seen before it is on disk: %s", diff)
			}
			hold <- struct{}{}
			settle(time.Second)
			w.converged()
		}
	})
}

func TestOverlay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		w.api.put(podsTable, "a", "1")
		w.api.put(podsTable, "b", "1")
		settle(time.Second)
		f := &follower{w: w}
		f.begin()
		a, _, err := w.mirror.Get(ownPods, "shop", "a")
		if err != nil {
			t.Fatal(err)
		}
		laid, err := w.mirror.rules[podRule].at(a, replica.OverlayBase+1)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.mirror.Lay(ownPods, &replica.Event{Type: watch.Modified, Object: laid, Previous: a}); err != nil {
			t.Fatal(err)
		}
		f.follow()
		if f.at != replica.OverlayBase+1 || f.begins != 1 {
			t.Errorf("a client is at %s, begun %d times", f.at, f.begins)
		}
		// The apiserver goes on below.
		w.api.put(podsTable, "b", "2")
		w.api.put(podsTable, "c", "1")
		w.api.remove(podsTable, "a")
		w.api.bookmark()
		settle(time.Second)
		f.follow()
		if got := f.held["b"]; !strings.HasSuffix(got, " 1") || len(f.held) != 2 {
			t.Errorf("under the overlay a client saw %v", f.held)
		}
		// And is what is stored.
		for _, s := range w.store.found() {
			if s.Collection == ownPods && (len(s.Objects) != 2 || s.State.Version.Overlay()) {
				t.Errorf("stored: %+v", s)
			}
		}
		w.mirror.Lift([]replica.Collection{ownPods, {Resource: core("pods"), Node: "other"}})
		f.follow()
		w.converged()
		if diff := cmp.Diff(w.api.state(podsTable), f.held); diff != "" || f.begins != 2 {
			t.Errorf("a client that began %d times: %s", f.begins, diff)
		}
		w.api.put(podsTable, "d", "1")
		settle(time.Second)
		f.follow()
		if f.begins != 2 {
			t.Error("after the overlay a client begins anew again")
		}
		w.converged()
		if err := w.mirror.Lay(replica.Collection{Resource: core("pods"), Node: "other"}, &replica.Event{Object: laid}); !errors.Is(err, replica.ErrNotMirrored) {
			t.Errorf("over what is not mirrored: %v", err)
		}
	})
}

func secretQuery(name string) replica.Query {
	return replica.Query{Resource: core("secrets"), Namespace: "shop", Name: name}
}

func TestByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		const table = "/api/v1/namespaces/shop/secrets metadata.name=key"
		w.api.put(table, "key", "hunter2")
		settle(time.Second)

		// From the first request.
		id, cover := w.mirror.Cover(secretQuery("key"))
		if cover != replica.CoverWhole {
			t.Fatalf("cover %d", cover)
		}
		for range 10 {
			w.mirror.Cover(secretQuery("key"))
		}
		settle(time.Second)
		if got := w.state(id); len(got) != 1 || w.api.requests(table) != 1 {
			t.Errorf("%v by %d requests", got, w.api.requests(table))
		}
		if _, cover := w.mirror.Cover(replica.Query{Resource: core("secrets"), Namespace: "shop"}); cover != replica.CoverNone {
			t.Error("a list of Secrets is mirrored")
		}
		// Not found is an answer.
		none, _ := w.mirror.Cover(secretQuery("none"))
		settle(time.Second)
		if got := w.state(none); len(got) != 0 {
			t.Error(got)
		}
		// To a while after the last one.
		settle(2 * linger)
		if _, err := w.mirror.Snapshot(id); !errors.Is(err, replica.ErrNotMirrored) {
			t.Errorf("it is still mirrored: %v", err)
		}
		for _, f := range w.store.found() {
			if f.Collection == id {
				t.Error("it is still stored")
			}
		}
		w.api.mu.Lock()
		for watch := range w.api.watches {
			if watch.table == table {
				t.Error("it is still watched")
			}
		}
		w.api.mu.Unlock()

		// While the link is cut nothing begins.
		w.mirror.SetLink(false, time.Now())
		if _, cover := w.mirror.Cover(secretQuery("key")); cover != replica.CoverNone {
			t.Error("a collection begins with the link cut")
		}
		w.mirror.SetLink(true, time.Now())

		// Refused: not the mirror's to answer, and tried again.
		w.api.mu.Lock()
		w.api.refuse = func(t, _ string) int {
			if t == table {
				return http.StatusForbidden
			}
			return 0
		}
		w.api.mu.Unlock()
		w.mirror.Cover(secretQuery("key"))
		settle(refusedFor / 2)
		if _, cover := w.mirror.Cover(secretQuery("key")); cover != replica.CoverNone {
			t.Error("what is refused is mirrored")
		}
		w.api.mu.Lock()
		w.api.refuse = nil
		w.api.mu.Unlock()
		settle(refusedFor)
		id, _ = w.mirror.Cover(secretQuery("key"))
		settle(time.Second)
		if got := w.state(id); len(got) != 1 {
			t.Error(got)
		}
	})
}

// TestReferred: what a pod refers to is mirrored before anybody asks, over
// restarts, and dropped after the last pod.
func TestReferred(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		settle(time.Second)
		const table = "/api/v1/namespaces/shop/secrets metadata.name=key"
		w.api.put(table, "key", "hunter2")
		id := replica.Collection(secretQuery("key"))
		w.mirror.refer(objectKey{"shop", "a"}, []replica.Collection{id})
		w.mirror.refer(objectKey{"shop", "b"}, []replica.Collection{id})
		settle(time.Second)
		if got := w.state(id); len(got) != 1 {
			t.Error(got)
		}
		w.mirror.refer(objectKey{"shop", "a"}, nil)
		settle(10 * linger)
		if got := w.state(id); len(got) != 1 {
			t.Error(got)
		}
		w.mirror.refer(objectKey{"shop", "b"}, nil)
		settle(2 * linger)
		if _, err := w.mirror.Snapshot(id); !errors.Is(err, replica.ErrNotMirrored) {
			t.Errorf("after the last pod: %v", err)
		}
	})
}

func TestReferences(t *testing.T) {
	secret := func(name string) *corev1.LocalObjectReference { return &corev1.LocalObjectReference{Name: name} }
	optional := func(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"},
		Spec: corev1.PodSpec{
			NodeName: "n1", ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}},
			Volumes: []corev1.Volume{
				{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "volume"}}},
				{VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: optional("volume")}}},
				{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
					{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: optional("kube-root-ca.crt")}},
					{Secret: &corev1.SecretProjection{LocalObjectReference: optional("projected")}},
				}}}},
				{VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{NodePublishSecretRef: secret("csi")}}},
				{VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			},
			InitContainers: []corev1.Container{{EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: optional("init")}}}}},
			Containers: []corev1.Container{{
				EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: optional("from")}}},
				Env: []corev1.EnvVar{
					{Name: "plain", Value: "x"},
					{ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: optional("env")}}},
					{ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: optional("env")}}},
				},
			}},
		},
	}
	found := func() (names []string) {
		message, err := pod.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		refs, err := references(&replica.Object{Message: message})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range refs {
			names = append(names, r.Resource.Resource+" "+r.Namespace+"/"+r.Name)
		}
		slices.Sort(names)
		return names
	}
	want := []string{
		"configmaps shop/env", "configmaps shop/from", "configmaps shop/kube-root-ca.crt", "configmaps shop/volume",
		"secrets shop/csi", "secrets shop/env", "secrets shop/init", "secrets shop/projected", "secrets shop/pull", "secrets shop/volume",
	}
	if diff := cmp.Diff(want, found()); diff != "" {
		t.Error(diff)
	}
	pod.Status.Phase = corev1.PodSucceeded
	if got := found(); len(got) != 0 {
		t.Errorf("of a pod that is over: %v", got)
	}
}

// TestHeartbeats are dropped, and nothing else of a Node is.
func TestHeartbeats(t *testing.T) {
	node := func(version string, change func(*corev1.Node)) *replica.Object {
		n := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u", ResourceVersion: version},
			Status: corev1.NodeStatus{
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Unix(1000, 0)}},
				Images:     []corev1.ContainerImage{{Names: []string{"a"}}},
			},
		}
		change(n)
		message, err := n.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		o, err := rules()[1].object(message)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	was := node("5", func(*corev1.Node) {})
	for name, test := range map[string]struct {
		change func(*corev1.Node)
		same   bool
	}{
		"nothing":    {func(*corev1.Node) {}, true},
		"heartbeat":  {func(n *corev1.Node) { n.Status.Conditions[0].LastHeartbeatTime = metav1.Unix(2000, 0) }, true},
		"status":     {func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionFalse }, false},
		"transition": {func(n *corev1.Node) { n.Status.Conditions[0].LastTransitionTime = metav1.Unix(2000, 0) }, false},
		"images":     {func(n *corev1.Node) { n.Status.Images = nil }, false},
		"label":      {func(n *corev1.Node) { n.Labels = map[string]string{"a": "b"} }, false},
		"another":    {func(n *corev1.Node) { n.UID = "v" }, false},
	} {
		if got := rules()[1].unchanged(was, node("6", test.change)); got != test.same {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestOwnObjects: what the node puts in itself is there in lists and watches,
// over beginnings anew and restarts, and what it stands for is not.
func TestOwnObjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slices := schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}
		all := replica.Collection{Resource: slices}
		const table = "/apis/discovery.k8s.io/v1/endpointslices"
		own := func(address string) *replica.Object {
			message, err := (&discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "own"}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address}}},
			}).Marshal()
			if err != nil {
				t.Fatal(err)
			}
			o, err := replica.NewObject(wire.MediaProtobuf, wire.Envelope{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice", Message: message}.Append(nil))
			if err != nil {
				t.Fatal(err)
			}
			return o
		}
		w := &world{t: t, api: newFakeAPI(t), store: newMemory()}
		address := "169.254.20.11"
		w.options = func(o *Options) {
			o.Own = map[schema.GroupVersionResource][]*replica.Object{slices: {own(address)}}
			o.Filters = map[schema.GroupVersionResource]Filter{slices: Drop("shop", "own")}
		}
		w.api.put(table, "own", "the apiserver's")
		w.api.put(table, "a", "1")
		w.start()
		defer func() { w.stop() }()
		look := func(names ...string) replica.Version {
			t.Helper()
			s, err := w.mirror.Snapshot(all)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			var version replica.Version
			for _, o := range s.Objects {
				got = append(got, o.Name)
				if o.Version > s.Version || o.Version == 0 {
					t.Errorf("%s is at %s in a list of %s", o.Name, o.Version, s.Version)
				}
				if o.Name != "own" {
					continue
				}
				version = o.Version
				var slice discoveryv1.EndpointSlice
				if err := slice.Unmarshal(o.Message); err != nil || slice.Endpoints[0].Addresses[0] != address || slice.ResourceVersion != version.String() {
					t.Errorf("it is %v (%v)", slice, err)
				}
			}
			if diff := cmp.Diff(names, got); diff != "" {
				t.Error(diff)
			}
			return version
		}
		settle(time.Second)
		at := look("a", "own")
		client, err := w.mirror.Watch(all, w.api.version)
		if err != nil {
			t.Fatal(err)
		}
		// Whatever the apiserver says of it.
		w.api.put(table, "own", "2")
		w.api.remove(table, "own")
		w.api.put(table, "b", "1")
		settle(time.Second)
		w.api.compact()
		w.api.breakWatches()
		w.api.put(table, "own", "3")
		w.api.compact()
		settle(10 * time.Second)
		if again := look("a", "b", "own"); again != at {
			t.Errorf("it went from %s to %s though nothing changed", at, again)
		}
		events, err := client.Take(10)
		if err != nil || len(events) != 1 || events[0].Object.Name != "b" {
			t.Errorf("a client saw %d events (%v)", len(events), err)
		}
		w.restart()
		if again := look("a", "b", "own"); again != at {
			t.Errorf("over a restart it went from %s to %s", at, again)
		}
		address = "169.254.20.12"
		w.restart()
		look("a", "b", "own")
		if _, err := w.mirror.Watch(all, at); !errors.Is(err, replica.ErrExpired) {
			t.Errorf("a client that has the old address may go on: %v", err)
		}
	})
}

func TestNodePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		const table = "/apis/edgewright.dev/v1alpha1/nodepools metadata.name=berlin"
		w.api.put(table, "berlin", "1")
		settle(time.Second)
		id, cover := w.mirror.Cover(replica.Query{
			Resource: schema.GroupVersionResource{Group: "edgewright.dev", Version: "v1alpha1", Resource: "nodepools"}, Name: "berlin",
		})
		if cover != replica.CoverWhole {
			t.Fatal(cover)
		}
		settle(time.Second)
		w.api.put(table, "berlin", "2")
		settle(time.Second)
		o, _, err := w.mirror.Get(id, "", "berlin")
		if err != nil || o == nil {
			t.Fatal(o, err)
		}
		for _, part := range []string{`"payload":"2"`, `"kind":"NodePool"`} {
			if !strings.Contains(string(o.Raw), part) {
				t.Errorf("%s lacks %s", o.Raw, part)
			}
		}
		if strings.Contains(string(o.Raw), "managedFields") {
			t.Errorf("%s", o.Raw)
		}
	})
}
