package endpoints

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// Field numbers of what is looked into (generated.proto of discovery/v1 and core/v1).
const (
	fieldEndpoints   = 2 // in EndpointSlice
	fieldAddressType = 4
	fieldAddresses   = 1 // in Endpoint
	fieldConditions  = 2
	fieldTargetRef   = 4
	fieldKind        = 1 // in ObjectReference
	fieldUID         = 4
)

// podOf is the node's pod that an endpoint is, or nil. The caller holds mu.
func (c *Corrector) podOf(endpoint []byte) *pod {
	uid := wire.Find(endpoint, fieldTargetRef, fieldUID)
	p := c.pods[types.UID(uid)]
	if p == nil || string(wire.Find(endpoint, fieldTargetRef, fieldKind)) != "Pod" {
		return nil
	}
	return p
}

// corrected returns the message of a slice as it is to be shown; nil: as it is. Fields
// that are not corrected stay as they are, those of later versions of the API too. The
// caller holds mu.
func (c *Corrector) corrected(o *replica.Object) ([]byte, error) {
	if o.Media != wire.MediaProtobuf {
		return nil, fmt.Errorf("it is %q", o.Media)
	}
	own := false
	err := wire.EachField(o.Message, func(f wire.Field) error {
		own = own || f.Number == fieldEndpoints && c.podOf(f.Bytes) != nil
		return nil
	})
	if err != nil || !own {
		return nil, err
	}
	meta, err := wire.ReadMeta(o.Media, o.Message)
	if err != nil {
		return nil, err
	}
	publish, err := c.publishes(o.Namespace, meta.Labels[discoveryv1.LabelServiceName])
	if err != nil {
		return nil, err
	}
	family := discoveryv1.AddressType(wire.Find(o.Message, fieldAddressType))
	var out []byte
	changed := false
	err = wire.EachField(o.Message, func(f wire.Field) error {
		if f.Number == fieldEndpoints {
			if p := c.podOf(f.Bytes); p != nil {
				endpoint, err := p.endpoint(f.Bytes, family, publish)
				if err != nil {
					return err
				}
				if endpoint != nil {
					changed = true
					out = protowire.AppendTag(out, fieldEndpoints, protowire.BytesType)
					out = protowire.AppendBytes(out, endpoint)
					return nil
				}
			}
		}
		out = append(out, f.Whole...)
		return nil
	})
	if err != nil || !changed {
		return nil, err
	}
	return out, nil
}

// endpoint returns the pod's endpoint as it is to be shown; nil: as it is.
func (p *pod) endpoint(raw []byte, family discoveryv1.AddressType, publish bool) ([]byte, error) {
	var e discoveryv1.Endpoint
	if err := e.Unmarshal(raw); err != nil {
		return nil, fmt.Errorf("decode an endpoint: %w", err)
	}
	addresses := e.Addresses
	// A pod of the host's network has the node's address, which the cloud goes by. One
	// that has none for now keeps what it had: an endpoint must have an address.
	if now := p.of(family); len(now) > 0 && !p.hostNetwork {
		addresses = now
	}
	conditions, changed := p.conditions(e.Conditions, publish)
	if !changed && slices.Equal(addresses, e.Addresses) {
		return nil, nil
	}
	var out []byte
	for _, a := range addresses {
		out = protowire.AppendTag(out, fieldAddresses, protowire.BytesType)
		out = protowire.AppendString(out, a)
	}
	b, err := conditions.Marshal()
	if err != nil {
		return nil, err
	}
	out = protowire.AppendTag(out, fieldConditions, protowire.BytesType)
	out = protowire.AppendBytes(out, b)
	err = wire.EachField(raw, func(f wire.Field) error {
		if f.Number != fieldAddresses && f.Number != fieldConditions {
			out = append(out, f.Whole...)
		}
		return nil
	})
	return out, err
}

// conditions are the pod's as the cluster's controller makes them
// (k8s.io/endpointslice/utils.go, podToEndpoint). What is not said and means the same
// stays unsaid.
func (p *pod) conditions(c discoveryv1.EndpointConditions, publish bool) (_ discoveryv1.EndpointConditions, changed bool) {
	say := func(to **bool, unsaid, is bool) {
		if ptr.Deref(*to, unsaid) != is {
			*to, changed = ptr.To(is), true
		}
	}
	say(&c.Ready, true, !p.out && (publish || p.ready && !p.terminating))
	say(&c.Serving, ptr.Deref(c.Ready, true), p.ready)
	say(&c.Terminating, false, p.terminating)
	return c, changed
}
