package controllers

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/signed"
)

// policyReconciler has signed what may be dialled through each node, its own
// pods, and puts it where gateways take it from.
type policyReconciler struct {
	client    client.Client
	authority *pki.Authority
	clock     clock.PassiveClock
}

func (r *policyReconciler) setup(mgr ctrl.Manager) error {
	sameName := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, object client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: object.GetName()}}}
	})
	return ctrl.NewControllerManagedBy(mgr).
		Named("policies").
		For(&v1alpha1.EdgeNode{}, builder.WithPredicates(predicate.Or(
			predicate.AnnotationChangedPredicate{}, predicate.GenerationChangedPredicate{}))).
		Watches(&corev1.Node{}, sameName, builder.WithPredicates(podRangeChanges())).
		WithOptions(options(joinConcurrency)).
		Complete(quiet(r))
}

// podRangeChanges lets pass what a policy depends on.
func podRangeChanges() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok := e.ObjectOld.(*corev1.Node)
		if !ok {
			return true
		}
		after, ok := e.ObjectNew.(*corev1.Node)
		return !ok || !reflect.DeepEqual(before.Spec.PodCIDRs, after.Spec.PodCIDRs)
	}}
}

// Reconcile brings one node's policy up to date. A node without a pod range has
// none: its agent then allows nothing but its kubelet.
func (r *policyReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var edge v1alpha1.EdgeNode
	if err := r.client.Get(ctx, request.NamespacedName, &edge); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if !edge.DeletionTimestamp.IsZero() {
		return reconcile.Result{}, nil
	}
	var node corev1.Node
	if err := r.client.Get(ctx, request.NamespacedName, &node); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	want, err := rules(node.Spec.PodCIDRs)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("policy of node %s: %w", edge.Name, err)
	}
	if len(want) == 0 {
		return reconcile.Result{}, nil
	}
	have, err := signed.VerifyPolicy(r.authority.Certificate, edge.Name, []byte(edge.Annotations[v1alpha1.PolicyAnnotation]))
	if err == nil && reflect.DeepEqual(have.Allow, want) {
		return reconcile.Result{}, nil
	}
	// What is there and not ours to read (missing, damaged, of another authority)
	// is replaced.
	policy := signed.Policy{Node: edge.Name, Version: uint64(r.clock.Now().UnixNano()), Allow: want}
	doc, err := policy.Sign(r.authority)
	if err != nil {
		return reconcile.Result{}, err
	}
	before := edge.DeepCopy()
	if edge.Annotations == nil {
		edge.Annotations = map[string]string{}
	}
	edge.Annotations[v1alpha1.PolicyAnnotation] = string(doc)
	if err := r.client.Patch(ctx, &edge, client.MergeFrom(before)); err != nil {
		return reconcile.Result{}, fmt.Errorf("write policy of node %s: %w", edge.Name, client.IgnoreNotFound(err))
	}
	return reconcile.Result{}, nil
}

// rules allow the pods of a node.
func rules(podCIDRs []string) ([]signed.Rule, error) {
	var out []signed.Rule
	for _, cidr := range podCIDRs {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, err
		}
		for _, network := range []string{signed.TCP, signed.UDP} {
			out = append(out, signed.Rule{Network: network, Prefix: p})
		}
	}
	return out, nil
}
