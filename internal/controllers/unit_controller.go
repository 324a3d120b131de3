package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
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

// troubleRetry is how often what the apiserver refused is tried again: the cure
// (a quota, a Service of that name) gives us no event.
const troubleRetry = 30 * time.Second

// unitReconciler turns a UnitDeployment into a Deployment per pool and one
// Service, and says how each unit does.
type unitReconciler struct {
	client client.Client
	// live reads past the cache, for events of a failing pod.
	live    client.Reader
	log     *slog.Logger
	clock   clock.PassiveClock
	applied *appliedCache
}

func (r *unitReconciler) setup(mgr ctrl.Manager) error {
	ofPool := func(pool func(client.Object) string) handler.EventHandler {
		return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, object client.Object) []reconcile.Request {
			return r.unitsOfPool(ctx, pool(object))
		})
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("units").
		For(&v1alpha1.UnitDeployment{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Owns(&appsv1.Deployment{}).
		Owns(&corev1.Service{}).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(r.unitOfPod), builder.WithPredicates(podTrouble())).
		Watches(&v1alpha1.NodePool{}, ofPool(client.Object.GetName), builder.WithPredicates(existence())).
		Watches(&v1alpha1.EdgeNode{}, ofPool(func(object client.Object) string {
			return object.(*v1alpha1.EdgeNode).Spec.Pool
		}), builder.WithPredicates(sessionChanges())).
		WithOptions(options(unitConcurrency)).
		Complete(quiet(r))
}

// existence lets pass what appears or goes.
func existence() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(event.UpdateEvent) bool { return false }}
}

// sessionChanges lets pass nodes that join, connect or are cut.
func sessionChanges() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, after := e.ObjectOld.(*v1alpha1.EdgeNode), e.ObjectNew.(*v1alpha1.EdgeNode)
		return before.Status.Connected != after.Status.Connected || (before.Status.Key == "") != (after.Status.Key == "")
	}}
}

// podTrouble lets pass changes of a pod that its Deployment's status does not
// tell: scheduling and container states.
func podTrouble() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, after := e.ObjectOld.(*corev1.Pod), e.ObjectNew.(*corev1.Pod)
		return !equality.Semantic.DeepEqual(before.Status.ContainerStatuses, after.Status.ContainerStatuses) ||
			!equality.Semantic.DeepEqual(before.Status.InitContainerStatuses, after.Status.InitContainerStatuses) ||
			!equality.Semantic.DeepEqual(before.Status.Conditions, after.Status.Conditions)
	}}
}

func (r *unitReconciler) unitsOfPool(ctx context.Context, pool string) []reconcile.Request {
	var list v1alpha1.UnitDeploymentList
	if err := r.client.List(ctx, &list, client.MatchingFields{indexUnitPool: pool}); err != nil {
		r.log.Error("list unit deployments of a pool that changed", "pool", pool, "error", err)
		return nil
	}
	requests := make([]reconcile.Request, len(list.Items))
	for i := range list.Items {
		requests[i].NamespacedName = client.ObjectKeyFromObject(&list.Items[i])
	}
	return requests
}

// unitOfPod finds a pod's unit deployment by its label, or, where the label may
// be shortened, through its ReplicaSet and Deployment.
func (r *unitReconciler) unitOfPod(ctx context.Context, pod client.Object) []reconcile.Request {
	label := pod.GetLabels()[v1alpha1.UnitDeploymentLabel]
	if len(label) < maxLabel {
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Namespace: pod.GetNamespace(), Name: label}}}
	}
	owner := metav1.GetControllerOf(pod)
	for _, object := range []client.Object{&appsv1.ReplicaSet{}, &appsv1.Deployment{}} {
		if owner == nil || r.client.Get(ctx, client.ObjectKey{Namespace: pod.GetNamespace(), Name: owner.Name}, object) != nil {
			// Not ours, or not in the cache yet; the Deployment's own change
			// brings us back.
			return nil
		}
		owner = metav1.GetControllerOf(object)
	}
	if owner == nil || owner.Kind != "UnitDeployment" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: client.ObjectKey{Namespace: pod.GetNamespace(), Name: owner.Name}}}
}

