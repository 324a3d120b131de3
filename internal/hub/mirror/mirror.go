package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/store"
)

const (
	// maxNamed bounds what a caller can make the node mirror by name: several
	// Secrets and ConfigMaps for each of 110 pods, many times over.
	maxNamed = 4096
	// linger is how long a Secret or ConfigMap is mirrored after the last pod
	// that refers to it, or the last request: a rolling update refers to it anew.
	linger = time.Minute
	// refusedFor is how long a collection that the apiserver refused is not tried
	// again, and requests for it go through to hear why. The Node authorizer
	// learns of a new pod within about a second.
	refusedFor = time.Second
)

// Store is what the mirror needs of the store. See store.Store.
type Store interface {
	Write(store.Change)
	Move(replica.Collection, store.State)
	Commit(context.Context, store.Change) error
}

// Options of New. NodeName, Upstreams and Host are required.
type Options struct {
	NodeName string
	// Upstreams of both identities. A round trip's body ends with its context,
	// and a broken connection must end it too.
	Upstreams map[Identity]http.RoundTripper
	// Host of the URLs, as the upstreams expect it.
	Host string
	// Store keeps the replica; nil: nothing outlives the process.
	Store Store
	// Found is what the store held.
	Found []store.Stored
	// Own objects of the node that stand in a collection as if the apiserver had
	// sent them, without a resourceVersion.
	Own map[schema.GroupVersionResource][]*replica.Object
	// Filters of what the apiserver sends.
	Filters map[schema.GroupVersionResource]Filter
	// Clock of backoff and of what lingers; real time where nil.
	Clock clock.WithDelayedExecution
	// Logger; slog.Default where nil.
	Logger *slog.Logger
}

// Mirror keeps a replica. Make it with New, Run it once.
type Mirror struct {
	*replica.Cache
	options Options
	rules   []rule
	clock   clock.WithDelayedExecution
	log     *slog.Logger
	sweep   chan struct{} // asks for a sweep
	bytes   atomic.Int64  // of all streams there ever were

	mu      sync.Mutex // guards what follows; taken after a pod stream's mu, before any other's
	streams map[replica.Collection]*stream
	refused map[replica.Collection]time.Time // until when
	// start begins a stream's work; nil before Run.
	start func(*stream)
	// connected is closed while the link is there, made anew when it goes; parted is
	// the opposite.
	connected, parted chan struct{}
	online            bool
	since             time.Time // online or not
	// trials are for whoever waits because the apiserver is unwell: the last that was
	// given away, and what is closed, and made anew, when it has answered.
	lastTrial time.Time
	answered  chan struct{}
	// referred by pods, by the pod's key.
	referred map[objectKey][]replica.Collection
}

var _ replica.Replica = (*Mirror)(nil)

