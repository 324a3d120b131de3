package gateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

const (
	// egressRequestTimeout bounds the reading of a CONNECT request: the apiserver
	// sends it in one write right after connecting.
	egressRequestTimeout = 10 * time.Second
	// maxConnect bounds a CONNECT request in bytes.
	maxConnect = 4 << 10
	// established is the whole answer to a CONNECT that worked. The apiserver
	// takes no status but 200, and any byte after it for an error
	// (k8s.io/apiserver/pkg/server/egressselector, tunnelHTTPConnect).
	established = "HTTP/1.1 200 Connection established\r\n\r\n"
)

// ServeEgress serves HTTP CONNECT as the apiserver's egress selector speaks it
// (type HTTPConnect) on ln, which it owns from here on, until ctx ends or the
// gateway is closed; both return nil. Who may connect is decided by who can open
// the socket: it has to be one that only the apiserver can.
//
// Every request is answered within tunnel.GatewayDialTimeout, because the
// apiserver waits without a bound of its own.
func (g *Gateway) ServeEgress(ctx context.Context, ln net.Listener) error {
	return g.serving(ctx, ln, func(ctx context.Context) error { return g.serveEgress(ctx, ln) })
}

func (g *Gateway) serveEgress(ctx context.Context, ln net.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	delay := time.Duration(0)
	for {
		c, err := ln.Accept()
		switch {
		case err == nil:
			delay = 0
			conns.Go(func() { g.serveConnect(ctx, c) })
			continue
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("gateway: egress socket %s: %w", ln.Addr(), err)
		}
		// Out of descriptors or the like: as net/http does, go on after a while.
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		g.cfg.Logger.Warn("egress accept", "error", err, "retry", delay)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
		}
	}
}

// serveConnect serves one connection of the apiserver's from request to end.
func (g *Gateway) serveConnect(ctx context.Context, c net.Conn) {
	// The end of ctx cuts what is carried.
	defer context.AfterFunc(ctx, func() { tunnel.Abort(c) })()
	_ = c.SetReadDeadline(time.Now().Add(egressRequestTimeout))
	host, prefix, err := readConnect(c)
	if err != nil {
		g.answer(c, err)
		return
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		_ = c.Close()
		return
	}
	g.dials.Add()
	defer g.dials.Done()
	rt, err := g.route(host)
	a := g.audit("apiserver", rt.kind(), host)
	a.node = rt.node
	if err != nil {
		a.kind = noKind
		g.answer(c, err)
		a.end(tunnel.Spliced{Err: err})
		return
	}
	var carried tunnel.Spliced
	if rt.node == "" {
		a.over = overNothing
		carried = g.connectLocal(ctx, c, rt.local, prefix)
	} else {
		carried = g.connectNode(ctx, c, rt, prefix, a)
	}
	a.end(carried)
}

