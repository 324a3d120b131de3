package hub

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// slicesPath is where discovery.k8s.io/v1 serves the slices of namespace
// default.
const slicesPath = "/apis/discovery.k8s.io/v1/namespaces/" + sliceNamespace + "/endpointslices"

// maxList bounds a list the hub holds in memory to rewrite it: forty thousand
// slices of 1.5 KB, several times the largest clusters.
const maxList = 64 << 20

var errListTooLarge = errors.New("the list is too large")

// rewritesSlices says whether the answer shows, or would show, the slice
// default/kubernetes.
func (x *exchange) rewritesSlices() bool {
	r := x.req
	if r.group != "discovery.k8s.io" || r.version != "v1" || r.resource != "endpointslices" || r.subresource != "" || !r.reads() {
		return false
	}
	if r.verb == "get" {
		return r.namespace == sliceNamespace && r.name == sliceName
	}
	return r.namespace == "" || r.namespace == sliceNamespace
}

// serveSlices answers a read of slices with the synthetic one among them.
func (x *exchange) serveSlices() {
	e, ok := codec.Negotiate(x.r.Header.Get("Accept"), x.req.verb == "list")
	if !ok {
		codec.WriteStatus(x.w, notAcceptable(
			"endpoint slices as application/json and application/vnd.kubernetes.protobuf, whole or as PartialObjectMetadata, and as Table in the former"))
		return
	}
	rows, e, err := x.rowsOf(e)
	if err != nil {
		codec.WriteStatus(x.w, badRequest(err.Error()))
		return
	}
	matches, err := x.hub.synthetic.matches(x.req.query.Get("labelSelector"), x.req.query.Get("fieldSelector"))
	if err != nil {
		codec.WriteStatus(x.w, badRequest(err.Error()))
		return
	}
	switch x.req.verb {
	case "get":
		x.getSlice(e, rows)
	case "list":
		x.listSlices(e, rows, matches)
	case "watch":
		x.watchSlices(e, rows, matches)
	}
}

// ask sends a read of slices upstream. A nil response has been answered.
func (x *exchange) ask(path string, query url.Values, accept string) *http.Response {
	out := x.outgoing(path, query, nil)
	out.Header.Set("Accept", accept)
	// What is to be rewritten must come as it is.
	out.Header.Set("Accept-Encoding", "identity")
	response, err := x.hub.upstreams[x.as].do(out)
	if err != nil {
		x.fail(err)
		return nil
	}
	return response
}

// getSlice answers a get of the synthetic slice. It has no resourceVersion of
// its own: it takes the one its collection has now, which also proves that the
// caller's cluster is there.
func (x *exchange) getSlice(e codec.Encoding, rows *sliceRows) {
	version, ok := x.collectionVersion()
	if !ok {
		return
	}
	body, err := x.hub.synthetic.encode(e, version)
	if err == nil {
		body, err = rows.one(body)
	}
	if err != nil {
		codec.WriteStatus(x.w, misunderstood(err.Error()))
		return
	}
	x.write(e, http.Header{}, body)
}

// collectionVersion returns the resourceVersion slices are at, by a list that is
// empty or nearly so, no older than the caller asks for. A false return has been
// answered.
func (x *exchange) collectionVersion() (string, bool) {
	query := url.Values{"fieldSelector": {"metadata.name=" + sliceName}}
	if x.req.query.Get("resourceVersion") != "" {
		query.Set("resourceVersion", x.req.query.Get("resourceVersion"))
	}
	response := x.ask(slicesPath, query, wire.MediaJSON)
	if response == nil {
		return "", false
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		x.relay(response)
		return "", false
	}
	body, err := readBounded(response)
	if err != nil {
		x.fail(err)
		return "", false
	}
	var list struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(body, &list); err != nil || list.Metadata.ResourceVersion == "" {
		codec.WriteStatus(x.w, misunderstood(fmt.Sprintf("a list without resourceVersion (%v)", err)))
		return "", false
	}
	return list.Metadata.ResourceVersion, true
}

