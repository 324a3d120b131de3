package hub

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/serve"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// podStreams is how many requests a pod may have open on one connection: it opens
	// another for more, of which there are maxFromAddress.
	podStreams = 100
	// podWatches is how many watches a pod may have open in all, whatever it opens them
	// on: each is a goroutine here and a follower of the replica until the link is
	// back. Few controllers watch more than a few dozen collections.
	podWatches = 256
)

// podServer answers pods while the node is cut off. Its certificate is of the
// node-local authority, which the node's pods find in their bundle beside the
// cluster's (see withRootCA).
//
//	pod ──► ServePods ──online──► apiserver, byte for byte
//	             └──────cut─────► token verified here ──► rights as last told ──► replica
//
// When the link is back its connections are closed, and pods come again.
type podServer struct {
	local *local

	mu      sync.Mutex            // guards what follows
	conns   map[net.Conn]struct{} // being served
	watches map[string]int        // open, by the pod's uid
}

func newPodServer(l *local) *podServer {
	return &podServer{local: l, conns: map[net.Conn]struct{}{}, watches: map[string]int{}}
}

// handOff is a listener of connections that somebody else has accepted.
type handOff struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	addr   net.Addr
}

func newHandOff(addr net.Addr) *handOff {
	return &handOff{conns: make(chan net.Conn), closed: make(chan struct{}), addr: addr}
}

func (l *handOff) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *handOff) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *handOff) Addr() net.Addr { return l.addr }

// give hands a connection over, or closes it.
func (l *handOff) give(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.closed:
		tunnel.Abort(c)
	}
}

// serve answers on connections handed to it until ctx ends.
func (p *podServer) serve(ctx context.Context, listener net.Listener) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	h := p.local.hub
	server := &http.Server{
		Handler:           p,
		ReadHeaderTimeout: headerReadTimeout,
		IdleTimeout:       callerIdleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		Protocols:         protocols,
		// What a pod does not read is not kept until the link is back.
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: podStreams, WriteByteTimeout: writeStall},
		ErrorLog:    slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS12, // pods bring what libraries they have
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.local.config.PodCertificate() },
		},
		ConnState: p.note,
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return fmt.Errorf("serve pods of node %s: %w", h.config.NodeName, err)
	}
	return nil
}

// note keeps what release closes.
func (p *podServer) note(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		p.mu.Lock()
		p.conns[c] = struct{}{}
		p.mu.Unlock()
		// The link may have come back between the moment in which the connection
		// was handed over and this one. If it does after this one, release finds it.
		if _, online := p.local.link.Online(); online {
			closeBelow(c)
		}
	case http.StateClosed, http.StateHijacked:
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, c)
	}
}

// release closes every connection: the apiserver answers pods again.
func (p *podServer) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		closeBelow(c)
	}
}

// beginWatch gives a pod's watch a place, which endWatch gives back. False: it has all
// that it may have.
func (p *podServer) beginWatch(pod string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watches[pod] >= podWatches {
		return false
	}
	p.watches[pod]++
	return true
}

func (p *podServer) endWatch(pod string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watches[pod]--; p.watches[pod] == 0 {
		delete(p.watches, pod)
	}
}

// closeBelow closes a connection below its TLS, whose own Close waits for seconds
// for a pod that does not read, and with it everything that waits for the link.
func closeBelow(c net.Conn) {
	if secured, ok := c.(*tls.Conn); ok {
		c = secured.NetConn()
	}
	c.Close()
}

// ServeHTTP answers one request of a pod.
func (p *podServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l := p.local
	if _, online := l.link.Online(); online {
		// Its connection is about to be closed (see release).
		w.Header().Set("Connection", "close")
		codec.WriteStatus(w, unavailable("not over this connection, which was made while the node was cut off from its cluster; the link is back, connect again"))
		return
	}
	who, pod, err := l.authenticatePod(r)
	if err != nil {
		l.hub.log.Debug("refused a pod", "remote", r.RemoteAddr, "error", err)
		s := unauthorized()
		s.Message = "the node is cut off from its cluster and does not know you: " + err.Error()
		codec.WriteStatus(w, s)
		return
	}
	req, err := parseRequest(r.Method, r.URL)
	if err != nil {
		codec.WriteStatus(w, badRequest(err.Error()))
		return
	}
	x := exchange{hub: l.hub, w: w, r: r, req: req, as: hubIdentity}
	if r.Method == http.MethodGet && !req.isResource() && discovery(req.path) {
		// Whoever the apiserver knows may read these.
		if !x.remembered() {
			codec.WriteStatus(w, x.cut())
		}
		return
	}
	if err := l.allowed(who, req); errors.Is(err, errUnknownRights) {
		s := x.cut()
		s.Message += "; " + err.Error()
		codec.WriteStatus(w, s)
		return
	} else if err != nil {
		codec.WriteStatus(w, forbidden(req, err.Error()))
		return
	}
	if !req.reads() || !req.isResource() || req.subresource != "" {
		codec.WriteStatus(w, x.cut())
		return
	}
	if req.verb == "watch" {
		if !p.beginWatch(pod) {
			codec.WriteStatus(w, tooManyWatches())
			return
		}
		defer p.endWatch(pod)
	}
	served := l.server.Serve(r.Context(), w, serve.Request{
		Verb: req.verb, Resource: schema.GroupVersionResource{Group: req.group, Version: req.version, Resource: req.resource},
		Namespace: req.namespace, Name: req.name, Query: req.query, Accept: r.Header.Get("Accept"), Stale: true,
	})
	if !served {
		codec.WriteStatus(w, x.cut())
	}
}

// exactName is the one name a list's field selector allows.
func exactName(query url.Values) string {
	selector, err := fields.ParseSelector(query.Get("fieldSelector"))
	if err != nil {
		return ""
	}
	name, _ := selector.RequiresExactMatch("metadata.name")
	return name
}

// learn asks the apiserver, while it is there, for what pods' requests are judged
// by in a cut.
func (l *local) learn(ctx context.Context) {
	if err := l.learnDiscovery(ctx); err != nil {
		l.hub.log.Warn("learn what the cluster serves", "error", err)
	}
	err := l.learnIssuer(func(path string) ([]byte, error) {
		r := l.request(ctx, http.MethodGet, path, "", nil)
		// Keys have a media type of their own, which an apiserver insists on.
		r.Header.Set("Accept", "application/json, application/jwk-set+json")
		return l.ask(l.hub.upstreams[hubIdentity], r)
	})
	if err != nil {
		l.hub.log.Warn("learn who signs the cluster's tokens", "error", err)
	}
	err = l.learnRights(ctx, func(ctx context.Context, token, path string, body []byte) ([]byte, error) {
		r := l.request(ctx, http.MethodPost, path, wire.MediaJSON, body)
		r.Header.Set("Authorization", "Bearer "+token)
		return l.ask(l.bearer, r)
	})
	if err != nil {
		l.hub.log.Warn("learn what the node's pods may do", "error", err)
	}
}

// ask sends a request and returns the body of an answer that says yes.
func (l *local) ask(u *upstream, r *http.Request) ([]byte, error) {
	response, err := u.do(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxKept+1))
	switch {
	case err != nil:
		return nil, err
	case len(body) > maxKept:
		return nil, fmt.Errorf("%s: the answer is larger than %d bytes", r.URL.Path, maxKept)
	case response.StatusCode >= http.StatusMultipleChoices:
		return nil, fmt.Errorf("%s: %s", r.URL.Path, response.Status)
	}
	return body, nil
}
