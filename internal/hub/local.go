package hub

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/endpoints"
	"github.com/edgewright/terraform-provider-edge/internal/hub/link"
	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
	"github.com/edgewright/terraform-provider-edge/internal/hub/overlay"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/restate"
	"github.com/edgewright/terraform-provider-edge/internal/hub/serve"
)

// Local is what a hub has on its own node. All but OnLink is required.
type Local struct {
	// Replica is the node's copy of the API.
	Replica replica.Replica
	// Layer takes what the node writes while it is cut off.
	Layer endpoints.Layer
	// Memo keeps what is not mirrored.
	Memo *memo.Memo
	// PodCertificate returns the certificate that pods are answered with while
	// the node is cut off: of the node-local authority, for the names of
	// kubernetes.default and its addresses.
	PodCertificate func() (*tls.Certificate, error)
	// RenewLease says whether the hub renews the node's lease upstream; else
	// somebody else does, by KubeletRenewed.
	RenewLease bool
	// OnLink is told when the link is cut or back, one call at a time; it must
	// not block. May be nil.
	OnLink func(link.State)
}

// local is a request's way to an answer on the node itself:
//
//	own lease ────────────────────────────────────► kept here, always
//	read ──► replica ──(not its to answer)──┐
//	write ──────────────────────────────────┴─► online? ──► apiserver ──► answer
//	                                              │ (after what kubelet declared there)
//	                                              │             │ no answer
//	                                              ▼             ▼
//	           cut: replica as it is ─► remembered ─► overlay ─► 503 that names the cut
type local struct {
	hub     *Hub
	config  Local
	server  *serve.Server
	link    *link.Monitor
	overlay *overlay.Overlay
	// endpoints of the node's own pods, corrected while it is cut off.
	endpoints *endpoints.Corrector
	// restate tells the cluster what it has missed of the node, as the link returns.
	restate *restate.Teller
	lease   lease
	back    chan struct{} // the link is back
	// learning asks for what pods' requests are judged by.
	learning chan struct{}
	pods     *podServer
	bearer   *upstream // with tokens of pods, and no certificate
}

func newLocal(h *Hub, config Local) *local {
	l := &local{hub: h, config: config, lease: lease{kick: make(chan struct{}, 1)}, back: make(chan struct{}, 1), learning: make(chan struct{}, 1)}
	l.pods = newPodServer(l)
	l.bearer = newUpstream(&h.config, func() (*tls.Certificate, error) { return nil, nil })
	l.bearer.anonymous = true
	l.server = serve.New(serve.Options{Replica: config.Replica, Clock: h.clock, Logger: h.log})
	l.overlay = overlay.New(overlay.Options{
		Replica: config.Replica, Layer: config.Layer, Memo: config.Memo, NodeName: h.config.NodeName, Clock: h.clock, Logger: h.log,
	})
	l.endpoints = endpoints.New(endpoints.Options{
		Replica: config.Replica, Layer: config.Layer, Version: l.overlay.Version, NodeName: h.config.NodeName,
		Online: func() bool { _, online := l.link.Online(); return online }, Clock: h.clock, Logger: h.log,
	})
	l.restate = restate.New(restate.Options{
		Replica: config.Replica, NodeName: h.config.NodeName, Online: func() (context.Context, bool) { return l.link.Online() },
		Kubelet: l.lease.kubelet, Send: l.handOver, Clock: h.clock, Logger: h.log,
	})
	l.link = link.New(link.Options{Probe: l.probe, Clock: h.clock, Logger: h.log, OnChange: func(s link.State) {
		l.restate.LinkChanged(s.Online)
		if s.Online {
			l.overlay.Returned()
			l.handBack()
			l.pods.release()
		}
		l.endpoints.LinkChanged(s.Online)
		if config.OnLink != nil {
			config.OnLink(s)
		}
		if h.config.OnLink != nil {
			h.config.OnLink()
		}
	}})
	return l
}

// handBack asks for what the node kept to be handed back.
func (l *local) handBack() {
	select {
	case l.back <- struct{}{}:
	default:
	}
}

