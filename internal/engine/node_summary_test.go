package engine

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

func TestSummaryOfANode(t *testing.T) {
	since := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	node := &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: v1alpha1.EdgeNodeSpec{Pool: "p"}}
	if d := cmp.Diff(NodeSummary{Name: "n", Pool: "p", Autonomy: "NotReported"}, summaryOf(node)); d != "" {
		t.Error("just declared:", d)
	}
	node.Status = v1alpha1.EdgeNodeStatus{
		Phase: v1alpha1.NodeNotReady, CutSince: &metav1.Time{Time: since}, Architecture: "arm64", KubeletVersion: "v1.36.3",
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionAutonomy, Status: metav1.ConditionFalse, Reason: "DiskError", Message: "DiskError: read-only"}},
	}
	want := NodeSummary{
		Name: "n", Pool: "p", Phase: "NotReady", CutSince: &since, Autonomy: "DiskError", AutonomyMessage: "DiskError: read-only",
		Architecture: "arm64", Kubelet: "v1.36.3",
	}
	if d := cmp.Diff(want, summaryOf(node)); d != "" {
		t.Error("cut:", d)
	}
}
