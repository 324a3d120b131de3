package hub

import (
	"encoding/json"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/hub/codec"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// The slice the hub synthesizes; the endpoint reconciler of an apiserver uses
// the same name.
const (
	sliceNamespace = "default"
	sliceName      = "kubernetes"
	// sliceManager marks it as the hub's.
	sliceManager = "edge-hub"
	// sliceUID is constant, so that a restarted hub shows the same object.
	sliceUID = "6b756265-726e-4574-8573-2d656467652d"
)

// syntheticSlice makes the EndpointSlice default/kubernetes.
type syntheticSlice struct{ slice discoveryv1.EndpointSlice }

func newSyntheticSlice(endpoint netip.AddrPort) syntheticSlice {
	family := discoveryv1.AddressTypeIPv4
	address := endpoint.Addr().Unmap()
	if address.Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	return syntheticSlice{discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: sliceNamespace,
			Name:      sliceName,
			UID:       sliceUID,
			Labels: map[string]string{
				discoveryv1.LabelServiceName: "kubernetes",
				discoveryv1.LabelManagedBy:   sliceManager,
			},
		},
		AddressType: family,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses:  []string{address.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		}},
		Ports: []discoveryv1.EndpointPort{{
			Name:     ptr.To("https"),
			Protocol: ptr.To(corev1.ProtocolTCP),
			Port:     ptr.To(int32(endpoint.Port())),
		}},
	}}
}

// matches says whether a list or watch with these selectors shows the slice. An
// error is the selector's.
func (s syntheticSlice) matches(labelSelector, fieldSelector string) (bool, error) {
	l, err := labels.Parse(labelSelector)
	if err != nil {
		return false, fmt.Errorf("labelSelector: %w", err)
	}
	f, err := fields.ParseSelector(fieldSelector)
	if err != nil {
		return false, fmt.Errorf("fieldSelector: %w", err)
	}
	return l.Matches(labels.Set(s.slice.Labels)) &&
		f.Matches(fields.Set{"metadata.name": sliceName, "metadata.namespace": sliceNamespace}), nil
}

// object returns the slice as an object, or its metadata only.
func (s syntheticSlice) object(resourceVersion string, partial bool) protobufObject {
	if partial {
		p := &metav1.PartialObjectMetadata{ObjectMeta: *s.slice.ObjectMeta.DeepCopy()}
		p.TypeMeta = metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"}
		p.ResourceVersion = resourceVersion
		return p
	}
	slice := s.slice.DeepCopy()
	slice.TypeMeta = metav1.TypeMeta{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice"}
	slice.ResourceVersion = resourceVersion
	return slice
}

// protobufObject is what the generated types of apimachinery have.
type protobufObject interface {
	runtime.Object
	Marshal() ([]byte, error)
}

// encode returns the slice as it stands alone: JSON, or protobuf in its envelope.
func (s syntheticSlice) encode(e codec.Encoding, resourceVersion string) ([]byte, error) {
	if !e.Protobuf {
		return json.Marshal(s.object(resourceVersion, e.Partial))
	}
	raw, err := s.encodeItem(e, resourceVersion)
	if err != nil {
		return nil, err
	}
	envelope := wire.Envelope{Message: raw}
	envelope.APIVersion, envelope.Kind = s.object("", e.Partial).GetObjectKind().GroupVersionKind().ToAPIVersionAndKind()
	return envelope.Append(nil), nil
}

// encodeItem returns the slice as it stands in a list: JSON, or bare protobuf.
func (s syntheticSlice) encodeItem(e codec.Encoding, resourceVersion string) ([]byte, error) {
	object := s.object(resourceVersion, e.Partial)
	if e.Protobuf {
		return object.Marshal()
	}
	if slice, ok := object.(*discoveryv1.EndpointSlice); ok {
		// Items of a typed list carry no kind; the list says it for them.
		slice.TypeMeta = metav1.TypeMeta{}
	}
	return json.Marshal(object)
}
