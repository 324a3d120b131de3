package table

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	testingclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
)

var now = time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC)

func before(d time.Duration) metav1.Time { return metav1.NewTime(now.Add(-d)) }

func printer(apiVersion, kind string) Printer {
	k := metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}
	return Printer{Kind: k.GroupVersionKind(), Include: metav1.IncludeNone, Clock: testingclock.NewFakePassiveClock(now)}
}

// States of containers.
func running(name string) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: name, Ready: true, Started: ptr.To(true), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
}

func waiting(name, reason string) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: name, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}}
}

func ended(name, reason string, code, signal int32) corev1.ContainerStatus {
	return corev1.ContainerStatus{Name: name, State: corev1.ContainerState{
		Terminated: &corev1.ContainerStateTerminated{Reason: reason, ExitCode: code, Signal: signal},
	}}
}

func restarted(c corev1.ContainerStatus, count int32, ago time.Duration) corev1.ContainerStatus {
	c.RestartCount = count
	c.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{FinishedAt: before(ago)}
	return c
}

func pod(phase corev1.PodPhase, containers ...string) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "shop", CreationTimestamp: before(3 * time.Hour)},
		Status:     corev1.PodStatus{Phase: phase},
	}
	for _, c := range containers {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: c})
	}
	return p
}

func with(p *corev1.Pod, change func(*corev1.Pod)) *corev1.Pod {
	change(p)
	return p
}

func holding(conditions ...corev1.PodConditionType) []corev1.PodCondition {
	var out []corev1.PodCondition
	for _, c := range conditions {
		out = append(out, corev1.PodCondition{Type: c, Status: corev1.ConditionTrue})
	}
	return out
}

