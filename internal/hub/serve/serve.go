package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/table"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

const (
	// versionPatience is how long a version is waited for that the replica has
	// not come to: what an apiserver's own cache gives it (storage/cacher/
	// watch_cache.go, blockTimeout).
	versionPatience = 3 * time.Second
	// completePatience is how long a collection that has just begun to be
	// mirrored is waited for while the link is there: a list of a large one over
	// a slow link. After that the caller is told to try again.
	completePatience = 10 * time.Second
	// retryAfter, in seconds, of what may soon be there. The hub is local.
	retryAfter = 1
)

// Options of New. Replica is required.
type Options struct {
	Replica replica.Replica
	// Clock of bookmarks and of everything waited for; real time where nil.
	Clock clock.WithDelayedExecution
	// Logger; slog.Default where nil.
	Logger *slog.Logger
}

// Server answers reads from a replica.
type Server struct {
	replica replica.Replica
	clock   clock.WithDelayedExecution
	log     *slog.Logger
	held    held
}

// New makes one. It opens nothing.
func New(o Options) *Server {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Server{replica: o.Replica, clock: o.Clock, log: o.Logger, held: held{clock: o.Clock}}
}

// Request is a read of resources that its caller is allowed.
type Request struct {
	// Verb is get, list or watch.
	Verb     string
	Resource schema.GroupVersionResource
	// Namespace and Name as the path has them.
	Namespace, Name string
	Query           url.Values
	// Accept header.
	Accept string
	// Component: the caller is one of the node's own, and takes the replica's
	// state for the latest.
	Component bool
	// Stale: the apiserver cannot be asked, so the replica's state is the latest
	// there is.
	Stale bool
}

// Serve answers a read, or returns false, with nothing written, where it is not
// the replica's to answer. It blocks for as long as a watch lasts, which is until
// ctx ends at the latest, and panics with http.ErrAbortHandler where an answer
// cannot be finished.
func (s *Server) Serve(ctx context.Context, w http.ResponseWriter, r Request) bool {
	c, answered := s.take(ctx, w, r)
	if c == nil {
		return answered
	}
	switch c.request.Verb {
	case "get":
		return c.get()
	case "list":
		return c.list()
	case "watch":
		return c.watch()
	}
	return false
}

// take makes a call of a request; nil where there is nothing more to do, and whether
// it was answered then.
func (s *Server) take(ctx context.Context, w http.ResponseWriter, r Request) (c *call, answered bool) {
	options, status := parseOptions(r.Query, r.Verb)
	if status != nil {
		codec.WriteStatus(w, *status)
		return nil, true
	}
	selection, known := newSelection(r.Resource.GroupResource(), r.Namespace, options.LabelSelector, options.FieldSelector)
	if !known {
		return nil, false
	}
	c = &call{
		server: s, ctx: ctx, w: w, request: r, options: options, selection: selection,
		stale: r.Stale || !s.replica.Link().Online,
	}
	if c.options.latest && c.options.Continue == "" && !c.stale && (r.Verb == "get" || !r.Component) {
		return nil, false
	}
	c.collection, c.coverage = s.replica.Cover(c.query())
	if c.coverage == replica.CoverNone || c.coverage == replica.CoverPart && r.Verb != "get" {
		return nil, false
	}
	return c, false
}

// call is one request and its answer.
type call struct {
	server    *Server
	ctx       context.Context
	w         http.ResponseWriter
	request   Request
	options   options
	selection *selection
	// stale: nobody can know better than the replica.
	stale      bool
	collection replica.Collection
	coverage   replica.Coverage
}

func (c *call) query() replica.Query {
	q := replica.Query{Resource: c.request.Resource, Namespace: c.request.Namespace, Name: c.request.Name}
	if c.request.Verb != "get" {
		q.Name = c.options.exactField(fieldName)
		if q.Namespace == "" {
			q.Namespace = c.options.exactField(fieldNamespace)
		}
		if c.request.Resource.GroupResource() == (schema.GroupResource{Resource: "pods"}) {
			q.Node = c.options.exactField(fieldNode)
		}
	}
	return q
}

