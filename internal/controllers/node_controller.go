package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
)

// sessionsGrace is how long after a start a node that was connected counts as
// connected although no session is there yet: the gateway starts with us, and
// nodes need some seconds to come back. It is the time after which the gateways
// call a node cut (DESIGN, decision 9).
const sessionsGrace = 20 * time.Second

// nodeReconciler keeps EdgeNodes, their Nodes and their hub bindings in step.
type nodeReconciler struct {
	client client.Client
	// live reads past the cache, for pods of a node that leaves: all pods of a
	// cluster are not worth caching for that.
	live     client.Reader
	log      *slog.Logger
	clock    clock.PassiveClock
	sessions Sessions
	kick     func(node, reason string)
	reports  Reports
	started  time.Time
	// marks bounds how often nodes are marked as cut or as back.
	marks *rate.Limiter

	mu sync.Mutex
	// keys is each node's key when last seen; guarded by mu.
	keys map[string]string
	// met is which nodes this process has seen connected; guarded by mu.
	met map[string]struct{}
}

func (r *nodeReconciler) setup(mgr ctrl.Manager) error {
	sameName := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, object client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: object.GetName()}}}
	})
	byNodeLabel := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, object client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: object.GetLabels()[enroll.NodeLabel]}}}
	})
	return ctrl.NewControllerManagedBy(mgr).
		Named("nodes").
		For(&v1alpha1.EdgeNode{}).
		Watches(&corev1.Node{}, sameName, builder.WithPredicates(nodeChanges())).
		Watches(&v1alpha1.NodePool{}, handler.EnqueueRequestsFromMapFunc(r.nodesOfPool), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&rbacv1.ClusterRoleBinding{}, byNodeLabel).
		WatchesRawSource(source.Func(r.followSessions)).
		WatchesRawSource(source.Func(r.followReports)).
		WithOptions(options(joinConcurrency)).
		Complete(quiet(r))
}

// followSessions queues a node whose session began or ended.
func (r *nodeReconciler) followSessions(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	changes := r.sessions.Subscribe(ctx)
	go func() {
		for name := range changes {
			queue.Add(reconcile.Request{NamespacedName: client.ObjectKey{Name: name}})
		}
	}()
	return nil
}

// followReports queues a node that says something new of itself.
func (r *nodeReconciler) followReports(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	changes := r.reports.Subscribe(ctx)
	go func() {
		for name := range changes {
			queue.Add(reconcile.Request{NamespacedName: client.ObjectKey{Name: name}})
		}
	}()
	return nil
}

func (r *nodeReconciler) nodesOfPool(ctx context.Context, pool client.Object) []reconcile.Request {
	var nodes v1alpha1.EdgeNodeList
	if err := r.client.List(ctx, &nodes, client.MatchingFields{indexNodePool: pool.GetName()}); err != nil {
		r.log.Error("list nodes of a pool that changed", "pool", pool.GetName(), "error", err)
		return nil
	}
	requests := make([]reconcile.Request, len(nodes.Items))
	for i := range nodes.Items {
		requests[i].Name = nodes.Items[i].Name
	}
	return requests
}

// nodeChanges lets pass what the controllers look at: most updates of a Node
// are heartbeats.
func nodeChanges() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok := e.ObjectOld.(*corev1.Node)
		if !ok {
			return true
		}
		after, ok := e.ObjectNew.(*corev1.Node)
		if !ok {
			return true
		}
		readyBefore, reasonBefore, messageBefore := nodeReady(before)
		readyAfter, reasonAfter, messageAfter := nodeReady(after)
		return readyBefore != readyAfter || reasonBefore != reasonAfter || messageBefore != messageAfter ||
			before.DeletionTimestamp.IsZero() != after.DeletionTimestamp.IsZero() ||
			!equality.Semantic.DeepEqual(before.Labels, after.Labels) ||
			!equality.Semantic.DeepEqual(before.Annotations, after.Annotations) ||
			!equality.Semantic.DeepEqual(before.Spec, after.Spec) ||
			!equality.Semantic.DeepEqual(before.Status.Addresses, after.Status.Addresses) ||
			before.Status.NodeInfo != after.Status.NodeInfo
	}}
}

// nodeView is what one reconcile looks at.
type nodeView struct {
	edge *v1alpha1.EdgeNode
	pool *v1alpha1.NodePool // nil: no such pool
	node *corev1.Node       // nil: not registered
	// foreign says that there is a Node of this name that never joined through
	// a gateway. It is not looked at any further, and never touched.
	foreign bool

	connected bool
	cut       bool
	// again is when to look once more without an event; zero for never.
	again time.Duration
}

