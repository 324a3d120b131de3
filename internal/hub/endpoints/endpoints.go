package endpoints

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/clock"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

const (
	// lookEvery is how often pods and slices are looked at while corrections are held.
	lookEvery = 500 * time.Millisecond
	// settle is how long slices have to follow the pods, if they come to differ from
	// what is shown: the cluster's controller gathers changes for half a second, and
	// the link may be slow.
	settle = 3 * time.Second
	// longest is how long corrections are held at most: six times the period in which
	// a kubelet compares its pods' status with the API's.
	longest = time.Minute
)

// Layer is the keeper of the replica; see overlay.Layer.
type Layer interface {
	Lay(c replica.Collection, e *replica.Event) error
	Lift(collections []replica.Collection)
	// Below returns the apiserver's object, whatever is laid over it; nil: there is
	// none.
	Below(c replica.Collection, namespace, name string) (*replica.Object, error)
}

// Options of New. Logger and Clock may be left out.
type Options struct {
	Replica replica.Replica
	Layer   Layer
	// Version gives the versions of what is laid; see overlay.Overlay.
	Version  func() replica.Version
	NodeName string
	// Online says whether the link is there.
	Online func() bool
	Clock  clock.WithDelayedExecution
	Logger *slog.Logger
}

type key struct{ namespace, name string }

// Corrector is a node's. Run it once; its other methods may be called by any
// goroutine.
type Corrector struct {
	options Options
	wake    chan struct{}
	// told: something has changed in a cut that was not looked at; and stale: slices
	// may differ from pods that have not changed.
	told, stale atomic.Bool

	mu   sync.Mutex // guards what follows, and the order of what is laid
	pods map[types.UID]*pod
	// laid are the slices that something is laid over.
	laid map[key]bool
	// back is since when corrections have been held, and agreed since when the
	// apiserver's pods have been as kubelet wrote them; zero: not.
	back, agreed time.Time
}

// New makes the corrector of a node.
func New(o Options) *Corrector {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	c := &Corrector{options: o, wake: make(chan struct{}, 1), pods: map[types.UID]*pod{}, laid: map[key]bool{}}
	c.stale.Store(true)
	return c
}

// PodsChanged tells that the overlay has changed a pod. It does not block.
func (c *Corrector) PodsChanged() {
	c.told.Store(true)
	c.rouse()
}

// LinkChanged tells of the link. It does not block.
func (c *Corrector) LinkChanged(online bool) {
	if !online {
		// Of what changed last, the slices may not have come.
		c.stale.Store(true)
		c.told.Store(true)
	}
	c.rouse()
}

func (c *Corrector) rouse() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run corrects until ctx ends.
func (c *Corrector) Run(ctx context.Context) {
	for c.await(ctx, c.step()) {
	}
}

// await waits until something is due, a look at the pods where corrections are held.
// False once ctx is done.
func (c *Corrector) await(ctx context.Context, held bool) bool {
	var due <-chan time.Time
	if held {
		timer := c.options.Clock.NewTimer(lookEvery)
		defer timer.Stop()
		due = timer.C()
	}
	select {
	case <-c.wake:
	case <-due:
	case <-ctx.Done():
		return false
	}
	return true
}

// step does what is due. It returns whether corrections are held.
func (c *Corrector) step() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.options.Online() {
		c.back, c.agreed = time.Time{}, time.Time{}
		c.correct()
		return false
	}
	return len(c.laid) > 0 && c.hold()
}

// Finish corrects what it was told of in a cut and has not come to: the overlay's pods
// are about to be the apiserver's again.
func (c *Corrector) Finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.told.Load() {
		c.correct()
		c.rouse() // what is laid is to be held
	}
}

// hold looks whether corrections are still needed, and lifts them where not. The
// caller holds mu.
func (c *Corrector) hold() bool {
	now := c.options.Clock.Now()
	if c.back.IsZero() {
		c.back = now
	}
	if _, err := c.look(); err != nil {
		c.options.Logger.Error("look at the node's pods", "error", err)
	}
	switch {
	case c.waiting():
		c.agreed = time.Time{}
	case c.agreed.IsZero():
		c.agreed = now
	}
	slices, _ := c.options.Replica.Cover(allSlices)
	followed := c.followed(slices)
	if !followed && now.Sub(c.back) < longest && (c.agreed.IsZero() || now.Sub(c.agreed) < settle) {
		return true
	}
	c.options.Logger.Info("endpoints of the node's pods are the cluster's again", "followed", followed, "agreed", !c.agreed.IsZero())
	c.options.Layer.Lift([]replica.Collection{slices})
	clear(c.laid)
	c.back, c.agreed = time.Time{}, time.Time{}
	return false
}

