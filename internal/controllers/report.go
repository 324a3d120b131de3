package controllers

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// Reports is what nodes say of themselves on their sessions.
type Reports interface {
	// Autonomy is what the node said last; false if it has not since this
	// process began.
	Autonomy(node string) (tunnel.Autonomy, bool)
	// Forget drops what a node said that is no more: another may get its name.
	Forget(node string)
	// Subscribe is as in Sessions, for nodes that say something new.
	Subscribe(ctx context.Context) <-chan string
}

// ReportBoard keeps each node's last word. Its methods may be called by any
// goroutine and do not block.
type ReportBoard struct {
	*Notifier

	mu   sync.Mutex // guards said
	said map[string]tunnel.Autonomy
}

var _ Reports = (*ReportBoard)(nil)

// NewReportBoard returns an empty board.
func NewReportBoard() *ReportBoard {
	return &ReportBoard{Notifier: NewNotifier(), said: map[string]tunnel.Autonomy{}}
}

// Set is for a gateway's OnHeartbeat. A report without a word of autonomy
// changes nothing.
func (b *ReportBoard) Set(node string, beat tunnel.Heartbeat) {
	if beat.Autonomy == nil {
		return
	}
	b.mu.Lock()
	before, known := b.said[node]
	changed := !known || autonomyText(before) != autonomyText(*beat.Autonomy)
	b.said[node] = *beat.Autonomy
	b.mu.Unlock()
	if changed {
		b.Notify(node)
	}
}

// Autonomy implements Reports.
func (b *ReportBoard) Autonomy(node string) (tunnel.Autonomy, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	said, ok := b.said[node]
	return said, ok
}

// Forget implements Reports.
func (b *ReportBoard) Forget(node string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.said, node)
}

// autonomyText is a report as a condition's message has it.
func autonomyText(a tunnel.Autonomy) string {
	var parts []string
	for _, fault := range a.Faults {
		text := fault.Reason
		if fault.Message != "" {
			text += ": " + fault.Message
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}

// observeAutonomy notes in the EdgeNode's status whether the node would go on
// through a cut. What it said last stands while it is silent: that it was ready
// when its link went is what one wants to know then.
func (r *nodeReconciler) observeAutonomy(view *nodeView) {
	status := &view.edge.Status
	if status.Key == "" {
		meta.RemoveStatusCondition(&status.Conditions, v1alpha1.ConditionAutonomy)
		return
	}
	said, ok := r.reports.Autonomy(view.edge.Name)
	condition := metav1.Condition{Type: v1alpha1.ConditionAutonomy}
	switch {
	case !ok && meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionAutonomy) != nil:
		return
	case !ok:
		condition.Status, condition.Reason, condition.Message = metav1.ConditionUnknown, v1alpha1.ReasonNotReported, "the node has not said yet whether it would go on through a cut"
	case len(said.Faults) == 0:
		condition.Status, condition.Reason, condition.Message = metav1.ConditionTrue, v1alpha1.ReasonAutonomous, "the node has all it needs to go on through a cut, and through a reboot in it"
	default:
		condition.Status, condition.Reason, condition.Message = metav1.ConditionFalse, said.Faults[0].Reason, autonomyText(said)
	}
	r.setConditions(view.edge, condition)
}

// writeNodeCondition shows the same on the Node, where `kubectl describe node` and
// whatever watches Nodes find it. It is written when it changes, and not as a
// heartbeat.
func (r *nodeReconciler) writeNodeCondition(ctx context.Context, view *nodeView) error {
	have := meta.FindStatusCondition(view.edge.Status.Conditions, v1alpha1.ConditionAutonomy)
	if view.node == nil || have == nil || have.Reason == v1alpha1.ReasonNotReported {
		return nil
	}
	want := corev1.NodeCondition{
		Type: v1alpha1.ConditionAutonomy, Status: corev1.ConditionStatus(have.Status), Reason: have.Reason, Message: have.Message,
		LastHeartbeatTime: have.LastTransitionTime, LastTransitionTime: have.LastTransitionTime,
	}
	before := view.node.DeepCopy()
	found := false
	for i := range view.node.Status.Conditions {
		c := &view.node.Status.Conditions[i]
		if c.Type != want.Type {
			continue
		}
		found = true
		if c.Status == want.Status && c.Reason == want.Reason && c.Message == want.Message {
			return nil
		}
		want.LastHeartbeatTime = metav1.NewTime(r.clock.Now().Truncate(time.Second))
		*c = want
	}
	if !found {
		view.node.Status.Conditions = append(view.node.Status.Conditions, want)
	}
	// Strategic, so that the patch holds this one condition and no other.
	if err := r.client.Status().Patch(ctx, view.node, client.StrategicMergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write condition %s of Node object %s: %w", v1alpha1.ConditionAutonomy, view.edge.Name, err)
	}
	return nil
}
