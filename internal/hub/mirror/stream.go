package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

const (
	// pageSize of lists. An apiserver gives each page 60 s (--request-timeout): of
	// slices or pods one is some 50 KB when compressed, which 8 kbit/s carry in
	// that time. Twice as many would save nothing that can be measured.
	pageSize = 250
	// pageLeast is what pages become by halves while they do not come whole.
	pageLeast = 10
	// pagesLast is how long a list that was broken off is gone on with: an
	// apiserver forgets a list's version after 5 to 10 minutes
	// (--etcd-compaction-interval).
	pagesLast = 5 * time.Minute
	// watchLasts is how long a watch is asked to last, at least; up to twice as
	// long, so that those of many nodes do not end at once. It is what apiservers
	// give watches that do not ask (--min-request-timeout), and longer than
	// client-go's 5 minutes: beginning again costs bytes.
	watchLasts = 30 * time.Minute
	// gatherLasts is the same for a watch that begins with initial events, which
	// come with bookmarks only: where those are not wanted afterwards, another
	// watch follows.
	gatherLasts = time.Minute
	// backoffFirst and backoffLast bound the wait after a failure while the link
	// is there; it is up to twice as long by chance. What was not understood will not
	// be the next time: to read it more often is not worth a metered link's bytes.
	backoffFirst = 200 * time.Millisecond
	backoffLast  = 30 * time.Second
	// steadyAfter is how long a watch lasts that nothing is wrong with, though no
	// event has come: one that cannot go on ends as soon as it has begun.
	steadyAfter = 30 * time.Second
	// unfollowedAfter is how long a stream may fail, while the link is there, before
	// people are told.
	unfollowedAfter = 2 * time.Minute
)

// errExpired: the stream cannot go on from where it is.
var errExpired = errors.New("the version cannot be gone on from")

// errRewound: because the apiserver is behind what it has sent. Its etcd was
// restored without its revision bumped.
var errRewound = fmt.Errorf("%w: the apiserver has gone back in time", errExpired)

func newBackoff() wait.Backoff {
	return wait.Backoff{Duration: backoffFirst, Factor: 2, Jitter: 1, Steps: 16, Cap: backoffLast}
}

// stream follows one collection.
type stream struct {
	mirror *Mirror
	rule   *rule
	id     replica.Collection
	log    *slog.Logger

	bytes, requests atomic.Int64
	heard           atomic.Int64 // when, in Unix nanoseconds; 0: never

	// pages of a list that was broken off; run's alone. nil: none.
	pages *listing
	// answered: what was last asked for was given, whatever came of it; run's alone.
	answered bool

	// Guarded by the mirror's mu.
	stop  context.CancelFunc // nil before it runs
	again context.CancelFunc // ends the present watch; nil before the first
	used  time.Time          // by a request or a pod, last
	// doubted: it is to be read anew though its version may still be known.
	doubted bool

	state // see state.go
}

// run follows until ctx ends.
func (s *stream) run(ctx context.Context) {
	backoff := newBackoff()
	for {
		parted, ok := s.mirror.awaitLink(ctx)
		if !ok {
			return
		}
		progress, err := s.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		failing := s.failed(err)
		if progress {
			backoff = newBackoff()
		}
		if err == nil && progress {
			continue // it lasted as long as was asked
		}
		if apierrors.IsForbidden(err) && s.rule.scope == named && !s.isComplete() {
			s.mirror.refuse(s)
			return
		}
		pause := backoff.Step()
		var answered <-chan struct{}
		if pause > trialEvery && isUnwell(err) {
			own := pause
			pause, answered = s.mirror.trial()
			if failing >= trialsLast {
				pause = max(pause, own)
			}
		}
		if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
			pause = max(pause, time.Duration(seconds)*time.Second)
		}
		s.log.Debug("a stream from the apiserver ended", "again", pause, "error", err)
		if !s.mirror.pause(ctx, pause, parted, answered) {
			return
		}
	}
}

