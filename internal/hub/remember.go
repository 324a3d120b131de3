package hub

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// What is kept of the apiserver's answers, for while it cannot be asked.
var (
	// bucketDiscovery: what the apiserver serves. A few clients ask for the same
	// few documents; each in at most a handful of forms.
	bucketDiscovery = memo.Bucket{Name: "discovery", Max: 64}
	// bucketObjects: single objects that kubelet gets for its pods' volumes and
	// for itself; a node of 110 pods with several volumes each.
	bucketObjects = memo.Bucket{Name: "objects", Max: 1024}
	// bucketTokens: one for each projected token volume of each pod.
	bucketTokens = memo.Bucket{Name: "tokens", Max: 1024}
)

// softExpiry is the life that a token from before the cut is said to have: a fifth
// of what was asked for, which is when the kubelet asks for the next
// (pkg/kubelet/token/token_manager.go). So it never has one that it takes for
// expired, and asks again whenever it looks at the pod, about once a minute: soon
// after the link is back, pods have a new one. The token of the usual volume, of
// 3607 s, lives for a year behind that (--service-account-extend-token-expiration);
// others end when they say.
func softExpiry(asked *int64) time.Duration {
	const (
		ordinary = time.Hour        // what the API takes for nil
		least    = 10 * time.Minute // what the API gives at least
	)
	life := ordinary
	if asked != nil {
		life = max(time.Duration(*asked)*time.Second, least)
	}
	return life / 5
}

// rememberedGets are the objects that are not mirrored, and which kubelet gets
// by name where it needs them.
var rememberedGets = map[groupResource]bool{
	{"", "persistentvolumeclaims"}:          true,
	{"", "persistentvolumes"}:               true,
	{"", "serviceaccounts"}:                 true,
	{"storage.k8s.io", "volumeattachments"}: true,
	{"storage.k8s.io", "csinodes"}:          true,
	{"resource.k8s.io", "resourceclaims"}:   true,
}

// kept is an answer as it is remembered.
type kept struct {
	Type     string `json:"type"`
	Encoding string `json:"encoding,omitempty"`
	ETag     string `json:"etag,omitempty"`
	Body     []byte `json:"body"`
}

// keeper returns what keeps the answer to this request, nil where nothing does.
func (x *exchange) keeper() func(http.Header, int, []byte) {
	m := x.hub.local.config.Memo
	bucket, key := x.memory()
	if key == "" {
		bucket, key = x.written()
	}
	if key == "" || bucket == bucketObjects && x.caller != CallerKubelet {
		// A person looks at objects in forms that nothing can be made of again.
		return nil
	}
	return func(header http.Header, code int, body []byte) {
		switch {
		case code == http.StatusNotFound && bucket == bucketObjects:
			m.Delete(bucket, key)
			return
		case code != http.StatusOK && code != http.StatusCreated:
			return
		}
		value, err := json.Marshal(kept{Type: header.Get("Content-Type"), Encoding: header.Get("Content-Encoding"), ETag: header.Get("ETag"), Body: body})
		if err != nil {
			x.hub.log.Error("remember an answer", "path", x.req.path, "error", err)
			return
		}
		if bucket == bucketTokens {
			x.hub.local.forgetTokens()
		}
		_, had := m.Get(bucket, key)
		m.Put(bucket, key, value)
		if bucket == bucketTokens && !had {
			x.hub.local.learnSoon()
		}
	}
}

// memory says where the answer to a request is remembered; "" is nowhere.
func (x *exchange) memory() (memo.Bucket, string) {
	r := x.req
	switch {
	case !r.isResource() && r.method == http.MethodGet && discovery(r.path) && !unlasting(r.path):
		return bucketDiscovery, r.path + "?" + r.query.Encode() + " " + x.r.Header.Get("Accept")
	case r.verb == "get" && r.subresource == "" && rememberedGets[groupResource{r.group, r.resource}] && x.as == nodeIdentity:
		return bucketObjects, r.path
	case r.verb == "create" && r.resource == "serviceaccounts" && r.subresource == "token" && x.caller == CallerKubelet && !r.dryRun():
		if asked, err := decodeBody[*authenticationv1.TokenRequest](x); err == nil {
			return bucketTokens, tokenKey(r.namespace, r.name, asked)
		}
	}
	return memo.Bucket{}, ""
}

