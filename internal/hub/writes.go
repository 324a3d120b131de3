package hub

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"mime"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/overlay"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// overlaid answers a write that the node rightfully makes while it is cut off.
// False: it is not one, and must be refused.
func (x *exchange) overlaid() bool {
	r := x.req
	own := x.hub.config.NodeName
	switch {
	case writesEvents(r):
		x.spoolEvent()
	case x.caller != CallerKubelet || !r.isResource():
		return false
	case r.verb == "patch" && r.subresource == "status" && r.group == "" && (r.resource == "pods" || r.resource == "nodes" && r.name == own):
		target := overlay.Target{Resource: schema.GroupVersionResource{Version: r.version, Resource: r.resource}, Namespace: r.namespace, Name: r.name}
		object, err := x.hub.local.overlay.PatchStatus(target, x.patchType(), x.body)
		x.acknowledge(http.StatusOK, object, err)
	case r.verb == "create" && r.group == "" && r.resource == "nodes" && r.subresource == "":
		return x.registered()
	case r.group == "storage.k8s.io" && r.resource == "csinodes" && r.subresource == "" && (r.verb == "create" || r.verb == "update" && r.name == own):
		x.keepCSINode()
	default:
		return false
	}
	return true
}

// registered answers the creation of the node's own object: it is there, as the
// apiserver would say. False where that is not known.
func (x *exchange) registered() bool {
	own := x.hub.config.NodeName
	resource := schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	collection, coverage := x.hub.local.config.Replica.Cover(replica.Query{Resource: resource, Name: own})
	if coverage == replica.CoverNone {
		return false
	}
	object, _, err := x.hub.local.config.Replica.Get(collection, "", own)
	if err != nil || object == nil {
		return false
	}
	codec.WriteStatus(x.w, apierrors.NewAlreadyExists(resource.GroupResource(), own).ErrStatus)
	return true
}

func (x *exchange) spoolEvent() {
	if x.req.verb == "patch" {
		object, err := x.hub.local.overlay.Patch(x.req.path, x.patchType(), x.body)
		if errors.Is(err, overlay.ErrNotSpooled) {
			// Recorders then create the event anew (client-go/tools/record).
			status := apierrors.NewNotFound(schema.GroupResource{Group: x.req.group, Resource: x.req.resource}, x.req.name).ErrStatus
			status.Message += ": " + err.Error()
			codec.WriteStatus(x.w, status)
			return
		}
		x.acknowledge(http.StatusOK, object, err)
		return
	}
	object, err := decodeBody[runtime.Object](x)
	if err == nil {
		object, err = x.hub.local.overlay.Create(x.req.path, object)
	}
	x.acknowledge(http.StatusCreated, object, err)
}

// keepCSINode spools what kubelet says of its volume drivers, and remembers it
// for kubelet's own next look.
func (x *exchange) keepCSINode() {
	object, err := decodeBody[runtime.Object](x)
	code := http.StatusOK
	path := x.req.path
	if err == nil && x.req.verb == "create" {
		code = http.StatusCreated
		path += "/" + x.hub.config.NodeName
		object, err = x.hub.local.overlay.Create(x.req.path, object)
	} else if err == nil {
		object, err = x.hub.local.overlay.Update(path, object)
	}
	if err == nil {
		err = x.hub.local.rememberObject(path, object)
	}
	x.acknowledge(code, object, err)
}

// acknowledge answers a write that was accepted, or says why it was not.
func (x *exchange) acknowledge(code int, object runtime.Object, err error) {
	if err == nil {
		x.respond(code, object)
		return
	}
	x.hub.log.Debug("refused a write while cut off", "caller", x.caller, "method", x.req.method, "path", x.req.path, "error", err)
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		codec.WriteStatus(x.w, status.Status())
		return
	}
	cut := x.cut()
	cut.Message += "; " + err.Error()
	codec.WriteStatus(x.w, cut)
}

func (x *exchange) patchType() types.PatchType {
	media, _, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return types.PatchType(media)
}

// sendSpooled sends one write of the overlay's spool to the apiserver.
func (l *local) sendSpooled(ctx context.Context, w overlay.Write) (int, error) {
	return l.write(ctx, w.Method, w.Path, wire.MediaProtobuf, w.Body)
}

// rememberObject keeps an object as if the apiserver had answered with it.
func (l *local) rememberObject(path string, object runtime.Object) error {
	var body bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(object, &body); err != nil {
		return err
	}
	value, err := json.Marshal(kept{Type: wire.MediaProtobuf, Body: body.Bytes()})
	if err != nil {
		return err
	}
	l.config.Memo.Put(bucketObjects, path, value)
	return nil
}

// ownPods are the uids of the pods the node has; false where that is not known.
func (l *local) ownPods() (map[string]bool, bool) {
	collection, coverage := l.config.Replica.Cover(replica.Query{
		Resource: schema.GroupVersionResource{Version: "v1", Resource: "pods"}, Node: l.hub.config.NodeName,
	})
	if coverage != replica.CoverWhole {
		return nil, false
	}
	snapshot, err := l.config.Replica.Snapshot(collection)
	if err != nil {
		return nil, false
	}
	pods := map[string]bool{}
	for _, o := range snapshot.Objects {
		pods[string(o.UID)] = true
	}
	return pods, true
}
