//go:build linux

package controlplane

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
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

// members is what the gateway knows of nodes: who may hold which name, and
// which node owns which pod range. It is fed by watches, so that admitting a
// session or routing a dial asks the API nothing.
type members struct {
	synced chan struct{} // closed once both watches have synced
	// revoked is called, without mu held, with a node whose enrolled key is no
	// longer the one it was: a session of the old key must end, also one that
	// was admitted a moment before the change was seen.
	revoked func(node, reason string)

	mu   sync.RWMutex              // guards the fields below
	keys map[string]string         // fingerprint of the enrolled key, empty before enrolment, by node name
	pods map[string][]netip.Prefix // pod ranges by node name
}

func newMembers() *members {
	return &members{
		synced: make(chan struct{}),
		keys:   map[string]string{},
		pods:   map[string][]netip.Prefix{},
	}
}

// run watches until ctx ends.
func (m *members) run(ctx context.Context, cfg *rest.Config) error {
	s := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(s), v1alpha1.AddToScheme(s)); err != nil {
		return err
	}
	c, err := cache.New(cfg, cache.Options{Scheme: s, DefaultTransform: cache.TransformStripManagedFields()})
	if err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	for _, w := range []struct {
		object client.Object
		set    func(obj any, gone bool)
	}{
		{&v1alpha1.EdgeNode{}, m.setEdgeNode},
		{&corev1.Node{}, m.setNode},
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

func (m *members) setEdgeNode(o any, gone bool) {
	n, ok := o.(*v1alpha1.EdgeNode)
	if !ok {
		return
	}
	m.mu.Lock()
	before, known := m.keys[n.Name]
	after := n.Status.Key
	if gone {
		delete(m.keys, n.Name)
		after = ""
	} else {
		m.keys[n.Name] = after
	}
	m.mu.Unlock()
	if known && before != "" && before != after && m.revoked != nil {
		m.revoked(n.Name, "the node's key was revoked")
	}
}

func (m *members) setNode(o any, gone bool) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pods, n.Name)
	if gone {
		return
	}
	for _, cidr := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(cidr); err == nil {
			m.pods[n.Name] = append(m.pods[n.Name], p)
		}
	}
}

// authorize admits the key that a node enrolled with and no other. A node that
// is leaving keeps its session until its removal cuts it: it is being drained.
func (m *members) authorize(node string, leaf *x509.Certificate) error {
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
// address. Node addresses are never routed by: sites share one LAN range on
// purpose.
func (m *members) PodOwner(addr netip.Addr) (string, error) {
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
	return "", fmt.Errorf("%s is no pod address of any node: %w", addr, gateway.ErrNoRoute)
}

// HasNode implements gateway.Routes: whether a node of that name is declared.
func (m *members) HasNode(node string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	_, ok := m.keys[node]
	return ok
}
