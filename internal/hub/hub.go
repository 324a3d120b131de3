package hub

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
)

const (
	// headerReadTimeout bounds how long a local caller may take to send the
	// headers of a request: they come over loopback.
	headerReadTimeout = 10 * time.Second
	// callerIdleTimeout closes connections of callers that ask for nothing.
	// Longer than the Retry-After of 1 s and than kubelet's 10 s status period.
	callerIdleTimeout = 2 * time.Minute
	// callerStreams is how many requests one caller may have open on one
	// connection. kubelet holds a watch for every Secret and ConfigMap its pods
	// use; 110 pods with several each pass net/http's 250.
	callerStreams = 2000
	// maxHeaderBytes is far above what any component sends.
	maxHeaderBytes = 64 << 10
	// shutdownGrace is how long short requests may take to finish once Serve
	// has been told to end. Watches are ended at once.
	shutdownGrace = 2 * time.Second
)

// Config is what a Hub needs. Logger and Clock may be left out; all else is
// required.
type Config struct {
	// NodeName is the node's name, for logs.
	NodeName string
	// Listener is where components connect, 127.0.0.1:6443. Serve puts TLS on
	// it and closes it.
	Listener net.Listener
	// ServingCertificate returns the certificate of the listener. It is asked
	// at every handshake, so a renewed one is used at once.
	ServingCertificate func() (*tls.Certificate, error)
	// LocalCA signs the client certificates of the hub's callers (see Caller).
	LocalCA *x509.CertPool
	// DialUpstream opens a byte stream to the apiserver, over the tunnel. The
	// connection should have CloseWrite, or pods lose half-closed connections.
	DialUpstream func(ctx context.Context) (net.Conn, error)
	// UpstreamCA signs the apiserver's serving certificate.
	UpstreamCA *x509.CertPool
	// UpstreamServerName is a name the apiserver's certificate holds, such as
	// "kubernetes.default.svc".
	UpstreamServerName string
	// NodeCertificate returns the client certificate system:node:<name>. It is
	// asked at every request; a changed one gets new connections.
	NodeCertificate func() (*tls.Certificate, error)
	// HubCertificate returns the client certificate edge:hub:<name>, likewise.
	HubCertificate func() (*tls.Certificate, error)
	// KubernetesEndpoint is where ServePods listens: the address in the
	// synthesized slice default/kubernetes.
	KubernetesEndpoint netip.AddrPort
	// Local is what the hub answers from while the apiserver cannot be reached,
	// and reads of what it mirrors always, where somebody else keeps that: without
	// it and a DataDir everything is streamed through.
	Local *Local
	// DataDir is where the hub keeps the node's replica of the API, in files that
	// nobody else reads; it is made where it is not there. "": see Local.
	DataDir string
	// PodCertificate returns the certificate that pods are answered with while
	// the node is cut off: of the node-local authority, for the names of
	// kubernetes.default and its addresses. Required with DataDir.
	PodCertificate func() (*tls.Certificate, error)
	// RootCA is that authority in PEM. The node's kubelet finds it in every
	// kube-root-ca.crt beside the cluster's, and so do its pods. Required with
	// DataDir.
	RootCA string
	// Kubelet is the node's own, for an operator on the node; nil: nobody enters
	// pods through the hub.
	Kubelet *Kubelet
	// Pool is the node's: what it says of a cut's length bears on the node's faults.
	// "": nothing does.
	Pool string
	// OnLink is told that what LinkState returns changes, one call at a time; it
	// must not block, nor call the hub. May be nil.
	OnLink func()
	// RenewWindow is for how long after its end the node's certificate can still be
	// renewed.
	RenewWindow time.Duration
	// ClockFault says why the machine's clock cannot be right, or is "". May be nil.
	ClockFault func() string
	// Logger of the hub; slog.Default where nil.
	Logger *slog.Logger
	// Clock judges certificates and times requests out; real time where nil.
	Clock clock.WithDelayedExecution
}

// validate names the first missing or impossible field.
func (c *Config) validate() error {
	switch {
	case c.NodeName == "":
		return errors.New("NodeName is empty")
	case c.Listener == nil:
		return errors.New("no Listener")
	case c.ServingCertificate == nil:
		return errors.New("ServingCertificate is nil")
	case c.LocalCA == nil:
		return errors.New("LocalCA is nil")
	case c.DialUpstream == nil:
		return errors.New("DialUpstream is nil")
	case c.UpstreamCA == nil:
		return errors.New("UpstreamCA is nil")
	case c.UpstreamServerName == "":
		return errors.New("UpstreamServerName is empty")
	case c.NodeCertificate == nil:
		return errors.New("NodeCertificate is nil")
	case c.HubCertificate == nil:
		return errors.New("HubCertificate is nil")
	case !c.KubernetesEndpoint.IsValid() || c.KubernetesEndpoint.Port() == 0:
		return fmt.Errorf("KubernetesEndpoint %q is not an address and port", c.KubernetesEndpoint)
	case c.Local != nil && c.DataDir != "":
		return errors.New("both Local and DataDir are given")
	case c.DataDir != "" && (c.PodCertificate == nil || c.RootCA == ""):
		return errors.New("a DataDir needs PodCertificate and RootCA")
	}
	return nil
}

// Hub answers a node's components. Make one with New, run it with Serve and
// ServePods, each once.
type Hub struct {
	config    Config
	log       *slog.Logger
	clock     clock.WithDelayedExecution
	synthetic syntheticSlice
	carried   *traffic
	pods      *podConnections
	upstreams map[identity]*upstream
	local     *local // nil without Config.Local and DataDir
	data      *data  // nil without Config.DataDir
}

