package hub

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
)

const (
	// maxRequestBody is the apiserver's own limit on what it decodes (3 MiB),
	// so the hub refuses nothing that would have been taken.
	maxRequestBody = 3 << 20
	// bodyReadTimeout bounds how long a local caller may take to send a body.
	bodyReadTimeout = 30 * time.Second
	// maxKept bounds an answer that is kept for a cut: aggregated discovery of a
	// cluster with many CustomResourceDefinitions.
	maxKept = 1 << 20
	// copyBuffer is how much of an answer is read at once. Watch events are
	// mostly smaller.
	copyBuffer = 32 << 10
)

// hopHeaders concern one connection only (RFC 9110, section 7.6.1), in lower
// case without those that Go's server and transport handle themselves.
var hopHeaders = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// credentialHeaders say on whose behalf a request is made. The hub's identities
// are certificates; a caller's own claims never go upstream.
var credentialHeaders = []string{"Authorization", "Cookie"}

// credentialPrefixes are families of such headers: impersonation, and those an
// apiserver believes from its front proxy.
var credentialPrefixes = []string{"Impersonate-", "X-Remote-"}

// exchange is one request that is allowed, and its answer.
type exchange struct {
	hub    *Hub
	w      http.ResponseWriter
	r      *http.Request
	req    request
	as     identity
	caller Caller
	// enters: an operator on the node asks for what the node's kubelet gives.
	enters bool
	body   []byte // whole, once readBody has taken it in
	// caller's context, where that of r ends with the link too; nil: r's.
	callers context.Context
	// unanswered is told that there was no answer and that none was given to the
	// caller; nil: the caller is answered so.
	unanswered func(error)
	// keep takes the whole of a small answer that was had; nil: nobody does.
	keep func(header http.Header, code int, body []byte)
}

// forward streams the request through.
func (x *exchange) forward() {
	out := x.outgoing(x.req.path, x.req.query, x.body)
	response, err := x.hub.upstreams[x.as].do(out)
	if err != nil {
		x.fail(err)
		return
	}
	defer response.Body.Close()
	x.relay(response)
}

// asked lasts as long as the caller waits.
func (x *exchange) asked() context.Context {
	if x.callers != nil {
		return x.callers
	}
	return x.r.Context()
}

// readBody takes in the whole body: it is small, and with it in memory a request
// whose connection turns out dead is sent again on a new one. A false return has
// been answered.
func (x *exchange) readBody() bool {
	if x.r.ContentLength == 0 {
		return true
	}
	if x.r.ContentLength > maxRequestBody {
		codec.WriteStatus(x.w, tooLarge())
		return false
	}
	control := http.NewResponseController(x.w)
	// Connections keep real time, whatever clock the hub has. Where deadlines
	// are not supported (tests' recorders) a body is in memory already.
	if err := control.SetReadDeadline(time.Now().Add(bodyReadTimeout)); err == nil {
		defer func() { _ = control.SetReadDeadline(time.Time{}) }() // a connection that is gone needs none
	}
	body, err := io.ReadAll(http.MaxBytesReader(x.w, x.r.Body, maxRequestBody))
	if err != nil {
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			codec.WriteStatus(x.w, tooLarge())
		} else {
			codec.WriteStatus(x.w, badRequest("the request's body did not arrive: "+err.Error()))
		}
		return false
	}
	x.body = body
	return true
}

// outgoing builds the request for the apiserver from the caller's.
func (x *exchange) outgoing(path string, query url.Values, body []byte) *http.Request {
	host := x.hub.config.UpstreamServerName
	out := (&http.Request{
		Method: x.req.method,
		URL:    &url.URL{Scheme: "https", Host: host, Path: path, RawQuery: query.Encode()},
		Host:   host,
		Header: outgoingHeader(x.r.Header),
		Body:   http.NoBody,
	}).WithContext(x.r.Context())
	if len(body) > 0 {
		out.ContentLength = int64(len(body))
		out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		out.Body, _ = out.GetBody()
	}
	if x.keep != nil && x.req.isResource() {
		// What is kept is read again: small, and as it is.
		out.Header.Set("Accept-Encoding", "identity")
	}
	return out
}

// outgoingHeader copies a caller's headers without those of its connection and
// those that claim an identity.
func outgoingHeader(in http.Header) http.Header {
	out := in.Clone()
	for _, named := range out["Connection"] {
		for name := range strings.SplitSeq(named, ",") {
			out.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range hopHeaders {
		out.Del(name)
	}
	for _, name := range credentialHeaders {
		out.Del(name)
	}
	for name := range out {
		for _, prefix := range credentialPrefixes {
			if strings.HasPrefix(http.CanonicalHeaderKey(name), prefix) {
				delete(out, name)
			}
		}
	}
	if _, ok := out["User-Agent"]; !ok {
		// Keeps Go's transport from claiming to be the caller.
		out["User-Agent"] = []string{""}
	}
	return out
}

// fail answers a request that got no answer.
func (x *exchange) fail(err error) {
	if x.asked().Err() != nil {
		// The caller, or Serve, is gone.
		panic(http.ErrAbortHandler)
	}
	if x.unanswered != nil {
		x.unanswered(err)
		return
	}
	x.hub.log.Debug("the apiserver cannot be reached", "caller", x.caller, "method", x.req.method, "path", x.req.path, "error", err)
	if f, ok := errors.AsType[*failure](err); ok && f.sent && !x.req.reads() && x.req.isResource() {
		codec.WriteStatus(x.w, unknownOutcome(err.Error()))
		return
	}
	codec.WriteStatus(x.w, unavailable(err.Error()))
}

// answerHeader copies an answer's headers to the caller.
func (x *exchange) answerHeader(from http.Header) http.Header {
	to := x.w.Header()
	for name, values := range from {
		to[name] = values
	}
	for _, name := range hopHeaders {
		to.Del(name)
	}
	return to
}

// relay streams an answer to the caller as it comes.
func (x *exchange) relay(response *http.Response) {
	x.answerHeader(response.Header)
	x.w.WriteHeader(response.StatusCode)
	// What has no length may pause at any point (watches, followed logs): every
	// piece goes out at once.
	live := response.ContentLength < 0
	control := http.NewResponseController(x.w)
	if live {
		// The caller must see that its watch has begun before the first event.
		x.flush(control)
	}
	buffer := make([]byte, copyBuffer)
	var kept []byte
	for {
		n, err := response.Body.Read(buffer)
		if n > 0 {
			if x.keep != nil && len(kept) <= maxKept {
				kept = append(kept, buffer[:n]...)
			}
			if _, werr := x.w.Write(buffer[:n]); werr != nil {
				panic(http.ErrAbortHandler)
			}
			if live {
				x.flush(control)
			}
		}
		if err == io.EOF {
			if x.keep != nil && len(kept) <= maxKept {
				x.keep(response.Header, response.StatusCode, kept)
			}
			return
		}
		if err != nil {
			x.abort(err)
		}
	}
}

// flush sends what was written. A caller that is gone ends the exchange.
func (x *exchange) flush(control *http.ResponseController) {
	if err := control.Flush(); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// abort breaks the answer off so that the caller sees it is not whole.
func (x *exchange) abort(err error) {
	if x.r.Context().Err() == nil {
		x.hub.log.Debug("an answer was cut off", "caller", x.caller, "path", x.req.path, "error", err)
	}
	panic(http.ErrAbortHandler)
}