// run does what is done beside answering, until ctx ends.
func (l *local) run(ctx context.Context) {
	l.overlay.Restore()
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() {
		if err := l.link.Run(ctx); err != nil {
			l.hub.log.Error("watch the link", "error", err)
		}
	})
	parts.Go(func() { l.endpoints.Run(ctx) })
	parts.Go(func() { l.restate.Run(ctx) })
	if l.config.RenewLease {
		parts.Go(func() { l.renewLease(ctx) })
	}
	parts.Go(func() {
		for l.wait(ctx, rightsInterval, l.learning) {
			if online, ok := l.link.Online(); ok {
				asking, cancel := context.WithCancel(ctx)
				stop := context.AfterFunc(online, cancel)
				l.learn(asking)
				stop()
				cancel()
			}
		}
	})
	for {
		select {
		case <-l.back:
			l.resume(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// resume hands back what the node kept while it was cut off. Where the apiserver does
// not take all of it, that goes on until the link is cut, or back again.
func (l *local) resume(ctx context.Context) {
	online, ok := l.link.Online()
	if !ok {
		return
	}
	l.learnSoon()
	l.endpoints.Finish()
	l.overlay.Lift()
	l.restate.Lifted()
	l.lease.renewNow()
	sending, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(online, cancel)()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.overlay.HandBack(sending, l.handOver)
	}()
	select {
	case <-done:
	case <-l.back:
		cancel()
		<-done
		l.handBack()
	}
}

// learnSoon asks for what pods are judged by.
func (l *local) learnSoon() {
	select {
	case l.learning <- struct{}{}:
	default:
	}
}

// Link is the hub's judgement of the way to the apiserver, to be told of the
// tunnel's session; nil without Config.Local.
func (h *Hub) Link() *link.Monitor {
	if h.local == nil {
		return nil
	}
	return h.local.link
}

// hubAgent is the User-Agent of the hub's own requests.
const hubAgent = "edge-hub"

// maxProbe bounds what is read of an apiserver that says what is wrong with it.
const maxProbe = 64 << 10

// probe asks the apiserver how it is; any answer will do.
func (l *local) probe(ctx context.Context) error {
	response, err := l.hub.upstreams[nodeIdentity].do(l.request(ctx, http.MethodGet, "/readyz", "", nil))
	if err != nil {
		return err
	}
	// Read to its end: closing it before would cost a reset of the stream, a ping
	// and their answers.
	_, err = io.Copy(io.Discard, io.LimitReader(response.Body, maxProbe))
	return errors.Join(err, response.Body.Close())
}

// answer is the life of a request that may be answered on the node.
func (x *exchange) answer() {
	l := x.hub.local
	x.ownOnly()
	if x.answerLease() || x.answerOperatorAccess() || x.fromReplica(false) || x.answerBundle() {
		return
	}
	defer x.states()()
	var cause error
	if online, ok := l.link.Online(); ok {
		if cause = x.settle(online); cause == nil {
			cause = x.tryThrough(online)
		}
		if cause == nil {
			return
		}
		if !errors.Is(cause, link.ErrCut) && !errors.Is(cause, errNoAnswer) && !errors.Is(cause, errUnsettled) {
			l.link.Failed(cause)
		}
	}
	switch {
	case x.fromReplica(true), x.remembered(), x.overlaid():
	case cause != nil:
		x.fail(cause)
	default:
		codec.WriteStatus(x.w, x.cut())
	}
}

// tryThrough asks the apiserver for as long as the link lasts. An error means
// that there was no answer and that nothing was told to the caller.
func (x *exchange) tryThrough(online context.Context) (unanswered error) {
	r := x.r
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer context.AfterFunc(online, func() { cancel(context.Cause(online)) })()
	x.callers, x.r = r.Context(), r.WithContext(ctx)
	x.unanswered = func(err error) {
		unanswered = err
		if cause := context.Cause(ctx); errors.Is(cause, link.ErrCut) {
			sent := false
			if f, ok := errors.AsType[*failure](err); ok {
				sent = f.sent
			}
			unanswered = &failure{err: cause, sent: sent}
		}
	}
	x.keep = x.keeper()
	x.through()
	x.callers, x.r, x.unanswered, x.keep = nil, r, nil, nil
	return unanswered
}

// cut is the answer to what cannot be done without the apiserver.
func (x *exchange) cut() metav1.Status {
	state := x.hub.local.link.State()
	return unavailable(fmt.Sprintf("the node has been cut off from its cluster since %s: %s",
		state.Since.UTC().Format("2006-01-02T15:04:05Z"), state.Reason))
}

// ownOnly narrows what an operator on the node lists to what the node may see.
func (x *exchange) ownOnly() {
	if x.caller != CallerAdmin || x.req.group != "" || x.req.verb != "list" && x.req.verb != "watch" {
		return
	}
	field := map[string]string{"pods": "spec.nodeName", "nodes": "metadata.name"}[x.req.resource]
	if field == "" {
		return
	}
	own := fields.OneTermEqualSelector(field, x.hub.config.NodeName).String()
	if s := x.req.query.Get("fieldSelector"); s != "" {
		own = s + "," + own
	}
	x.req.query.Set("fieldSelector", own)
}

// fromReplica answers a read from what the node mirrors. stale: the apiserver
// cannot be asked.
func (x *exchange) fromReplica(stale bool) bool {
	read, ok := x.read(stale)
	return ok && x.hub.local.server.Serve(x.r.Context(), x.w, read)
}

// read is what the replica is asked; false where it is not asked.
func (x *exchange) read(stale bool) (serve.Request, bool) {
	r := &x.req
	if !r.isResource() || !r.reads() || r.subresource != "" {
		return serve.Request{}, false
	}
	gr := groupResource{r.group, r.resource}
	if x.caller == CallerKubelet && shared[gr] && gr.resource != "services" {
		return serve.Request{}, false // mirrored with the hub's rights, which the kubelet has not
	}
	if x.caller == CallerKubelet && gr == (groupResource{"", "configmaps"}) && r.name == rootBundle {
		stale = true // the apiserver's lacks the node's own authority
	}
	return serve.Request{
		Verb: r.verb, Resource: schema.GroupVersionResource{Group: r.group, Version: r.version, Resource: r.resource},
		Namespace: r.namespace, Name: r.name, Query: r.query, Accept: x.r.Header.Get("Accept"),
		Component: x.caller != CallerAdmin, Stale: stale,
	}, true
}