// written says where the object that kubelet writes is remembered: it gets its
// CSINode when it starts, and gives up where nobody has it
// (pkg/volume/csi/csi_plugin.go, initializeCSINode).
func (x *exchange) written() (memo.Bucket, string) {
	r := x.req
	if x.caller != CallerKubelet || r.group != "storage.k8s.io" || r.resource != "csinodes" || r.subresource != "" || r.dryRun() {
		return memo.Bucket{}, ""
	}
	switch r.verb {
	case "create":
		return bucketObjects, r.path + "/" + x.hub.config.NodeName
	case "update", "patch":
		return bucketObjects, r.path
	}
	return memo.Bucket{}, ""
}

// unlasting are paths that tell how the apiserver is now, and documents too
// large to keep for what they are worth offline (only writing needs them).
func unlasting(path string) bool {
	for _, p := range []string{"/healthz", "/livez", "/readyz", "/openapi"} {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

// tokenKey names a token by what it is bound to, for whom it is and for how long: pods
// have tokens for the apiserver that live for an hour beside those that live shorter.
func tokenKey(namespace, account string, asked *authenticationv1.TokenRequest) string {
	uid := ""
	if ref := asked.Spec.BoundObjectRef; ref != nil {
		uid = string(ref.UID)
	}
	audiences := slices.Sorted(slices.Values(asked.Spec.Audiences))
	seconds := strconv.FormatInt(ptr.Deref(asked.Spec.ExpirationSeconds, 0), 10)
	return strings.Join([]string{uid, namespace, account, strings.Join(audiences, ","), seconds}, " ")
}

// forgetTokens drops the tokens of pods that the node no longer has.
func (l *local) forgetTokens() {
	pods, ok := l.ownPods()
	if !ok {
		return
	}
	var gone []string
	for _, e := range l.config.Memo.All(bucketTokens) {
		uid, _, _ := strings.Cut(e.Key, " ")
		if uid != "" && !pods[uid] {
			gone = append(gone, e.Key)
		}
	}
	// A token asked for just before its pod was seen here is asked for again.
	l.config.Memo.Delete(bucketTokens, gone...)
}

// remembered answers with what the apiserver said last.
func (x *exchange) remembered() bool {
	bucket, key := x.memory()
	if key == "" {
		return false
	}
	value, ok := x.hub.local.config.Memo.Get(bucket, key)
	if !ok && bucket == bucketDiscovery {
		value, ok = x.hub.local.discovered(x.req.path, x.r.Header.Get("Accept"))
	}
	if !ok {
		return false
	}
	var k kept
	if err := json.Unmarshal(value, &k); err != nil {
		x.hub.log.Error("read a remembered answer", "path", x.req.path, "error", err)
		return false
	}
	if bucket == bucketDiscovery {
		return x.replay(k)
	}
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(k.Body, nil, nil)
	if err != nil {
		x.hub.log.Error("read a remembered answer", "path", x.req.path, "error", err)
		return false
	}
	if token, ok := object.(*authenticationv1.TokenRequest); ok {
		token.Status.ExpirationTimestamp = metav1.NewTime(x.hub.clock.Now().Add(softExpiry(token.Spec.ExpirationSeconds)))
		return x.respond(http.StatusCreated, token)
	}
	return x.respond(http.StatusOK, object)
}

// aggregatedAccept asks for all of discovery in one document, as kubectl does.
const aggregatedAccept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

// discovered finds what was answered to another who asked for the same document
// in words of his own.
func (l *local) discovered(path, accept string) ([]byte, bool) {
	var plain []byte // what the caller takes too, at the price of a request a group
	for _, e := range l.config.Memo.All(bucketDiscovery) {
		at, _, _ := strings.Cut(e.Key, " ")
		var k kept
		if at != path+"?" || json.Unmarshal(e.Value, &k) != nil {
			continue
		}
		media, params, err := mime.ParseMediaType(k.Type)
		if err != nil || media != wire.MediaJSON {
			continue
		}
		if as := params["as"]; as != "" {
			if strings.Contains(accept, "as="+as) && strings.Contains(accept, "v="+params["v"]+";") {
				return e.Value, true
			}
			continue
		}
		if accept == "" || strings.Contains(accept, wire.MediaJSON) || strings.Contains(accept, "*/*") {
			plain = e.Value
		}
	}
	return plain, plain != nil
}

// learnDiscovery asks for the documents that kubectl and client libraries begin
// with, unless they are as they were.
func (l *local) learnDiscovery(ctx context.Context) error {
	for _, document := range []struct{ path, accept string }{
		{"/version", wire.MediaJSON}, {"/api", wire.MediaJSON}, {"/apis", wire.MediaJSON}, {"/api", aggregatedAccept}, {"/apis", aggregatedAccept},
	} {
		key := document.path + "? " + document.accept
		r := l.request(ctx, http.MethodGet, document.path, "", nil)
		r.Header.Set("Accept", document.accept)
		r.Header.Set("Accept-Encoding", "gzip")
		if value, ok := l.config.Memo.Get(bucketDiscovery, key); ok {
			var k kept
			if json.Unmarshal(value, &k) == nil && k.ETag != "" {
				r.Header.Set("If-None-Match", k.ETag)
			}
		}
		response, err := l.hub.upstreams[nodeIdentity].do(r)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(io.LimitReader(response.Body, maxKept+1))
		response.Body.Close()
		switch {
		case err != nil:
			return err
		case response.StatusCode == http.StatusNotModified:
			continue
		case response.StatusCode != http.StatusOK || len(body) > maxKept:
			return fmt.Errorf("%s: %s, %d bytes", document.path, response.Status, len(body))
		}
		value, err := json.Marshal(kept{Type: response.Header.Get("Content-Type"), Encoding: response.Header.Get("Content-Encoding"), ETag: response.Header.Get("ETag"), Body: body})
		if err != nil {
			return err
		}
		if have, ok := l.config.Memo.Get(bucketDiscovery, key); !ok || !bytes.Equal(have, value) {
			l.config.Memo.Put(bucketDiscovery, key, value)
		}
	}
	return nil
}

// replay answers with remembered bytes.
func (x *exchange) replay(k kept) bool {
	body := k.Body
	h := x.w.Header()
	switch {
	case k.Encoding == "":
	case strings.Contains(x.r.Header.Get("Accept-Encoding"), k.Encoding):
		h.Set("Content-Encoding", k.Encoding)
	case k.Encoding == "gzip":
		plain, err := gunzip(body)
		if err != nil {
			x.hub.log.Error("unpack a remembered answer", "path", x.req.path, "error", err)
			return false
		}
		body = plain
	default:
		return false
	}
	if k.ETag != "" {
		h.Set("ETag", k.ETag)
	}
	h.Set("Content-Type", k.Type)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.w.WriteHeader(http.StatusOK)
	if _, err := x.w.Write(body); err != nil {
		panic(http.ErrAbortHandler)
	}
	return true
}

// maxPlain bounds what a compressed answer becomes.
const maxPlain = 16 << 20

func gunzip(body []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxPlain+1))
	if err == nil && len(plain) > maxPlain {
		err = fmt.Errorf("it is larger than %d bytes", maxPlain)
	}
	return plain, err
}

