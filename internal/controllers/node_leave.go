package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
)

// How a node leaves. Each step is a look at what is there, so that it goes on
// wherever an earlier process stopped:
//
//	cordon -> drain (only while connected, bounded) -> revoke key, end session
//	       -> remove binding, Node, pods, Lease -> let go of the EdgeNode
//
// The condition Drained carries the drain across restarts: False since the
// drain began, True once it is over, however it ended.
const (
	// defaultDrainTimeout bounds a drain whose EdgeNode sets no timeout. It is
	// twice a pod's default time to stop.
	defaultDrainTimeout = 60 * time.Second
	// drainPoll is how often a drain looks at what is left. Pods of a node are
	// not watched; a look is one request.
	drainPoll = time.Second
	// cutConfirm is how long a node must have been without a session before its
	// drain is given up: one that only changes its connection is back sooner.
	cutConfirm = 5 * time.Second
	// podsNamed bounds the pods that a message names.
	podsNamed = 5
)

const leaseNamespace = "kube-node-lease"

func (r *nodeReconciler) leave(ctx context.Context, view *nodeView) (reconcile.Result, error) {
	if !controllerutil.ContainsFinalizer(view.edge, v1alpha1.NodeFinalizer) {
		return reconcile.Result{}, nil
	}
	before := view.edge.DeepCopy()
	view.edge.Status.ObservedGeneration = view.edge.Generation
	view.edge.Status.Phase = v1alpha1.NodeLeaving
	r.observeSession(view)

	if err := r.cordon(ctx, view.node); err != nil {
		return reconcile.Result{}, err
	}
	wait, drainErr := r.drain(ctx, view)
	if err := r.patchStatus(ctx, view.edge, before); err != nil {
		return reconcile.Result{}, errors.Join(drainErr, err)
	}
	if drainErr != nil || wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, drainErr
	}
	if err := r.revoke(ctx, view.edge); err != nil {
		return reconcile.Result{}, err
	}
	if err := r.remove(ctx, view); err != nil {
		return reconcile.Result{}, err
	}
	// Once more: a gateway that did not know of the revocation yet may have
	// admitted the device again meanwhile.
	r.kick(view.edge.Name, "node "+view.edge.Name+" was removed from the cluster")

	held := view.edge.DeepCopy()
	controllerutil.RemoveFinalizer(view.edge, v1alpha1.NodeFinalizer)
	err := r.client.Patch(ctx, view.edge, client.MergeFromWithOptions(held, client.MergeFromWithOptimisticLock{}))
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("let go of node %s: %w", view.edge.Name, err)
	}
	r.log.Info("node removed", "node", view.edge.Name)
	return reconcile.Result{}, nil
}

func (r *nodeReconciler) cordon(ctx context.Context, node *corev1.Node) error {
	if node == nil || node.Spec.Unschedulable {
		return nil
	}
	before := node.DeepCopy()
	node.Spec.Unschedulable = true
	if err := r.client.Patch(ctx, node, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("cordon node %s: %w", node.Name, err)
	}
	return nil
}

// drain does one round of the drain and says in view.edge's status how far it
// is. It returns how long to wait for the next round; zero when the drain is
// over.
func (r *nodeReconciler) drain(ctx context.Context, view *nodeView) (time.Duration, error) {
	condition := meta.FindStatusCondition(view.edge.Status.Conditions, v1alpha1.ConditionDrained)
	if condition != nil && condition.Status == metav1.ConditionTrue {
		return 0, nil
	}
	over := func(reason, message string) (time.Duration, error) {
		r.setConditions(view.edge, metav1.Condition{Type: v1alpha1.ConditionDrained, Status: metav1.ConditionTrue, Reason: reason, Message: message})
		r.log.Info("drain of node over", "node", view.edge.Name, "reason", reason, "message", message)
		return 0, nil
	}
	timeout := defaultDrainTimeout
	if spec := view.edge.Spec.Drain; spec != nil {
		if spec.Disabled {
			return over("Disabled", "the node is declared to leave without a drain")
		}
		if spec.Timeout != nil {
			timeout = spec.Timeout.Duration
		}
	}
	if view.node == nil {
		return over("NotRegistered", "there is no Node object to drain")
	}
	now := r.clock.Now()
	if !view.connected {
		if last := view.edge.Status.LastConnected; last == nil || now.Sub(last.Time) >= cutConfirm {
			return over("Cut", "the node is not connected: nothing can be stopped on it")
		}
	}
	started := now
	if condition != nil {
		started = condition.LastTransitionTime.Time
	}
	blocking, err := r.evictPods(ctx, view.edge.Name)
	if err != nil {
		return 0, err
	}
	if len(blocking) == 0 {
		return over("Drained", "no pods are left but those of DaemonSets and the node's own")
	}
	if now.Sub(started) >= timeout {
		return over("TimedOut", fmt.Sprintf("after %s still there: %s", timeout, nameSome(blocking)))
	}
	r.setConditions(view.edge, metav1.Condition{
		Type: v1alpha1.ConditionDrained, Status: metav1.ConditionFalse, Reason: "Draining", Message: "waiting for " + nameSome(blocking),
	})
	return min(drainPoll, timeout-now.Sub(started)), nil
}