// follow goes on from the version there is, or begins anew, until the stream
// ends. progress says that something came of it.
func (s *stream) follow(ctx context.Context) (progress bool, err error) {
	if s.isComplete() {
		progress, err = s.watch(ctx, nil)
		if errors.Is(err, errRewound) {
			s.mirror.rewound(s)
		}
		if !errors.Is(err, errExpired) {
			return progress, err
		}
		level := slog.LevelInfo
		if !s.rule.listed {
			level = slog.LevelDebug // it has no bookmarks, and is little
		}
		s.log.Log(ctx, level, "list anew: the apiserver has forgotten where the node was", "version", s.at(), "error", err)
	}
	if !s.rule.listed {
		progress, err = s.watch(ctx, newGathering())
		if !isUnsupported(err) {
			return progress, err
		}
	}
	c, progress, err := s.list(ctx)
	if err != nil {
		return progress, err
	}
	if err := s.replace(ctx, c); err != nil {
		return false, err
	}
	_, err = s.watch(ctx, nil)
	return true, err
}

// gathering is the initial events of a watch that has not sent all of them.
type gathering struct{ objects map[objectKey]*replica.Object }

func newGathering() *gathering { return &gathering{map[objectKey]*replica.Object{}} }

// watch takes events until the stream ends: from the present version, or, with a
// gathering, from the beginning. progress says that an event came or it was steady,
// and of a gathering, that all initial events came.
func (s *stream) watch(ctx context.Context, g *gathering) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.mirror.begins(s, cancel) && g == nil {
		return false, fmt.Errorf("%w: so another collection has found", errExpired)
	}
	events, body, err := s.openWatch(ctx, g != nil)
	if err != nil {
		return false, err
	}
	defer body.Close()
	if g == nil {
		began := s.mirror.clock.Now()
		defer func() { progress = progress || s.mirror.clock.Since(began) >= steadyAfter }()
		if s.opened() {
			// On a goroutine of its own: a clock may call while it holds its lock.
			steady := s.mirror.clock.AfterFunc(steadyAfter, func() { go s.followed() })
			defer steady.Stop()
		}
	}
	for {
		e, err := events.Next()
		if errors.Is(err, io.EOF) && g == nil {
			return progress, nil
		}
		if err != nil {
			return progress, err
		}
		if g, err = s.take(ctx, e, g); err != nil {
			return progress, s.expiry(err)
		}
		if progress = g == nil; progress {
			s.followed()
		}
	}
}

// openWatch asks for a watch, from the beginning or from the present version. The body
// must be closed. There is a stream for each Secret and ConfigMap of the node's pods,
// and what asking needs of its stack is free again while it waits for events.
func (s *stream) openWatch(ctx context.Context, anew bool) (wire.EventReader, io.Closer, error) {
	lasts := watchLasts
	if anew && !s.rule.listed {
		lasts = gatherLasts
	}
	query := url.Values{
		"watch":               {"true"},
		"allowWatchBookmarks": {strconv.FormatBool(s.rule.listed || anew)},
		"timeoutSeconds":      {strconv.Itoa(int((lasts + rand.N(lasts)).Seconds()))},
	}
	if anew {
		query.Set("sendInitialEvents", "true")
		query.Set("resourceVersionMatch", string(metav1.ResourceVersionMatchNotOlderThan))
	} else {
		query.Set("resourceVersion", s.at().String())
	}
	body, err := s.get(ctx, query)
	if err != nil {
		return nil, nil, s.expiry(err)
	}
	events, err := wire.NewEventReader(s.rule.media, body)
	if err != nil {
		body.Close()
		return nil, nil, err
	}
	return events, body, nil
}

// expiry makes errExpired of what an apiserver says when it has forgotten a
// version.
func (s *stream) expiry(err error) error {
	if apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
		return fmt.Errorf("%w: %w", errRewound, err)
	}
	if isExpired(err) {
		return fmt.Errorf("%w: %w", errExpired, err)
	}
	return err
}

