package controllers

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// patchStatus writes what was seen. The patch names only what this controller
// observes, never the key, which the enrolment writes at the same time.
func (r *nodeReconciler) patchStatus(ctx context.Context, edge, before *v1alpha1.EdgeNode) error {
	if equality.Semantic.DeepEqual(before.Status, edge.Status) {
		return nil
	}
	if err := r.client.Status().Patch(ctx, edge, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write status of node %s: %w", edge.Name, err)
	}
	return nil
}

// observe fills the status of a node that stays.
func (r *nodeReconciler) observe(view *nodeView, placed metav1.Condition) {
	status := &view.edge.Status
	status.ObservedGeneration = view.edge.Generation

	enrolled := metav1.Condition{Type: v1alpha1.ConditionEnrolled, Status: metav1.ConditionFalse,
		Reason: "NoKey", Message: "no device has joined under this name yet"}
	if status.Key != "" {
		enrolled.Status, enrolled.Reason, enrolled.Message = metav1.ConditionTrue, "Joined", "held by key "+status.Key
	}
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse,
		Reason: "NotRegistered", Message: "the kubelet has not registered yet"}
	kubeletReady := false
	if view.node != nil {
		status.Architecture = view.node.Status.NodeInfo.Architecture
		status.KubeletVersion = view.node.Status.NodeInfo.KubeletVersion
		kubeletReady, ready.Reason, ready.Message = nodeReady(view.node)
		if ready.Reason == "" {
			ready.Reason, ready.Message = "NotReported", "the kubelet has not reported its status yet"
		}
	}
	switch {
	case kubeletReady && placed.Status == metav1.ConditionTrue:
		ready.Status = metav1.ConditionTrue
	case kubeletReady:
		ready.Reason, ready.Message = "NotPlaced", placed.Message
	}
	r.setConditions(view.edge, enrolled, placed, ready)

	switch {
	case ready.Status == metav1.ConditionTrue:
		status.Phase = v1alpha1.NodeReady
	case view.node != nil:
		status.Phase = v1alpha1.NodeNotReady
	case status.Key != "":
		status.Phase = v1alpha1.NodeEnrolled
	default:
		status.Phase = v1alpha1.NodeDeclared
	}
}

// observeSession fills what the status says of the node's session.
func (r *nodeReconciler) observeSession(view *nodeView) {
	status := &view.edge.Status
	if status.Connected != view.connected {
		status.Connected = view.connected
		at := metav1.NewTime(r.clock.Now())
		if !view.connected && !r.hasMet(view.edge.Name) {
			// It has not come back to this process at all.
			at = metav1.NewTime(r.started)
		}
		status.LastConnected = &at
	}
	connected := metav1.Condition{Type: v1alpha1.ConditionConnected, Status: metav1.ConditionFalse,
		Reason: "NoSession", Message: "no gateway holds a session of the node"}
	if view.connected {
		connected.Status, connected.Reason, connected.Message = metav1.ConditionTrue, "Session", "a gateway holds a session of the node"
	}
	r.setConditions(view.edge, connected)
}

func (r *nodeReconciler) hasMet(node string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, met := r.met[node]
	return met
}

func (r *nodeReconciler) setConditions(edge *v1alpha1.EdgeNode, conditions ...metav1.Condition) {
	for _, condition := range conditions {
		condition.ObservedGeneration = edge.Generation
		condition.LastTransitionTime = metav1.NewTime(r.clock.Now())
		meta.SetStatusCondition(&edge.Status.Conditions, condition)
	}
}