// evictPods asks every pod that a drain moves to go, and returns those that are
// still there, each with what holds it up.
func (r *nodeReconciler) evictPods(ctx context.Context, node string) ([]string, error) {
	var pods corev1.PodList
	if err := r.live.List(ctx, &pods, client.MatchingFields{"spec.nodeName": node}); err != nil {
		return nil, fmt.Errorf("list pods of node %s: %w", node, err)
	}
	var blocking []string
	for i := range pods.Items {
		pod := &pods.Items[i]
		if !drained(pod) {
			continue
		}
		name := pod.Namespace + "/" + pod.Name
		if !pod.DeletionTimestamp.IsZero() {
			blocking = append(blocking, name+" (stopping)")
			continue
		}
		err := r.client.SubResource("eviction").Create(ctx, pod, &policyv1.Eviction{
			DeleteOptions: &metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(pod.UID))},
		})
		switch {
		case err == nil:
			blocking = append(blocking, name+" (stopping)")
		case apierrors.IsNotFound(err), apierrors.IsConflict(err):
			// Gone, or another pod of the same name by now.
		case apierrors.IsTooManyRequests(err):
			blocking = append(blocking, name+" (its disruption budget allows no eviction now)")
		default:
			// One pod that cannot be evicted must not keep the others.
			r.log.Warn("evict pod of a node that leaves", "pod", name, "node", node, "error", err)
			blocking = append(blocking, name+" (eviction failed: "+err.Error()+")")
		}
	}
	return blocking, nil
}

// drained says whether a drain moves the pod: not those that would come back at
// once (DaemonSet), that the node itself made (mirror), or that are over.
func drained(pod *corev1.Pod) bool {
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return false
	}
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return false
	}
	owner := metav1.GetControllerOf(pod)
	return owner == nil || owner.Kind != "DaemonSet"
}

// revoke takes the name from the key for good and ends the session.
func (r *nodeReconciler) revoke(ctx context.Context, edge *v1alpha1.EdgeNode) error {
	if key := edge.Status.Key; key != "" {
		before := edge.DeepCopy()
		if !slices.Contains(edge.Status.RevokedKeys, key) {
			edge.Status.RevokedKeys = append(edge.Status.RevokedKeys, key)
		}
		edge.Status.Key = ""
		// The lock: no key may be written in between and stay.
		err := r.client.Status().Patch(ctx, edge, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
		if err != nil {
			return fmt.Errorf("revoke key of node %s: %w", edge.Name, err)
		}
		r.log.Info("key of node revoked", "node", edge.Name, "key", key)
	}
	r.kick(edge.Name, "node "+edge.Name+" is leaving the cluster")
	return r.revokeTokens(ctx, edge)
}

// revokeTokens removes the join tokens that a node used or that name it: the
// one it joined with would let its device in again for as long as it lives, and
// one that an operator bound to the name could give it to another.
func (r *nodeReconciler) revokeTokens(ctx context.Context, edge *v1alpha1.EdgeNode) error {
	var secrets corev1.SecretList
	if err := r.live.List(ctx, &secrets, client.InNamespace(v1alpha1.SystemNamespace), client.MatchingFields{"type": string(enroll.TokenSecretType)}); err != nil {
		return fmt.Errorf("list join tokens of node %s: %w", edge.Name, err)
	}
	for i := range secrets.Items {
		secret := &secrets.Items[i]
		record, err := enroll.ParseRecord(secret)
		if err != nil {
			continue // nothing that can be joined with; the token controller says so
		}
		if record.Name != edge.Name && (record.UsedBy == "" || !slices.Contains(edge.Status.RevokedKeys, record.UsedBy)) {
			continue
		}
		if err := r.client.Delete(ctx, secret); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("remove join token %s of node %s: %w", record.ID, edge.Name, err)
		}
		r.log.Info("join token of node removed", "node", edge.Name, "token", record.ID)
	}
	return nil
}

// remove deletes what a node leaves behind. Its device can no longer write any
// of it anew: its session is over and its key is revoked.
func (r *nodeReconciler) remove(ctx context.Context, view *nodeView) error {
	name := view.edge.Name
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: HubBindingName(name)}}
	if err := r.client.Delete(ctx, binding); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove hub binding of node %s: %w", name, err)
	}
	if view.foreign {
		return nil
	}
	// The Node before its pods: DaemonSets would put theirs back.
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := r.client.Delete(ctx, node); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove Node object %s: %w", name, err)
	}
	var pods corev1.PodList
	if err := r.live.List(ctx, &pods, client.MatchingFields{"spec.nodeName": name}); err != nil {
		return fmt.Errorf("list pods of node %s: %w", name, err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		err := r.client.Delete(ctx, pod, &client.DeleteOptions{
			GracePeriodSeconds: ptr.To[int64](0),
			Preconditions:      &metav1.Preconditions{UID: &pod.UID},
		})
		if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
			return fmt.Errorf("remove pod %s/%s of node %s: %w", pod.Namespace, pod.Name, name, err)
		}
	}
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: leaseNamespace, Name: name}}
	if err := r.client.Delete(ctx, lease); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove lease of node %s: %w", name, err)
	}
	return nil
}

// nameSome lists a few and counts the rest.
func nameSome(names []string) string {
	if len(names) <= podsNamed {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:podsNamed], ", "), len(names)-podsNamed)
}