// take understands one event. It returns what is still being gathered.
func (s *stream) take(ctx context.Context, e wire.Event, g *gathering) (*gathering, error) {
	s.heard.Store(s.mirror.clock.Now().UnixNano())
	if e.Type == string(watch.Error) {
		status, err := parseStatus(s.rule.media, e.Object)
		if err != nil {
			return g, fmt.Errorf("an error in the stream: %w", err)
		}
		return g, &apierrors.StatusError{ErrStatus: *status}
	}
	message := e.Object
	if s.rule.media == wire.MediaProtobuf {
		envelope, err := wire.ParseEnvelope(e.Object)
		if err != nil {
			return g, err
		}
		message = envelope.Message
	}
	if e.Type == string(watch.Bookmark) {
		return s.bookmark(ctx, message, g)
	}
	o, err := s.rule.understand(message)
	if err != nil {
		return g, err
	}
	if g == nil {
		return nil, s.change(ctx, e.Type, o)
	}
	// An initial event, or a change that came meanwhile.
	delete(g.objects, keyOf(o))
	if e.Type == string(watch.Deleted) {
		return g, nil
	}
	if o, err = s.filter(o); err == nil && o != nil {
		g.objects[keyOf(o)] = o
	}
	return g, err
}

func (s *stream) bookmark(ctx context.Context, message []byte, g *gathering) (*gathering, error) {
	meta, err := wire.ReadMeta(s.rule.media, message)
	if err != nil {
		return g, err
	}
	version, err := replica.ParseVersion(meta.ResourceVersion)
	if err != nil {
		return g, err
	}
	switch {
	case g != nil && meta.EndsInitialEvents():
		return nil, s.replace(ctx, content{objects: g.objects, version: version})
	case g != nil:
		return g, nil
	}
	return nil, s.advance(version)
}

// listing is a list of which some pages have come.
type listing struct {
	content
	// next is the apiserver's token for the page that follows.
	next  string
	limit int // of a page
	began time.Time
}

// list reads all pages, from where it was broken off if that is not long ago: all
// are of one version, which the token holds. An answer that the token is no good
// begins the next list at its beginning. progress says that a page came that is kept:
// what is dropped would be read again and again.
func (s *stream) list(ctx context.Context) (c content, progress bool, err error) {
	l := s.pages
	s.pages = nil
	if l == nil || s.mirror.clock.Since(l.began) > pagesLast {
		l = &listing{content: content{objects: map[objectKey]*replica.Object{}}, limit: pageSize, began: s.mirror.clock.Now()}
	}
	for {
		raw, err := s.page(ctx, l)
		if err != nil {
			if !isPassing(err) {
				return content{}, false, err
			}
			s.pages = l
			return content{}, progress, err
		}
		if err := s.turn(l, raw); err != nil {
			return content{}, false, err
		}
		if l.next == "" {
			return l.content, true, nil
		}
		progress = true
	}
}

// shrink makes the pages that follow smaller: one did not come whole.
func (l *listing) shrink() { l.limit = max(l.limit/2, pageLeast) }

// page reads the next page.
func (s *stream) page(ctx context.Context, l *listing) ([]byte, error) {
	query := url.Values{"limit": {strconv.Itoa(l.limit)}}
	if l.next != "" {
		query.Set("continue", l.next)
	}
	body, err := s.get(ctx, query)
	if err != nil {
		if isTimeout(err) {
			l.shrink()
		}
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, maxPage+1))
	if err == nil && len(b) > maxPage {
		err = fmt.Errorf("a page of more than %d bytes", maxPage)
	}
	if err != nil {
		l.shrink()
		return nil, err
	}
	s.heard.Store(s.mirror.clock.Now().UnixNano())
	return b, nil
}

// turn adds a page to a list.
func (s *stream) turn(l *listing, raw []byte) error {
	page, err := wire.ParseList(s.rule.media, raw)
	if err != nil {
		return err
	}
	version, err := replica.ParseVersion(page.ResourceVersion)
	if err != nil {
		return err
	}
	if l.version != 0 && version != l.version {
		return fmt.Errorf("pages of %s and %s in one list", l.version, version)
	}
	l.version, l.next = version, page.Continue
	for _, item := range page.Items {
		o, err := s.rule.understand(item)
		if err == nil {
			o, err = s.filter(o)
		}
		if err != nil {
			return err
		}
		if o != nil {
			l.objects[keyOf(o)] = o
		}
	}
	return nil
}
