package controllers

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// maxMessage bounds a unit's message in bytes: a registry's answer can be a
// page of HTML, and a thousand units share one object.
const maxMessage = 512

// revisionAnnotation is the Deployment controller's count of pod templates, on
// the Deployment and on each of its ReplicaSets
// (k8s.io/kubernetes/pkg/controller/deployment/util).
const revisionAnnotation = "deployment.kubernetes.io/revision"

// failingReasons are the waiting reasons after which a container does not start
// without somebody's help, or at least has failed to once (pkg/kubelet/images,
// pkg/kubelet/container).
var failingReasons = []string{
	"ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError",
	crashLoop, "CreateContainerConfigError", "CreateContainerError", "RunContainerError",
}

// failure is a container that cannot start.
type failure struct {
	pod       *corev1.Pod
	container string
	reason    string
	text      string
}

// unitFacts is what is known of one unit.
type unitFacts struct {
	pool *v1alpha1.UnitPool
	// poolKnown says whether the pool exists, nodes counts its nodes that have
	// joined, connected those of them that hold a session.
	poolKnown bool
	nodes     int
	connected int
	// trouble is what keeps the workload from being made, for the user.
	trouble string
	// unapplied says that the workload may not be as it should be, for a reason
	// that may pass: what it reports is then of something else.
	unapplied error
	workload  *appsv1.Deployment // nil: not there yet
	current   *appsv1.ReplicaSet // of the workload's present template; nil: not there yet
	pods      []corev1.Pod       // of current
	// event is the text of the newest warning about the failing pod, if any.
	event string
}

// unitStatus says where a unit is. A cut pool is told before anything else:
// nothing reported from there is news.
func unitStatus(facts *unitFacts) v1alpha1.UnitStatus {
	status := v1alpha1.UnitStatus{Name: facts.pool.Name, State: v1alpha1.UnitProgressing, Replicas: replicasOf(facts.pool)}
	if facts.workload != nil {
		status.Workload = facts.workload.Name
		status.UpdatedReplicas = facts.workload.Status.UpdatedReplicas
		status.ReadyReplicas = facts.workload.Status.ReadyReplicas
	}
	switch {
	case !facts.poolKnown:
		status.State, status.Message = v1alpha1.UnitUnknownPool, "pool "+facts.pool.Name+" does not exist"
		return status
	case facts.trouble != "":
		status.State, status.Message = v1alpha1.UnitFailed, clip(facts.trouble)
		return status
	case facts.done() && status.Replicas == 0:
		status.State = v1alpha1.UnitReady
		return status
	case facts.connected == 0 && facts.nodes == 0:
		status.State, status.Message = v1alpha1.UnitCut, "no node has joined the pool yet"
		return status
	case facts.connected == 0:
		status.State, status.Message = v1alpha1.UnitCut, "no node of the pool is connected"
		return status
	case facts.done():
		status.State = v1alpha1.UnitReady
		return status
	case facts.unapplied != nil:
		status.Message = clip("trying again: " + facts.unapplied.Error())
		return status
	case facts.workload == nil || facts.workload.Status.ObservedGeneration < facts.workload.Generation:
		status.Message = "waiting for the workload to be taken up"
		return status
	}
	if failing := failingContainer(facts.pods); failing != nil {
		status.State, status.Message = v1alpha1.UnitFailed, failureMessage(failing, facts.event)
		return status
	}
	for _, condition := range facts.workload.Status.Conditions {
		switch {
		case condition.Type == appsv1.DeploymentReplicaFailure && condition.Status == corev1.ConditionTrue,
			condition.Type == appsv1.DeploymentProgressing && condition.Status == corev1.ConditionFalse:
			status.State, status.Message = v1alpha1.UnitFailed, clip(condition.Reason+": "+condition.Message)
			return status
		}
	}
	status.Message = clip(progressMessage(facts, &status))
	return status
}

// done says whether the workload is as asked for and rolled out.
func (f *unitFacts) done() bool { return f.unapplied == nil && rolledOut(f.workload) }

// rolledOut says whether every replica is of the present template and
// available, as `kubectl rollout status` has it.
func rolledOut(workload *appsv1.Deployment) bool {
	if workload == nil || workload.Status.ObservedGeneration < workload.Generation {
		return false
	}
	want := int32(1)
	if workload.Spec.Replicas != nil {
		want = *workload.Spec.Replicas
	}
	return workload.Status.UpdatedReplicas == want && workload.Status.Replicas == want && workload.Status.AvailableReplicas == want
}