// connectNode carries c to a node.
func (g *Gateway) connectNode(ctx context.Context, c net.Conn, rt route, prefix []byte, a *auditLine) tunnel.Spliced {
	optimistic := rt.target.kind == tunnel.KindKubelet && g.kubeletUp(rt.node)
	var flags tunnel.Flags
	if optimistic {
		flags = tunnel.FlagOptimistic
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	d, w, err := g.open(ctx, rt.node, rt.target, flags)
	a.over, a.trace = w.over, w.trace
	if err != nil {
		g.answer(c, err)
		return tunnel.Spliced{Err: err}
	}
	defer w.end()
	opts := tunnel.SpliceOptions{Prefix: prefix, ClientFirst: true, Stalls: w.stalls}
	answered := func() error {
		defer cancel() // the connection goes on for longer than its dial
		return g.await(ctx, d, w, rt.target)
	}
	if optimistic {
		// One round trip less: the TLS hello follows the header. If the dial
		// fails after all, the apiserver sees the connection end.
		a.optimistic = true
		opts.ReadyB = answered
	} else if err := answered(); err != nil {
		g.answer(c, err)
		return tunnel.Spliced{Err: err}
	}
	if err := writeEstablished(c); err != nil {
		d.Reset(tunnel.ResetAborted)
		_ = c.Close()
		return tunnel.Spliced{Err: err}
	}
	return tunnel.Splice(c, d, opts)
}

// kubeletUp reports whether the node's kubelet answered the last dial and its
// agent knows what to do with a dial that does not wait.
func (g *Gateway) kubeletUp(node string) bool {
	s, _, h, err := g.lookup(node)
	switch {
	case err != nil:
		return false
	case s != nil:
		return s.hello.Capabilities.Has(tunnel.CapOptimistic) && s.kubeletUp.Load()
	default:
		return h.kubeletUp.Load()
	}
}

// connectLocal carries c to a target outside the tunnel.
func (g *Gateway) connectLocal(ctx context.Context, c net.Conn, host string, prefix []byte) tunnel.Spliced {
	if g.isRefusing() {
		g.answer(c, ErrDraining)
		return tunnel.Spliced{Err: ErrDraining}
	}
	dctx, cancel := context.WithTimeout(ctx, tunnel.AgentDialTimeout)
	t, err := g.cfg.DialLocal(dctx, "tcp", host)
	cancel()
	if err != nil {
		r := tunnel.DialFailure(err)
		err = fmt.Errorf("dial %s outside the tunnel: %w", host, &tunnel.StatusError{Status: r.Status, Text: r.Text})
		g.answer(c, err)
		return tunnel.Spliced{Err: err}
	}
	defer context.AfterFunc(ctx, func() { tunnel.Abort(t) })()
	if err := writeEstablished(c); err != nil {
		_ = t.Close()
		_ = c.Close()
		return tunnel.Spliced{Err: err}
	}
	return tunnel.Splice(c, t, tunnel.SpliceOptions{Prefix: prefix, ClientFirst: true})
}

// statusBad is a request that is no CONNECT this gateway understands.
type statusBad struct {
	code int
	text string
}

func (e *statusBad) Error() string { return e.text }

// readConnect reads a CONNECT request and what the client may have sent after
// it already. Errors are *statusBad, or the connection's.
func readConnect(r io.Reader) (host string, prefix []byte, err error) {
	limited := &io.LimitedReader{R: r, N: maxConnect}
	br := bufio.NewReaderSize(limited, maxConnect)
	req, err := http.ReadRequest(br)
	if err != nil {
		if limited.N == 0 {
			return "", nil, &statusBad{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("request is longer than %d bytes", maxConnect)}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return "", nil, &statusBad{http.StatusRequestTimeout, fmt.Sprintf("no complete request within %s", egressRequestTimeout)}
		}
		if ne := net.Error(nil); errors.As(err, &ne) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return "", nil, fmt.Errorf("read CONNECT request: %w", err)
		}
		return "", nil, &statusBad{http.StatusBadRequest, "not an HTTP request: " + err.Error()}
	}
	if req.Method != http.MethodConnect {
		return "", nil, &statusBad{http.StatusMethodNotAllowed, "only CONNECT is served here"}
	}
	// The authority of the request line; the Host header of the apiserver always
	// says 127.0.0.1. http.ReadRequest puts the authority into URL.Host.
	host = req.URL.Host
	if _, _, err := net.SplitHostPort(host); err != nil {
		return "", nil, &statusBad{http.StatusBadRequest, "target is not host:port"}
	}
	if n := br.Buffered(); n > 0 {
		b, err := br.Peek(n)
		if err != nil {
			return "", nil, fmt.Errorf("read CONNECT request: %w", err)
		}
		prefix = bytes.Clone(b)
	}
	return host, prefix, nil
}

func writeEstablished(c net.Conn) error {
	if err := c.SetWriteDeadline(time.Now().Add(egressRequestTimeout)); err != nil {
		return fmt.Errorf("answer CONNECT: %w", err)
	}
	if _, err := io.WriteString(c, established); err != nil {
		return fmt.Errorf("answer CONNECT: %w", err)
	}
	if err := c.SetWriteDeadline(time.Time{}); err != nil {
		return fmt.Errorf("answer CONNECT: %w", err)
	}
	return nil
}

// answer refuses a CONNECT and closes c.
func (g *Gateway) answer(c net.Conn, err error) {
	defer c.Close()
	code := statusOf(err)
	if code == 0 {
		return
	}
	text := err.Error() + "\n"
	_ = c.SetWriteDeadline(time.Now().Add(egressRequestTimeout))
	// The apiserver logs the text; if it is gone, the audit line has it.
	_, _ = fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		code, http.StatusText(code), len(text), text)
}

// statusOf is the HTTP status for an error; 0 for a client that has gone or
// never spoke HTTP.
func statusOf(err error) int {
	var bad *statusBad
	var se *tunnel.StatusError
	var de *DialError
	switch {
	case errors.As(err, &bad):
		return bad.code
	case errors.Is(err, ErrNotConnected), errors.Is(err, ErrDraining), errors.Is(err, ErrClosed), errors.Is(err, tunnel.ErrStreamLimit), errors.Is(err, errNoEndpoint):
		return http.StatusServiceUnavailable
	case errors.As(err, &se):
		switch se.Status {
		case tunnel.StatusTimeout:
			return http.StatusGatewayTimeout
		case tunnel.StatusDraining, tunnel.StatusNotConnected:
			return http.StatusServiceUnavailable
		}
		return http.StatusBadGateway
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return http.StatusGatewayTimeout
	case errors.As(err, &de), errors.Is(err, ErrNoRoute), errors.Is(err, ErrAmbiguous), errors.Is(err, errRoute):
		return http.StatusBadGateway
	}
	return 0
}
