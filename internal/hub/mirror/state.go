package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/watch"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/store"
)

// state is where a stream is. The objects are in the cache, or, while an overlay
// lies over them there, in below.
type state struct {
	mu       sync.Mutex // guards what follows; held while changes are made
	ended    bool       // dropped: nothing may be written any more
	complete bool
	version  replica.Version
	changed  replica.Version // of the last event
	below    map[objectKey]*replica.Object
	// err is the last failure since it was followed, and failing when the first of
	// those came; nil and zero while it is followed.
	err     error
	failing time.Time
	refused bool // err is an answer, or that there was none
	told    bool // that it is not followed

	known atomic.Bool // complete, for those who cannot take mu
}

func (s *stream) isComplete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.complete
}

func (s *stream) at() replica.Version {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version
}

// failed notes why a stream ended; nil: as it was asked to. That of a link that is
// cut is no failure of the stream's. It returns for how long the stream has failed.
func (s *stream) failed(err error) time.Duration {
	online := s.mirror.onlineSince()
	if err == nil || online.IsZero() {
		return 0
	}
	now := s.mirror.clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.refused = err, !s.answered
	if s.failing.IsZero() {
		s.failing = now
	}
	since, unfollowed := s.unfollowed(online, now)
	if unfollowed && !s.told {
		s.told = true
		s.log.Warn("a collection is not followed though the link is there; what the node holds of it grows old",
			"complete", s.complete, "since", since, "error", err)
	}
	return now.Sub(since)
}

// unfollowed says since when a stream has failed while the link is there, and
// whether that is worth telling. Only the present online period counts: of a link
// that comes and goes, that is what there is to tell. The caller holds mu.
func (s *stream) unfollowed(online, now time.Time) (since time.Time, unfollowed bool) {
	if s.failing.IsZero() || online.IsZero() {
		return time.Time{}, false
	}
	since = s.failing
	if online.After(since) {
		since = online
	}
	return since, now.Sub(since) >= unfollowedAfter
}

// opened notes that a watch has begun, which cures a stream that was refused one. It
// returns whether the stream is still failing: what ended it may come again.
func (s *stream) opened() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused {
		s.recover()
	}
	return s.err != nil
}

// followed notes that the apiserver tells what happens, and it is understood.
func (s *stream) followed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recover()
}

// recover is followed of a caller who holds mu.
func (s *stream) recover() {
	if s.told {
		s.log.Info("a collection is followed again")
	}
	s.err, s.failing, s.refused, s.told = nil, time.Time{}, false, false
}

// filter applies the collection's.
func (s *stream) filter(o *replica.Object) (*replica.Object, error) {
	f := s.mirror.options.Filters[s.id.Resource]
	if f == nil {
		return o, nil
	}
	filtered, err := f(o)
	if err != nil {
		return nil, fmt.Errorf("filter %s/%s: %w", o.Namespace, o.Name, err)
	}
	return filtered, nil
}

// addOwn puts the node's own objects into a content.
func (s *stream) addOwn(c content) {
	for _, o := range s.mirror.options.Own[s.id.Resource] {
		if (s.id.Namespace == "" || s.id.Namespace == o.Namespace) && (s.id.Name == "" || s.id.Name == o.Name) {
			c.objects[keyOf(o)] = o
		}
	}
}

// adoptOwn puts the node's own objects into a content that was stored: as they
// were, where they are the same, else with the version of the whole. It returns
// the version of the last change.
func (s *stream) adoptOwn(c content, changed replica.Version) (replica.Version, error) {
	stored := make(map[objectKey]*replica.Object, len(c.objects))
	for k, o := range c.objects {
		stored[k] = o
	}
	s.addOwn(c)
	for k, o := range c.objects {
		was := stored[k]
		if o == was {
			continue
		}
		if was != nil {
			same, err := s.rule.at(o, was.Version)
			if err != nil {
				return 0, err
			}
			if bytes.Equal(same.Raw, was.Raw) {
				c.objects[k] = was
				continue
			}
		}
		changed = c.version
	}
	return changed, s.rule.number(c)
}

// own says whether an object is the node's own.
func (s *stream) own(k objectKey) bool {
	for _, o := range s.mirror.options.Own[s.id.Resource] {
		if keyOf(o) == k {
			return true
		}
	}
	return false
}