func (x *exchange) listSlices(e codec.Encoding, rows *sliceRows, matches bool) {
	response := x.ask(x.req.path, x.req.query, e.Accept(true))
	if response == nil {
		return
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		x.relay(response)
		return
	}
	if err := understandable(e, response); err != nil {
		codec.WriteStatus(x.w, misunderstood(err.Error()))
		return
	}
	body, err := readBounded(response)
	if errors.Is(err, errListTooLarge) {
		x.hub.log.Error("rewrite a list of endpoint slices", "caller", x.caller, "error", err)
		codec.WriteStatus(x.w, misunderstood(err.Error()))
		return
	}
	if err != nil {
		// Nothing has been sent yet, so a list cut off is a plain failure.
		x.fail(err)
		return
	}
	// Only the first page: later ones continue what it began. The page is then
	// one longer than its limit, which no pager minds.
	add := matches && x.req.query.Get("continue") == ""
	body, err = x.hub.synthetic.rewriteList(e, body, add)
	if err == nil {
		body, err = rows.list(body)
	}
	if err != nil {
		x.hub.log.Error("rewrite a list of endpoint slices", "caller", x.caller, "error", err)
		codec.WriteStatus(x.w, misunderstood(err.Error()))
		return
	}
	x.write(e, response.Header, body)
}

func (x *exchange) watchSlices(e codec.Encoding, rows *sliceRows, matches bool) {
	rewriter := watchRewriter{synthetic: x.hub.synthetic, encoding: e, matches: matches}
	if matches {
		rewriter.inject = injectionFor(x.req)
	}
	if rewriter.inject == injectFirst {
		version, ok := x.collectionVersion()
		if !ok {
			return
		}
		rewriter.firstVersion = version
	}
	response := x.ask(x.req.path, x.req.query, e.Accept(false))
	if response == nil {
		return
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		x.relay(response)
		return
	}
	if err := understandable(e, response); err != nil {
		codec.WriteStatus(x.w, misunderstood(err.Error()))
		return
	}
	x.answerHeader(response.Header).Del("Content-Length")
	x.w.WriteHeader(http.StatusOK)
	control := http.NewResponseController(x.w)
	x.flush(control)
	err := rewriter.run(response.Body, func(events []byte) error {
		events, err := rows.events(events)
		if err != nil {
			return err
		}
		if _, err := x.w.Write(events); err != nil {
			return err
		}
		return control.Flush()
	})
	if err != nil {
		x.abort(err)
	}
}

// injectionFor says when a watch whose selectors match gets the slice. See the
// package's doc for the reasons.
func injectionFor(r request) injection {
	if _, given := r.query["sendInitialEvents"]; given {
		switch {
		case !queryBool(r.query, "sendInitialEvents"):
			return injectNever
		case queryBool(r.query, "allowWatchBookmarks"):
			return injectLast
		}
		return injectFirst
	}
	if r.fromResourceVersion() {
		return injectNever
	}
	return injectFirst
}

// understandable refuses an answer the hub did not ask for.
func understandable(e codec.Encoding, response *http.Response) error {
	if coding := response.Header.Get("Content-Encoding"); coding != "" && coding != "identity" {
		return fmt.Errorf("it is encoded with %q", coding)
	}
	if ct := response.Header.Get("Content-Type"); !e.Speaks(ct) {
		return fmt.Errorf("it is %q, not %q", ct, e.Media())
	}
	return nil
}

// readBounded reads a whole answer.
func readBounded(response *http.Response) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(response.Body, maxList+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxList {
		return nil, fmt.Errorf("%w: more than %d bytes", errListTooLarge, maxList)
	}
	return body, nil
}

// write answers with a whole body.
func (x *exchange) write(e codec.Encoding, from http.Header, body []byte) {
	h := x.answerHeader(from)
	h.Set("Content-Type", e.Media())
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-cache, private")
	}
	x.w.WriteHeader(http.StatusOK)
	if _, err := x.w.Write(body); err != nil {
		panic(http.ErrAbortHandler)
	}
}
