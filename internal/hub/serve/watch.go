package serve

import (
	"context"
	"errors"
	"net/http"
	"time"

	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

const (
	// bookmarkEvery is how often a watch is told the version it has come to, as
	// an apiserver does, cut off or not: a client that is never told resumes
	// from where everything is long forgotten.
	bookmarkEvery = time.Minute
	// watchBatch is how many events are written at once.
	watchBatch = 64
	// writePatience is how long a client may take no bytes before its watch is
	// ended. It begins anew from where it was, or is told to list.
	writePatience = 30 * time.Second
)

// watch answers a watch:
//
//	initial events ─► (bookmark that ends them) ─► events and bookmarks ─► end
//
// It ends between events: when ctx is done, after timeoutSeconds, or with an
// ERROR event where the client must begin anew. No event is ever left out.
func (c *call) watch() bool {
	initial, ends := c.options.sendsInitial()
	snapshot, place, err := c.start(initial)
	if errors.Is(err, replica.ErrFuture) && !c.stale && !c.request.Component {
		return false // begun with the apiserver; it goes on there
	}
	if errors.Is(err, replica.ErrNotMirrored) || errors.Is(err, replica.ErrIncomplete) {
		return c.refuse(err)
	}
	kind, kerr := c.server.replica.Snapshot(c.collection)
	if kerr != nil {
		return c.refuse(kerr)
	}
	e, ok := c.negotiate(kind.Kind)
	if !ok {
		return true
	}
	s := &stream{call: c, encoder: e, control: http.NewResponseController(c.w)}
	s.begin()
	if err != nil {
		// An apiserver too accepts a watch and then says that it cannot be.
		s.end(err)
		return true
	}
	if initial && !s.initial(snapshot, ends) {
		return true
	}
	s.follow(place)
	return true
}

// start finds where the watch begins: a snapshot to send first, where initial,
// and the place from which events follow.
func (c *call) start(initial bool) (*replica.Snapshot, *replica.Watch, error) {
	if err := c.ready(c.options.version); err != nil {
		return nil, nil, err
	}
	from := c.options.version
	if !initial && from > 0 {
		place, err := c.server.replica.Watch(c.collection, from)
		return nil, place, err
	}
	for {
		snapshot, err := c.server.replica.Snapshot(c.collection)
		if err != nil {
			return nil, nil, err
		}
		place, err := c.server.replica.Watch(c.collection, snapshot.Version)
		if errors.Is(err, replica.ErrExpired) || errors.Is(err, replica.ErrFuture) {
			if c.ctx.Err() != nil {
				panic(http.ErrAbortHandler)
			}
			continue // replaced between the two
		}
		return snapshot, place, err
	}
}

// stream is a watch that was accepted.
type stream struct {
	*call
	encoder
	control *http.ResponseController
}

// begin tells the client that its watch is there, before the first event.
func (s *stream) begin() {
	contentType := s.Media()
	if s.Protobuf {
		contentType += ";stream=watch"
	}
	s.header(contentType, -1)
	s.flush()
}

// write sends frames. A client that does not take them is gone.
func (s *stream) write(frame []byte) {
	// Connections keep real time; where deadlines are not supported (tests'
	// recorders) nothing stalls.
	_ = s.control.SetWriteDeadline(time.Now().Add(writePatience))
	if _, err := s.w.Write(frame); err != nil {
		panic(http.ErrAbortHandler)
	}
	s.headed = true // by the first, whatever it was
}

func (s *stream) flush() {
	if err := s.control.Flush(); err != nil {
		panic(http.ErrAbortHandler)
	}
	_ = s.control.SetWriteDeadline(time.Time{}) // as above
}

// end says why the watch cannot go on.
func (s *stream) end(err error) {
	if s.ctx.Err() != nil {
		return
	}
	frame, ferr := s.failure(s.status(err))
	if ferr != nil {
		s.fail(ferr, true)
	}
	s.write(frame)
	s.flush()
}

// initial sends what there is. A false return: the client is gone.
func (s *stream) initial(snapshot *replica.Snapshot, ends bool) bool {
	for _, o := range snapshot.Objects {
		ok, err := s.selection.matches(o)
		if err != nil {
			s.fail(err, true)
		}
		if !ok {
			continue
		}
		frame, err := s.added(o)
		if err != nil {
			s.fail(err, true)
		}
		s.write(frame)
		if s.ctx.Err() != nil {
			return false
		}
	}
	if ends {
		s.mark(snapshot.Version, true)
	}
	s.flush()
	return true
}

func (s *stream) mark(version replica.Version, endsInitialEvents bool) {
	frame, err := s.bookmark(version, endsInitialEvents)
	if err != nil {
		s.fail(err, true)
	}
	s.write(frame)
}

// follow sends changes as they come.
func (s *stream) follow(place *replica.Watch) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	if t := s.options.TimeoutSeconds; t != nil && *t > 0 {
		timer := s.server.clock.AfterFunc(time.Duration(*t)*time.Second, cancel)
		defer timer.Stop()
	}
	var bookmarks clock.Timer // nil where the client wants none
	var due <-chan time.Time
	if s.options.AllowWatchBookmarks {
		bookmarks = s.server.clock.NewTimer(bookmarkEvery)
		defer bookmarks.Stop()
		due = bookmarks.C()
	}
	for {
		if err := s.take(ctx, place); err != nil {
			s.server.log.Debug("ended a watch", "collection", s.collection.String(), "error", err)
			s.end(err)
			return
		}
		select {
		case <-place.Ready():
		case <-due:
			s.mark(place.Version(), false)
			s.flush()
			bookmarks.Reset(bookmarkEvery)
		case <-ctx.Done():
			// By its timeout: the client resumes where it is, with what it was told.
			if s.ctx.Err() == nil && s.options.AllowWatchBookmarks {
				s.mark(place.Version(), false)
				s.flush()
			}
			return
		}
	}
}

// take sends all events there are.
func (s *stream) take(ctx context.Context, place *replica.Watch) error {
	for ctx.Err() == nil {
		events, err := place.Take(watchBatch)
		if err != nil {
			return err
		}
		if len(events) == 0 {
			return nil
		}
		sent := false
		for _, event := range events {
			frame, err := s.event(s.selection, event)
			if err != nil {
				s.fail(err, true)
			}
			if frame != nil {
				s.write(frame)
				sent = true
			}
		}
		if sent {
			s.flush()
		}
	}
	return nil
}
