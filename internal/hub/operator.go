package hub

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// OperatorUser is who the hub is to the node's kubelet when it asks for somebody
// at the device: the common name of Kubelet.Certificate. The kubelet asks the hub
// what that user may, and the hub answers that itself, cut off or not; it is no
// user of the cluster.
const OperatorUser = "edge:local:operator"

// Kubelet is the way to the node's own kubelet, for logs, exec, attach and
// port-forward of an operator on the node. All of it is required.
type Kubelet struct {
	// Dial connects to the kubelet's port.
	Dial func(ctx context.Context) (net.Conn, error)
	// Certificate is a client certificate of OperatorUser, from an authority that
	// signs nothing else that the kubelet would take.
	Certificate func() (*tls.Certificate, error)
	// RootCAs sign the kubelet's serving certificate, which has the node's name.
	RootCAs *x509.CertPool
}

// kubeletAnswer bounds the wait for the kubelet's answer to begin: it asks the
// runtime, on this node.
const kubeletAnswer = 30 * time.Second

// maxKubeletError is how much is read of what the kubelet says when it refuses:
// a line of text.
const maxKubeletError = 4 << 10

// kubeletPaths are the subresources of a pod that its kubelet answers, and where
// (k8s.io/kubernetes/pkg/registry/core/pod/strategy.go).
var kubeletPaths = map[string]string{"log": "containerLogs", "exec": "exec", "attach": "attach", "portforward": "portForward"}

// kubeletQuery are the parameters it takes, by their names in the API; container
// is in the path.
var kubeletQuery = map[string]map[string]string{
	"log": {
		"follow": "follow", "previous": "previous", "sinceSeconds": "sinceSeconds", "sinceTime": "sinceTime",
		"timestamps": "timestamps", "tailLines": "tailLines", "limitBytes": "limitBytes", "stream": "stream",
	},
	"exec":        {"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty", "command": "command"},
	"attach":      {"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty"},
	"portforward": {"ports": "port"},
}

// defaultContainer is kubectl's annotation of which container is meant.
const defaultContainer = "kubectl.kubernetes.io/default-container"

// entersPod: the request is for a pod's log, or a connection into it.
func (r request) entersPod() bool {
	return r.group == "" && r.version == "v1" && r.resource == "pods" && r.name != "" && kubeletPaths[r.subresource] != "" &&
		r.path == "/api/v1/namespaces/"+r.namespace+"/pods/"+r.name+"/"+r.subresource &&
		(r.method == http.MethodGet || r.method == http.MethodPost && r.subresource != "log")
}

// enterPod answers it by the node's own kubelet, cut off or not.
func (x *exchange) enterPod() {
	h, w, r, req := x.hub, x.w, x.r, x.req
	upgrade := r.Header.Get("Upgrade")
	switch {
	case h.config.Kubelet == nil || h.local == nil:
		codec.WriteStatus(w, forbidden(req, "it knows no way to the kubelet"))
		return
	case strings.EqualFold(upgrade, "websocket"):
		// The kubelet does not speak kubectl's newest protocol; clients go on with
		// SPDY (k8s.io/client-go/tools/remotecommand, FallbackExecutor).
		codec.WriteStatus(w, badRequest("the hub carries SPDY/3.1, not WebSocket"))
		return
	case upgrade == "" && req.subresource != "log":
		codec.WriteStatus(w, badRequest(req.subresource+" needs an upgraded connection"))
		return
	}
	pod, err := h.local.ownPod(req.namespace, req.name)
	if err != nil {
		s := unavailable("")
		s.Message = "the node does not know its pods: " + err.Error()
		codec.WriteStatus(w, s)
		return
	}
	if pod == nil {
		s := newStatus(http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("pod %s/%s is not on this node", req.namespace, req.name))
		codec.WriteStatus(w, s)
		return
	}
	path := "/" + kubeletPaths[req.subresource] + "/" + req.namespace + "/" + req.name
	if req.subresource != "portforward" {
		container, err := containerOf(pod, req.query.Get("container"))
		if err != nil {
			codec.WriteStatus(w, badRequest(err.Error()))
			return
		}
		path += "/" + container
	}
	query := url.Values{}
	for name, theirs := range kubeletQuery[req.subresource] {
		for _, v := range req.query[name] {
			if theirs != name && req.subresource != "portforward" {
				if !queryBool(req.query, name) {
					continue
				}
				v = "1"
			}
			query.Add(theirs, v)
		}
	}
	h.log.Info("somebody at the device enters a pod", "what", req.subresource, "pod", req.namespace+"/"+req.name)
	proxy := &httputil.ReverseProxy{
		Transport:     h.kubeletTransport(),
		FlushInterval: -1, // a followed log
		ErrorLog:      slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL = &url.URL{Scheme: "https", Host: h.config.NodeName, Path: path, RawQuery: query.Encode()}
			p.Out.Host = ""
			p.Out.Header = outgoingHeader(p.In.Header)
			if upgrade != "" {
				p.Out.Header.Set("Connection", "Upgrade")
				p.Out.Header.Set("Upgrade", upgrade)
			}
		},
		ModifyResponse: kubeletRefusal,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			s := newStatus(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, "the node's kubelet cannot be reached: "+err.Error())
			codec.WriteStatus(w, s)
		},
	}
	proxy.ServeHTTP(w, r)
}

