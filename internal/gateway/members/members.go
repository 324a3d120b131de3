// Package members is what a gateway knows of its cluster: which key may hold
// which node's name, which node owns which pod range, what each node's signed
// policy is, and which endpoints are behind a service. It is fed by watches of
// the API, so that admitting a session or routing a dial asks the API nothing.
//
// It writes nothing, neither to the API nor elsewhere.
package members

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

// Members is the cache. Make it with New, set what is to be called, and Run it.
type Members struct {
	// Revoked is called, without mu held, with a node whose enrolled key is no
	// longer the one it was: a session of the old key must end, also one that
	// was admitted a moment before the change was seen. May be nil.
	Revoked func(node, reason string)
	// PolicyChanged is called, without mu held, with a node whose signed policy is
	// another. May be nil.
	PolicyChanged func(node string)
	// GatewaysChanged is called with the signed list of gateways, when it has been
	// read and when it has changed. May be nil.
	GatewaysChanged func(document []byte)

	synced chan struct{} // closed once all watches have synced

	mu       sync.RWMutex              // guards the fields below
	keys     map[string]string         // fingerprint of the enrolled key, empty before enrolment, by node name
	pods     map[string][]netip.Prefix // pod ranges by node name
	lan      map[netip.Addr][]string   // node names by address that a node reports
	addrs    map[string][]netip.Addr   // the same by node name
	policies map[string][]byte         // signed.Policy documents by node name
	services services
}

// New makes an empty cache, which admits nobody.
func New() *Members {
	return &Members{
		synced:   make(chan struct{}),
		keys:     map[string]string{},
		pods:     map[string][]netip.Prefix{},
		lan:      map[netip.Addr][]string{},
		addrs:    map[string][]netip.Addr{},
		policies: map[string][]byte{},
		services: newServices(),
	}
}

// Synced is closed when everything has been read once.
func (m *Members) Synced() <-chan struct{} { return m.synced }

// Run watches until ctx ends.
func (m *Members) Run(ctx context.Context, cfg *rest.Config) error {
	s := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(s), v1alpha1.AddToScheme(s)); err != nil {
		return err
	}
	c, err := cache.New(cfg, cache.Options{
		Scheme: s, Mapper: staticMapper(), DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Node{}:               {Transform: stripNode},
			&discoveryv1.EndpointSlice{}: {Transform: stripSlice},
			&corev1.ConfigMap{}: {
				Namespaces: map[string]cache.Config{v1alpha1.SystemNamespace: {}},
				Field:      fields.OneTermEqualSelector("metadata.name", v1alpha1.GatewaysConfigMap),
			},
		},
	})
	if err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	for _, w := range []struct {
		object client.Object
		set    func(obj any, gone bool)
	}{
		{&v1alpha1.EdgeNode{}, m.setEdgeNode},
		{&corev1.Node{}, m.setNode},
		{&corev1.Service{}, m.setService},
		{&discoveryv1.EndpointSlice{}, m.setSlice},
		{&corev1.ConfigMap{}, m.setGateways},
	} {
		informer, err := c.GetInformer(ctx, w.object, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watch nodes: %w", err)
		}
		_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { w.set(o, false) },
			UpdateFunc: func(_, o any) { w.set(o, false) },
			DeleteFunc: func(o any) {
				if final, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
					o = final.Obj
				}
				w.set(o, true)
			},
		})
		if err != nil {
			return fmt.Errorf("watch nodes: %w", err)
		}
	}
	go func() {
		if c.WaitForCacheSync(ctx) {
			close(m.synced)
		}
	}()
	return c.Start(ctx)
}

// staticMapper knows where what is watched is served, so that a gateway starts
// without discovery.
func staticMapper() meta.RESTMapper {
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(v1alpha1.GroupVersion.WithKind("EdgeNode"), meta.RESTScopeRoot)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Node"), meta.RESTScopeRoot)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Service"), meta.RESTScopeNamespace)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("ConfigMap"), meta.RESTScopeNamespace)
	mapper.Add(discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), meta.RESTScopeNamespace)
	return mapper
}

// setGateways passes the list of gateways on. One that is gone changes nothing:
// what was signed stays in force until something newer is.
func (m *Members) setGateways(o any, gone bool) {
	c, ok := o.(*corev1.ConfigMap)
	if !ok || gone || m.GatewaysChanged == nil {
		return
	}
	if doc := c.Data[v1alpha1.GatewaysKey]; doc != "" {
		m.GatewaysChanged([]byte(doc))
	}
}