// failingContainer finds a container that cannot start. The order is fixed, so
// that the same trouble gives the same message.
func failingContainer(pods []corev1.Pod) *failure {
	sorted := slices.Clone(pods)
	slices.SortFunc(sorted, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	for i := range sorted {
		pod := &sorted[i]
		if !pod.DeletionTimestamp.IsZero() {
			continue
		}
		for i := range pod.Status.InitContainerStatuses {
			// One that ended well has done its work.
			status := &pod.Status.InitContainerStatuses[i]
			if ended := status.State.Terminated; ended != nil && ended.ExitCode == 0 {
				continue
			}
			if found := containerFailure(pod, status); found != nil {
				return found
			}
		}
		for i := range pod.Status.ContainerStatuses {
			if found := containerFailure(pod, &pod.Status.ContainerStatuses[i]); found != nil {
				return found
			}
		}
	}
	return nil
}

// crashLoop is the reason a kubelet gives a container that it waits to start
// again.
const crashLoop = "CrashLoopBackOff"

// crashLoopSpan is how soon after one exit another makes a crash loop: the
// longest a kubelet waits between two starts by default
// (k8s.io/kubernetes/pkg/kubelet: MaxContainerBackOff).
const crashLoopSpan = 5 * time.Minute

// containerFailure says why a container cannot start; nil where it runs, or may
// yet. A crash loop is told by its second exit: the kubelet writes
// CrashLoopBackOff only at the end of a wait, a fraction of a second before it
// starts the container again, and reports "terminated" for the seconds before.
func containerFailure(pod *corev1.Pod, status *corev1.ContainerStatus) *failure {
	last := status.LastTerminationState.Terminated
	switch waiting, ended := status.State.Waiting, status.State.Terminated; {
	case waiting != nil && waiting.Reason == crashLoop && last != nil:
		return &failure{pod: pod, container: status.Name, reason: crashLoop, text: exitText(last)}
	case waiting != nil && slices.Contains(failingReasons, waiting.Reason):
		return &failure{pod: pod, container: status.Name, reason: waiting.Reason, text: waiting.Message}
	case ended != nil && last != nil && status.RestartCount > 0 && ended.FinishedAt.Sub(last.FinishedAt.Time) <= crashLoopSpan:
		return &failure{pod: pod, container: status.Name, reason: crashLoop, text: exitText(ended)}
	}
	return nil
}

// exitText says how a container ended, with the end of its log where it failed.
func exitText(ended *corev1.ContainerStateTerminated) string {
	text := fmt.Sprintf("exited with code %d", ended.ExitCode)
	if ended.Reason != "" && ended.Reason != "Error" {
		text += " (" + ended.Reason + ")"
	}
	if message := strings.TrimSpace(ended.Message); message != "" {
		text += ": " + message
	}
	return text
}

func failureMessage(f *failure, event string) string {
	message := fmt.Sprintf("container %s of pod %s: %s", f.container, f.pod.Name, f.reason)
	if f.text != "" {
		message += ": " + f.text
	}
	if event != "" && !strings.Contains(message, event) {
		message += "; last event: " + event
	}
	return clip(message)
}

// progressMessage says what a unit waits for that has not failed.
func progressMessage(facts *unitFacts, status *v1alpha1.UnitStatus) string {
	for i := range facts.pods {
		for _, condition := range facts.pods[i].Status.Conditions {
			if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
				return fmt.Sprintf("pod %s: %s: %s", facts.pods[i].Name, condition.Reason, condition.Message)
			}
		}
	}
	return fmt.Sprintf("%d of %d replicas ready", status.ReadyReplicas, status.Replicas)
}

// currentReplicaSet picks the ReplicaSet of the workload's present template.
func currentReplicaSet(workload *appsv1.Deployment, sets []appsv1.ReplicaSet) *appsv1.ReplicaSet {
	var current *appsv1.ReplicaSet
	newest := -1
	for i := range sets {
		if !madeBy(&sets[i], workload) {
			continue
		}
		revision, err := strconv.Atoi(sets[i].Annotations[revisionAnnotation])
		if err != nil {
			continue
		}
		if revision > newest {
			newest, current = revision, &sets[i]
		}
	}
	return current
}

// summarize fills the counts and conditions of a unit deployment's status from
// its units and from its Service: trouble is for the user to mend, unapplied
// may pass.
func summarize(ud *v1alpha1.UnitDeployment, units []v1alpha1.UnitStatus, trouble string, unapplied error) (v1alpha1.UnitDeploymentStatus, []metav1.Condition) {
	status := v1alpha1.UnitDeploymentStatus{
		ObservedGeneration: ud.Generation,
		Units:              int32(len(units)),
		Pools:              units,
	}
	var waiting, failed []string
	for i := range units {
		unit := &units[i]
		switch unit.State {
		case v1alpha1.UnitReady:
			status.ReadyUnits++
		case v1alpha1.UnitCut:
			status.CutUnits++
		case v1alpha1.UnitFailed, v1alpha1.UnitUnknownPool:
			failed = append(failed, unit.Name+": "+unit.Message)
		default:
			waiting = append(waiting, unit.Name)
		}
	}
	if trouble != "" {
		failed = append(failed, clip(trouble))
	}
	if unapplied != nil {
		waiting = append(waiting, "the service ("+clip(unapplied.Error())+")")
	}
	ready := metav1.Condition{Type: v1alpha1.ConditionUnitsReady, Status: metav1.ConditionTrue, Reason: "RolledOut",
		Message: fmt.Sprintf("%d of %d units are ready", status.ReadyUnits, status.Units)}
	if status.CutUnits > 0 {
		ready.Reason = "RolledOutButCut"
		ready.Message += fmt.Sprintf("; %d cut off units are not waited for", status.CutUnits)
	}
	failure := metav1.Condition{Type: v1alpha1.ConditionUnitsFailed, Status: metav1.ConditionFalse, Reason: "NoFailure"}
	switch {
	case len(failed) > 0:
		failure.Status, failure.Reason, failure.Message = metav1.ConditionTrue, "UnitsFailed", joinSome(failed)
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "UnitsFailed", joinSome(failed)
	case len(waiting) > 0:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "Progressing", "waiting for "+nameSome(waiting)
	}
	return status, []metav1.Condition{ready, failure}
}

// joinSome joins the first few failures and counts the rest.
func joinSome(texts []string) string {
	if len(texts) <= podsNamed {
		return strings.Join(texts, "\n")
	}
	return fmt.Sprintf("%s\nand %d more", strings.Join(texts[:podsNamed], "\n"), len(texts)-podsNamed)
}

// clip shortens a text to maxMessage bytes, at a character's border.
func clip(text string) string {
	text = strings.TrimSpace(text)
	if len(text) <= maxMessage {
		return text
	}
	const ellipsis = " ..."
	cut := maxMessage - len(ellipsis)
	for cut > 0 && text[cut]&0xC0 == 0x80 {
		cut--
	}
	return text[:cut] + ellipsis
}