// kubeletTransport is of one request: an operator asks seldom, and a connection
// that was upgraded is not used again.
func (h *Hub) kubeletTransport() *http.Transport {
	k := h.config.Kubelet
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return k.Dial(ctx) },
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS12, RootCAs: k.RootCAs, ServerName: h.config.NodeName, Time: h.clock.Now,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return k.Certificate() },
		},
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: kubeletAnswer,
		DisableKeepAlives:     true,
		DisableCompression:    true,
		// HTTP/2 cannot be upgraded.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

// kubeletRefusal makes a Status of the text in which a kubelet refuses.
func kubeletRefusal(response *http.Response) error {
	if response.StatusCode < http.StatusBadRequest {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxKubeletError))
	response.Body.Close()
	if err != nil {
		return err
	}
	reason := map[int]metav1.StatusReason{
		http.StatusBadRequest: metav1.StatusReasonBadRequest, http.StatusNotFound: metav1.StatusReasonNotFound,
		http.StatusForbidden: metav1.StatusReasonForbidden, http.StatusInternalServerError: metav1.StatusReasonInternalError,
	}[response.StatusCode]
	body, err := json.Marshal(newStatus(int32(response.StatusCode), reason, "the node's kubelet: "+strings.TrimSpace(string(text))))
	if err != nil {
		return err
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	response.ContentLength = int64(len(body))
	response.Header = http.Header{"Content-Type": {wire.MediaJSON}, "Content-Length": {strconv.Itoa(len(body))}}
	return nil
}

// containerOf checks that a pod has the container, or says which is meant where
// none is named.
func containerOf(pod *corev1.Pod, name string) (string, error) {
	var all []string
	for _, c := range pod.Spec.Containers {
		all = append(all, c.Name)
	}
	first := all
	for _, c := range pod.Spec.InitContainers {
		all = append(all, c.Name)
	}
	for _, c := range pod.Spec.EphemeralContainers {
		all = append(all, c.Name)
	}
	if name == "" {
		name = pod.Annotations[defaultContainer]
	}
	switch {
	case name == "" && len(first) == 1:
		return first[0], nil
	case name == "":
		return "", fmt.Errorf("say which container of pod %s: %s", pod.Name, strings.Join(all, ", "))
	case !slices.Contains(all, name):
		return "", fmt.Errorf("pod %s has no container %q; it has %s", pod.Name, name, strings.Join(all, ", "))
	}
	return name, nil
}

// ownPod is a pod of the node as the replica has it, nil where it has none.
func (l *local) ownPod(namespace, name string) (*corev1.Pod, error) {
	collection, coverage := l.config.Replica.Cover(replica.Query{
		Resource: schema.GroupVersionResource{Version: "v1", Resource: "pods"}, Node: l.hub.config.NodeName,
	})
	if coverage == replica.CoverNone {
		return nil, errors.New("they are not mirrored")
	}
	object, _, err := l.config.Replica.Get(collection, namespace, name)
	if err != nil || object == nil {
		return nil, err
	}
	pod := &corev1.Pod{}
	return pod, pod.Unmarshal(object.Message)
}

// answerOperatorAccess answers the kubelet's question what the hub may do there
// for somebody at the device. False: it asks for another.
func (x *exchange) answerOperatorAccess() bool {
	r := x.req
	if x.caller != CallerKubelet || r.group != "authorization.k8s.io" || r.resource != "subjectaccessreviews" || r.verb != "create" || r.name != "" {
		return false
	}
	review, err := decodeBody[*authorizationv1.SubjectAccessReview](x)
	if err != nil || review.Spec.User != OperatorUser {
		return false // the apiserver's to answer
	}
	// Everything at a kubelet that leads into containers has this one name
	// (k8s.io/kubernetes/pkg/kubelet/server/auth.go).
	a := review.Spec.ResourceAttributes
	review.Status = authorizationv1.SubjectAccessReviewStatus{
		Allowed: a != nil && a.Group == "" && a.Resource == "nodes" && a.Subresource == "proxy" && a.Name == x.hub.config.NodeName &&
			(a.Verb == "get" || a.Verb == "create"),
	}
	if !review.Status.Allowed {
		review.Status.Reason = "the hub only enters containers for an operator"
	}
	return x.respond(http.StatusCreated, review)
}
