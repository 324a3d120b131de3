package hub

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/restate"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// leaseNamespace is where kubelets have their leases.
const leaseNamespace = "kube-node-lease"

// leaseRenewal is how often the hub renews the lease upstream while kubelet
// renews it here: kubelet's own interval, a quarter of 40 s.
const leaseRenewal = 10 * time.Second

var leases = schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}

// lease is kubelet's lease on the node as the node keeps it. Kubelet gets, makes
// and renews it here, so that the link is nothing to it; what the cloud sees is
// renewed by the hub, or by the gateway, for as long as kubelet renews here.
type lease struct {
	kick chan struct{} // asks for a renewal upstream now

	mu      sync.Mutex            // guards what follows
	object  *coordinationv1.Lease // nil until kubelet has made or got it
	version uint64                // of object
	renewed time.Time             // by kubelet; zero: not since the hub began
	// steady is since when kubelet has renewed without a pause and has not started;
	// zero: it has not renewed since.
	steady time.Time
}

// answerLease answers what kubelet asks about its own lease. False: it is another
// request, or one that only the apiserver can answer.
func (x *exchange) answerLease() bool {
	r := x.req
	name := x.hub.config.NodeName
	if x.caller != CallerKubelet || r.group != leases.Group || r.resource != leases.Resource || r.namespace != leaseNamespace || r.subresource != "" || r.dryRun() {
		return false
	}
	l := &x.hub.local.lease
	switch {
	case r.verb == "get" && r.name == name:
		object := l.get()
		if object == nil {
			// Kubelet makes it then, here.
			codec.WriteStatus(x.w, apierrors.NewNotFound(leases, name).ErrStatus)
			return true
		}
		return x.respond(http.StatusOK, object)
	case r.verb == "create", r.verb == "update" && r.name == name:
		object, err := decodeBody[*coordinationv1.Lease](x)
		if err != nil {
			codec.WriteStatus(x.w, badRequest(err.Error()))
			return true
		}
		if object.Name != name {
			return false
		}
		code := http.StatusOK
		if r.verb == "create" {
			code = http.StatusCreated
		}
		return x.respond(code, l.put(object, x.hub.clock.Now()))
	}
	return false
}

func (l *lease) get() *coordinationv1.Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.object.DeepCopy()
}

// put keeps what kubelet wrote, at a version of the lease's own: nobody watches
// it here, and kubelet is its only writer.
func (l *lease) put(object *coordinationv1.Lease, now time.Time) *coordinationv1.Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.object == nil {
		object.UID = types.UID("lease-" + object.Name)
		object.CreationTimestamp = metav1.NewTime(now)
	} else {
		object.UID, object.CreationTimestamp = l.object.UID, l.object.CreationTimestamp
	}
	l.version++
	object.ResourceVersion = strconv.FormatUint(l.version, 10)
	if l.object == nil {
		l.renewNow()
	}
	if l.steady.IsZero() || now.Sub(l.renewed) > restate.LeaseDuration {
		l.steady = now
	}
	l.object, l.renewed = object, now
	return object.DeepCopy()
}

// started tells that kubelet begins anew: it knows nothing of its pods yet.
func (l *lease) started() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.steady = time.Time{}
}

// kubelet is when it last renewed, and since when without a pause or a start.
func (l *lease) kubelet() (renewed, since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewed, l.steady
}

func (l *lease) renewNow() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// KubeletRenewed is when kubelet last renewed its lease on the node; false if it
// has not since the hub began, or the hub does not keep it.
func (h *Hub) KubeletRenewed() (time.Time, bool) {
	if h.local == nil {
		return time.Time{}, false
	}
	renewed, _ := h.local.lease.kubelet()
	return renewed, !renewed.IsZero()
}

// renewLease renews the lease upstream for as long as kubelet renews it here.
func (l *local) renewLease(ctx context.Context) {
	var passed time.Time
	for l.wait(ctx, leaseRenewal, l.lease.kick) {
		online, ok := l.link.Online()
		if !ok {
			continue
		}
		l.lease.mu.Lock()
		object, renewed := l.lease.object.DeepCopy(), l.lease.renewed
		l.lease.mu.Unlock()
		if object == nil || !renewed.After(passed) {
			continue
		}
		asking, cancel := context.WithTimeout(ctx, leaseRenewal)
		stop := context.AfterFunc(online, cancel)
		err := l.passLease(asking, object)
		stop()
		cancel()
		if err != nil {
			l.hub.log.Debug("renew the node's lease", "error", err)
			continue
		}
		passed = renewed
	}
}

// wait pauses on the hub's clock, less long if it is woken; false once ctx is
// done.
func (l *local) wait(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	over := make(chan struct{})
	timer := l.hub.clock.AfterFunc(d, func() { close(over) })
	defer timer.Stop()
	select {
	case <-over:
	case <-wake:
	case <-ctx.Done():
		return false
	}
	return true
}

// passLease writes the lease upstream: the renewal where there is one, or else
// the whole.
func (l *local) passLease(ctx context.Context, object *coordinationv1.Lease) error {
	renewal, err := json.Marshal(map[string]any{"spec": object.Spec})
	if err != nil {
		return err
	}
	path := "/apis/coordination.k8s.io/v1/namespaces/" + leaseNamespace + "/leases"
	code, err := l.write(ctx, http.MethodPatch, path+"/"+object.Name, string(types.MergePatchType), renewal)
	if err != nil || code != http.StatusNotFound {
		return errors.Join(err, refusal(code))
	}
	whole := &coordinationv1.Lease{
		TypeMeta:   metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
		ObjectMeta: metav1.ObjectMeta{Namespace: leaseNamespace, Name: object.Name, OwnerReferences: object.OwnerReferences},
		Spec:       object.Spec,
	}
	body, err := json.Marshal(whole)
	if err != nil {
		return err
	}
	code, err = l.write(ctx, http.MethodPost, path, wire.MediaJSON, body)
	return errors.Join(err, refusal(code))
}

func refusal(code int) error {
	if code >= http.StatusBadRequest {
		return fmt.Errorf("the apiserver answered %d", code)
	}
	return nil
}

// request is one of the hub's own.
func (l *local) request(ctx context.Context, method, path, contentType string, body []byte) *http.Request {
	host := l.hub.config.UpstreamServerName
	r := &http.Request{
		Method: method, URL: &url.URL{Scheme: "https", Host: host, Path: path}, Host: host,
		Header: http.Header{"User-Agent": {hubAgent}, "Accept": {wire.MediaJSON}}, Body: http.NoBody,
	}
	if len(body) > 0 {
		r.Header.Set("Content-Type", contentType)
		r.ContentLength = int64(len(body))
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		r.Body, _ = r.GetBody()
	}
	return r.WithContext(ctx)
}

// write sends a body upstream as the node and returns the answer's code.
func (l *local) write(ctx context.Context, method, path, contentType string, body []byte) (int, error) {
	code, _, err := l.send(ctx, method, path, contentType, body)
	return code, err
}

// send asks the apiserver as the node. Of the answer's body it returns at most
// maxKept bytes.
func (l *local) send(ctx context.Context, method, path, contentType string, body []byte) (int, []byte, error) {
	response, err := l.hub.upstreams[nodeIdentity].do(l.request(ctx, method, path, contentType, body))
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxKept))
	if err != nil {
		return 0, nil, fmt.Errorf("read the answer: %w", err)
	}
	return response.StatusCode, answer, nil
}
