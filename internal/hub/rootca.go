package hub

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/mirror"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// rootBundle is the ConfigMap in which pods find the authorities they trust
// (kube-controller-manager: rootcacertpublisher).
const rootBundle = "kube-root-ca.crt"

// addRootCA adds the node's authority to pods' bundles.
func addRootCA(ca string) mirror.Filter {
	return func(o *replica.Object) (*replica.Object, error) {
		if o.Name != rootBundle || o.Media != wire.MediaProtobuf {
			return o, nil
		}
		var bundle corev1.ConfigMap
		if err := bundle.Unmarshal(o.Message); err != nil {
			return nil, fmt.Errorf("the bundle of namespace %s: %w", o.Namespace, err)
		}
		was := bundle.Data["ca.crt"]
		if was == "" {
			return o, nil
		}
		bundle.Data["ca.crt"] = withRootCA(was, ca)
		message, err := bundle.Marshal()
		if err != nil {
			return nil, fmt.Errorf("the bundle of namespace %s: %w", o.Namespace, err)
		}
		return replica.NewObject(wire.MediaProtobuf, wire.Envelope{APIVersion: "v1", Kind: "ConfigMap", Message: message}.Append(nil))
	}
}

const (
	// bundleTrials and bundleAgain bound the wait for a bundle that the apiserver did
	// not let the node read: its authorizer learns of a new pod within about a second.
	bundleTrials = 8
	bundleAgain  = 500 * time.Millisecond
)

// readsBundle says whether kubelet reads a bundle of authorities for its pods.
func (x *exchange) readsBundle() bool {
	r := &x.req
	if x.caller != CallerKubelet || r.group != "" || r.resource != "configmaps" || r.subresource != "" || !r.reads() {
		return false
	}
	name := r.name
	if name == "" {
		selector, err := fields.ParseSelector(r.query.Get("fieldSelector"))
		if err != nil {
			return false
		}
		name, _ = selector.RequiresExactMatch("metadata.name")
	}
	return name == rootBundle
}

// answerBundle answers kubelet's reads of a bundle while the link is there and the
// replica does not hold it: it waits, and refuses. The apiserver's own lacks the node's
// authority, and a pod that was given it would trust nobody in the next cut.
func (x *exchange) answerBundle() bool {
	l := x.hub.local
	if x.hub.config.RootCA == "" || !x.readsBundle() {
		return false
	}
	for range bundleTrials {
		if _, online := l.link.Online(); !online {
			return false // it is answered as all else in a cut
		}
		if !l.wait(x.r.Context(), bundleAgain, nil) {
			panic(http.ErrAbortHandler) // the caller, or Serve, is gone
		}
		if x.fromReplica(false) {
			return true
		}
	}
	codec.WriteStatus(x.w, unavailable("the node may not read this bundle of authorities yet, to which its own is added for the node's pods"))
	return true
}

// withRootCA adds an authority to the bundle that pods find in their ConfigMap
// kube-root-ca.crt, as the node's kubelet sees it: what is served while the node
// is cut off has a certificate of it. Bundles that have it stay.
func withRootCA(bundle, ca string) string {
	ca = strings.TrimSpace(ca)
	if strings.Contains(bundle, ca) {
		return bundle
	}
	return strings.TrimRight(bundle, "\n") + "\n" + ca + "\n"
}
