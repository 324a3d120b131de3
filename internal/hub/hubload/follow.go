package hubload

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// Component is a program of a node that reads the API.
type Component string

// The components of a node.
const (
	Kubelet   Component = "kubelet"
	KubeProxy Component = "kube-proxy"
	CoreDNS   Component = "coredns"
)

// Followed is what Follow follows, and how.
type Followed struct {
	// Node whose components they are, and how many pods FillNode gave it.
	Node string
	Pods int
	// Config returns where a component finds its API and who it is there.
	Config func(Component) (*rest.Config, error)
	// PlainLists makes the clients list and then watch, as those before
	// Kubernetes 1.35 do.
	PlainLists bool
	// WatchSeconds says for how long each watch is asked for; nil: 5 to 10 minutes,
	// as reflectors do.
	WatchSeconds func() int64
}

// followed is one stream of a component.
type followed struct {
	resource, namespace, field string
	kind                       runtime.Object
	client                     func(kubernetes.Interface) rest.Interface
}

func core(c kubernetes.Interface) rest.Interface      { return c.CoreV1().RESTClient() }
func discovery(c kubernetes.Interface) rest.Interface { return c.DiscoveryV1().RESTClient() }

// streams lists what a node's components of Kubernetes 1.36 follow.
func (f Followed) streams() map[Component][]followed {
	own := "metadata.name=" + f.Node
	nodes := followed{"nodes", "", own, &corev1.Node{}, core}
	services := followed{"services", "", "", &corev1.Service{}, core}
	slices := followed{"endpointslices", "", "", &discoveryv1.EndpointSlice{}, discovery}
	all := map[Component][]followed{
		Kubelet: {
			nodes, services,
			{"pods", "", "spec.nodeName=" + f.Node, &corev1.Pod{}, core},
			{"runtimeclasses", "", "", &nodev1.RuntimeClass{}, func(c kubernetes.Interface) rest.Interface { return c.NodeV1().RESTClient() }},
			{"csidrivers", "", "", &storagev1.CSIDriver{}, func(c kubernetes.Interface) rest.Interface { return c.StorageV1().RESTClient() }},
		},
		KubeProxy: {
			nodes, services, slices,
			{"servicecidrs", "", "", &networkingv1.ServiceCIDR{}, func(c kubernetes.Interface) rest.Interface { return c.NetworkingV1().RESTClient() }},
		},
		CoreDNS: {services, slices, {"namespaces", "", "", &corev1.Namespace{}, core}},
	}
	for i := range f.Pods {
		name := "metadata.name=" + PodName(f.Node, i)
		all[Kubelet] = append(all[Kubelet],
			followed{"secrets", namespace, name, &corev1.Secret{}, core},
			followed{"configmaps", namespace, name, &corev1.ConfigMap{}, core})
	}
	return all
}

// listed is a reflector's store that tells when it was first complete.
type listed struct {
	cache.Store
	once sync.Once
	wait *atomic.Int64
	done chan struct{}
}

func (l *listed) Replace(objects []any, version string) error {
	err := l.Store.Replace(objects, version)
	l.once.Do(func() {
		if l.wait.Add(-1) == 0 {
			close(l.done)
		}
	})
	return err
}

// plain is a client that does not know streamed lists.
type plain struct{}

func (plain) IsWatchListSemanticsUnSupported() bool { return true }

// limited is a client whose watches last as long as they are to.
func (f Followed) limited(lw *cache.ListWatch) *cache.ListWatch {
	if f.WatchSeconds == nil {
		return lw
	}
	watchFor := lw.WatchFuncWithContext
	return &cache.ListWatch{
		ListWithContextFunc: lw.ListWithContextFunc, DisableChunking: lw.DisableChunking,
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.TimeoutSeconds = ptr.To(f.WatchSeconds())
			return watchFor(ctx, o)
		},
	}
}

// Follow runs the reflectors of a node's components, one connection for each
// component, and returns once all of them have their collection. stop ends them.
func Follow(ctx context.Context, f Followed) (stop func(), err error) {
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var reflectors sync.WaitGroup
	stop = func() { cancel(); reflectors.Wait() }
	missing, complete := new(atomic.Int64), make(chan struct{})
	streams := f.streams()
	for _, s := range streams {
		missing.Add(int64(len(s)))
	}
	total := missing.Load()
	for component, wanted := range streams {
		config, err := f.Config(component)
		if err != nil {
			stop()
			return nil, err
		}
		config = rest.CopyConfig(config)
		config.QPS, config.UserAgent = -1, string(component)+"/v1.36.3"
		config.ContentType, config.AcceptContentTypes = wire.MediaProtobuf, wire.MediaProtobuf
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			stop()
			return nil, fmt.Errorf("client of %s: %w", component, err)
		}
		for _, w := range wanted {
			selector, err := fields.ParseSelector(w.field)
			if err != nil {
				stop()
				return nil, err
			}
			lw := f.limited(cache.NewListWatchFromClient(w.client(client), w.resource, w.namespace, selector))
			store := &listed{Store: cache.NewStore(cache.MetaNamespaceKeyFunc), wait: missing, done: complete}
			reflector := cache.NewReflectorWithOptions(lw, w.kind, store, cache.ReflectorOptions{})
			if f.PlainLists {
				reflector = cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, plain{}), w.kind, store, cache.ReflectorOptions{})
			}
			reflectors.Go(func() { reflector.RunWithContext(running) })
		}
	}
	select {
	case <-complete:
		return stop, nil
	case <-ctx.Done():
		stop()
		return nil, fmt.Errorf("%d of %d collections of node %s were never complete: %w", missing.Load(), total, f.Node, context.Cause(ctx))
	}
}
