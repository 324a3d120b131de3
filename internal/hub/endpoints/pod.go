package endpoints

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// pod is one of the node's as its endpoints are to show it.
type pod struct {
	status
	// version of the object that was looked at last.
	version replica.Version
	// own: the status is what kubelet wrote in a cut, and the apiserver has not shown
	// it since.
	own bool
	// before are the addresses the apiserver had when the overlay was lifted.
	before []string
}

// status is what endpoints show of a pod.
type status struct {
	addresses          []string
	hostNetwork        bool
	ready, terminating bool
	// out: it is no endpoint, whatever its Service wants: it has ended, or has no
	// address.
	out bool
}

func (s status) equal(t status) bool {
	return slices.Equal(s.addresses, t.addresses) && s.hostNetwork == t.hostNetwork &&
		s.ready == t.ready && s.terminating == t.terminating && s.out == t.out
}

// statusOf reads a pod as the cluster's controller does
// (k8s.io/endpointslice/util/controller_utils.go, ShouldPodBeInEndpoints and
// IsPodReady).
func statusOf(o *replica.Object) (status, error) {
	var p corev1.Pod
	if err := p.Unmarshal(o.Message); err != nil {
		return status{}, fmt.Errorf("decode pod %s/%s: %w", o.Namespace, o.Name, err)
	}
	s := status{hostNetwork: p.Spec.HostNetwork, terminating: p.DeletionTimestamp != nil}
	for _, ip := range p.Status.PodIPs {
		s.addresses = append(s.addresses, ip.IP)
	}
	if len(s.addresses) == 0 && p.Status.PodIP != "" {
		s.addresses = []string{p.Status.PodIP}
	}
	s.out = len(s.addresses) == 0 || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			s.ready = c.Status == corev1.ConditionTrue && !s.out
		}
	}
	return s, nil
}

// of returns the addresses of a slice's type.
func (s status) of(family discoveryv1.AddressType) []string {
	var out []string
	for _, a := range s.addresses {
		ip, err := netip.ParseAddr(a)
		if err != nil {
			continue
		}
		if ip.Is4() && family == discoveryv1.AddressTypeIPv4 || ip.Is6() && family == discoveryv1.AddressTypeIPv6 {
			out = append(out, a)
		}
	}
	return out
}

// look takes note of the node's pods. It returns whether one is to be shown otherwise
// than before. The caller holds mu.
func (c *Corrector) look() (changed bool, err error) {
	_, all, err := c.snapshot(replica.Query{Resource: corev1.SchemeGroupVersion.WithResource("pods"), Node: c.options.NodeName})
	if err != nil {
		return false, err
	}
	there := make(map[types.UID]bool, len(all))
	for _, o := range all {
		there[o.UID] = true
		p := c.pods[o.UID]
		if p != nil && p.version == o.Version {
			continue
		}
		s, err := statusOf(o)
		if err != nil {
			return changed, err
		}
		if p == nil {
			p = &pod{}
			c.pods[o.UID] = p
			changed = true
		}
		changed = p.see(o.Version, s) || changed
	}
	for uid := range c.pods {
		if !there[uid] {
			delete(c.pods, uid)
		}
	}
	return changed, nil
}

// see takes a pod's status at another version, unless the apiserver shows what was
// before the cut. It returns whether the status is another now.
func (p *pod) see(version replica.Version, s status) (changed bool) {
	lifted := p.version.Overlay()
	p.version = version
	switch {
	case version.Overlay():
		p.own = true
	case p.own && lifted:
		p.before = s.addresses
		if !s.equal(p.status) {
			return false
		}
		p.own = false
	case p.own && slices.Equal(s.addresses, p.before) && !slices.Equal(s.addresses, p.addresses):
		// Something else has changed, by another than kubelet.
		return false
	default:
		p.own = false
	}
	changed = !s.equal(p.status)
	p.status = s
	return changed
}

// waiting says whether kubelet has yet to tell the apiserver of a pod. The caller
// holds mu.
func (c *Corrector) waiting() bool {
	for _, p := range c.pods {
		if p.own {
			return true
		}
	}
	return false
}