// Reconcile brings one node into step.
func (r *nodeReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	view, err := r.view(ctx, request.Name)
	if err != nil || view == nil {
		return reconcile.Result{}, err
	}
	r.dropReplacedKey(view.edge)
	if !view.edge.DeletionTimestamp.IsZero() {
		return r.leave(ctx, view)
	}
	if !controllerutil.ContainsFinalizer(view.edge, v1alpha1.NodeFinalizer) {
		before := view.edge.DeepCopy()
		controllerutil.AddFinalizer(view.edge, v1alpha1.NodeFinalizer)
		if err := r.client.Patch(ctx, view.edge, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
			return reconcile.Result{}, fmt.Errorf("hold node %s: %w", view.edge.Name, client.IgnoreNotFound(err))
		}
	}
	before := view.edge.DeepCopy()
	bindErr := r.bindHub(ctx, view.edge)
	r.observeSession(view)
	r.observeCut(view)
	r.observeAutonomy(view)
	endErr := r.endAutonomy(ctx, view)
	outcome, placeErr := r.place(ctx, view)
	conditionErr := r.writeNodeCondition(ctx, view)
	r.observe(view, outcome)
	statusErr := r.patchStatus(ctx, view.edge, before)
	return reconcile.Result{RequeueAfter: view.again}, errors.Join(bindErr, endErr, placeErr, conditionErr, statusErr)
}

// view reads what is known of a node; nil without an error means that it is
// not declared.
func (r *nodeReconciler) view(ctx context.Context, name string) (*nodeView, error) {
	view := &nodeView{edge: &v1alpha1.EdgeNode{}, pool: &v1alpha1.NodePool{}, node: &corev1.Node{}}
	if err := r.client.Get(ctx, client.ObjectKey{Name: name}, view.edge); err != nil {
		if apierrors.IsNotFound(err) {
			r.forgetKey(name)
			r.reports.Forget(name)
			return nil, r.removeOrphan(ctx, name)
		}
		return nil, fmt.Errorf("read node %s: %w", name, err)
	}
	if err := r.client.Get(ctx, client.ObjectKey{Name: view.edge.Spec.Pool}, view.pool); apierrors.IsNotFound(err) {
		view.pool = nil
	} else if err != nil {
		return nil, fmt.Errorf("read pool %s of node %s: %w", view.edge.Spec.Pool, name, err)
	}
	if err := r.client.Get(ctx, client.ObjectKey{Name: name}, view.node); apierrors.IsNotFound(err) {
		view.node = nil
	} else if err != nil {
		return nil, fmt.Errorf("read Node object %s: %w", name, err)
	}
	if view.node != nil && !belongs(view.edge, view.node) {
		view.node, view.foreign = nil, true
	}
	view.connected = r.sessions.Connected(name)
	if view.connected {
		r.mu.Lock()
		r.met[name] = struct{}{}
		r.mu.Unlock()
	}
	if !view.connected && view.edge.Status.Connected {
		if left := sessionsGrace - r.clock.Since(r.started); left > 0 {
			view.connected, view.again = true, left
		}
	}
	return view, nil
}

// belongs says whether a Node is the one that its EdgeNode speaks of: a device
// has enrolled, or the Node carries what only nodes of ours do. Where a cluster
// has other nodes, a declaration of one's name must not put it into our hands.
func belongs(edge *v1alpha1.EdgeNode, node *corev1.Node) bool {
	return edge.Status.Key != "" || len(edge.Status.RevokedKeys) > 0 || enroll.IsEdgeNode(node)
}

// removeOrphan deletes a Node of ours that no EdgeNode stands for: one whose
// kubelet registered it once more while it was being removed.
func (r *nodeReconciler) removeOrphan(ctx context.Context, name string) error {
	var node corev1.Node
	if err := r.client.Get(ctx, client.ObjectKey{Name: name}, &node); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("read Node object %s: %w", name, err)
	}
	if !enroll.IsEdgeNode(&node) {
		return nil
	}
	// The two kinds come by two watches, so an EdgeNode that is not in the cache
	// may be there all the same.
	err := r.live.Get(ctx, client.ObjectKey{Name: name}, &v1alpha1.EdgeNode{})
	if err == nil {
		return nil
	}
	if !apierrors.IsNotFound(err) {
		return fmt.Errorf("read node %s: %w", name, err)
	}
	r.log.Warn("removing a Node object that is not declared", "node", name)
	r.kick(name, "node "+name+" is not declared")
	if err := r.client.Delete(ctx, &node, client.Preconditions{UID: &node.UID}); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove Node object %s: %w", name, err)
	}
	return nil
}

