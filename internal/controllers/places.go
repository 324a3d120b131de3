package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// What the admission policy edge-only-pods reads in the ConfigMap edge-places; see
// manifests/policy-pods.yaml. At some 60 bytes a node the apiserver's limit of an
// object (1.5 MiB) is reached at about 25,000 nodes.
const (
	placePool         = "pool."
	placeNode         = "node."
	placeCloud        = "cloud"
	placeAsDeclared   = "as-declared"
	placesWritesEvery = time.Second / 2 // a site that joins is a few writes and not fifty
)

// places is what is in that ConfigMap.
type places map[string]string

// placesOf derives it from what is declared.
func placesOf(pools []v1alpha1.NodePool, nodes []v1alpha1.EdgeNode) places {
	out := places{}
	for i := range pools {
		pool := &pools[i]
		switch {
		case pool.Spec.Type == v1alpha1.PoolCloud:
			out[placePool+pool.Name] = placeCloud
		case pool.Spec.Autonomy != nil && pool.Spec.Autonomy.ImagePullPolicy == v1alpha1.PullAsDeclared:
			out[placePool+pool.Name] = placeAsDeclared
		}
	}
	for i := range nodes {
		if pool := nodes[i].Spec.Pool; out[placePool+pool] != placeCloud {
			out[placeNode+nodes[i].Name] = pool
		}
	}
	return out
}

// node is the edge pool of a node, "" for what is none.
func (p places) node(name string) string { return p[placeNode+name] }

// edgeOnly says whether a pod can only land on edge nodes, by the rules of the
// policy, except that a bound pod's node says nothing: the scheduler may have
// chosen it among others.
func (p places) edgeOnly(spec *corev1.PodSpec) bool {
	for _, pools := range [][]string{p.ofSelector(spec), p.ofAffinity(spec)} {
		only := len(pools) > 0
		for _, pool := range pools {
			only = only && pool != "" && p[placePool+pool] != placeCloud
		}
		if only {
			return true
		}
	}
	return false
}

func (p places) ofSelector(spec *corev1.PodSpec) []string {
	if pool, ok := spec.NodeSelector[v1alpha1.PoolLabel]; ok {
		return []string{pool}
	}
	if host, ok := spec.NodeSelector[corev1.LabelHostname]; ok {
		return []string{p.node(host)}
	}
	return nil
}

func (p places) ofAffinity(spec *corev1.PodSpec) []string {
	if spec.Affinity == nil || spec.Affinity.NodeAffinity == nil || spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	var pools []string
	for _, term := range spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		pools = append(pools, p.ofTerm(&term)...)
	}
	return pools
}

func (p places) ofTerm(term *corev1.NodeSelectorTerm) []string {
	for _, expression := range term.MatchExpressions {
		if expression.Key == v1alpha1.PoolLabel && expression.Operator == corev1.NodeSelectorOpIn {
			return expression.Values
		}
	}
	for _, field := range term.MatchFields {
		if field.Key != metav1.ObjectNameField || field.Operator != corev1.NodeSelectorOpIn {
			continue
		}
		var pools []string
		for _, name := range field.Values {
			pools = append(pools, p.node(name))
		}
		return pools
	}
	return []string{""}
}

// placesReconciler keeps the ConfigMap edge-places.
type placesReconciler struct {
	client client.Client
	log    *slog.Logger
	clock  clock.PassiveClock

	// written and at are what this process wrote last, and when; only the one
	// worker touches them.
	written places
	at      time.Time
}

// theOnly is the request of a controller that keeps one object.
var theOnly = reconcile.Request{NamespacedName: client.ObjectKey{Name: "all"}}

func enqueueTheOnly() handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{theOnly}
	})
}

func (r *placesReconciler) setup(mgr ctrl.Manager) error {
	// A node never changes its pool.
	comesAndGoes := predicate.Funcs{UpdateFunc: func(event.UpdateEvent) bool { return false }}
	return ctrl.NewControllerManagedBy(mgr).
		Named("places").
		Watches(&v1alpha1.NodePool{}, enqueueTheOnly(), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.EdgeNode{}, enqueueTheOnly(), builder.WithPredicates(comesAndGoes)).
		WithOptions(options(1)).
		Complete(quiet(r))
}

// Reconcile writes what the policy needs to know.
func (r *placesReconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	var pools v1alpha1.NodePoolList
	if err := r.client.List(ctx, &pools); err != nil {
		return reconcile.Result{}, fmt.Errorf("list pools: %w", err)
	}
	var nodes v1alpha1.EdgeNodeList
	if err := r.client.List(ctx, &nodes); err != nil {
		return reconcile.Result{}, fmt.Errorf("list nodes: %w", err)
	}
	want := placesOf(pools.Items, nodes.Items)
	if r.written != nil && maps.Equal(want, r.written) {
		return reconcile.Result{}, nil
	}
	now := r.clock.Now()
	if wait := placesWritesEvery - now.Sub(r.at); r.written != nil && wait > 0 {
		return reconcile.Result{RequeueAfter: min(wait, placesWritesEvery)}, nil
	}
	if err := applyData(ctx, r.client, v1alpha1.PlacesConfigMap, want); err != nil {
		return reconcile.Result{}, err
	}
	r.written, r.at = want, now
	return reconcile.Result{}, nil
}

// applyData makes data all that the controllers keep in a ConfigMap of the
// system's namespace.
func applyData(ctx context.Context, c client.Client, name string, data map[string]string) error {
	configMap := &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: name},
		Data:       data,
	}
	if _, err := apply(ctx, c, configMap); err != nil {
		return fmt.Errorf("write ConfigMap %s: %w", name, err)
	}
	return nil
}