// New makes a mirror of what the store held; what is in it can be read at once.
func New(o Options) (*Mirror, error) {
	switch {
	case o.NodeName == "":
		return nil, errors.New("mirror: NodeName is empty")
	case o.Host == "":
		return nil, errors.New("mirror: Host is empty")
	case o.Upstreams[NodeIdentity] == nil || o.Upstreams[HubIdentity] == nil:
		return nil, errors.New("mirror: an identity has no upstream")
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Store == nil {
		o.Store = nowhere{}
	}
	m := &Mirror{
		Cache: replica.NewCache(), options: o, rules: rules(), clock: o.Clock, log: o.Logger,
		sweep:   make(chan struct{}, 1),
		streams: map[replica.Collection]*stream{}, refused: map[replica.Collection]time.Time{},
		connected: make(chan struct{}), parted: make(chan struct{}), answered: make(chan struct{}),
		referred: map[objectKey][]replica.Collection{},
	}
	close(m.parted)
	for i := range m.rules {
		if c, ok := m.rules[i].always(o.NodeName); ok {
			m.open(&m.rules[i], c)
		}
	}
	for _, f := range o.Found {
		if err := m.load(f); err != nil {
			return nil, fmt.Errorf("load the mirror: %w", err)
		}
	}
	m.options.Found = nil // its slices are not needed any more
	return m, nil
}

// nowhere is the store of a mirror that has none.
type nowhere struct{}

func (nowhere) Write(store.Change)                         {}
func (nowhere) Move(replica.Collection, store.State)       {}
func (nowhere) Commit(context.Context, store.Change) error { return nil }

// load takes over a collection of the store. What is not complete, or not
// mirrored any more, is dropped: it could not be served.
func (m *Mirror) load(f store.Stored) error {
	i := slices.IndexFunc(m.rules, func(r rule) bool { return r.belongs(f.Collection, m.options.NodeName) })
	if i < 0 || !f.State.Complete {
		m.options.Store.Write(store.Change{Collection: f.Collection, Drop: true})
		return nil
	}
	s := m.open(&m.rules[i], f.Collection)
	c := content{objects: map[objectKey]*replica.Object{}, version: f.State.Version}
	for _, o := range f.Objects {
		c.objects[keyOf(o)] = o
	}
	changed, err := s.adoptOwn(c, f.State.Changed)
	if err != nil {
		return err
	}
	return s.begin(c, changed)
}

// open makes a stream, which does nothing yet. The caller holds mu, or is New.
func (m *Mirror) open(r *rule, c replica.Collection) *stream {
	if s := m.streams[c]; s != nil {
		return s
	}
	m.Open(c, r.gvk())
	s := &stream{mirror: m, rule: r, id: c, log: m.log.With("collection", c.String()), used: m.clock.Now()}
	m.streams[c] = s
	return s
}

// Run follows the apiserver until ctx ends, whenever the link is there.
func (m *Mirror) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var streams sync.WaitGroup
	defer streams.Wait()
	defer func() {
		m.mu.Lock()
		m.start = nil
		m.mu.Unlock()
		cancel()
	}()
	m.mu.Lock()
	m.start = func(s *stream) {
		ctx, cancel := context.WithCancel(ctx)
		s.stop = cancel
		streams.Go(func() { s.run(ctx) })
	}
	for _, s := range m.streams {
		m.start(s)
	}
	m.mu.Unlock()
	for m.awaitSweep(ctx, m.sweepNamed()) {
	}
	return nil
}

// awaitSweep waits until what is mirrored by name is to be looked at: when asked
// to, or after a while, where that is not 0. False once ctx is done.
func (m *Mirror) awaitSweep(ctx context.Context, due time.Duration) bool {
	var timer <-chan time.Time
	if due > 0 {
		t := m.clock.NewTimer(due)
		defer t.Stop()
		timer = t.C()
	}
	select {
	case <-m.sweep:
	case <-timer:
	case <-ctx.Done():
		return false
	}
	return true
}

// Cover implements replica.Replica: it begins to mirror what is mirrored by name.
func (m *Mirror) Cover(q replica.Query) (replica.Collection, replica.Coverage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.rules {
		id, ok := m.rules[i].onDemand(q)
		if !ok {
			continue
		}
		s := m.streams[id]
		if s == nil && (!m.online || len(m.streams) >= maxNamed || m.clock.Now().Before(m.refused[id])) {
			return replica.Collection{}, replica.CoverNone
		}
		if s == nil {
			s = m.demand(&m.rules[i], id)
		}
		s.used = m.clock.Now()
		return id, replica.CoverWhole
	}
	return m.Cache.Cover(q)
}

// demand begins to mirror a collection. The caller holds mu.
func (m *Mirror) demand(r *rule, id replica.Collection) *stream {
	delete(m.refused, id)
	s := m.open(r, id)
	if m.start != nil {
		m.start(s)
	}
	m.wantSweep()
	return s
}

// refuse forgets a collection that the apiserver does not let the node read, and
// that is not known: whoever asks for it is told by the apiserver itself. Where it was
// dropped meanwhile and begun again, that is another's.
func (m *Mirror) refuse(s *stream) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.streams[s.id] != s {
		return
	}
	now := m.clock.Now()
	for id, until := range m.refused {
		if now.After(until) {
			delete(m.refused, id)
		}
	}
	m.refused[s.id] = now.Add(refusedFor)
	m.drop(s)
	// A pod may refer to it: it is tried again then.
	m.wantSweep()
}

// drop forgets a collection. The caller holds mu.
func (m *Mirror) drop(s *stream) {
	delete(m.streams, s.id)
	if s.stop != nil {
		s.stop()
	}
	s.end()
}

// begins notes what ends a stream's watch that now begins. It returns whether the
// stream was doubted until now.
func (m *Mirror) begins(s *stream, end context.CancelFunc) (doubted bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	doubted, s.doubted, s.again = s.doubted, false, end
	return doubted
}

// rewound has everything read anew that has no bookmarks: by, or its bookmarks,
// has shown that the apiserver went back to an earlier state, which the others
// would not notice until something of theirs changes, if then.
func (m *Mirror) rewound(by *stream) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.streams {
		if s == by || s.rule.listed {
			continue
		}
		s.doubted = true
		if s.again != nil {
			s.again()
		}
	}
}