// followed says whether no slice that something is laid over needs it any more. The
// caller holds mu.
func (c *Corrector) followed(slices replica.Collection) bool {
	for k := range c.laid {
		o, err := c.options.Layer.Below(slices, k.namespace, k.name)
		var message []byte
		if err == nil && o != nil {
			message, err = c.corrected(o)
		}
		if err != nil {
			c.options.Logger.Error("look whether the cluster knows the node's endpoints", "slice", k.namespace+"/"+k.name, "error", err)
		}
		if err != nil || message != nil {
			return false
		}
	}
	return true
}

var allSlices = replica.Query{Resource: discoveryv1.SchemeGroupVersion.WithResource("endpointslices")}

// correct lays what differs. The caller holds mu.
func (c *Corrector) correct() {
	c.told.Store(false)
	changed, err := c.look()
	if err == nil && (changed || c.stale.Load()) {
		c.stale.Store(false)
		err = c.scan()
	}
	switch {
	case err == nil:
	case errors.Is(err, replica.ErrNotMirrored), errors.Is(err, replica.ErrIncomplete):
		// Nobody is shown any either.
		c.stale.Store(true)
	default:
		c.stale.Store(true)
		c.options.Logger.Error("correct the endpoints of the node's pods", "error", err)
	}
}

// scan looks through all slices. One that is not understood does not keep the others
// from it.
func (c *Corrector) scan() error {
	collection, all, err := c.snapshot(allSlices)
	if err != nil {
		return err
	}
	var failed []error
	n := 0
	for _, before := range all {
		message, err := c.corrected(before)
		if err == nil && message != nil {
			n++
			err = c.lay(collection, before, message)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("EndpointSlice %s/%s: %w", before.Namespace, before.Name, err))
		}
	}
	if n > 0 {
		c.options.Logger.Info("endpoints of the node's pods are served as its kubelet knows them", "slices", n)
	}
	return errors.Join(failed...)
}

// snapshot returns all objects of a query that a collection holds whole.
func (c *Corrector) snapshot(q replica.Query) (replica.Collection, []*replica.Object, error) {
	collection, coverage := c.options.Replica.Cover(q)
	if coverage != replica.CoverWhole {
		return collection, nil, fmt.Errorf("%s: %w", q.Resource.Resource, replica.ErrNotMirrored)
	}
	snapshot, err := c.options.Replica.Snapshot(collection)
	if err != nil {
		return collection, nil, err
	}
	return collection, snapshot.Objects, nil
}

// lay puts a slice over the replica. The caller holds mu.
func (c *Corrector) lay(collection replica.Collection, before *replica.Object, message []byte) error {
	message, err := wire.SetResourceVersion(before.Media, message, c.options.Version().String())
	if err != nil {
		return err
	}
	envelope := wire.Envelope{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice", Message: message}
	after, err := replica.NewObject(before.Media, envelope.Append(nil))
	if err != nil {
		return err
	}
	if err := c.options.Layer.Lay(collection, &replica.Event{Type: watch.Modified, Object: after, Previous: before}); err != nil {
		return err
	}
	c.laid[key{before.Namespace, before.Name}] = true
	return nil
}

// publishes says whether the Service of a slice wants its pods shown as ready whatever
// they are.
func (c *Corrector) publishes(namespace, service string) (bool, error) {
	query := replica.Query{Resource: corev1.SchemeGroupVersion.WithResource("services"), Namespace: namespace, Name: service}
	collection, coverage := c.options.Replica.Cover(query)
	if service == "" || coverage != replica.CoverWhole {
		return false, nil
	}
	o, _, err := c.options.Replica.Get(collection, namespace, service)
	if err != nil || o == nil {
		return false, err
	}
	var s corev1.Service
	if err := s.Unmarshal(o.Message); err != nil {
		return false, fmt.Errorf("decode Service %s/%s: %w", namespace, service, err)
	}
	return s.Spec.PublishNotReadyAddresses, nil
}
