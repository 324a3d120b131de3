package hub

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"

	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
// False: it is not one, and must be refused. So must one that came to no answer
// though the link is there: what is laid over the replica then would stay.
func (x *exchange) overlaid() bool {
	r := x.req
	own := x.hub.config.NodeName
	if _, online := x.hub.local.link.Online(); online || r.dryRun() {
		return false
	}
	switch {
	case writesEvents(r):
		x.spoolEvent()
	case x.caller != CallerKubelet || !r.isResource():
		return false
	case r.verb == "patch" && r.subresource == "status" && r.group == "" && (r.resource == "pods" || r.resource == "nodes" && r.name == own):
		target := overlay.Target{Resource: schema.GroupVersionResource{Version: r.version, Resource: r.resource}, Namespace: r.namespace, Name: r.name}
		object, err := x.hub.local.overlay.PatchStatus(target, x.patchType(), x.body)
		if err == nil && r.resource == "pods" {
			x.hub.local.endpoints.PodsChanged()
		}
		x.acknowledge(http.StatusOK, object, err)
	case r.verb == "create" && r.group == "" && r.resource == "nodes" && r.subresource == "":
		return x.registered()
	case r.group == "storage.k8s.io" && r.resource == "csinodes" && r.subresource == "" && (r.verb == "create" || r.verb == "update" && r.name == own):
		x.keepCSINode()
	default:
		return false
	}
	x.hub.local.accepted()
	return true
}

// accepted hands back what was accepted just now if the link has come back
// meanwhile, so that the return has not seen it.
func (l *local) accepted() {
	if _, online := l.link.Online(); online {
		l.handBack()
	}
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
		object, err := x.hub.local.overlay.PatchEvent(x.req.path, x.patchType(), x.body)
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
	object, err := x.decodeEvent()
	var created runtime.Object
	if err == nil {
		created, err = x.hub.local.overlay.CreateEvent(x.req.path, object)
	}
	x.acknowledge(http.StatusCreated, created, err)
}

// decodeEvent reads the event to be created, which must be what its path says.
func (x *exchange) decodeEvent() (overlay.Object, error) {
	object, err := decodeBody[overlay.Object](x)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	want := schema.GroupVersionKind{Group: x.req.group, Version: x.req.version, Kind: "Event"}
	if kind := object.GetObjectKind().GroupVersionKind(); kind != want {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the body is a %s, the path is for a %s", kind, want))
	}
	if x.req.namespace == "" {
		return nil, apierrors.NewBadRequest("an event is created in a namespace")
	}
	if object.GetNamespace() == "" {
		object.SetNamespace(x.req.namespace)
	}
	if object.GetNamespace() != x.req.namespace {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the event is of namespace %s, the path of %s", object.GetNamespace(), x.req.namespace))
	}
	return object, nil
}

var csiNodes = schema.GroupResource{Group: "storage.k8s.io", Resource: "csinodes"}

// errCSINodeUnknown: the node cannot tell what the cluster has.
var errCSINodeUnknown = errors.New("this node has not seen its CSINode")

// keepCSINode keeps what kubelet says of its volume drivers, and remembers it for
// kubelet's own next look.
func (x *exchange) keepCSINode() {
	own := x.hub.config.NodeName
	code, path := http.StatusOK, x.req.path
	if x.req.verb == "create" {
		code, path = http.StatusCreated, path+"/"+own
	}
	var kept runtime.Object
	object, err := x.decodeCSINode(path)
	if err == nil {
		kept, err = x.hub.local.overlay.DeclareCSINode(path, object)
	}
	if err == nil {
		err = x.hub.local.rememberObject(path, kept)
	}
	x.acknowledge(code, kept, err)
}

// decodeCSINode reads the node's CSINode, which must go with what is known of it.
func (x *exchange) decodeCSINode(path string) (*storagev1.CSINode, error) {
	object, err := decodeBody[*storagev1.CSINode](x)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	own := x.hub.config.NodeName
	if object.Name != own {
		// As the apiserver's admission plugin NodeRestriction has it.
		return nil, apierrors.NewForbidden(csiNodes, object.Name, errors.New("a node has a CSINode of its own name only"))
	}
	known, err := x.hub.local.recall(path)
	if err != nil {
		return nil, err
	}
	switch {
	case x.req.verb == "create" && known != nil:
		return nil, apierrors.NewAlreadyExists(csiNodes, own)
	case x.req.verb == "create":
	case known == nil:
		return nil, errCSINodeUnknown
	case object.ResourceVersion != "" && object.ResourceVersion != known.GetResourceVersion():
		return nil, apierrors.NewConflict(csiNodes, own, fmt.Errorf("it is at version %s, not %s", known.GetResourceVersion(), object.ResourceVersion))
	}
	return object, nil
}