// New checks the configuration and opens the replica; Serve closes it.
func New(config Config) (*Hub, error) {
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("hub of node %q: %w", config.NodeName, err)
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	if config.Clock == nil {
		config.Clock = clock.RealClock{}
	}
	h := &Hub{
		config:    config,
		log:       config.Logger,
		clock:     config.Clock,
		synthetic: newSyntheticSlice(config.KubernetesEndpoint),
		carried:   &traffic{},
		pods:      newPodConnections(config.Logger, config.Clock),
	}
	h.config.DialUpstream = h.carried.counted(config.DialUpstream)
	h.upstreams = map[identity]*upstream{
		nodeIdentity: newUpstream(&h.config, config.NodeCertificate),
		hubIdentity:  newUpstream(&h.config, config.HubCertificate),
	}
	if config.DataDir != "" {
		data, local, err := openData(h)
		if err != nil {
			return nil, fmt.Errorf("hub of node %q: %w", config.NodeName, err)
		}
		h.data, config.Local = data, local
	}
	if config.Local != nil {
		h.local = newLocal(h, *config.Local)
	}
	return h, nil
}

// Serve answers components on the configured listener until ctx is done, then
// ends watches, gives short requests shutdownGrace and returns nil. Any other
// end is an error. It always closes the listener.
func (h *Hub) Serve(ctx context.Context) error {
	defer func() {
		for _, u := range h.upstreams {
			u.close()
		}
	}()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	server := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.handle(w, r, ctx) }),
		ReadHeaderTimeout: headerReadTimeout,
		IdleTimeout:       callerIdleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: callerStreams},
		// Handshake failures are the caller's own and may be provoked by
		// anybody on the node.
		ErrorLog: slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13,
			// Asked for, not required: the handler verifies it, so that whoever
			// has none gets an answer that says so.
			ClientAuth: tls.RequestClientCert,
			ClientCAs:  h.config.LocalCA,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return h.config.ServingCertificate()
			},
		},
	}
	defer h.runParts(ctx)()
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(h.config.Listener, "", "") }()
	select {
	case err := <-done:
		return fmt.Errorf("hub of node %s: serve %s: %w", h.config.NodeName, h.config.Listener.Addr(), err)
	case <-ctx.Done():
	}
	graceful, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if err := server.Shutdown(graceful); err != nil {
		// Requests are left over: cut them off.
		if err := server.Close(); err != nil {
			h.log.Debug("close the hub's listener", "error", err)
		}
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("hub of node %s: %w", h.config.NodeName, err)
	}
	return nil
}

// runParts does what is done beside answering, and returns what ends it.
func (h *Hub) runParts(ctx context.Context) (end func()) {
	ctx, stop := context.WithCancel(ctx)
	var parts sync.WaitGroup
	if h.local != nil {
		parts.Go(func() { h.local.run(ctx) })
	}
	if h.data != nil {
		parts.Go(func() {
			if err := h.data.run(ctx); err != nil {
				h.log.Error("mirror the API", "error", err)
			}
		})
	}
	return func() {
		stop()
		parts.Wait()
		if h.data == nil {
			return
		}
		if err := h.data.store.Close(); err != nil {
			h.log.Error("close the replica", "error", err)
		}
	}
}

// handle is the life of one request. serving is done once Serve is to end. A watch
// stays in here for as long as it lasts, and a node has hundreds: so what it needs to
// begin is done in functions that it returns from, and its stack stays small.
func (h *Hub) handle(w http.ResponseWriter, r *http.Request, serving context.Context) {
	x := h.admit(w, r)
	if x == nil {
		return
	}
	if x.enters || x.req.streams() {
		defer x.endWith(serving)()
	}
	switch {
	case x.enters:
		x.enterPod()
	case !x.readBody():
	case h.local != nil:
		x.answer()
	default:
		x.through()
	}
}

// endWith ends what lasts until someone ends it with Serve too.
func (x *exchange) endWith(serving context.Context) (release func()) {
	ctx, cancel := context.WithCancel(x.r.Context())
	stop := context.AfterFunc(serving, cancel)
	x.r = x.r.WithContext(ctx)
	return func() {
		stop()
		cancel()
	}
}

// admit says who asks for what, and that he may; nil: he has been told why not.
func (h *Hub) admit(w http.ResponseWriter, r *http.Request) *exchange {
	caller, err := h.authenticate(r)
	if err != nil {
		h.log.Debug("refused a caller", "remote", r.RemoteAddr, "error", err)
		codec.WriteStatus(w, unauthorized())
		return nil
	}
	req, err := parseRequest(r.Method, r.URL)
	if err != nil {
		codec.WriteStatus(w, badRequest(err.Error()))
		return nil
	}
	x := &exchange{hub: h, w: w, r: r, req: req, caller: caller, enters: caller == CallerAdmin && req.entersPod()}
	if x.enters {
		return x
	}
	as, err := authorize(caller, req)
	if err == nil && r.Header.Get("Upgrade") != "" {
		err = errors.New("the hub carries no upgraded connections")
	}
	if err != nil {
		h.log.Warn("forbade a request", "caller", caller, "method", r.Method, "path", req.path, "error", err)
		codec.WriteStatus(w, forbidden(req, err.Error()))
		return nil
	}
	x.as = as
	return x
}

// through answers with what the apiserver says.
func (x *exchange) through() {
	if x.rewritesSlices() {
		x.serveSlices()
		return
	}
	x.forward()
}