// negotiate chooses the encoding. A false return has been answered.
func (c *call) negotiate(kind schema.GroupVersionKind) (encoder, bool) {
	e, ok := codec.NegotiateOf(c.request.Accept, codec.Offer{
		List: c.request.Verb == "list", Protobuf: scheme.Scheme.Recognizes(kind), Table: true,
	})
	if !ok {
		codec.WriteStatus(c.w, metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusNotAcceptable, Reason: metav1.StatusReasonNotAcceptable,
			Message: fmt.Sprintf("the node's replica serves %s as %s and %s, whole or as PartialObjectMetadata, and as Table in the former",
				c.request.Resource.Resource, wire.MediaJSON, wire.MediaProtobuf),
		})
		return encoder{}, false
	}
	out := encoder{Encoding: e, kind: kind}
	if e.Table {
		include, err := table.Include(c.request.Query)
		if err != nil {
			codec.WriteStatus(c.w, *bad(err.Error()))
			return encoder{}, false
		}
		out.printer = &table.Printer{Kind: kind, Include: include, Clock: c.server.clock}
	}
	return out, true
}

// ready waits, bounded, for the collection to be complete and at a version.
func (c *call) ready(atLeast replica.Version) error {
	s := c.server
	over, cancel := context.WithCancel(c.ctx)
	cancel()
	err := s.replica.Wait(over, c.collection, atLeast)
	var patience time.Duration
	switch {
	case err == nil:
		return nil
	case errors.Is(err, replica.ErrIncomplete) && c.stale:
		// A node that is just starting may have its link in a moment.
		patience = versionPatience
	case errors.Is(err, replica.ErrIncomplete):
		patience = completePatience
	case errors.Is(err, replica.ErrFuture) && atLeast.Overlay():
		// Of an overlay that is over: it will never come.
		return fmt.Errorf("%w: %w", replica.ErrExpired, err)
	case errors.Is(err, replica.ErrFuture):
		patience = versionPatience
	default:
		return err
	}
	waiting, cancel := context.WithCancel(c.ctx)
	defer cancel()
	timer := s.clock.AfterFunc(patience, cancel)
	defer timer.Stop()
	return s.replica.Wait(waiting, c.collection, atLeast)
}

// refuse answers with the Status of an error of the replica; false where the
// collection is gone, and the request is no longer the replica's.
func (c *call) refuse(err error) bool {
	if c.ctx.Err() != nil {
		panic(http.ErrAbortHandler) // the caller is gone
	}
	if errors.Is(err, replica.ErrNotMirrored) {
		return false
	}
	codec.WriteStatus(c.w, c.status(err))
	return true
}

// status says what an error of the replica means to a client.
func (c *call) status(err error) metav1.Status {
	switch {
	case errors.Is(err, replica.ErrExpired), errors.Is(err, replica.ErrFuture) && c.stale:
		return apierrors.NewResourceExpired(err.Error()).ErrStatus
	case errors.Is(err, replica.ErrFuture):
		// storage/errors.go of the apiserver: reflectors go by the cause.
		s := apierrors.NewTimeoutError("Too large resource version: "+err.Error(), retryAfter).ErrStatus
		s.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
		return s
	case errors.Is(err, replica.ErrIncomplete):
		s := apierrors.NewServiceUnavailable("the node does not hold all of them: " + err.Error()).ErrStatus
		s.Details = &metav1.StatusDetails{RetryAfterSeconds: retryAfter}
		return s
	}
	c.server.log.Error("serve from the replica", "collection", c.collection.String(), "error", err)
	return apierrors.NewInternalError(err).ErrStatus
}

// fail answers 500, or breaks off what has begun.
func (c *call) fail(err error, begun bool) {
	c.server.log.Error("serve from the replica", "collection", c.collection.String(), "error", err)
	if begun {
		panic(http.ErrAbortHandler)
	}
	codec.WriteStatus(c.w, apierrors.NewInternalError(err).ErrStatus)
}

func bad(message string) *metav1.Status {
	return &apierrors.NewBadRequest(message).ErrStatus
}