func (m *Members) setEdgeNode(o any, gone bool) {
	n, ok := o.(*v1alpha1.EdgeNode)
	if !ok {
		return
	}
	m.mu.Lock()
	before, known := m.keys[n.Name]
	after := n.Status.Key
	old, policy := m.policies[n.Name], []byte(n.Annotations[v1alpha1.PolicyAnnotation])
	if gone {
		delete(m.keys, n.Name)
		delete(m.policies, n.Name)
		after, policy = "", nil
	} else {
		m.keys[n.Name] = after
		m.policies[n.Name] = policy
	}
	m.mu.Unlock()
	if known && before != "" && before != after && m.Revoked != nil {
		m.Revoked(n.Name, "the node's key was revoked")
	}
	if len(policy) > 0 && !bytes.Equal(old, policy) && m.PolicyChanged != nil {
		m.PolicyChanged(n.Name)
	}
}

// Policy returns the node's signed policy, nil while there is none.
func (m *Members) Policy(node string) []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if p := m.policies[node]; len(p) > 0 {
		return p
	}
	return nil
}

// stripNode keeps of a Node what is read here: there may be ten thousand.
func stripNode(in any) (any, error) {
	if n, ok := in.(*corev1.Node); ok {
		out := &corev1.Node{}
		out.Name, out.UID, out.ResourceVersion = n.Name, n.UID, n.ResourceVersion
		out.Spec.PodCIDRs, out.Status.Addresses = n.Spec.PodCIDRs, n.Status.Addresses
		return out, nil
	}
	return in, nil
}

func (m *Members) setNode(o any, gone bool) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pods, n.Name)
	for _, a := range m.addrs[n.Name] {
		m.lan[a] = slices.DeleteFunc(m.lan[a], func(name string) bool { return name == n.Name })
		if len(m.lan[a]) == 0 {
			delete(m.lan, a)
		}
	}
	delete(m.addrs, n.Name)
	if gone {
		return
	}
	for _, address := range n.Status.Addresses {
		// Host names are none.
		if a, err := netip.ParseAddr(address.Address); err == nil {
			m.lan[a.Unmap()] = append(m.lan[a.Unmap()], n.Name)
			m.addrs[n.Name] = append(m.addrs[n.Name], a.Unmap())
		}
	}
	for _, cidr := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(cidr); err == nil {
			m.pods[n.Name] = append(m.pods[n.Name], p)
		}
	}
}

// Authorize admits the key that a node enrolled with and no other. A node that
// is leaving keeps its session until its removal cuts it: it is being drained.
func (m *Members) Authorize(node string, leaf *x509.Certificate) error {
	select {
	case <-m.synced:
	default:
		return errors.New("the gateway has not read its nodes yet; try again")
	}
	m.mu.RLock()
	key, ok := m.keys[node]
	m.mu.RUnlock()
	switch {
	case !ok:
		return fmt.Errorf("node %q is not declared", node)
	case key == "":
		return fmt.Errorf("node %q has not enrolled", node)
	}
	fingerprint, err := pki.Fingerprint(leaf.PublicKey)
	if err != nil {
		return fmt.Errorf("node %q: %w", node, err)
	}
	if fingerprint != key {
		return fmt.Errorf("node %q presents the key %s, which is not the one it is enrolled with", node, fingerprint)
	}
	return nil
}

// PodOwner implements gateway.Routes: the node whose pod range holds the
// address. Nodes' own addresses are never routed by: sites share one LAN range
// on purpose.
func (m *Members) PodOwner(addr netip.Addr) (string, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var owner string
	for name, prefixes := range m.pods {
		for _, p := range prefixes {
			if !p.Contains(addr) {
				continue
			}
			if owner != "" && owner != name {
				return "", fmt.Errorf("%s lies in the pod ranges of %s and %s: %w", addr, owner, name, gateway.ErrAmbiguous)
			}
			owner = name
		}
	}
	if owner != "" {
		return owner, nil
	}
	// Never dialled from here either: what has this address beside the gateway is
	// something else.
	switch names := m.lan[addr]; len(names) {
	case 0:
		return "", fmt.Errorf("%s is no pod address of any node: %w", addr, gateway.ErrNoRoute)
	case 1:
		return "", fmt.Errorf("%s is the address of node %s at its site: use the node's name", addr, names[0])
	default:
		return "", fmt.Errorf("%s is the address of %d nodes, each at its site: use the node's name: %w", addr, len(names), gateway.ErrAmbiguous)
	}
}

// HasNode implements gateway.Routes: whether a node of that name is declared.
func (m *Members) HasNode(node string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	_, ok := m.keys[node]
	return ok
}

var _ gateway.Routes = (*Members)(nil)
