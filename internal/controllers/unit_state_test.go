package controllers

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

func workload(generation, observed int64, want, total, updated, available int32) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web-p", UID: "d", Generation: generation},
		Spec:       appsv1.DeploymentSpec{Replicas: &want},
		Status: appsv1.DeploymentStatus{
			ObservedGeneration: observed, Replicas: total, UpdatedReplicas: updated, AvailableReplicas: available, ReadyReplicas: available,
		},
	}
}

func waiting(reason, message string) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: "web", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}
}

func podWith(name string, statuses ...corev1.ContainerStatus) corev1.Pod {
	return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.PodStatus{ContainerStatuses: statuses}}
}

func TestUnitStatus(t *testing.T) {
	two := &v1alpha1.UnitPool{Name: "p", Replicas: ptr.To[int32](2)}
	none := &v1alpha1.UnitPool{Name: "p", Replicas: ptr.To[int32](0)}
	crash := waiting("CrashLoopBackOff", "back-off 10s restarting")
	crash.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}
	// ended is a container whose last two exits were that far apart.
	ended := func(restarts, code int32, apart time.Duration) corev1.ContainerStatus {
		last := metav1.NewTime(time.Unix(1, 0))
		status := corev1.ContainerStatus{Name: "web", RestartCount: restarts, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: code, Reason: "Error", Message: "no config\n", FinishedAt: metav1.NewTime(last.Add(apart))}}}
		if restarts > 0 {
			status.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: last}
		}
		return status
	}
	initDone, initFailing := podWith("a"), podWith("a")
	initDone.Status.InitContainerStatuses = []corev1.ContainerStatus{ended(2, 0, time.Second)}
	initFailing.Status.InitContainerStatuses = []corev1.ContainerStatus{ended(1, 3, time.Second)}
	now := metav1.NewTime(time.Unix(1, 0))
	dying := podWith("dying", waiting("ErrImagePull", "x"))
	dying.DeletionTimestamp = &now
	pending := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pending"}, Status: corev1.PodStatus{
		Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/3 nodes are available"}},
	}}
	stuck := workload(1, 1, 2, 0, 0, 0)
	stuck.Status.Conditions = []appsv1.DeploymentCondition{{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: "exceeded quota"}}
	late := workload(1, 1, 2, 2, 2, 1)
	late.Status.Conditions = []appsv1.DeploymentCondition{{Type: appsv1.DeploymentProgressing, Status: corev1.ConditionFalse, Reason: "ProgressDeadlineExceeded", Message: "timed out"}}

	for _, c := range []struct {
		what  string
		facts unitFacts
		state v1alpha1.UnitState
		part  string
	}{
		{"unknown pool", unitFacts{pool: two}, v1alpha1.UnitUnknownPool, "pool p does not exist"},
		{"spec that cannot be", unitFacts{pool: two, poolKnown: true, trouble: "overrides container"}, v1alpha1.UnitFailed, "overrides container"},
		{"trouble in a cut pool is ours, not the pool's", unitFacts{pool: two, poolKnown: true, nodes: 1, trouble: "invalid"}, v1alpha1.UnitFailed, "invalid"},
		{"nobody joined", unitFacts{pool: two, poolKnown: true}, v1alpha1.UnitCut, "no node has joined"},
		{"cut while rolled out", unitFacts{pool: two, poolKnown: true, nodes: 2, workload: workload(1, 1, 2, 2, 2, 2)}, v1alpha1.UnitCut, "connected"},
		{"cut while failing", unitFacts{pool: two, poolKnown: true, nodes: 2, workload: workload(1, 1, 2, 2, 2, 0), pods: []corev1.Pod{podWith("a", crash)}}, v1alpha1.UnitCut, "connected"},
		{"nothing wanted, nobody there", unitFacts{pool: none, poolKnown: true, workload: workload(1, 1, 0, 0, 0, 0)}, v1alpha1.UnitReady, ""},
		{"not made yet", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1}, v1alpha1.UnitProgressing, "taken up"},
		{"not taken up yet", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(2, 1, 2, 2, 2, 2)}, v1alpha1.UnitProgressing, "taken up"},
		{"apply failed for now", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 2, 2, 2), unapplied: errors.New("timeout")}, v1alpha1.UnitProgressing, "timeout"},
		{"rolled out", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 2, 2, 2)}, v1alpha1.UnitReady, ""},
		{"an old pod is left", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 3, 2, 2)}, v1alpha1.UnitProgressing, "2 of 2 replicas"},
		{"half ready", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 2, 2, 1)}, v1alpha1.UnitProgressing, "1 of 2 replicas"},
		{"unschedulable", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 2, 2, 1), pods: []corev1.Pod{pending}}, v1alpha1.UnitProgressing, "pod pending: Unschedulable: 0/3 nodes"},
		{"image", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 2, 2, 1), pods: []corev1.Pod{podWith("b"), podWith("a", waiting("ErrImagePull", "not found"))}, event: "pull failed"}, v1alpha1.UnitFailed, "container web of pod a: ErrImagePull: not found; last event: pull failed"},
		{"image name", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 2, 2, 1), pods: []corev1.Pod{podWith("a", waiting("InvalidImageName", "bad"))}, event: "bad"}, v1alpha1.UnitFailed, "InvalidImageName: bad"},
		{"crash", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 2, 2, 1), pods: []corev1.Pod{podWith("a", crash)}}, v1alpha1.UnitFailed, "CrashLoopBackOff: exited with code 137 (OOMKilled)"},
		{"exited once", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 2, 2, 1), pods: []corev1.Pod{podWith("a", ended(0, 3, 0))}}, v1alpha1.UnitProgressing, "replicas ready"},
		{"exited twice", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 2, 2, 1), pods: []corev1.Pod{podWith("a", ended(1, 3, 2*time.Second))}}, v1alpha1.UnitFailed, "CrashLoopBackOff: exited with code 3: no config"},
		{"exited twice and well", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 2, 2, 1), pods: []corev1.Pod{podWith("a", ended(1, 0, 2*time.Second))}}, v1alpha1.UnitFailed, "exited with code 0"},
		{"exited again after a long time", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 2, 2, 1), pods: []corev1.Pod{podWith("a", ended(1, 3, time.Hour))}}, v1alpha1.UnitProgressing, "replicas ready"},
		{"an init container has done its work", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 2, 2, 1), pods: []corev1.Pod{initDone}}, v1alpha1.UnitProgressing, "replicas ready"},
		{"an init container exited twice", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 2, 2, 1), pods: []corev1.Pod{initFailing}}, v1alpha1.UnitFailed, "exited with code 3"},
		{"only starting", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 2, 2, 1), pods: []corev1.Pod{podWith("a", waiting("ContainerCreating", ""))}}, v1alpha1.UnitProgressing, "replicas ready"},
		{"a pod that goes is no failure", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: workload(1, 1, 2, 2, 2, 1), pods: []corev1.Pod{dying}}, v1alpha1.UnitProgressing, "replicas ready"},
		{"no pods for quota", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: stuck}, v1alpha1.UnitFailed, "FailedCreate: exceeded quota"},
		{"too late", unitFacts{pool: two, poolKnown: true, nodes: 1, connected: 1, workload: late}, v1alpha1.UnitFailed, "ProgressDeadlineExceeded"},
	} {
		t.Run(c.what, func(t *testing.T) {
			got := unitStatus(&c.facts)
			if got.State != c.state || !strings.Contains(got.Message, c.part) {
				t.Errorf("status is %+v, want %s with %q", got, c.state, c.part)
			}
		})
	}
}

