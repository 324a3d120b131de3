package controllers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// When a node counts as cut off, seen from the end of its last session (which a
// link that went silent ends after tunnel.IdleTimeout):
//
//	 0 s   the session ends: status.connected is false
//	 5 s   if no node of its pool is left: its pods are kept Ready (kept_controller.go)
//	20 s   the node is cut: status.cutSince, the label, the condition Cut
//	30 s   at the earliest, the node lifecycle controller finds its lease 50 s old
//
// After a start of ours the nodes have to find the gateway again first; one that
// was connected before and is not back is cut cutStartGrace later.
const (
	// cutAfter is how long no gateway may have held a node's session: long
	// enough that a new address or a gateway's restart cuts nothing.
	cutAfter = 20 * time.Second
	// cutStartGrace is longer than the longest wait between two attempts of an
	// agent (30 s), so that a start labels nobody who is on the way back, and
	// shorter than the node lifecycle controller's 50 s, less the 10 s that a
	// lease may be old when a gateway ends.
	cutStartGrace = 35 * time.Second
)

// How many nodes a second are marked as cut or as back, and how many at once. A
// gateway that goes takes all its nodes along; the apiserver has better to do
// then than ten thousand labels. Nothing waits for them: routing goes by the
// sessions, and the pods are kept Ready by one object for all.
const (
	cutMarksRate  = rate.Limit(20)
	cutMarksBurst = 100
)

// cutMarksRetry is when a node looks again that found no place among the marks, at
// the earliest; it is spread up to six times that.
const cutMarksRetry = 5 * time.Second

// observeCut decides whether the node is cut and notes it in the view and the
// EdgeNode's status. The session must have been observed before, and the Node is
// placed after: the label follows.
func (r *nodeReconciler) observeCut(view *nodeView) {
	status := &view.edge.Status
	view.cut = status.CutSince != nil
	cut, wait := r.cutState(view)
	if wait > 0 {
		view.lookAgain(wait)
	}
	if cut != view.cut && !r.marks.AllowN(r.clock.Now(), 1) {
		view.lookAgain(cutMarksRetry + rand.N(5*cutMarksRetry))
		return
	}
	switch {
	case status.Key == "":
		view.cut, status.CutSince = false, nil
		meta.RemoveStatusCondition(&status.Conditions, v1alpha1.ConditionCut)
	case !cut:
		view.cut, status.CutSince = false, nil
		r.setConditions(view.edge, metav1.Condition{Type: v1alpha1.ConditionCut, Status: metav1.ConditionFalse,
			Reason: "NotCut", Message: "a gateway holds a session of the node, or held one a moment ago"})
	case !view.cut:
		view.cut, status.CutSince = true, status.LastConnected.DeepCopy()
		r.setConditions(view.edge, metav1.Condition{Type: v1alpha1.ConditionCut, Status: metav1.ConditionTrue, Reason: "LinkLost",
			Message: "no gateway has held a session of the node since " + timeText(status.CutSince) + "; its pods are left as they are"})
		r.log.Info("node is cut off", "node", view.edge.Name, "since", status.CutSince.Time)
	}
}

// cutState says whether the node has been without a session for long enough, and
// if not yet, when to look again.
func (r *nodeReconciler) cutState(view *nodeView) (cut bool, wait time.Duration) {
	status := &view.edge.Status
	if view.connected || status.Key == "" || status.LastConnected == nil {
		return false, 0
	}
	if status.CutSince != nil {
		return true, 0
	}
	at := status.LastConnected.Add(cutAfter)
	if start := r.started.Add(cutStartGrace); at.Before(start) {
		at = start
	}
	if left := at.Sub(r.clock.Now()); left > 0 {
		return false, left
	}
	return true, 0
}

// lookAgain asks for another look no later than in d.
func (v *nodeView) lookAgain(d time.Duration) {
	if v.again == 0 || d < v.again {
		v.again = d
	}
}

// timeText is how a time stands in a message.
func timeText(t *metav1.Time) string { return t.UTC().Format(time.RFC3339) }

// How the autonomy of a cut node ends, where its pool bounds it. Only this deletes
// pods of a cut node:
//
//	cut --pool's duration--> pods deleted --reconnect--> the kubelet stops them
//
// The deletion is what anybody's is: it asks the kubelet, which cannot hear of it.
// The pods are Terminating until the node is back or is removed, and a
// StatefulSet's successor waits for that: two of one name might run otherwise.
// Nothing here forces a pod or fences a node, since nothing here can know that a
// cut node is dead.

// durationStartGrace is how long after a start no pod is deleted: a node whose link
// has long been mended needs up to half a minute to find the gateway again (the
// longest wait of an agent), and has as much once more.
const durationStartGrace = time.Minute

// reasonDurationOver is the reason of the condition Cut from then on.
const reasonDurationOver = "DurationOver"

// endAutonomy deletes the pods of a node that has been cut off for longer than its
// pool allows, once for each cut.
func (r *nodeReconciler) endAutonomy(ctx context.Context, view *nodeView) error {
	if !view.cut || view.node == nil || view.pool == nil || view.pool.Spec.Type == v1alpha1.PoolCloud ||
		view.pool.Spec.Autonomy == nil || view.pool.Spec.Autonomy.Duration == nil {
		return nil
	}
	condition := meta.FindStatusCondition(view.edge.Status.Conditions, v1alpha1.ConditionCut)
	if condition != nil && condition.Reason == reasonDurationOver {
		return nil
	}
	duration := view.pool.Spec.Autonomy.Duration.Duration
	end := view.edge.Status.CutSince.Add(duration)
	if first := r.started.Add(durationStartGrace); end.Before(first) {
		end = first
	}
	if left := end.Sub(r.clock.Now()); left > 0 {
		view.lookAgain(left)
		return nil
	}
	count, err := r.deletePods(ctx, view.edge.Name)
	if err != nil {
		return err
	}
	r.setConditions(view.edge, metav1.Condition{Type: v1alpha1.ConditionCut, Status: metav1.ConditionTrue, Reason: reasonDurationOver,
		Message: fmt.Sprintf("cut off since %s, longer than the %s of pool %s: %d pods were deleted; they are Terminating until the node is back or is removed",
			timeText(view.edge.Status.CutSince), duration, view.pool.Name, count)})
	r.log.Info("autonomy of a cut node is over", "node", view.edge.Name, "pool", view.pool.Name, "duration", duration, "pods_deleted", count)
	return nil
}

// deletePods asks every pod of the node to go that a drain would move, and says
// how many are going.
func (r *nodeReconciler) deletePods(ctx context.Context, node string) (int, error) {
	var pods corev1.PodList
	if err := r.live.List(ctx, &pods, client.MatchingFields{"spec.nodeName": node}); err != nil {
		return 0, fmt.Errorf("list pods of cut node %s: %w", node, err)
	}
	count := 0
	for i := range pods.Items {
		pod := &pods.Items[i]
		if !drained(pod) {
			continue
		}
		if !pod.DeletionTimestamp.IsZero() {
			count++
			continue
		}
		if r.sessions.Connected(node) {
			return count, nil // back in the last moment: the rest stays
		}
		err := r.client.Delete(ctx, pod, client.Preconditions{UID: &pod.UID})
		if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
			return count, fmt.Errorf("delete pod %s/%s of cut node %s: %w", pod.Namespace, pod.Name, node, err)
		}
		count++
	}
	return count, nil
}
