package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// LeaseKeeper renews the leases of nodes in place of their kubelets, whose own
// renewals end at the node's hub and cost nothing over the WAN:
//
//	kubelet --lease--> hub --age--> agent --HEARTBEAT--> gateway --> LeaseKeeper --> Lease
//
// A lease is renewed only for a heartbeat that came on the node's current session
// and says that the kubelet has just renewed its own. A node whose link is gone
// sends none, one whose kubelet is dead says so: either way the lease grows old
// and the node lifecycle controller does what it does.
//
// Every gateway may have one: whoever holds a node's session renews its lease.
type LeaseKeeper struct {
	client kubernetes.Interface
	log    *slog.Logger
	clock  clock.PassiveClock
	queue  workqueue.TypedInterface[string]

	mu sync.Mutex // guards beats
	// beats holds the last heartbeat of each node that may have its lease renewed.
	beats map[string]beat
}

type beat struct {
	// alive is when the kubelet last renewed its lease, by this process' clock.
	alive time.Time
	// renewed is when this process last renewed the cluster's.
	renewed time.Time
}

const (
	// kubeletGrace is how old the kubelet's own renewal may be. A kubelet renews
	// every 10 s and tries again at once when it could not; this is its lease's
	// whole duration.
	kubeletGrace = leaseSeconds * time.Second
	// leaseSeconds is a kubelet's nodeLeaseDurationSeconds.
	leaseSeconds = 40
	// leaseEvery bounds what an agent that talks too much can cause. It is a little
	// less than the interval of heartbeats, which have some jitter.
	leaseEvery = tunnel.HeartbeatInterval - 2*time.Second
	// leaseWorkers: at a millisecond or two a renewal, enough for ten thousand
	// nodes in ten seconds. It also bounds what nodes can ask of the apiserver that
	// return at once, whose first word is a heartbeat: so many calls at a time, and
	// no more a second than a gateway admits sessions (a thousand; 420 where it was
	// lost and had told them how to return), which is about what ten thousand
	// nodes cause all the time. These renewals are not put off further: the leases
	// of those who return last are as old as they may be.
	leaseWorkers = 8
	// leaseTimeout bounds one renewal; the next heartbeat is as good.
	leaseTimeout = 5 * time.Second
)

// LeaseKeeperConfig is what a LeaseKeeper needs.
type LeaseKeeperConfig struct {
	// RESTConfig is of the identity edge:gateway.
	RESTConfig *rest.Config
	Logger     *slog.Logger
	// Clock is the real one when nil.
	Clock clock.PassiveClock
}

// NewLeaseKeeper returns a LeaseKeeper; its work is done by Run.
func NewLeaseKeeper(cfg LeaseKeeperConfig) (*LeaseKeeper, error) {
	if cfg.RESTConfig == nil || cfg.Logger == nil {
		return nil, errors.New("keep leases: RESTConfig and Logger must be set")
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	restConfig := rest.CopyConfig(cfg.RESTConfig)
	// As many a second as ten thousand nodes ask for; the apiserver has priority
	// and fairness.
	restConfig.QPS = -1
	client, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return nil, fmt.Errorf("keep leases: make client: %w", err)
	}
	return &LeaseKeeper{
		client: client, log: cfg.Logger, clock: cfg.Clock,
		queue: workqueue.NewTyped[string](), beats: map[string]beat{},
	}, nil
}

// Beat is for a gateway's OnHeartbeat. It does not block.
func (k *LeaseKeeper) Beat(node string, heartbeat tunnel.Heartbeat) {
	age, ok := heartbeat.KubeletAge()
	if !ok || age >= kubeletGrace {
		return
	}
	now := k.clock.Now()
	k.mu.Lock()
	b := k.beats[node]
	b.alive = now.Add(-age)
	k.beats[node] = b
	due := now.Sub(b.renewed) >= leaseEvery
	k.mu.Unlock()
	if due {
		k.queue.Add(node)
	}
}

// Forget is for the end of a node's session: what is queued for it is dropped.
func (k *LeaseKeeper) Forget(node string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.beats, node)
}

// Run renews leases until ctx ends, and returns nil then. It is called once.
func (k *LeaseKeeper) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	for range leaseWorkers {
		workers.Go(func() {
			for {
				node, done := k.queue.Get()
				if done {
					return
				}
				if err := k.renew(ctx, node); err != nil && ctx.Err() == nil {
					k.log.Warn("lease of a node not renewed, the next heartbeat tries again", "node", node, "error", err)
				}
				k.queue.Done(node)
			}
		})
	}
	<-ctx.Done()
	k.queue.ShutDown()
	workers.Wait()
	return nil
}

// renew renews one lease, if what was said of the node still holds.
func (k *LeaseKeeper) renew(ctx context.Context, node string) error {
	now := k.clock.Now()
	k.mu.Lock()
	b, ok := k.beats[node]
	k.mu.Unlock()
	if !ok || now.Sub(b.alive) >= kubeletGrace || now.Sub(b.renewed) < leaseEvery {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	renewTime := metav1.NewMicroTime(now)
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{
		"holderIdentity": node, "leaseDurationSeconds": leaseSeconds, "renewTime": renewTime,
	}})
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	leases := k.client.CoordinationV1().Leases(leaseNamespace)
	_, err = leases.Patch(ctx, node, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		err = k.create(ctx, node, renewTime)
	}
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if b, ok := k.beats[node]; ok {
		b.renewed = now
		k.beats[node] = b
	}
	return nil
}

// create makes a lease as a kubelet does: owned by its Node, so that it goes with
// it. A node that has not registered yet has none.
func (k *LeaseKeeper) create(ctx context.Context, name string, renewTime metav1.MicroTime) error {
	node, err := k.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	_, err = k.client.CoordinationV1().Leases(leaseNamespace).Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: leaseNamespace, Name: name,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: corev1.SchemeGroupVersion.String(), Kind: "Node", Name: name, UID: node.UID}},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: ptr.To[int32](leaseSeconds), RenewTime: &renewTime},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil // the kubelet's own, or another gateway's
	}
	return err
}