func TestCurrentReplicaSet(t *testing.T) {
	set := func(name, owner, revision string) appsv1.ReplicaSet {
		return appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{
			Name: name, Annotations: map[string]string{revisionAnnotation: revision},
			OwnerReferences: []metav1.OwnerReference{{UID: "x"}, {UID: "d", Controller: ptr.To(owner == "d")}},
		}}
	}
	got := currentReplicaSet(workload(1, 1, 1, 1, 1, 1), []appsv1.ReplicaSet{set("old", "d", "9"), set("new", "d", "10"), set("foreign", "e", "11"), set("odd", "d", "x")})
	if got == nil || got.Name != "new" {
		t.Errorf("current is %v", got)
	}
	if currentReplicaSet(workload(1, 1, 1, 1, 1, 1), nil) != nil {
		t.Error("one of none")
	}
}

func TestSummarize(t *testing.T) {
	ud := &v1alpha1.UnitDeployment{ObjectMeta: metav1.ObjectMeta{Generation: 4}}
	unit := func(name string, state v1alpha1.UnitState, message string) v1alpha1.UnitStatus {
		return v1alpha1.UnitStatus{Name: name, State: state, Message: message}
	}
	for _, c := range []struct {
		what          string
		units         []v1alpha1.UnitStatus
		trouble       string
		unapplied     error
		ready, failed metav1.ConditionStatus
		part          string
	}{
		{"nothing", nil, "", nil, metav1.ConditionTrue, metav1.ConditionFalse, "0 of 0"},
		{"all ready", []v1alpha1.UnitStatus{unit("a", v1alpha1.UnitReady, "")}, "", nil, metav1.ConditionTrue, metav1.ConditionFalse, "1 of 1"},
		{"cut ones are not waited for", []v1alpha1.UnitStatus{unit("a", v1alpha1.UnitReady, ""), unit("b", v1alpha1.UnitCut, "x")}, "", nil, metav1.ConditionTrue, metav1.ConditionFalse, "1 cut off"},
		{"one is on its way", []v1alpha1.UnitStatus{unit("a", v1alpha1.UnitReady, ""), unit("b", v1alpha1.UnitProgressing, "x")}, "", nil, metav1.ConditionFalse, metav1.ConditionFalse, "waiting for b"},
		{"one fails", []v1alpha1.UnitStatus{unit("a", v1alpha1.UnitProgressing, ""), unit("b", v1alpha1.UnitFailed, "x")}, "", nil, metav1.ConditionFalse, metav1.ConditionTrue, "b: x"},
		{"unknown pool", []v1alpha1.UnitStatus{unit("b", v1alpha1.UnitUnknownPool, "gone")}, "", nil, metav1.ConditionFalse, metav1.ConditionTrue, "b: gone"},
		{"service refused", []v1alpha1.UnitStatus{unit("a", v1alpha1.UnitReady, "")}, "Service x: no", nil, metav1.ConditionFalse, metav1.ConditionTrue, "Service x: no"},
		{"service not applied yet", []v1alpha1.UnitStatus{unit("a", v1alpha1.UnitReady, "")}, "", errors.New("timeout"), metav1.ConditionFalse, metav1.ConditionFalse, "timeout"},
	} {
		t.Run(c.what, func(t *testing.T) {
			status, conditions := summarize(ud, c.units, c.trouble, c.unapplied)
			if status.ObservedGeneration != 4 || int(status.Units) != len(c.units) {
				t.Errorf("status is %+v", status)
			}
			ready := meta.FindStatusCondition(conditions, v1alpha1.ConditionUnitsReady)
			failed := meta.FindStatusCondition(conditions, v1alpha1.ConditionUnitsFailed)
			if ready.Status != c.ready || failed.Status != c.failed || !strings.Contains(ready.Message, c.part) {
				t.Errorf("conditions are %+v", conditions)
			}
		})
	}
}

func TestClip(t *testing.T) {
	long := clip(strings.Repeat("ä", 1000))
	if len(long) > maxMessage || !utf8.ValidString(long) || !strings.HasSuffix(long, " ...") {
		t.Errorf("clipped to %d bytes: %q", len(long), long[len(long)-8:])
	}
	if clip(" a\n") != "a" {
		t.Error("short text changed")
	}
}
