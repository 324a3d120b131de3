package hub

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// dialTimeout bounds opening a stream through the tunnel, and again the TLS
	// handshake on it: several round trips of the worst link (seconds each).
	dialTimeout = 10 * time.Second
	// pingAfter and pingTimeout find a connection whose other end is gone: every
	// open watch on it is then ended rather than left silent. A ping is sent
	// only where nothing else has come for pingAfter, which is longer than what
	// mostly lies between the bookmarks of a node's collections: a day of pings
	// every 15 s would be 2 MB. A link that is cut is found by link's probes.
	pingAfter   = 30 * time.Second
	pingTimeout = 10 * time.Second
	// writeStall closes a connection that takes no bytes.
	writeStall = 15 * time.Second
	// upstreamIdleTimeout closes connections without requests, among them those
	// made with a certificate that has since been renewed.
	upstreamIdleTimeout = 90 * time.Second
	// readHeaderTimeout and writeHeaderTimeout bound the wait for an answer to
	// begin. The apiserver itself gives a read 60 s but begins watches at once;
	// a write may pass through webhooks of up to 30 s each, within those 60 s.
	readHeaderTimeout  = 35 * time.Second
	writeHeaderTimeout = 65 * time.Second
)

// errNoAnswer is the cause of a request's end when its answer did not begin in
// time.
var errNoAnswer = errors.New("no answer in time")

// upstream is one identity's way to the apiserver: an HTTP/2 transport over the
// tunnel, replaced when the identity's certificate is.
type upstream struct {
	config      *Config
	certificate func() (*tls.Certificate, error)
	// anonymous: requests bring a token instead of a certificate.
	anonymous bool

	mu        sync.Mutex // guards what follows
	transport *http.Transport
	leaf      []byte // the certificate transport was made with
}

func newUpstream(config *Config, certificate func() (*tls.Certificate, error)) *upstream {
	return &upstream{config: config, certificate: certificate}
}

// current returns the transport of the certificate in force. Streams of the one
// before run out on their old connection: a certificate is judged when a
// connection begins, and watches end within the hour.
func (u *upstream) current() (*http.Transport, error) {
	if u.anonymous {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.transport == nil {
			u.transport = newTransport(u.config, nil)
		}
		return u.transport, nil
	}
	cert, err := u.certificate()
	if err != nil {
		return nil, fmt.Errorf("the hub's own certificate: %w", err)
	}
	if cert == nil || len(cert.Certificate) == 0 {
		return nil, errors.New("the hub's own certificate: there is none yet")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.transport != nil && bytes.Equal(u.leaf, cert.Certificate[0]) {
		return u.transport, nil
	}
	if u.transport != nil {
		u.transport.CloseIdleConnections()
	}
	u.leaf = cert.Certificate[0]
	u.transport = newTransport(u.config, cert)
	return u.transport, nil
}

func (u *upstream) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.transport != nil {
		u.transport.CloseIdleConnections()
	}
}

func newTransport(config *Config, cert *tls.Certificate) *http.Transport {
	var certificates []tls.Certificate
	if cert != nil {
		certificates = []tls.Certificate{*cert}
	}
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			return config.DialUpstream(ctx)
		},
		TLSClientConfig: &tls.Config{
			MinVersion:   tls.VersionTLS12,
			RootCAs:      config.UpstreamCA,
			ServerName:   config.UpstreamServerName,
			Certificates: certificates,
			Time:         config.Clock.Now,
		},
		TLSHandshakeTimeout: dialTimeout,
		ForceAttemptHTTP2:   true,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout:  pingAfter,
			PingTimeout:      pingTimeout,
			WriteByteTimeout: writeStall,
		},
		IdleConnTimeout: upstreamIdleTimeout,
		// Callers' own Accept-Encoding is passed on and the answer as it comes.
		DisableCompression: true,
		// Tunnel and apiserver are the only way; no proxy of the environment.
		Proxy: nil,
	}
}

// failure is a request that got no answer.
type failure struct {
	err error
	// sent says that the request may have reached the apiserver.
	sent bool
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// do sends the request and waits, bounded, for the answer to begin. The answer's
// body ends with the request's context. Errors are *failure.
func (u *upstream) do(r *http.Request) (*http.Response, error) {
	transport, err := u.current()
	if err != nil {
		return nil, &failure{err: err}
	}
	var sent atomic.Bool
	ctx := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { sent.Store(true) },
	})
	ctx, cancel := context.WithCancelCause(ctx)
	wait := writeHeaderTimeout
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		wait = readHeaderTimeout
	}
	timer := u.config.Clock.AfterFunc(wait, func() { cancel(errNoAnswer) })
	response, err := transport.RoundTrip(r.WithContext(ctx))
	if timer.Stop(); err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errNoAnswer) {
			err = errNoAnswer
		}
		cancel(nil)
		return nil, &failure{err: err, sent: sent.Load()}
	}
	// The context lives as long as the body: the exchange's own context ends it.
	response.Body = &cancelBody{ReadCloser: response.Body, cancel: func() { cancel(nil) }}
	return response, nil
}

// cancelBody releases the request's context with its answer's body.
type cancelBody struct {
	io.ReadCloser
	cancel func()
}

func (b *cancelBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}