// wantSweep has Run look at what is mirrored by name.
func (m *Mirror) wantSweep() {
	select {
	case m.sweep <- struct{}{}:
	default:
	}
}

// refer notes what a pod refers to; nil: there is no such pod.
func (m *Mirror) refer(pod objectKey, to []replica.Collection) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.Equal(m.referred[pod], to) {
		return
	}
	if len(to) == 0 {
		delete(m.referred, pod)
	} else {
		m.referred[pod] = to
	}
	m.wantSweep()
}

// sweepNamed begins to mirror what pods refer to, and drops what none has
// referred to or asked for in a while. It returns when it is to be called again,
// 0 for when something changes.
func (m *Mirror) sweepNamed() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.clock.Now()
	var due time.Duration
	soonest := func(d time.Duration) {
		if due == 0 || d < due {
			due = d
		}
	}
	referred := map[replica.Collection]bool{}
	for _, pod := range m.referred {
		for _, id := range pod {
			referred[id] = true
		}
	}
	for i := range m.rules {
		r := &m.rules[i]
		if !r.referred {
			continue
		}
		for id := range referred {
			if id.Resource != r.resource || m.streams[id] != nil || len(m.streams) >= maxNamed {
				continue
			}
			if until := m.refused[id]; now.Before(until) {
				soonest(until.Sub(now))
				continue
			}
			m.demand(r, id)
		}
	}
	pods, _ := m.rules[podRule].always(m.options.NodeName)
	if !m.streams[pods].known.Load() {
		return due // nobody knows what is referred to
	}
	for id, s := range m.streams {
		switch left := s.used.Add(linger).Sub(now); {
		case !s.rule.referred:
		case referred[id]:
			s.used = now
		case left > 0:
			soonest(left)
		default:
			m.drop(s)
		}
	}
	return due
}

// Lay publishes an event with a version of the overlay over a collection.
func (m *Mirror) Lay(c replica.Collection, e *replica.Event) error {
	s := m.stream(c)
	if s == nil {
		return fmt.Errorf("lay over %s: %w", c, replica.ErrNotMirrored)
	}
	return s.lay(e)
}

// Below returns an object as the apiserver has it, whatever is laid over it; nil: it
// has none.
func (m *Mirror) Below(c replica.Collection, namespace, name string) (*replica.Object, error) {
	s := m.stream(c)
	if s == nil {
		return nil, fmt.Errorf("look below what is laid over %s: %w", c, replica.ErrNotMirrored)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.one(objectKey{namespace, name})
}

// Lift makes the collections the apiserver's again.
func (m *Mirror) Lift(collections []replica.Collection) {
	for _, c := range collections {
		if s := m.stream(c); s != nil {
			s.lift()
		}
	}
}

func (m *Mirror) stream(c replica.Collection) *stream {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.streams[c]
}

// Bytes that came from the apiserver since the process began, of all collections.
func (m *Mirror) Bytes() int64 { return m.bytes.Load() }

// Collection is how one collection does.
type Collection struct {
	Collection replica.Collection
	Complete   bool
	// Version the node has come to.
	Version replica.Version
	Objects int
	// Bytes that came from the apiserver since the process began, as bodies of
	// answers.
	Bytes int64
	// Requests made to the apiserver since the process began.
	Requests int64
	// Heard is when something of it last came from the apiserver: an event, or a
	// bookmark (about one a minute, of collections of many objects); zero: not
	// since the process began.
	Heard time.Time
	// Err is why it is not followed now; nil where it is, and while the link is
	// cut.
	Err error
	// Failing is since when, of the time that the link has been there; zero: it is
	// followed.
	Failing time.Time
	// Unfollowed: that is so long ago that what the node holds must count as old.
	Unfollowed bool
}

// Collections tells how all collections do, in the order of their names.
func (m *Mirror) Collections() []Collection {
	m.mu.Lock()
	streams := make([]*stream, 0, len(m.streams))
	for _, s := range m.streams {
		streams = append(streams, s)
	}
	m.mu.Unlock()
	online := m.onlineSince()
	all := make([]Collection, 0, len(streams))
	for _, s := range streams {
		all = append(all, s.tell(online))
	}
	slices.SortFunc(all, func(a, b Collection) int { return strings.Compare(a.Collection.String(), b.Collection.String()) })
	return all
}