// Reconcile brings one unit deployment into step.
func (r *unitReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var ud v1alpha1.UnitDeployment
	if err := r.client.Get(ctx, request.NamespacedName, &ud); err != nil {
		if apierrors.IsNotFound(err) {
			r.applied.forget(request.NamespacedName)
			return reconcile.Result{}, nil
		}
		return reconcile.Result{}, fmt.Errorf("read unit deployment %s: %w", request.NamespacedName, err)
	}
	if !ud.DeletionTimestamp.IsZero() {
		// Its workloads and Service go with their owner.
		return reconcile.Result{}, nil
	}
	var errs []error
	var units []v1alpha1.UnitStatus
	var again time.Duration
	keep := map[string]bool{}
	for i := range ud.Spec.Pools {
		facts := r.reconcileUnit(ctx, &ud, &ud.Spec.Pools[i])
		if facts.unapplied != nil {
			errs = append(errs, facts.unapplied)
		}
		if facts.poolKnown {
			keep[workloadName(&ud, facts.pool.Name)] = true
		}
		if facts.trouble != "" {
			again = troubleRetry
		}
		units = append(units, unitStatus(facts))
	}
	if err := r.removeOthers(ctx, &ud, keep); err != nil {
		errs = append(errs, err)
	}
	trouble, serviceErr := r.reconcileService(ctx, &ud)
	if serviceErr != nil {
		errs = append(errs, serviceErr)
	}
	if trouble != "" {
		again = troubleRetry
	}
	if err := r.writeStatus(ctx, &ud, units, trouble, serviceErr); err != nil {
		errs = append(errs, err)
	}
	return reconcile.Result{RequeueAfter: again}, errors.Join(errs...)
}

// reconcileUnit makes one unit's workload and gathers what is known of it.
func (r *unitReconciler) reconcileUnit(ctx context.Context, ud *v1alpha1.UnitDeployment, pool *v1alpha1.UnitPool) *unitFacts {
	facts := &unitFacts{pool: pool}
	facts.unapplied = r.gatherUnit(ctx, ud, facts)
	return facts
}