// recall is the object that the apiserver answered with last at a path; nil where
// it has not.
func (l *local) recall(path string) (metav1.Object, error) {
	value, ok := l.config.Memo.Get(bucketObjects, path)
	if !ok {
		return nil, nil
	}
	var k kept
	if err := json.Unmarshal(value, &k); err != nil {
		return nil, fmt.Errorf("read a remembered answer: %w", err)
	}
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(k.Body, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("read a remembered answer: %w", err)
	}
	return meta.Accessor(object)
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

// handOver sends one of the overlay's writes to the apiserver.
func (l *local) handOver(ctx context.Context, w overlay.Write) (overlay.Answer, error) {
	code, body, err := l.send(ctx, w.Method, w.Path, w.Type, w.Body)
	return overlay.Answer{Code: code, Body: body}, err
}

// errUnsettled: what kubelet declared in a cut is not handed back yet.
var errUnsettled = errors.New("it has yet to take what this node wrote there while it was cut off")

// settle hands back what kubelet declared in a cut of what it asks for now, before it
// is asked. Else its declaration, sent later, would be written over what it writes now,
// or what it makes of an object that lacks it would be without it. Sending is all that
// keeps their order: the hub does not merge writes. Where the apiserver does not take
// it, kubelet is shown its CSINode as it wrote it (see remembered), and a write waits:
// kubelet tries again.
func (x *exchange) settle(online context.Context) error {
	path := x.declares()
	if path == "" {
		return nil
	}
	ctx, cancel := context.WithCancelCause(x.r.Context())
	defer cancel(nil)
	defer context.AfterFunc(online, func() { cancel(context.Cause(online)) })()
	err := x.hub.local.overlay.Settle(ctx, path, x.hub.local.handOver)
	if err == nil {
		return nil
	}
	if x.r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the caller, or Serve, is gone
	}
	if cause := context.Cause(ctx); cause != nil {
		return &failure{err: cause} // the link is cut
	}
	if _, ok := errors.AsType[*failure](err); ok {
		return &failure{err: err} // the declaration may have arrived, the request was not sent
	}
	if x.req.reads() && x.req.group == "" {
		// Of a node or pod its change of labels is handed back, whoever has read it
		// without; kubelet's work does not wait for that.
		x.hub.log.Debug("read what is not handed back yet", "path", path, "error", err)
		return nil
	}
	return fmt.Errorf("%w: %w", errUnsettled, err)
}

// states tells who speaks for the node as the link returns that its kubelet now does so
// itself, of its Node or a pod, or that it starts anew. The end is to be told too.
func (x *exchange) states() (end func()) {
	r, restate := x.req, x.hub.local.restate
	end = func() {}
	if x.caller != CallerKubelet || r.group != "" || r.dryRun() {
		return end
	}
	writes := r.subresource == "status" && (r.verb == "patch" || r.verb == "update")
	target := overlay.Target{Resource: schema.GroupVersionResource{Version: r.version, Resource: r.resource}, Namespace: r.namespace, Name: r.name}
	switch {
	case r.resource == "nodes" && r.verb == "create":
		x.hub.local.lease.started()
		restate.Started()
	case r.resource == "nodes" && writes:
		return restate.Writes(x.r.Context(), target, r.verb == "update" || !onlyHeartbeat(x.body))
	case r.resource == "pods" && writes:
		return restate.Writes(x.r.Context(), target, true)
	}
	return end
}

// onlyHeartbeat says whether a patch of a Node's status changes no condition but for
// its times. Kubelet says every condition of which the API has another status.
func onlyHeartbeat(patch []byte) bool {
	var p struct {
		Status struct {
			Conditions []struct {
				Status *string `json:"status"`
			} `json:"conditions"`
		} `json:"status"`
	}
	if json.Unmarshal(patch, &p) != nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Status != nil {
			return false
		}
	}
	return true
}

// declares is the path at which the overlay may hold a declaration of what kubelet
// reads or writes, as the overlay names it; "" where none bears on the request.
func (x *exchange) declares() string {
	r, own := x.req, x.hub.config.NodeName
	if x.caller != CallerKubelet || r.dryRun() {
		return ""
	}
	switch (groupResource{r.group, r.resource}) {
	case groupResource{csiNodes.Group, csiNodes.Resource}:
		switch {
		case r.subresource != "":
		case r.verb == "create":
			return r.path + "/" + own
		case r.name == own:
			return r.path
		}
	case groupResource{"", "nodes"}, groupResource{"", "pods"}:
		whole := r.verb == "get" || r.verb == "update"
		if (r.subresource == "" || r.subresource == "status") && (whole || r.verb == "patch" && !onlyStatus(x.body)) {
			return strings.TrimSuffix(r.path, "/status") + "/status"
		}
	}
	return ""
}

// onlyStatus says whether a patch leaves labels and annotations alone, as kubelet's
// patches do that tell how its node and pods are: none of them waits for a hand-back.
func onlyStatus(patch []byte) bool {
	var p map[string]json.RawMessage
	if json.Unmarshal(patch, &p) != nil {
		return false
	}
	metadata := map[string]json.RawMessage{}
	for key, value := range p {
		switch key {
		case "status":
		case "metadata":
			if json.Unmarshal(value, &metadata) != nil {
				return false
			}
		default:
			return false
		}
	}
	delete(metadata, "uid") // a precondition
	return len(metadata) == 0
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
