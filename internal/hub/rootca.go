package hub

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

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