// begin shows a content that was stored.
func (s *stream) begin(c content, changed replica.Version) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.complete, s.version, s.changed = true, c.version, changed
	s.known.Store(true)
	s.refer(values(c.objects), nil)
	return s.mirror.Load(s.id, replica.Content{Objects: values(c.objects), Version: c.version, Changed: changed})
}

func values(objects map[objectKey]*replica.Object) []*replica.Object {
	all := make([]*replica.Object, 0, len(objects))
	for _, o := range objects {
		all = append(all, o)
	}
	return all
}

// held returns what the node has of the apiserver's state. The caller holds mu.
func (s *stream) held() (content, error) {
	c := content{version: s.version}
	if s.below != nil {
		c.objects = s.below
		return c, nil
	}
	snapshot, err := s.mirror.Snapshot(s.id)
	if err != nil {
		return c, err
	}
	c.objects = make(map[objectKey]*replica.Object, len(snapshot.Objects))
	for _, o := range snapshot.Objects {
		c.objects[keyOf(o)] = o
	}
	return c, nil
}

// one returns one object of it, or nil. The caller holds mu.
func (s *stream) one(k objectKey) (*replica.Object, error) {
	if s.below != nil {
		return s.below[k], nil
	}
	o, _, err := s.mirror.Get(s.id, k.namespace, k.name)
	return o, err
}

// replace takes a whole content: the first, or what a list anew has found.
func (s *stream) replace(ctx context.Context, new content) (err error) {
	s.addOwn(new)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return replica.ErrNotMirrored
	}
	defer func() {
		if err == nil {
			s.recover()
		}
	}()
	if !s.complete {
		return s.load(ctx, new)
	}
	old, err := s.held()
	if err != nil {
		return err
	}
	events, err := s.rule.diff(old, new)
	if errors.Is(err, errNoDifference) {
		s.log.Warn("the cluster's history is another than it was; whoever watches begins anew", "error", err)
		return s.load(ctx, new)
	}
	if err != nil {
		return err
	}
	return s.publish(ctx, events, new.version)
}

// load shows a content that follows from nothing that was shown. The caller holds
// mu.
func (s *stream) load(ctx context.Context, c content) error {
	if err := s.rule.number(c); err != nil {
		return err
	}
	s.version, s.changed = c.version, c.version
	objects := values(c.objects)
	s.keep(ctx, store.Change{Replace: true, Put: objects}, s.rule.durable)
	var gone []*replica.Object
	if s.complete {
		old, err := s.held()
		if err != nil {
			return err
		}
		gone = values(old.objects)
	}
	s.complete = true
	s.known.Store(true)
	s.refer(objects, gone)
	if s.below != nil {
		// The overlay goes on over it, and ends with a Reset anyway.
		s.below = c.objects
		return nil
	}
	return s.mirror.Load(s.id, replica.Content{Objects: objects, Version: c.version})
}

// change takes one event of the apiserver's.
func (s *stream) change(ctx context.Context, kind string, o *replica.Object) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return replica.ErrNotMirrored
	}
	if o.Version <= s.version {
		return fmt.Errorf("%w: an event of version %s follows %s", errRewound, o.Version, s.version)
	}
	k := keyOf(o)
	was, err := s.one(k)
	if err != nil {
		return err
	}
	is := o
	if kind != string(watch.Deleted) {
		if is, err = s.filter(o); err != nil {
			return err
		}
	}
	e := &replica.Event{Object: is, Previous: was}
	switch {
	case kind == string(watch.Deleted) && (was == nil || s.own(k)), is == nil && (was == nil || s.own(k)):
		// Nothing that the node knew of.
	case kind == string(watch.Deleted):
		e.Type = watch.Deleted
	case is == nil:
		// The filter leaves out what it showed before.
		e.Type = watch.Deleted
		if e.Object, err = s.rule.at(was, o.Version); err != nil {
			return err
		}
	case was == nil:
		e.Type = watch.Added
	case s.rule.unchanged(was, is):
	case kind == string(watch.Added), kind == string(watch.Modified):
		e.Type = watch.Modified
	default:
		return fmt.Errorf("an event of type %q", kind)
	}
	if e.Type == "" {
		return s.move(o.Version)
	}
	return s.publish(ctx, []*replica.Event{e}, o.Version)
}

// advance takes a bookmark.
func (s *stream) advance(version replica.Version) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if version < s.version {
		// The apiserver is behind what it has sent: etcd was restored without its
		// revision bumped, and what it sends from now on may be left out here.
		return fmt.Errorf("%w: a bookmark of version %s follows %s", errRewound, version, s.version)
	}
	return s.move(version)
}

