package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// tolerationReconciler makes up for what the admission policy edge-only-pods did
// not see: pods that were made before it, or while their pool was something else.
//
// It takes the end off the default tolerations, and never sets another one: the
// taint eviction controller goes on with the time it has begun to count, also
// when a pod is given a longer one, and only a toleration without end stops it
// (k8s.io/kubernetes pkg/controller/tainteviction, processPodOnNode).
type tolerationReconciler struct {
	client client.Client
	// live reads past the cache: which pods a pool has depends on its type, and a
	// pod may be bound before the cache knows the pool.
	live client.Reader
	pods cache.Cache
	log  *slog.Logger
}

// defaultTolerationSeconds is what the DefaultTolerationSeconds admission plugin
// adds, unless the apiserver's flags say otherwise; the policy knows it, too.
const defaultTolerationSeconds = 300

// outageTaints are what the node lifecycle controller puts on a node it hears
// nothing of, or nothing good.
var outageTaints = []string{corev1.TaintNodeUnreachable, corev1.TaintNodeNotReady}

// newPodCache keeps every pod that is bound and not over, less everything that
// its readers do not look at: a few hundred bytes a pod.
func newPodCache(mgr ctrl.Manager) (cache.Cache, error) {
	selector := fields.AndSelectors(
		fields.OneTermNotEqualSelector("spec.nodeName", ""),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)),
	)
	pods, err := cache.New(mgr.GetConfig(), cache.Options{
		HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper(),
		ByObject: map[client.Object]cache.ByObject{&corev1.Pod{}: {Field: selector, Transform: stripPod}},
	})
	if err != nil {
		return nil, fmt.Errorf("make cache of pods: %w", err)
	}
	return pods, mgr.Add(pods)
}

func stripPod(in any) (any, error) {
	pod, ok := in.(*corev1.Pod)
	if !ok {
		return in, nil
	}
	out := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
		DeletionTimestamp: pod.DeletionTimestamp, OwnerReferences: pod.OwnerReferences,
	}}
	if value, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		out.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: value}
	}
	out.Spec.NodeName, out.Spec.NodeSelector, out.Spec.Tolerations = pod.Spec.NodeName, pod.Spec.NodeSelector, pod.Spec.Tolerations
	if pod.Spec.Affinity != nil && pod.Spec.Affinity.NodeAffinity != nil {
		out.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution,
		}}
	}
	return out, nil
}

func (r *tolerationReconciler) setup(mgr ctrl.Manager) error {
	endless := predicate.NewTypedPredicateFuncs(func(pod *corev1.Pod) bool { return mayBeLifted(pod) })
	return ctrl.NewControllerManagedBy(mgr).
		Named("tolerations").
		WatchesRawSource(source.Kind(r.pods, &corev1.Pod{}, &handler.TypedEnqueueRequestForObject[*corev1.Pod]{}, endless)).
		WithOptions(options(unitConcurrency)).
		Complete(quiet(r))
}

// mayBeLifted leaves out at once what is most of a cluster's pods.
func mayBeLifted(pod *corev1.Pod) bool {
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	restricted := len(pod.Spec.NodeSelector) > 0 || pod.Spec.Affinity != nil
	return !mirror && pod.DeletionTimestamp.IsZero() && restricted &&
		!equality.Semantic.DeepEqual(withoutEnd(pod.Spec.Tolerations), pod.Spec.Tolerations)
}

// withoutEnd returns tolerations as the policy makes them.
func withoutEnd(tolerations []corev1.Toleration) []corev1.Toleration {
	out := slices.Clone(tolerations)
	for i := range out {
		t := &out[i]
		if slices.Contains(outageTaints, t.Key) && t.Operator == corev1.TolerationOpExists && t.Effect == corev1.TaintEffectNoExecute &&
			t.TolerationSeconds != nil && *t.TolerationSeconds == defaultTolerationSeconds {
			t.TolerationSeconds = nil
		}
	}
	for _, key := range outageTaints {
		covered := slices.ContainsFunc(tolerations, func(t corev1.Toleration) bool {
			return (t.Key == key || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "")
		})
		if !covered {
			out = append(out, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})
		}
	}
	return out
}

// Reconcile looks at one bound pod.
func (r *tolerationReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var pod corev1.Pod
	if err := r.pods.Get(ctx, request.NamespacedName, &pod); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if !mayBeLifted(&pod) {
		return reconcile.Result{}, nil
	}
	known, err := r.places(ctx, &pod)
	if err != nil {
		return reconcile.Result{}, err
	}
	if known == nil || !known.edgeOnly(&pod.Spec) {
		return reconcile.Result{}, nil
	}
	before := pod.DeepCopy()
	pod.Spec.Tolerations = withoutEnd(pod.Spec.Tolerations)
	// The lock: the list is replaced as a whole.
	err = r.client.Patch(ctx, &pod, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("lift tolerations of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	r.log.Info("a pod that can only land on edge nodes tolerates their outages for ever now", "pod", pod.Namespace+"/"+pod.Name, "node", pod.Spec.NodeName)
	return reconcile.Result{}, nil
}

// places is what is known of the pools and nodes that a pod's spec names. nil: it
// names a pool that does not exist.
func (r *tolerationReconciler) places(ctx context.Context, pod *corev1.Pod) (places, error) {
	var nodes []v1alpha1.EdgeNode
	var pools []v1alpha1.NodePool
	for _, name := range namedNodes(&pod.Spec) {
		var node v1alpha1.EdgeNode
		if err := r.client.Get(ctx, client.ObjectKey{Name: name}, &node); client.IgnoreNotFound(err) != nil {
			return nil, fmt.Errorf("read node %s: %w", name, err)
		} else if err == nil {
			nodes = append(nodes, node)
		}
	}
	names := namedPools(&pod.Spec)
	for i := range nodes {
		names = append(names, nodes[i].Spec.Pool)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		var pool v1alpha1.NodePool
		err := r.client.Get(ctx, client.ObjectKey{Name: name}, &pool)
		if apierrors.IsNotFound(err) {
			err = r.live.Get(ctx, client.ObjectKey{Name: name}, &pool)
		}
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read pool %s: %w", name, err)
		}
		pools = append(pools, pool)
	}
	return placesOf(pools, nodes), nil
}

// namedPools and namedNodes are what a pod's spec asks for by name.
func namedPools(spec *corev1.PodSpec) []string {
	return named(spec, v1alpha1.PoolLabel, func(t *corev1.NodeSelectorTerm) []corev1.NodeSelectorRequirement { return t.MatchExpressions }, v1alpha1.PoolLabel)
}

func namedNodes(spec *corev1.PodSpec) []string {
	return named(spec, corev1.LabelHostname, func(t *corev1.NodeSelectorTerm) []corev1.NodeSelectorRequirement { return t.MatchFields }, metav1.ObjectNameField)
}

func named(spec *corev1.PodSpec, label string, of func(*corev1.NodeSelectorTerm) []corev1.NodeSelectorRequirement, key string) []string {
	var names []string
	if value, ok := spec.NodeSelector[label]; ok {
		names = append(names, value)
	}
	if spec.Affinity == nil || spec.Affinity.NodeAffinity == nil || spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return names
	}
	for _, term := range spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, requirement := range of(&term) {
			if requirement.Key == key && requirement.Operator == corev1.NodeSelectorOpIn {
				names = append(names, requirement.Values...)
			}
		}
	}
	return names
}