// decodeBody reads an object of Kubernetes' own from a request.
func decodeBody[T runtime.Object](x *exchange) (T, error) {
	var none T
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(x.body, nil, nil)
	if err != nil {
		return none, fmt.Errorf("decode the request's body: %w", err)
	}
	typed, ok := object.(T)
	if !ok {
		return none, fmt.Errorf("the request's body is a %T", object)
	}
	return typed, nil
}

// respond answers with an object in the encoding the caller likes best.
func (x *exchange) respond(code int, object runtime.Object) bool {
	e, ok := codec.NegotiateOf(x.r.Header.Get("Accept"), codec.Offer{Protobuf: true})
	if !ok || e.Partial {
		codec.WriteStatus(x.w, notAcceptable("what is kept on the node whole, as application/json and application/vnd.kubernetes.protobuf"))
		return true
	}
	var body bytes.Buffer
	var err error
	if e.Protobuf {
		err = protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(object, &body)
	} else {
		err = json.NewEncoder(&body).Encode(object)
	}
	if err != nil {
		codec.WriteStatus(x.w, misunderstood(err.Error()))
		return true
	}
	h := x.w.Header()
	h.Set("Content-Type", e.Media())
	h.Set("Cache-Control", "no-cache, private")
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	x.w.WriteHeader(code)
	if _, err := x.w.Write(body.Bytes()); err != nil {
		panic(http.ErrAbortHandler)
	}
	return true
}
