package table

import (
	"cmp"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var podColumns = []metav1.TableColumnDefinition{
	nameColumn,
	column("Ready", "Containers that are ready, of those there are."),
	column("Status", "What the pod is at."),
	column("Restarts", "How often its containers were started again, and how long ago one last was."),
	ageColumn,
	wide("IP", "The pod's first address."),
	wide("Node", "The node it is bound to."),
	wide("Nominated Node", "The node that is made free for it."),
	wide("Readiness Gates", "Conditions that hold, of those that others must set before it is ready."),
}

func podCells(pod *corev1.Pod, ago since) []any {
	s := summarize(pod)
	address := pod.Status.PodIP
	if len(pod.Status.PodIPs) > 0 {
		address = pod.Status.PodIPs[0].IP
	}
	return []any{
		pod.Name, fmt.Sprintf("%d/%d", s.ready, s.total), s.status, s.restarts.cell(ago), ago(pod.CreationTimestamp),
		cmp.Or(address, none), cmp.Or(pod.Spec.NodeName, none), cmp.Or(pod.Status.NominatedNodeName, none), gatesCell(pod),
	}
}

// podConditions mark the row of a pod that has run to its end.
func podConditions(phase corev1.PodPhase) []metav1.TableRowCondition {
	var message string
	switch phase {
	case corev1.PodSucceeded:
		message = "The pod has ended well."
	case corev1.PodFailed:
		message = "The pod has failed."
	default:
		return nil
	}
	return []metav1.TableRowCondition{{Type: metav1.RowCompleted, Status: metav1.ConditionTrue, Reason: string(phase), Message: message}}
}

// summary is a pod in a few words.
type summary struct {
	status       string
	ready, total int
	restarts     restarts
}

// restarts of some containers.
type restarts struct {
	count int
	last  metav1.Time // end of the run before the newest
}

func (r *restarts) add(c corev1.ContainerStatus) {
	r.count += int(c.RestartCount)
	if t := c.LastTerminationState.Terminated; t != nil && r.last.Before(&t.FinishedAt) {
		r.last = t.FinishedAt
	}
}

func (r restarts) cell(ago since) string {
	if r.count == 0 || r.last.IsZero() {
		return strconv.Itoa(r.count)
	}
	return fmt.Sprintf("%d (%s ago)", r.count, ago(r.last))
}

// nodeLost is the reason of a pod whose node was not heard of
// (k8s.io/kubernetes/pkg/util/node).
const nodeLost = "NodeLost"

// summarize finds what to say of a pod. What comes later says more:
//
//	phase ─► its reason ─► scheduling gates ─► init containers ─(over)─► containers ─► deletion
func summarize(pod *corev1.Pod) summary {
	s := summary{status: cmp.Or(pod.Status.Reason, string(pod.Status.Phase)), total: len(pod.Spec.Containers)}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonSchedulingGated {
			s.status = c.Reason
		}
	}
	sidecars := map[string]bool{}
	for _, c := range pod.Spec.InitContainers {
		sidecars[c.Name] = c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		if sidecars[c.Name] {
			s.total++
		}
	}
	ofSidecars, over := s.initialize(pod, sidecars)
	if over || holds(pod, corev1.PodInitialized) {
		// Those that came before the pod ran are no longer told.
		s.restarts = ofSidecars
		s.run(pod)
	}
	ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	switch {
	case pod.DeletionTimestamp == nil:
	case pod.Status.Reason == nodeLost:
		s.status = "Unknown"
	case !ended:
		s.status = "Terminating"
	}
	return s
}

// initialize looks at init containers in their order, up to the first that is not
// done: over says that there is none.
func (s *summary) initialize(pod *corev1.Pod, sidecars map[string]bool) (ofSidecars restarts, over bool) {
	for i, c := range pod.Status.InitContainerStatuses {
		s.restarts.add(c)
		if sidecars[c.Name] {
			ofSidecars.add(c)
		}
		ended, waiting := c.State.Terminated, c.State.Waiting
		switch {
		case ended != nil && ended.ExitCode == 0:
			continue
		case sidecars[c.Name] && c.Started != nil && *c.Started:
			if c.Ready {
				s.ready++
			}
			continue
		case ended != nil:
			s.status = "Init:" + endOf(ended)
		case waiting != nil && waiting.Reason != "" && waiting.Reason != "PodInitializing":
			s.status = "Init:" + waiting.Reason
		default:
			s.status = fmt.Sprintf("Init:%d/%d", i, len(pod.Spec.InitContainers))
		}
		return ofSidecars, false
	}
	return ofSidecars, true
}

// run looks at the pod's containers. The first that waits or has ended says what the
// pod is at, unless it ended well and others did not.
func (s *summary) run(pod *corev1.Pod) {
	const completed = "Completed"
	failure, running := "", false
	for i := len(pod.Status.ContainerStatuses) - 1; i >= 0; i-- {
		c := pod.Status.ContainerStatuses[i]
		s.restarts.add(c)
		ended, waiting := c.State.Terminated, c.State.Waiting
		switch {
		case waiting != nil && waiting.Reason != "":
			s.status = waiting.Reason
		case ended != nil:
			s.status = endOf(ended)
			if ended.ExitCode != 0 {
				failure = s.status
			}
		case c.Ready && c.State.Running != nil:
			running = true
			s.ready++
		}
	}
	switch {
	case s.status != completed:
	case running && holds(pod, corev1.PodReady):
		s.status = string(corev1.PodRunning)
	case failure != "":
		s.status = failure
	case running:
		s.status = "NotReady"
	}
}

// endOf says how a container ended.
func endOf(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

// holds says whether a pod has a condition that is true.
func holds(pod *corev1.Pod, condition corev1.PodConditionType) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == condition {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func gatesCell(pod *corev1.Pod) string {
	if len(pod.Spec.ReadinessGates) == 0 {
		return none
	}
	open := 0
	for _, gate := range pod.Spec.ReadinessGates {
		if holds(pod, gate.ConditionType) {
			open++
		}
	}
	return fmt.Sprintf("%d/%d", open, len(pod.Spec.ReadinessGates))
}
