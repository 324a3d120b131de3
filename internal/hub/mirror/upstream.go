package mirror

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

const (
	// maxStatus bounds an answer that is an error.
	maxStatus = 64 << 10
	// maxPage bounds a page of a list: pageSize objects of several times the
	// usual size.
	maxPage = 64 << 20
)

// path of a collection's resource.
func path(c replica.Collection) string {
	p := "/api/" + c.Resource.Version
	if c.Resource.Group != "" {
		p = "/apis/" + c.Resource.Group + "/" + c.Resource.Version
	}
	if c.Namespace != "" {
		p += "/namespaces/" + c.Namespace
	}
	return p + "/" + c.Resource.Resource
}

// selector narrows a request to a collection.
func selector(c replica.Collection) string {
	set := fields.Set{}
	if c.Name != "" {
		set["metadata.name"] = c.Name
	}
	if c.Node != "" {
		set["spec.nodeName"] = c.Node
	}
	return set.AsSelector().String()
}

// get asks the apiserver. The body must be closed, and ends with ctx. An answer
// that is not 200 is an error, *apierrors.StatusError where it is one.
func (s *stream) get(ctx context.Context, query url.Values) (io.ReadCloser, error) {
	if f := selector(s.id); f != "" {
		query.Set("fieldSelector", f)
	}
	host := s.mirror.options.Host
	r := (&http.Request{
		Method: http.MethodGet, Host: host,
		URL: &url.URL{Scheme: "https", Host: host, Path: path(s.id), RawQuery: query.Encode()},
		Header: http.Header{
			"Accept": {s.rule.media}, "User-Agent": {"edge-hub"},
			// Apiservers compress lists above 128 KiB and nothing else.
			"Accept-Encoding": {"gzip"},
		},
		Body: http.NoBody,
	}).WithContext(ctx)
	s.requests.Add(1)
	s.answered = false
	response, err := s.mirror.options.Upstreams[s.rule.identity].RoundTrip(r) //nolint:bodyclose // countedBody closes it, here or at the caller's
	if err != nil {
		return nil, err
	}
	body := &countedBody{ReadCloser: response.Body, counts: []*atomic.Int64{&s.bytes, &s.mirror.bytes}}
	if response.StatusCode != http.StatusOK {
		defer body.Close()
		return nil, statusError(response, body)
	}
	s.answered = true
	s.mirror.well()
	media, _, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if err == nil && media != s.rule.media {
		err = fmt.Errorf("it is %q", media)
	}
	var plain io.ReadCloser = body
	if coding := response.Header.Get("Content-Encoding"); err == nil && coding != "" && coding != "identity" {
		if coding != "gzip" {
			err = fmt.Errorf("it is encoded with %q", coding)
		} else {
			plain, err = unzip(body)
		}
	}
	if err != nil {
		body.Close()
		return nil, fmt.Errorf("the apiserver's answer: %w", err)
	}
	return plain, nil
}

// countedBody counts what comes over the link.
type countedBody struct {
	io.ReadCloser
	counts []*atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	for _, c := range b.counts {
		c.Add(int64(n))
	}
	return n, err
}

type zippedBody struct {
	*gzip.Reader
	body io.Closer
}

func (z *zippedBody) Close() error { return errors.Join(z.Reader.Close(), z.body.Close()) }

func unzip(body io.ReadCloser) (io.ReadCloser, error) {
	z, err := gzip.NewReader(body)
	if err != nil {
		return nil, err
	}
	return &zippedBody{z, body}, nil
}

// statusError makes an error of an answer that is not 200.
func statusError(response *http.Response, body io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(body, maxStatus))
	if err != nil {
		return err
	}
	media, _, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if err == nil {
		if status, err := parseStatus(media, b); err == nil && status.Code != 0 {
			return &apierrors.StatusError{ErrStatus: *status}
		}
	}
	after, _ := strconv.Atoi(response.Header.Get("Retry-After")) // 0 where there is none
	return apierrors.NewGenericServerResponse(response.StatusCode, "get", schema.GroupResource{}, "", string(b), after, true)
}

// parseStatus reads a Status in full.
func parseStatus(media string, object []byte) (*metav1.Status, error) {
	status := &metav1.Status{}
	if media == wire.MediaJSON {
		return status, json.Unmarshal(object, status)
	}
	e, err := wire.ParseEnvelope(object)
	if err != nil {
		return nil, err
	}
	if e.Kind != "Status" {
		return nil, fmt.Errorf("it is a %q", e.Kind)
	}
	return status, status.Unmarshal(e.Message)
}

// isExpired: what the node has is too old to go on from, or newer than what the
// apiserver has.
func isExpired(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) ||
		apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)
}

// isTimeout: the apiserver had too little time for an answer.
func isTimeout(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && status.Status().Code == http.StatusGatewayTimeout && !isExpired(err)
}

// isPassing: what was asked for may still come if it is asked for again. It is
// the link that failed, or an apiserver that is slow, overloaded, or starting: it
// answers 403 before it has read its roles. Whatever else an apiserver says, it
// will say again.
func isPassing(err error) bool {
	var status apierrors.APIStatus
	return !errors.As(err, &status) || isTimeout(err) ||
		apierrors.IsTooManyRequests(err) || apierrors.IsServiceUnavailable(err) ||
		apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err)
}

// isUnwell: the apiserver answers, and says that it cannot do what it should now. One
// that starts does not know who may do what.
func isUnwell(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	return isPassing(err) || status.Status().Code >= http.StatusInternalServerError
}

// isUnsupported: the apiserver does not send initial events.
func isUnsupported(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)
}
