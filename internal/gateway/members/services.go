package members

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/edgewright/terraform-provider-edge/internal/gateway"
)

// ErrNoEndpoint: the service has no endpoint that is ready.
var ErrNoEndpoint = errors.New("no endpoint of the service is ready")

// key names a service or a slice: namespace and name.
type key struct{ namespace, name string }

// services is which addresses are services', and what is behind them. Guarded
// by Members.mu.
type services struct {
	byAddr map[netip.Addr]key
	ports  map[key]map[uint16]string // port names by number
	addrs  map[key][]netip.Addr
	slices map[key]map[string][]endpoint // by service and slice name
}

// endpoint is one ready address of one named port.
type endpoint struct {
	port string
	addr netip.AddrPort
}

func newServices() services {
	return services{
		byAddr: map[netip.Addr]key{}, ports: map[key]map[uint16]string{},
		addrs: map[key][]netip.Addr{}, slices: map[key]map[string][]endpoint{},
	}
}

// stripSlice keeps of an EndpointSlice what is read here.
func stripSlice(in any) (any, error) {
	if s, ok := in.(*discoveryv1.EndpointSlice); ok {
		s.ManagedFields = nil
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			e.TargetRef, e.Hints, e.Zone, e.NodeName, e.DeprecatedTopology = nil, nil, nil, nil, nil
		}
	}
	return in, nil
}

func (m *Members) setService(o any, gone bool) {
	svc, ok := o.(*corev1.Service)
	if !ok {
		return
	}
	k := key{svc.Namespace, svc.Name}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.services.addrs[k] {
		if m.services.byAddr[a] == k {
			delete(m.services.byAddr, a)
		}
	}
	delete(m.services.addrs, k)
	delete(m.services.ports, k)
	if gone {
		return
	}
	for _, ip := range svc.Spec.ClusterIPs {
		a, err := netip.ParseAddr(ip) // not "None"
		if err != nil {
			continue
		}
		m.services.byAddr[a.Unmap()] = k
		m.services.addrs[k] = append(m.services.addrs[k], a.Unmap())
	}
	if len(m.services.addrs[k]) == 0 {
		return
	}
	ports := map[uint16]string{}
	for _, p := range svc.Spec.Ports {
		if p.Protocol == corev1.ProtocolTCP || p.Protocol == "" {
			ports[uint16(p.Port)] = p.Name
		}
	}
	m.services.ports[k] = ports
}

func (m *Members) setSlice(o any, gone bool) {
	s, ok := o.(*discoveryv1.EndpointSlice)
	if !ok {
		return
	}
	k := key{s.Namespace, s.Labels[discoveryv1.LabelServiceName]}
	if k.name == "" {
		return
	}
	var list []endpoint
	if !gone {
		list = endpoints(s)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(list) == 0 {
		delete(m.services.slices[k], s.Name)
		if len(m.services.slices[k]) == 0 {
			delete(m.services.slices, k)
		}
		return
	}
	if m.services.slices[k] == nil {
		m.services.slices[k] = map[string][]endpoint{}
	}
	m.services.slices[k][s.Name] = list
}

// endpoints lists what of a slice is ready.
func endpoints(s *discoveryv1.EndpointSlice) (out []endpoint) {
	for _, e := range s.Endpoints {
		if e.Conditions.Ready != nil && !*e.Conditions.Ready {
			continue
		}
		for _, text := range e.Addresses {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				continue // a name: addressType FQDN
			}
			for _, p := range s.Ports {
				if p.Port == nil || p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
					continue
				}
				var name string
				if p.Name != nil {
					name = *p.Name
				}
				out = append(out, endpoint{name, netip.AddrPortFrom(addr.Unmap(), uint16(*p.Port))})
			}
		}
	}
	return out
}

// Service returns one ready endpoint, chosen at random, of the service at a
// cluster address. The error wraps gateway.ErrNoRoute for an address that is no
// service's, and ErrNoEndpoint.
func (m *Members) Service(addr netip.AddrPort) (netip.AddrPort, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	k, ok := m.services.byAddr[addr.Addr().Unmap()]
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%s is no service: %w", addr.Addr(), gateway.ErrNoRoute)
	}
	name, ok := m.services.ports[k][addr.Port()]
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("service %s/%s has no TCP port %d: %w", k.namespace, k.name, addr.Port(), ErrNoEndpoint)
	}
	var chosen netip.AddrPort
	n := 0
	for _, list := range m.services.slices[k] {
		for _, e := range list {
			if e.port != name {
				continue
			}
			// Each of n is kept with the chance 1/n.
			if n++; rand.N(n) == 0 {
				chosen = e.addr
			}
		}
	}
	if n == 0 {
		return netip.AddrPort{}, fmt.Errorf("service %s/%s: %w", k.namespace, k.name, ErrNoEndpoint)
	}
	return chosen, nil
}
