package restate

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

var (
	// nodeConditions are kubelet's (pkg/kubelet/nodestatus/setters.go).
	nodeConditions = []corev1.NodeConditionType{
		corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure,
	}
	// podConditions are kubelet's (pkg/kubelet/types/pod_status.go), but for
	// PodScheduled, which it does not change of pods that the API has.
	podConditions = []corev1.PodConditionType{
		corev1.PodReady, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReadyToStartContainers,
		corev1.PodResizeInProgress, corev1.PodResizePending, corev1.AllContainersRestarting,
	}
)

// nodePatch makes the conditions of the apiserver's Node those that kubelet said, as of
// its last renewal of the lease; nil: they are.
func nodePatch(now, said *replica.Object, renewed, at time.Time) ([]byte, error) {
	var before, kubelet corev1.Node
	if err := decode(now, &before); err != nil {
		return nil, err
	}
	if err := decode(said, &kubelet); err != nil {
		return nil, err
	}
	after := before.Status.DeepCopy()
	for _, c := range kubelet.Status.Conditions {
		i := slices.IndexFunc(after.Conditions, func(d corev1.NodeCondition) bool { return d.Type == c.Type })
		if !slices.Contains(nodeConditions, c.Type) || i >= 0 && after.Conditions[i].Status == c.Status {
			continue
		}
		c.LastHeartbeatTime, c.LastTransitionTime = metav1.NewTime(renewed), metav1.NewTime(at)
		if i < 0 {
			after.Conditions = append(after.Conditions, c)
		} else {
			after.Conditions[i] = c
		}
	}
	return statusPatch(now.UID, &before.Status, after, corev1.Node{})
}

// podPatch makes what is kubelet's of the apiserver's pod as kubelet said; nil: it is.
// Over: kubelet itself ends the pod, or has.
func podPatch(now, said *replica.Object) (patch []byte, over bool, err error) {
	var before, kubelet corev1.Pod
	if err := decode(now, &before); err != nil {
		return nil, false, err
	}
	if err := decode(said, &kubelet); err != nil {
		return nil, false, err
	}
	if p := before.Status.Phase; before.DeletionTimestamp != nil || p == corev1.PodSucceeded || p == corev1.PodFailed {
		return nil, true, nil
	}
	after := kubelet.Status.DeepCopy()
	after.Conditions = mergedConditions(before.Status.Conditions, kubelet.Status.Conditions)
	after.NominatedNodeName = before.Status.NominatedNodeName
	after.ResourceClaimStatuses = before.Status.ResourceClaimStatuses
	after.ExtendedResourceClaimStatus = before.Status.ExtendedResourceClaimStatus
	after.NodeAllocatableResourceClaimStatuses = before.Status.NodeAllocatableResourceClaimStatuses
	patch, err = statusPatch(now.UID, &before.Status, after, corev1.Pod{})
	return patch, false, err
}

// mergedConditions are those the apiserver has, with kubelet's own as it said them where
// more than a time differs.
func mergedConditions(before, kubelet []corev1.PodCondition) []corev1.PodCondition {
	after := slices.Clone(before)
	for _, c := range kubelet {
		if !slices.Contains(podConditions, c.Type) {
			continue
		}
		i := slices.IndexFunc(after, func(d corev1.PodCondition) bool { return d.Type == c.Type })
		switch {
		case i < 0:
			after = append(after, c)
		case after[i].Status != c.Status || after[i].Reason != c.Reason || after[i].Message != c.Message:
			after[i] = c
		}
	}
	return after
}

// statusPatch is a strategic merge patch of a status, of the object with this uid only;
// nil where they are the same. They are pointers; kind is the object's.
func statusPatch(uid types.UID, before, after, kind any) ([]byte, error) {
	if equality.Semantic.DeepEqual(before, after) {
		return nil, nil
	}
	from, err := runtime.DefaultUnstructuredConverter.ToUnstructured(before)
	if err != nil {
		return nil, err
	}
	to, err := runtime.DefaultUnstructuredConverter.ToUnstructured(after)
	if err != nil {
		return nil, err
	}
	patch, err := strategicpatch.CreateTwoWayMergeMapPatch(map[string]any{"status": from}, map[string]any{"status": to}, kind)
	if err != nil || len(patch) == 0 {
		return nil, err
	}
	patch["metadata"] = map[string]any{"uid": string(uid)}
	return json.Marshal(patch)
}

func decode(o *replica.Object, into interface{ Unmarshal([]byte) error }) error {
	if err := into.Unmarshal(o.Message); err != nil {
		return fmt.Errorf("decode %s/%s: %w", o.Namespace, o.Name, err)
	}
	return nil
}
