package podnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

const (
	// defaultResync is how soon routes that vanished are back without any change
	// of the pool: a LAN link that flaps takes its routes along. Looking costs
	// one listing of routes.
	defaultResync = 10 * time.Second
	// retryDelay after a failure, such as a LAN link that is down.
	retryDelay = 2 * time.Second
)

// WatchOptions is what Watch needs.
type WatchOptions struct {
	// Config reaches the hub as edge:local:node.
	Config *rest.Config
	// Pool is the name of the node's NodePool.
	Pool string
	// Apply is Reconciler.Apply. It is called with nil for a pool that does not
	// exist, never at the same time as itself, and never before the pool has
	// been read.
	Apply func([]v1alpha1.PoolMember) error
	// Spec is told what the pool's nodes share whenever the pool has been read or
	// has changed, one call at a time; never of a pool that does not exist. It must
	// not block. May be nil.
	Spec func(v1alpha1.NodePoolSpec)
	// Resync is how often the last members are applied again; 10 s where 0.
	Resync time.Duration
	// Logger; slog.Default where nil.
	Logger *slog.Logger
	// Clock; real time where nil.
	Clock clock.Clock
}

// Watch follows a pool and applies its members until ctx is done; it then
// returns nil. It is an error only where the options are.
func Watch(ctx context.Context, o WatchOptions) error {
	if o.Config == nil || o.Pool == "" || o.Apply == nil {
		return errors.New("watch a pool's members: Config, Pool and Apply are needed")
	}
	if o.Resync == 0 {
		o.Resync = defaultResync
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	client, err := poolClient(o.Config)
	if err != nil {
		return fmt.Errorf("watch the members of pool %s: %w", o.Pool, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	store := &poolStore{name: o.Pool, changed: make(chan []v1alpha1.PoolMember, 1), spec: o.Spec}
	// The reflector lists or streams, resumes, and begins anew on 410.
	reflector := cache.NewReflectorWithOptions(listWatch(client, o.Pool), &v1alpha1.NodePool{}, store,
		cache.ReflectorOptions{Name: "pool " + o.Pool, Clock: o.Clock})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		reflector.RunWithContext(ctx)
	}()
	follow(ctx, o, store.changed)
	<-stopped
	return nil
}

// follow applies members when they change, and the last ones again and again.
func follow(ctx context.Context, o WatchOptions, changed <-chan []v1alpha1.PoolMember) {
	var members []v1alpha1.PoolMember
	var again <-chan time.Time // nil until the pool has been read
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case members = <-changed:
		case <-again:
		}
		err := o.Apply(members)
		delay := o.Resync
		if err != nil {
			delay = min(delay, retryDelay)
		}
		// The same trouble is told once, not every few seconds.
		if text := fmt.Sprint(err); text != said {
			if said = text; err != nil {
				o.Logger.Warn("routes to the pool's pods are not complete", "pool", o.Pool, "error", err)
			} else {
				o.Logger.Info("routes to the pool's pods are complete", "pool", o.Pool, "members", len(members))
			}
		}
		again = o.Clock.After(delay)
	}
}

// poolClient speaks JSON, as custom resources are served.
func poolClient(config *rest.Config) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.GroupVersion = &v1alpha1.GroupVersion
	config.APIPath = "/apis"
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.ContentType = runtime.ContentTypeJSON
	config.AcceptContentTypes = runtime.ContentTypeJSON
	return rest.RESTClientFor(config)
}

// listWatch reads one pool by name: the only form its node may be granted.
func listWatch(client rest.Interface, pool string) *cache.ListWatch {
	only := fields.OneTermEqualSelector("metadata.name", pool).String()
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = only
			list := &v1alpha1.NodePoolList{}
			err := client.Get().Resource("nodepools").VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Into(list)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector, o.Watch = only, true
			r := client.Get().Resource("nodepools").VersionedParams(&o, metav1.ParameterCodec)
			if o.TimeoutSeconds != nil {
				r = r.Timeout(time.Duration(*o.TimeoutSeconds) * time.Second)
			}
			return r.Watch(ctx)
		},
	}
}

// poolStore is what the reflector keeps up to date: the members of one pool, of
// which only the latest matter.
type poolStore struct {
	name    string
	changed chan []v1alpha1.PoolMember  // of capacity 1
	spec    func(v1alpha1.NodePoolSpec) // may be nil
}

func (s *poolStore) Add(object any) error    { return s.set(object) }
func (s *poolStore) Update(object any) error { return s.set(object) }

// Delete: a pool that is gone has no members.
func (s *poolStore) Delete(object any) error {
	if pool, ok := object.(*v1alpha1.NodePool); ok && pool.Name != s.name {
		return nil
	}
	s.deliver(nil)
	return nil
}

// Replace: the list holds the pool or, where it does not exist, nothing.
func (s *poolStore) Replace(objects []any, _ string) error {
	for _, object := range objects {
		if pool, ok := object.(*v1alpha1.NodePool); ok && pool.Name == s.name {
			return s.set(object)
		}
	}
	s.deliver(nil)
	return nil
}

// Resync is never asked for: follow repeats by itself.
func (s *poolStore) Resync() error { return nil }

func (s *poolStore) set(object any) error {
	pool, ok := object.(*v1alpha1.NodePool)
	if !ok {
		return fmt.Errorf("pool %s: got a %T", s.name, object)
	}
	if pool.Name != s.name {
		return nil
	}
	if s.spec != nil {
		s.spec(pool.Spec)
	}
	s.deliver(pool.Status.Members)
	return nil
}

// deliver replaces what has not been taken yet. Only the reflector calls it.
func (s *poolStore) deliver(members []v1alpha1.PoolMember) {
	select {
	case <-s.changed:
	default:
	}
	s.changed <- members
}
