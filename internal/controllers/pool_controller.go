package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// poolReconciler counts a pool's nodes, publishes its members, and holds a
// deleted pool until its nodes are gone.
type poolReconciler struct {
	client client.Client
	log    *slog.Logger
	clock  clock.PassiveClock
}

func (r *poolReconciler) setup(mgr ctrl.Manager) error {
	poolOfNode := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, object client.Object) []reconcile.Request {
		node, ok := object.(*v1alpha1.EdgeNode)
		if !ok {
			return nil
		}
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: node.Spec.Pool}}}
	})
	poolByLabel := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, object client.Object) []reconcile.Request {
		pool := object.GetLabels()[v1alpha1.PoolLabel]
		if pool == "" {
			return nil
		}
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: pool}}}
	})
	return ctrl.NewControllerManagedBy(mgr).
		Named("pools").
		For(&v1alpha1.NodePool{}).
		Watches(&v1alpha1.EdgeNode{}, poolOfNode).
		Watches(&corev1.Node{}, poolByLabel, builder.WithPredicates(nodeChanges())).
		WithOptions(options(poolConcurrency)).
		Complete(quiet(r))
}

// Reconcile brings one pool into step.
func (r *poolReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var pool v1alpha1.NodePool
	if err := r.client.Get(ctx, request.NamespacedName, &pool); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	var edges v1alpha1.EdgeNodeList
	if err := r.client.List(ctx, &edges, client.MatchingFields{indexNodePool: pool.Name}); err != nil {
		return reconcile.Result{}, fmt.Errorf("list nodes of pool %s: %w", pool.Name, err)
	}
	nodes := map[string]*corev1.Node{}
	for i := range edges.Items {
		var node corev1.Node
		err := r.client.Get(ctx, client.ObjectKey{Name: edges.Items[i].Name}, &node)
		if err == nil {
			nodes[node.Name] = &node
		} else if !apierrors.IsNotFound(err) {
			return reconcile.Result{}, fmt.Errorf("read Node object %s: %w", edges.Items[i].Name, err)
		}
	}

	deleting := !pool.DeletionTimestamp.IsZero()
	if !deleting && !controllerutil.ContainsFinalizer(&pool, v1alpha1.PoolFinalizer) {
		before := pool.DeepCopy()
		controllerutil.AddFinalizer(&pool, v1alpha1.PoolFinalizer)
		if err := r.client.Patch(ctx, &pool, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
			return reconcile.Result{}, fmt.Errorf("hold pool %s: %w", pool.Name, client.IgnoreNotFound(err))
		}
	}
	if deleting && len(edges.Items) == 0 {
		return reconcile.Result{}, r.release(ctx, &pool)
	}

	before := pool.DeepCopy()
	pool.Status = poolStatus(&pool, edges.Items, nodes)
	if deleting {
		condition := deletingCondition(edges.Items)
		condition.ObservedGeneration = pool.Generation
		condition.LastTransitionTime = metav1.NewTime(r.clock.Now())
		meta.SetStatusCondition(&pool.Status.Conditions, condition)
	}
	if equality.Semantic.DeepEqual(before.Status, pool.Status) {
		return reconcile.Result{}, nil
	}
	if err := r.client.Status().Patch(ctx, &pool, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("write status of pool %s: %w", pool.Name, err)
	}
	return reconcile.Result{}, nil
}

// release lets a deleted pool without nodes go.
func (r *poolReconciler) release(ctx context.Context, pool *v1alpha1.NodePool) error {
	if !controllerutil.ContainsFinalizer(pool, v1alpha1.PoolFinalizer) {
		return nil
	}
	before := pool.DeepCopy()
	controllerutil.RemoveFinalizer(pool, v1alpha1.PoolFinalizer)
	err := r.client.Patch(ctx, pool, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("let go of pool %s: %w", pool.Name, err)
	}
	r.log.Info("pool removed", "pool", pool.Name)
	return nil
}

// poolStatus counts and lists. A member is a node that has joined and is
// placed; its peers need its addresses and pod ranges to reach its pods.
func poolStatus(pool *v1alpha1.NodePool, edges []v1alpha1.EdgeNode, nodes map[string]*corev1.Node) v1alpha1.NodePoolStatus {
	status := v1alpha1.NodePoolStatus{
		ObservedGeneration: pool.Generation,
		Nodes:              int32(len(edges)),
		Conditions:         slices.Clone(pool.Status.Conditions),
	}
	for i := range edges {
		edge := &edges[i]
		if edge.Status.CutSince != nil {
			status.CutNodes++
		}
		node := nodes[edge.Name]
		if node == nil || edge.Status.Key == "" || !isPlaced(node, pool.Name) {
			continue
		}
		if ready, _, _ := nodeReady(node); ready {
			status.ReadyNodes++
		}
		member := v1alpha1.PoolMember{Name: edge.Name, PodCIDRs: slices.Clone(node.Spec.PodCIDRs)}
		for _, address := range node.Status.Addresses {
			if address.Type == corev1.NodeInternalIP {
				member.Addresses = append(member.Addresses, address.Address)
			}
		}
		status.Members = append(status.Members, member)
	}
	slices.SortFunc(status.Members, func(a, b v1alpha1.PoolMember) int { return strings.Compare(a.Name, b.Name) })
	return status
}

// deletingCondition says what a deleted pool waits for.
func deletingCondition(edges []v1alpha1.EdgeNode) metav1.Condition {
	var staying, leaving []string
	for i := range edges {
		if edges[i].DeletionTimestamp.IsZero() {
			staying = append(staying, edges[i].Name)
		} else {
			leaving = append(leaving, edges[i].Name)
		}
	}
	slices.Sort(staying)
	slices.Sort(leaving)
	if len(staying) > 0 {
		return metav1.Condition{
			Type: v1alpha1.ConditionPoolDeleting, Status: metav1.ConditionFalse, Reason: "NodesRemain",
			Message: "these nodes are still declared: " + strings.Join(staying, ", "),
		}
	}
	return metav1.Condition{
		Type: v1alpha1.ConditionPoolDeleting, Status: metav1.ConditionTrue, Reason: "NodesLeaving",
		Message: "waiting for nodes that leave: " + strings.Join(leaving, ", "),
	}
}
