package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// keptReconciler keeps the ConfigMap edge-kept-ready, by which the admission
// policy of that name leaves pods Ready that the node lifecycle controller cannot
// hear of (see manifests/policy-pods.yaml). A pool's nodes are in it together:
//
//	all nodes lost for 5 s -> kept
//	one of them is back, and has been for a minute -> no longer kept; the pods of
//	  those that are still lost are marked not Ready, as upstream would have
//	all are back -> no longer kept
//
// While the whole pool is cut nobody but the pool itself can reach its pods, and
// it sees them for itself. Once one of its nodes is back and another is not, that
// one may be dead, and its neighbours must not send requests there for ever.
type keptReconciler struct {
	client client.Client
	// live reads past the cache: pods of a lost node are looked at once, the
	// ConfigMap at the start.
	live     client.Reader
	log      *slog.Logger
	clock    clock.PassiveClock
	sessions Sessions

	// kept is what is in the ConfigMap, nil before it was read; at is when it was
	// written last. Only the one worker touches them.
	kept map[string]string
	at   time.Time
}

const (
	// keptAfter is how long all of a pool must be lost. Being kept shows only once
	// the node lifecycle controller acts, so this may be soon; it is not at once
	// so that a short break writes nothing.
	keptAfter = 5 * time.Second
	// keptReunion is how long the first of a pool must be back before those that
	// are not are suspected: agents wait up to 30 s between attempts.
	keptReunion = time.Minute
	// keptWritesEvery: a gateway that goes loses its nodes within a second or two.
	keptWritesEvery = time.Second
	// keptUnsure is when to look again at a pool of whose nodes it is not known yet
	// whether they are lost; their status follows soon.
	keptUnsure = 5 * time.Second
)

func (r *keptReconciler) setup(mgr ctrl.Manager) error {
	changes := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok := e.ObjectOld.(*v1alpha1.EdgeNode)
		after, also := e.ObjectNew.(*v1alpha1.EdgeNode)
		return !ok || !also || before.Status.Connected != after.Status.Connected || !before.Status.LastConnected.Equal(after.Status.LastConnected) ||
			(before.Status.Key == "") != (after.Status.Key == "") || before.DeletionTimestamp.IsZero() != after.DeletionTimestamp.IsZero()
	}}
	return ctrl.NewControllerManagedBy(mgr).
		Named("kept").
		Watches(&v1alpha1.EdgeNode{}, enqueueTheOnly(), builder.WithPredicates(changes)).
		Watches(&v1alpha1.NodePool{}, enqueueTheOnly(), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WithOptions(options(1)).
		Complete(quiet(r))
}

// keptPlan is what is to become of the ConfigMap.
type keptPlan struct {
	keep map[string]string
	// suspect are nodes that are no longer kept and are still lost.
	suspect []string
	// again is when to look once more without an event; zero for never.
	again time.Duration
}

func (p *keptPlan) lookAgain(d time.Duration) {
	if p.again == 0 || d < p.again {
		p.again = max(d, time.Millisecond)
	}
}

// planKept decides by the nodes of each edge pool, what is kept now and the time.
func planKept(pools map[string][]*v1alpha1.EdgeNode, connected func(string) bool, kept map[string]string, now time.Time) keptPlan {
	plan := keptPlan{keep: map[string]string{}}
	for _, pool := range slices.Sorted(maps.Keys(pools)) {
		plan.pool(pools[pool], connected, kept, now)
	}
	return plan
}

func (p *keptPlan) pool(nodes []*v1alpha1.EdgeNode, connected func(string) bool, kept map[string]string, now time.Time) {
	var lost []string
	var lastLost, firstBack time.Time // zero: none
	unsure := false
	for _, node := range nodes {
		at := node.Status.LastConnected.Time
		switch is := connected(node.Name); {
		case is && node.Status.Connected:
			if firstBack.IsZero() || at.Before(firstBack) {
				firstBack = at
			}
		case is != node.Status.Connected:
			unsure = true // its status, and the time in it, are about to follow
		default:
			lost = append(lost, node.Name)
			if at.After(lastLost) {
				lastLost = at
			}
		}
	}
	switch {
	case firstBack.IsZero() && unsure:
		p.stay(nodes, kept)
		p.lookAgain(keptUnsure)
	case firstBack.IsZero():
		left := lastLost.Add(keptAfter).Sub(now)
		if left > 0 {
			p.stay(nodes, kept)
			p.lookAgain(left)
			return
		}
		for _, node := range lost {
			p.keep[node] = ""
		}
	default:
		left := firstBack.Add(keptReunion).Sub(now)
		if left > 0 {
			if p.stay(nodes, kept) {
				p.lookAgain(left)
			}
			return
		}
		for _, node := range lost {
			if _, was := kept[node]; was {
				p.suspect = append(p.suspect, node)
			}
		}
	}
}