func (r *unitReconciler) gatherUnit(ctx context.Context, ud *v1alpha1.UnitDeployment, facts *unitFacts) error {
	pool := facts.pool
	err := r.client.Get(ctx, client.ObjectKey{Name: pool.Name}, &v1alpha1.NodePool{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	facts.poolKnown = true
	if err != nil {
		return fmt.Errorf("read pool %s: %w", pool.Name, err)
	}
	var nodes v1alpha1.EdgeNodeList
	if err := r.client.List(ctx, &nodes, client.MatchingFields{indexNodePool: pool.Name}); err != nil {
		return fmt.Errorf("list nodes of pool %s: %w", pool.Name, err)
	}
	for i := range nodes.Items {
		if nodes.Items[i].Status.Key != "" {
			facts.nodes++
		}
		if nodes.Items[i].Status.Connected {
			facts.connected++
		}
	}
	want, err := buildWorkload(ud, pool)
	if err != nil {
		facts.trouble = err.Error()
		return nil
	}
	var have client.Object
	var workload appsv1.Deployment
	switch err := r.client.Get(ctx, client.ObjectKeyFromObject(want), &workload); {
	case err == nil:
		have = &workload
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("read workload %s/%s: %w", want.Namespace, want.Name, err)
	}
	result, trouble, err := r.applyOwned(ctx, ud, want, have)
	if err != nil || trouble != "" {
		facts.trouble = trouble
		return err
	}
	if result != nil {
		// The cache is behind what was just written.
		workload = appsv1.Deployment{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(result.Object, &workload); err != nil {
			return fmt.Errorf("read applied workload %s/%s: %w", want.Namespace, want.Name, err)
		}
	}
	facts.workload = &workload
	return r.readPods(ctx, facts)
}

// applyOwned applies an object of ud unless it is as it was when last applied.
// have is what is there, nil for nothing. It returns the object as applied, nil
// where nothing had to be. The text is what the user must mend; the error is
// worth trying again.
func (r *unitReconciler) applyOwned(ctx context.Context, ud *v1alpha1.UnitDeployment, want, have client.Object) (*unstructured.Unstructured, string, error) {
	kind := want.GetObjectKind().GroupVersionKind().Kind
	name := want.GetNamespace() + "/" + want.GetName()
	if have == nil {
		// The cache holds what carries our label. Something of this name that
		// does not is not ours to take over.
		found := &metav1.PartialObjectMetadata{}
		found.SetGroupVersionKind(want.GetObjectKind().GroupVersionKind())
		err := r.live.Get(ctx, client.ObjectKeyFromObject(want), found)
		if client.IgnoreNotFound(err) != nil {
			return nil, "", fmt.Errorf("look for %s %s: %w", kind, name, err)
		}
		if err == nil {
			have = found
		}
	}
	if have != nil && !madeBy(have, ud) {
		if madeByNamesake(have, ud) {
			// The garbage collector takes it away, and its end brings us back.
			return nil, "", fmt.Errorf("%s %s is left of a unit deployment of this name that was deleted; waiting until it is gone", kind, name)
		}
		return nil, fmt.Sprintf("%s %s exists and was not made by this unit deployment", kind, name), nil
	}
	owner := client.ObjectKeyFromObject(ud)
	mark, err := newAppliedMark(want)
	if err != nil {
		return nil, "", err
	}
	if have != nil && r.applied.holds(owner, want, have, mark) {
		return nil, "", nil
	}
	result, err := apply(ctx, r.client, want)
	switch {
	case refused(err):
		return nil, fmt.Sprintf("%s %s: %s", kind, name, err.Error()), nil
	case err != nil:
		return nil, "", fmt.Errorf("apply %s %s: %w", kind, name, err)
	}
	r.applied.remember(owner, want, result, mark)
	r.log.Info("unit applied", "unit_deployment", owner, "kind", kind, "name", want.GetName())
	return result, "", nil
}

// refused says whether the apiserver will go on refusing an apply until
// somebody changes something. A list with two entries of one key is told by
// server-side apply as an internal error without a reason of its own.
func refused(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsForbidden(err) || apierrors.IsAlreadyExists(err) ||
		(err != nil && strings.Contains(err.Error(), "failed to create typed patch object"))
}

// readPods finds the pods of the workload's present template and, if one of
// them fails, the newest warning about it.
func (r *unitReconciler) readPods(ctx context.Context, facts *unitFacts) error {
	workload := facts.workload
	if rolledOut(workload) || workload.Status.ObservedGeneration < workload.Generation || facts.connected == 0 {
		return nil
	}
	selector := client.MatchingLabels(workload.Spec.Selector.MatchLabels)
	var sets appsv1.ReplicaSetList
	if err := r.client.List(ctx, &sets, client.InNamespace(workload.Namespace), selector); err != nil {
		return fmt.Errorf("list replica sets of %s/%s: %w", workload.Namespace, workload.Name, err)
	}
	if facts.current = currentReplicaSet(workload, sets.Items); facts.current == nil {
		return nil
	}
	var pods corev1.PodList
	if err := r.client.List(ctx, &pods, client.InNamespace(workload.Namespace), selector); err != nil {
		return fmt.Errorf("list pods of %s/%s: %w", workload.Namespace, workload.Name, err)
	}
	for i := range pods.Items {
		if madeBy(&pods.Items[i], facts.current) {
			facts.pods = append(facts.pods, pods.Items[i])
		}
	}
	if failing := failingContainer(facts.pods); failing != nil {
		var err error
		if facts.event, err = r.lastWarning(ctx, failing.pod); err != nil {
			return err
		}
	}
	return nil
}

// lastWarning returns the text of the newest warning about a pod.
func (r *unitReconciler) lastWarning(ctx context.Context, pod *corev1.Pod) (string, error) {
	var events corev1.EventList
	err := r.live.List(ctx, &events, client.InNamespace(pod.Namespace), client.MatchingFields{
		"involvedObject.uid": string(pod.UID), "type": corev1.EventTypeWarning,
	})
	if err != nil {
		return "", fmt.Errorf("list events of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	var newest *corev1.Event
	for i := range events.Items {
		if newest == nil || eventTime(&events.Items[i]).After(eventTime(newest).Time) {
			newest = &events.Items[i]
		}
	}
	if newest == nil {
		return "", nil
	}
	return newest.Message, nil
}

func eventTime(event *corev1.Event) metav1.Time {
	if !event.LastTimestamp.IsZero() {
		return event.LastTimestamp
	}
	if !event.EventTime.IsZero() {
		return metav1.NewTime(event.EventTime.Time)
	}
	return event.CreationTimestamp
}

// removeOthers deletes the workloads of pools that are not asked for any more.
func (r *unitReconciler) removeOthers(ctx context.Context, ud *v1alpha1.UnitDeployment, keep map[string]bool) error {
	var workloads appsv1.DeploymentList
	err := r.client.List(ctx, &workloads, client.InNamespace(ud.Namespace),
		client.MatchingLabels{v1alpha1.UnitDeploymentLabel: shortName(ud.Name)})
	if err != nil {
		return fmt.Errorf("list workloads of unit deployment %s/%s: %w", ud.Namespace, ud.Name, err)
	}
	for i := range workloads.Items {
		workload := &workloads.Items[i]
		if keep[workload.Name] || !madeBy(workload, ud) || !workload.DeletionTimestamp.IsZero() {
			continue
		}
		if err := r.client.Delete(ctx, workload, client.PropagationPolicy(metav1.DeletePropagationBackground)); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("remove workload %s/%s: %w", workload.Namespace, workload.Name, err)
		}
		r.log.Info("unit removed", "unit_deployment", client.ObjectKeyFromObject(ud), "workload", workload.Name)
	}
	return nil
}

// reconcileService makes or removes the Service. The text is what the user must
// mend.
func (r *unitReconciler) reconcileService(ctx context.Context, ud *v1alpha1.UnitDeployment) (string, error) {
	var have corev1.Service
	err := r.client.Get(ctx, client.ObjectKeyFromObject(ud), &have)
	if client.IgnoreNotFound(err) != nil {
		return "", fmt.Errorf("read service %s/%s: %w", ud.Namespace, ud.Name, err)
	}
	exists := err == nil
	want := buildService(ud)
	if want == nil {
		if exists && madeBy(&have, ud) && have.DeletionTimestamp.IsZero() {
			if err := r.client.Delete(ctx, &have); client.IgnoreNotFound(err) != nil {
				return "", fmt.Errorf("remove service %s/%s: %w", ud.Namespace, ud.Name, err)
			}
		}
		return "", nil
	}
	var current client.Object
	if exists {
		current = &have
	}
	_, trouble, err := r.applyOwned(ctx, ud, want, current)
	return trouble, err
}

func (r *unitReconciler) writeStatus(ctx context.Context, ud *v1alpha1.UnitDeployment, units []v1alpha1.UnitStatus, trouble string, unapplied error) error {
	before := ud.DeepCopy()
	status, conditions := summarize(ud, units, trouble, unapplied)
	status.Conditions = before.DeepCopy().Status.Conditions
	for _, condition := range conditions {
		condition.ObservedGeneration = ud.Generation
		condition.LastTransitionTime = metav1.NewTime(r.clock.Now())
		meta.SetStatusCondition(&status.Conditions, condition)
	}
	ud.Status = status
	if equality.Semantic.DeepEqual(before.Status, ud.Status) {
		return nil
	}
	if err := r.client.Status().Patch(ctx, ud, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write status of unit deployment %s/%s: %w", ud.Namespace, ud.Name, err)
	}
	return nil
}