// dropReplacedKey ends the session of a device whose key lost the name. The
// gateway admits no such key any more, but the session it holds lives on.
func (r *nodeReconciler) dropReplacedKey(edge *v1alpha1.EdgeNode) {
	r.mu.Lock()
	before := r.keys[edge.Name]
	r.keys[edge.Name] = edge.Status.Key
	r.mu.Unlock()
	if before != "" && before != edge.Status.Key {
		r.log.Info("key of node replaced or revoked; ending its session", "node", edge.Name, "key", before)
		r.kick(edge.Name, "this device's key no longer holds the name "+edge.Name)
	}
}

func (r *nodeReconciler) forgetKey(name string) {
	r.mu.Lock()
	delete(r.keys, name)
	delete(r.met, name)
	r.mu.Unlock()
}

// HubBindingName is the ClusterRoleBinding of a node's hub.
func HubBindingName(node string) string { return v1alpha1.HubUserPrefix + node }

// bindHub gives the node's hub, by name, what a hub may read.
func (r *nodeReconciler) bindHub(ctx context.Context, edge *v1alpha1.EdgeNode) error {
	want := hubBinding(edge)
	var have rbacv1.ClusterRoleBinding
	err := r.client.Get(ctx, client.ObjectKeyFromObject(want), &have)
	if err == nil && equality.Semantic.DeepEqual(have.Subjects, want.Subjects) && have.RoleRef == want.RoleRef &&
		equality.Semantic.DeepEqual(have.OwnerReferences, want.OwnerReferences) {
		return nil
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("read hub binding of node %s: %w", edge.Name, err)
	}
	if err == nil && have.RoleRef != want.RoleRef {
		// A binding's role cannot be changed.
		if err := r.client.Delete(ctx, &have); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("replace hub binding of node %s: %w", edge.Name, err)
		}
	}
	if _, err := apply(ctx, r.client, want); err != nil {
		return fmt.Errorf("bind hub of node %s: %w", edge.Name, err)
	}
	return nil
}

func hubBinding(edge *v1alpha1.EdgeNode) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{
		TypeMeta: metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "ClusterRoleBinding"},
		ObjectMeta: metav1.ObjectMeta{
			Name:            HubBindingName(edge.Name),
			Labels:          map[string]string{enroll.NodeLabel: edge.Name},
			OwnerReferences: []metav1.OwnerReference{ownerOf(edge, "EdgeNode")},
		},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: HubRole},
		Subjects: []rbacv1.Subject{
			{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: v1alpha1.HubUserPrefix + edge.Name},
		},
	}
}

// place brings labels, annotations and taints of the Node into step. The
// outcome is the node's Placed condition.
func (r *nodeReconciler) place(ctx context.Context, view *nodeView) (metav1.Condition, error) {
	outcome := metav1.Condition{Type: v1alpha1.ConditionPlaced, Status: metav1.ConditionFalse}
	switch {
	case view.foreign:
		outcome.Reason, outcome.Message = "NameTaken", "a Node of this name exists that did not join through a gateway; it is left alone"
		return outcome, nil
	case view.node == nil:
		outcome.Reason, outcome.Message = "NotRegistered", "the kubelet has not registered yet"
		return outcome, nil
	case view.pool == nil:
		outcome.Reason, outcome.Message = "PoolUnknown", "pool "+view.edge.Spec.Pool+" does not exist"
		return outcome, nil
	}
	before := view.node.DeepCopy()
	want := desiredPlacement(view.pool, view.edge)
	delete(want.labels, v1alpha1.CutLabel)
	if view.cut {
		want.labels[v1alpha1.CutLabel] = "true"
	}
	if err := applyPlacement(view.node, want); err != nil {
		return outcome, err
	}
	if !equality.Semantic.DeepEqual(before, view.node) {
		// The lock is for the taints: other controllers write that list, too.
		err := r.client.Patch(ctx, view.node, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
		if apierrors.IsInvalid(err) {
			// Trying again is no use before a declaration changes.
			view.node = before
			outcome.Reason, outcome.Message = "Rejected", err.Error()
			return outcome, nil
		}
		if err != nil {
			view.node = before
			outcome.Reason, outcome.Message = "WriteFailed", err.Error()
			if apierrors.IsConflict(err) {
				outcome.Reason, outcome.Message = "Placing", "the Node object changed meanwhile"
			}
			return outcome, fmt.Errorf("place node %s: %w", view.edge.Name, err)
		}
		r.log.Info("node placed", "node", view.edge.Name, "pool", view.pool.Name)
	}
	outcome.Status, outcome.Reason, outcome.Message = metav1.ConditionTrue, "Placed", "carries the labels and taints of pool "+view.pool.Name
	return outcome, nil
}