// stay leaves a pool's nodes as they are and says whether any is kept.
func (p *keptPlan) stay(nodes []*v1alpha1.EdgeNode, kept map[string]string) bool {
	found := false
	for _, node := range nodes {
		if _, was := kept[node.Name]; was {
			p.keep[node.Name] = ""
			found = true
		}
	}
	return found
}

// Reconcile looks at all pools.
func (r *keptReconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	if r.kept == nil {
		var configMap corev1.ConfigMap
		err := r.live.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.KeptReadyConfigMap}, &configMap)
		if client.IgnoreNotFound(err) != nil {
			return reconcile.Result{}, fmt.Errorf("read ConfigMap %s: %w", v1alpha1.KeptReadyConfigMap, err)
		}
		r.kept = map[string]string{}
		maps.Copy(r.kept, configMap.Data)
	}
	pools, err := r.edgePools(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	now := r.clock.Now()
	plan := planKept(pools, r.sessions.Connected, r.kept, now)
	if maps.Equal(plan.keep, r.kept) {
		return reconcile.Result{RequeueAfter: plan.again}, nil
	}
	if wait := keptWritesEvery - now.Sub(r.at); wait > 0 && wait <= keptWritesEvery {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	// First the pods, then the list: cut short between the two it is done again.
	var errs []error
	for _, node := range plan.suspect {
		if err := r.takeReady(ctx, node); err != nil {
			errs = append(errs, err)
			plan.keep[node] = ""
		}
	}
	if err := applyData(ctx, r.client, v1alpha1.KeptReadyConfigMap, plan.keep); err != nil {
		return reconcile.Result{}, errors.Join(append(errs, err)...)
	}
	r.log.Info("nodes whose pods stay Ready while their pool is cut off", "before", len(r.kept), "now", len(plan.keep))
	r.kept, r.at = plan.keep, now
	return reconcile.Result{RequeueAfter: plan.again}, errors.Join(errs...)
}

// edgePools lists the nodes that have ever been connected, by edge pool.
func (r *keptReconciler) edgePools(ctx context.Context) (map[string][]*v1alpha1.EdgeNode, error) {
	var pools v1alpha1.NodePoolList
	if err := r.client.List(ctx, &pools); err != nil {
		return nil, fmt.Errorf("list pools: %w", err)
	}
	out := map[string][]*v1alpha1.EdgeNode{}
	for i := range pools.Items {
		if pools.Items[i].Spec.Type != v1alpha1.PoolCloud {
			out[pools.Items[i].Name] = nil
		}
	}
	var nodes v1alpha1.EdgeNodeList
	if err := r.client.List(ctx, &nodes); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	for i := range nodes.Items {
		node := &nodes.Items[i]
		if _, edge := out[node.Spec.Pool]; !edge || node.Status.Key == "" || node.Status.LastConnected == nil || !node.DeletionTimestamp.IsZero() {
			continue
		}
		out[node.Spec.Pool] = append(out[node.Spec.Pool], node)
	}
	for pool, members := range out {
		if len(members) == 0 {
			delete(out, pool)
		}
	}
	return out, nil
}

// takeReady marks the pods of a lost node as not Ready, as the node lifecycle
// controller would have if it had been let. Where that has not given the node up
// yet, it is left to it.
func (r *keptReconciler) takeReady(ctx context.Context, name string) error {
	var node corev1.Node
	if err := r.client.Get(ctx, client.ObjectKey{Name: name}, &node); err != nil {
		return client.IgnoreNotFound(err)
	}
	if ready, _, _ := nodeReady(&node); ready {
		return nil
	}
	var pods corev1.PodList
	if err := r.live.List(ctx, &pods, client.MatchingFields{"spec.nodeName": name}); err != nil {
		return fmt.Errorf("list pods of lost node %s: %w", name, err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		before := pod.DeepCopy()
		if !notReady(pod, metav1.NewTime(r.clock.Now())) {
			continue
		}
		// Strategic, so that the patch holds this one condition and no other.
		err := r.client.Status().Patch(ctx, pod, client.StrategicMergeFrom(before, client.MergeFromWithOptimisticLock{}))
		if client.IgnoreNotFound(err) != nil {
			if apierrors.IsConflict(err) {
				return err
			}
			return fmt.Errorf("take Ready from pod %s/%s of lost node %s: %w", pod.Namespace, pod.Name, name, err)
		}
	}
	r.log.Info("pods of a lost node are not Ready any more: another node of its pool is back", "node", name)
	return nil
}

// notReady changes a pod that is Ready, and says whether it was.
func notReady(pod *corev1.Pod, now metav1.Time) bool {
	for i := range pod.Status.Conditions {
		c := &pod.Status.Conditions[i]
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			c.Status, c.LastTransitionTime = corev1.ConditionFalse, now
			return true
		}
	}
	return false
}