// move goes on to a version without a change. The caller holds mu.
func (s *stream) move(version replica.Version) error {
	if s.ended || version == s.version {
		return nil
	}
	s.version = version
	s.mirror.options.Store.Move(s.id, s.stored())
	if s.below != nil {
		return nil
	}
	return s.mirror.Advance(s.id, version)
}

// stored is the state as it goes into the store. The caller holds mu.
func (s *stream) stored() store.State {
	return store.State{Kind: s.rule.gvk(), Version: s.version, Changed: s.changed, Complete: true}
}

// keep gives a change to the store. A disk that fails does not stop the node: the
// store tries again, and says so. The caller holds mu.
func (s *stream) keep(ctx context.Context, c store.Change, durable bool) {
	c.Collection, c.State, c.Seal = s.id, s.stored(), s.rule.sealed
	if !durable {
		s.mirror.options.Store.Write(c)
		return
	}
	if err := s.mirror.options.Store.Commit(ctx, c); err != nil && ctx.Err() == nil {
		s.log.Error("a change is shown before it is on disk", "error", err)
	}
}

// publish shows events, once the store has them. The caller holds mu.
func (s *stream) publish(ctx context.Context, events []*replica.Event, version replica.Version) error {
	if len(events) == 0 {
		return s.move(version)
	}
	s.version, s.changed = version, events[len(events)-1].Version()
	var change store.Change
	durable := false
	var gone []*replica.Object
	for _, e := range events {
		if e.Type == watch.Deleted {
			gone = append(gone, e.Object)
		} else {
			change.Put = append(change.Put, e.Object)
		}
		durable = durable || s.rule.matters(e)
	}
	change.Delete = deletions(events)
	s.keep(ctx, change, durable)
	s.refer(change.Put, gone)
	if s.below != nil {
		for _, e := range events {
			if e.Type == watch.Deleted {
				delete(s.below, keyOf(e.Object))
			} else {
				s.below[keyOf(e.Object)] = e.Object
			}
		}
		return nil
	}
	return s.mirror.Publish(s.id, events, version)
}

// deletions are the objects that are gone after all events: one that was deleted
// and made again is not.
func deletions(events []*replica.Event) []*replica.Object {
	gone := map[objectKey]*replica.Object{}
	for _, e := range events {
		if e.Type == watch.Deleted {
			gone[keyOf(e.Object)] = e.Object
		} else {
			delete(gone, keyOf(e.Object))
		}
	}
	return values(gone)
}

// refer tells the mirror what pods refer to.
func (s *stream) refer(there, gone []*replica.Object) {
	if s.rule.kind != "Pod" {
		return
	}
	for _, o := range gone {
		s.mirror.refer(keyOf(o), nil)
	}
	for _, o := range there {
		to, err := references(o)
		if err != nil {
			s.log.Error("find what a pod refers to", "pod", o.Namespace+"/"+o.Name, "error", err)
			continue
		}
		s.mirror.refer(keyOf(o), to)
	}
}

// end forgets the collection.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.mirror.Drop(s.id)
	s.mirror.options.Store.Write(store.Change{Collection: s.id, Drop: true})
}

// lay shows an event of the overlay, and keeps the apiserver's state below it.
func (s *stream) lay(e *replica.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.below == nil {
		c, err := s.held()
		if err != nil {
			return err
		}
		s.below = c.objects
	}
	return s.mirror.Publish(s.id, []*replica.Event{e}, e.Version())
}

// lift shows the apiserver's state again.
func (s *stream) lift() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.below == nil {
		return
	}
	objects := values(s.below)
	s.below = nil
	err := s.mirror.Reset(s.id, replica.Content{Objects: objects, Version: s.version})
	if err != nil && !s.ended {
		s.log.Error("lift the overlay", "error", err)
	}
}

// tell tells how it does, of a link that has been there since online; zero: it is cut.
func (s *stream) tell(online time.Time) Collection {
	now := s.mirror.clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	c := Collection{
		Collection: s.id, Complete: s.complete, Version: s.version,
		Bytes: s.bytes.Load(), Requests: s.requests.Load(),
	}
	if !online.IsZero() {
		c.Err = s.err
	}
	c.Failing, c.Unfollowed = s.unfollowed(online, now)
	if at := s.heard.Load(); at != 0 {
		c.Heard = time.Unix(0, at)
	}
	if held, err := s.held(); err == nil {
		c.Objects = len(held.objects)
	}
	return c
}