// TestPods: what kubectl shows as READY, STATUS and RESTARTS.
func TestPods(t *testing.T) {
	always := ptr.To(corev1.ContainerRestartPolicyAlways)
	for name, c := range map[string]struct {
		pod                     *corev1.Pod
		ready, status, restarts string
	}{
		"pending": {pod(corev1.PodPending, "a"), "0/1", "Pending", "0"},
		"gated": {with(pod(corev1.PodPending, "a"), func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Reason: corev1.PodReasonSchedulingGated}}
		}), "0/1", "SchedulingGated", "0"},
		"evicted": {with(pod(corev1.PodFailed, "a"), func(p *corev1.Pod) { p.Status.Reason = "Evicted" }), "0/1", "Evicted", "0"},
		"creating": {with(pod(corev1.PodPending, "a"), func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{waiting("a", "ContainerCreating")}
		}), "0/1", "ContainerCreating", "0"},
		"running": {with(pod(corev1.PodRunning, "a", "b"), func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{running("a"), running("b")}
		}), "2/2", "Running", "0"},
		"restarted": {with(pod(corev1.PodRunning, "a", "b"), func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{restarted(running("a"), 2, time.Hour), restarted(running("b"), 1, 5*time.Minute)}
		}), "2/2", "Running", "3 (5m ago)"},
		"restarted, nobody knows when": {with(pod(corev1.PodRunning, "a"), func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{running("a")}
			p.Status.ContainerStatuses[0].RestartCount = 4
		}), "1/1", "Running", "4"},
		"crashing": {with(pod(corev1.PodRunning, "a", "b"), func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{restarted(waiting("a", "CrashLoopBackOff"), 7, 30*time.Second), running("b")}
		}), "1/2", "CrashLoopBackOff", "7 (30s ago)"},
		"the first that is not well counts": {with(pod(corev1.PodRunning, "a", "b"), func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{waiting("a", "ErrImagePull"), waiting("b", "CrashLoopBackOff")}
		}), "0/2", "ErrImagePull", "0"},
		"completed": {with(pod(corev1.PodSucceeded, "a"), func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{ended("a", "Completed", 0, 0)}
		}), "0/1", "Completed", "0"},
		"one completed, one running": {with(pod(corev1.PodRunning, "a", "b"), func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{ended("a", "Completed", 0, 0), running("b")}
		}), "1/2", "NotReady", "0"},
		"one completed, one running, ready": {with(pod(corev1.PodRunning, "a", "b"), func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{ended("a", "Completed", 0, 0), running("b")}
			p.Status.Conditions = holding(corev1.PodReady)
		}), "1/2", "Running", "0"},
		"one completed, one failed": {with(pod(corev1.PodFailed, "a", "b"), func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{ended("a", "Completed", 0, 0), ended("b", "Error", 1, 0)}
		}), "0/2", "Error", "0"},
		"by a signal": {with(pod(corev1.PodFailed, "a"), func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{ended("a", "", 137, 9)}
		}), "0/1", "Signal:9", "0"},
		"by its code": {with(pod(corev1.PodFailed, "a"), func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{ended("a", "", 3, 0)}
		}), "0/1", "ExitCode:3", "0"},
		"initializing": {with(pod(corev1.PodPending, "a"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i"}, {Name: "j"}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{ended("i", "Completed", 0, 0), running("j")}
			p.Status.ContainerStatuses = []corev1.ContainerStatus{waiting("a", "PodInitializing")}
		}), "0/1", "Init:1/2", "0"},
		"waiting to be initialized": {with(pod(corev1.PodPending, "a"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i"}, {Name: "j"}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{waiting("i", "PodInitializing"), waiting("j", "PodInitializing")}
		}), "0/1", "Init:0/2", "0"},
		"initialization crashes": {with(pod(corev1.PodPending, "a"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i"}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{restarted(waiting("i", "CrashLoopBackOff"), 2, time.Minute*2)}
		}), "0/1", "Init:CrashLoopBackOff", "2 (2m ago)"},
		"initialization failed": {with(pod(corev1.PodFailed, "a"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i"}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{ended("i", "Error", 1, 0)}
		}), "0/1", "Init:Error", "0"},
		"initialization failed by its code": {with(pod(corev1.PodFailed, "a"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i"}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{ended("i", "", 2, 0)}
		}), "0/1", "Init:ExitCode:2", "0"},
		"initialization ended by a signal": {with(pod(corev1.PodFailed, "a"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i"}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{ended("i", "", 137, 9)}
		}), "0/1", "Init:Signal:9", "0"},
		"initialized: what came before is not told": {with(pod(corev1.PodRunning, "a"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i"}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{restarted(ended("i", "Completed", 0, 0), 5, time.Hour)}
			p.Status.ContainerStatuses = []corev1.ContainerStatus{running("a")}
		}), "1/1", "Running", "0"},
		"said to be initialized": {with(pod(corev1.PodRunning, "a"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i"}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{waiting("i", "")}
			p.Status.ContainerStatuses = []corev1.ContainerStatus{waiting("a", "CrashLoopBackOff")}
			p.Status.Conditions = holding(corev1.PodInitialized)
		}), "0/1", "CrashLoopBackOff", "0"},
		"with a sidecar": {with(pod(corev1.PodRunning, "a"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "s", RestartPolicy: always}, {Name: "i"}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{restarted(running("s"), 3, time.Minute*10), restarted(ended("i", "Completed", 0, 0), 1, time.Minute)}
			p.Status.ContainerStatuses = []corev1.ContainerStatus{restarted(running("a"), 1, time.Hour)}
		}), "2/2", "Running", "4 (10m ago)"},
		"a sidecar that does not start": {with(pod(corev1.PodPending, "a"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "s", RestartPolicy: always}}
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{waiting("s", "ErrImagePull")}
		}), "0/2", "Init:ErrImagePull", "0"},
		"being deleted": {with(pod(corev1.PodRunning, "a"), func(p *corev1.Pod) {
			p.DeletionTimestamp = &metav1.Time{Time: now}
			p.Status.ContainerStatuses = []corev1.ContainerStatus{running("a")}
		}), "1/1", "Terminating", "0"},
		"being deleted, done": {with(pod(corev1.PodSucceeded, "a"), func(p *corev1.Pod) {
			p.DeletionTimestamp = &metav1.Time{Time: now}
			p.Status.ContainerStatuses = []corev1.ContainerStatus{ended("a", "Completed", 0, 0)}
		}), "0/1", "Completed", "0"},
		"being deleted, its node is lost": {with(pod(corev1.PodRunning, "a"), func(p *corev1.Pod) {
			p.DeletionTimestamp = &metav1.Time{Time: now}
			p.Status.Reason = "NodeLost"
		}), "0/1", "Unknown", "0"},
	} {
		row, err := printer("v1", "Pod").Row(c.pod)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := []any{"p", c.ready, c.status, c.restarts, "3h", none, none, none, none}
		if d := cmp.Diff(want, row.Cells); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		ended := ""
		if len(row.Conditions) > 0 {
			ended = row.Conditions[0].Reason
		}
		if p := c.pod.Status.Phase; (p == corev1.PodFailed || p == corev1.PodSucceeded) != (ended == string(p)) {
			t.Errorf("%s, %s: conditions %v", name, p, row.Conditions)
		}
	}
}

func TestWidePods(t *testing.T) {
	p := pod(corev1.PodRunning, "a")
	p.Spec.NodeName, p.Status.NominatedNodeName = "n1", "n2"
	p.Status.PodIPs = []corev1.PodIP{{IP: "10.1.0.7"}, {IP: "fd00::7"}}
	p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "x"}, {ConditionType: "y"}, {ConditionType: "z"}}
	p.Status.Conditions = append(holding("x"), corev1.PodCondition{Type: "y", Status: corev1.ConditionFalse})
	row, err := printer("v1", "Pod").Row(p)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]any{"10.1.0.7", "n1", "n2", "1/3"}, row.Cells[5:]); d != "" {
		t.Error(d)
	}
}
