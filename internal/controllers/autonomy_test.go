//go:build linux

package controllers_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// The promise of a cut: pods that belong to the site outlive every timer of
// Kubernetes, Ready, under their own names; pods that may run elsewhere move.
func TestCutPoolKeepsItsPods(t *testing.T) {
	w := judged(t)
	w.otherZone(t, "cutpool")
	w.joined(t, "cutpool", "cutpool-1")
	w.joined(t, "cutpool", "cutpool-2")
	one, two := w.heartbeats(t, "cutpool-1"), w.heartbeats(t, "cutpool-2")
	w.pastGrace(t)

	label := map[string]string{"app": "cutpool"}
	w.create(t, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "cutpool"},
		Spec: corev1.ServiceSpec{Selector: label, Ports: []corev1.ServicePort{{Port: 80}}}})
	bound := plainPod("cutpool-bound", corev1.PodSpec{NodeSelector: inPool("cutpool")})
	bound.Labels = label
	uid := w.runningOn(t, "cutpool-1", bound)
	second := w.runningOn(t, "cutpool-2", plainPod("cutpool-second", corev1.PodSpec{NodeSelector: inPool("cutpool")}))
	short := []corev1.Toleration{
		{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](1)},
		{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](1)},
	}
	// May land anywhere, and says how long it waits: what Kubernetes' 300 s would
	// do after 300 s.
	w.runningOn(t, "cutpool-1", plainPod("cutpool-mover", corev1.PodSpec{Tolerations: short}))
	// May land anywhere and says nothing.
	w.runningOn(t, "cutpool-1", plainPod("cutpool-default", corev1.PodSpec{}))

	w.lose(t, true, one, two)
	w.unreachable(t, "cutpool-1")
	w.unreachable(t, "cutpool-2")
	eventually(t, "the pod that may land elsewhere is evicted", func() error {
		pod := w.pod(t, "cutpool-mover")
		if pod.DeletionTimestamp == nil {
			return fmt.Errorf("tolerates %v", outageTolerations(pod))
		}
		return nil
	})
	if got := outageTolerations(w.pod(t, "cutpool-default")); *got[corev1.TaintNodeUnreachable][0] != 300 {
		t.Errorf("a pod that may land elsewhere tolerates %v", got)
	}
	w.marked(t, "cutpool-bound")
	w.marked(t, "cutpool-second")
	w.untouched(t, "cutpool-bound", uid)
	w.untouched(t, "cutpool-second", second)
	w.endpoint(t, "cutpool", true)

	// A container that fails in the cut still is what its kubelet says it is, once
	// that can say it.
	w.sessions.set("cutpool-1", true)
	w.sessions.set("cutpool-2", true)
	w.heartbeats(t, "cutpool-1")
	w.heartbeats(t, "cutpool-2")
	w.cut(t, "cutpool-1", false)
	w.untouched(t, "cutpool-bound", uid)
	w.reportPod(t, "cutpool-bound", corev1.ConditionFalse)
	w.endpoint(t, "cutpool", false)
}

// One node of a pool is gone and another is there: the one may be dead. Its pods
// stay, but nobody is sent to them.
func TestLostNodeOfAConnectedPool(t *testing.T) {
	w := judged(t)
	w.otherZone(t, "lostone")
	w.joined(t, "lostone", "lostone-1")
	w.joined(t, "lostone", "lostone-2")
	one := w.heartbeats(t, "lostone-1")
	w.heartbeats(t, "lostone-2")
	w.pastGrace(t)
	uid := w.runningOn(t, "lostone-1", plainPod("lostone-pod", corev1.PodSpec{NodeSelector: inPool("lostone")}))

	w.lose(t, false, one)
	w.unreachable(t, "lostone-1")
	eventually(t, "pod is not Ready", func() error {
		if podReady(w.pod(t, "lostone-pod")) {
			return errNotYet
		}
		return nil
	})
	if pod := w.pod(t, "lostone-pod"); pod.UID != uid || pod.DeletionTimestamp != nil {
		t.Errorf("the pod was evicted: %v", pod.DeletionTimestamp)
	}
}

// A whole pool was cut and one of its nodes is back for good: the other is
// suspected from then on.
func TestReunionSuspectsTheMissing(t *testing.T) {
	w := judged(t)
	w.otherZone(t, "reunion")
	w.joined(t, "reunion", "reunion-1")
	w.joined(t, "reunion", "reunion-2")
	one, two := w.heartbeats(t, "reunion-1"), w.heartbeats(t, "reunion-2")
	w.pastGrace(t)
	uid := w.runningOn(t, "reunion-1", plainPod("reunion-pod", corev1.PodSpec{NodeSelector: inPool("reunion")}))
	w.lose(t, true, one, two)
	w.unreachable(t, "reunion-1")
	w.marked(t, "reunion-pod")
	w.untouched(t, "reunion-pod", uid)

	w.sessions.set("reunion-2", true)
	w.heartbeats(t, "reunion-2")
	w.cut(t, "reunion-2", false)
	w.kept(t, "reunion-1", true) // it may be on its way
	w.untouched(t, "reunion-pod", uid)

	w.clock.offset.Add(int64(61 * time.Second))
	w.lookAgain(t)
	w.kept(t, "reunion-1", false)
	pod := w.pod(t, "reunion-pod")
	if podReady(pod) || pod.UID != uid || pod.DeletionTimestamp != nil {
		t.Errorf("ready %v, uid %s (was %s), deleted %v", podReady(pod), pod.UID, uid, pod.DeletionTimestamp)
	}
}

// The pool bounds its autonomy: only then, and only what can run elsewhere in the
// pool, is asked to go, and nothing is forced.
func TestDurationEndsAutonomy(t *testing.T) {
	w := judged(t)
	w.otherZone(t, "bounded")
	w.pool(t, "bounded", v1alpha1.NodePoolSpec{Autonomy: &v1alpha1.AutonomySpec{Duration: &metav1.Duration{Duration: time.Hour}}})
	w.joined(t, "bounded", "bounded-1")
	one := w.heartbeats(t, "bounded-1")
	w.pastGrace(t)
	uid := w.runningOn(t, "bounded-1", plainPod("bounded-pod", corev1.PodSpec{NodeSelector: inPool("bounded"), TerminationGracePeriodSeconds: ptr.To[int64](7)}))
	w.places(t, func(data map[string]string) error {
		if data["node.bounded-1"] != "bounded" {
			return errNotYet
		}
		return nil
	})
	w.create(t, &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "bounded-ds"}, Spec: appsv1.DaemonSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "bounded-ds"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "bounded-ds"}}, Spec: corev1.PodSpec{
			Affinity:   requires(poolTerm(corev1.NodeSelectorOpIn, "bounded")),
			Containers: []corev1.Container{{Name: "c", Image: "example.test/app:latest"}},
		}},
	}})
	t.Cleanup(func() {
		w.cleanup(t, &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "bounded-ds"}})
	})
	daemon := w.daemonPod(t, "bounded-ds")
	if got := daemon.Spec.Containers[0].ImagePullPolicy; got != corev1.PullIfNotPresent {
		t.Errorf("pull policy of a DaemonSet's pod is %s", got)
	}
	if err := w.admin.SubResource("binding").Create(t.Context(), daemon, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: "bounded-1"}}); err != nil {
		t.Fatal(err)
	}

	w.lose(t, true, one)
	w.unreachable(t, "bounded-1")
	w.clock.offset.Add(int64(58 * time.Minute))
	w.sessions.Notify("bounded-1")
	// What follows is later than this look.
	w.untouched(t, "bounded-pod", uid)
	w.clock.offset.Add(int64(3 * time.Minute))
	w.sessions.Notify("bounded-1")
	eventually(t, "pod is deleted", func() error {
		pod := w.pod(t, "bounded-pod")
		if pod.UID != uid {
			return errors.New("the pod was replaced")
		}
		if pod.DeletionTimestamp == nil {
			return errNotYet
		}
		if ptr.Deref(pod.DeletionGracePeriodSeconds, 0) != 7 {
			return fmt.Errorf("grace period is %v, want the pod's own", pod.DeletionGracePeriodSeconds)
		}
		return nil
	})
	eventually(t, "the status says so", func() error {
		var edge v1alpha1.EdgeNode
		w.get(t, &edge, "bounded-1")
		for _, c := range edge.Status.Conditions {
			if c.Type == v1alpha1.ConditionCut && c.Reason == "DurationOver" && c.Status == metav1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("conditions %v", edge.Status.Conditions)
	})
	if pod := w.daemonPod(t, "bounded-ds"); pod.UID != daemon.UID || pod.DeletionTimestamp != nil {
		t.Error("the DaemonSet's pod was deleted")
	}
	var node corev1.Node
	w.get(t, &node, "bounded-1")
	for _, taint := range node.Spec.Taints {
		if taint.Key == corev1.TaintNodeOutOfService {
			t.Error("the node was fenced")
		}
	}
}

// What was admitted before the policy, or in spite of it, is lifted; also where an
// eviction has been scheduled already.
func TestTolerationsAreLifted(t *testing.T) {
	w := judged(t)
	w.otherZone(t, "lifted")
	w.joined(t, "lifted", "lifted-1")
	one := w.heartbeats(t, "lifted-1")
	w.pastGrace(t)
	w.withoutPolicy(t)
	early := plainPod("lifted-early", corev1.PodSpec{NodeSelector: inPool("lifted")})
	uid := w.runningOn(t, "lifted-1", early)
	w.runningOn(t, "lifted-1", plainPod("lifted-free", corev1.PodSpec{}))
	w.runningOn(t, "lifted-1", plainPod("lifted-unknown", corev1.PodSpec{NodeSelector: inPool("lifted-never")}))
	eventually(t, "tolerations are lifted", func() error {
		got := outageTolerations(w.pod(t, "lifted-early"))
		if got[corev1.TaintNodeUnreachable][0] != nil || got[corev1.TaintNodeNotReady][0] != nil {
			return fmt.Errorf("tolerates %v", got)
		}
		return nil
	})
	for _, name := range []string{"lifted-free", "lifted-unknown"} {
		if got := outageTolerations(w.pod(t, name)); *got[corev1.TaintNodeUnreachable][0] != 300 {
			t.Errorf("%s tolerates %v", name, got)
		}
	}
	w.lose(t, true, one)
	w.unreachable(t, "lifted-1")
	w.untouched(t, "lifted-early", uid)
	// On a node that is given up already: the eviction in 300 s is called off.
	late := plainPod("lifted-late", corev1.PodSpec{NodeSelector: inPool("lifted")})
	w.runningOn(t, "lifted-1", late)
	eventually(t, "tolerations are lifted in time", func() error {
		if got := outageTolerations(w.pod(t, "lifted-late")); got[corev1.TaintNodeUnreachable][0] != nil {
			return fmt.Errorf("tolerates %v", got)
		}
		return nil
	})
}

// A node may not say of itself that it is cut, or is not.
func TestNodesDoNotLabelThemselvesCut(t *testing.T) {
	w := judged(t)
	_, kubelet, _ := w.joined(t, "selfcut", "selfcut-1")
	node := w.heartbeats(t, "selfcut-1")
	patch := func(value string) error {
		_, err := kubelet.CoreV1().Nodes().Patch(t.Context(), "selfcut-1", types.MergePatchType,
			fmt.Appendf(nil, `{"metadata":{"labels":{%q:%s}}}`, v1alpha1.CutLabel, value), metav1.PatchOptions{})
		return err
	}
	wantForbidden(t, patch(`"true"`), v1alpha1.CutLabel)
	w.pastGrace(t)
	w.lose(t, true, node)
	wantForbidden(t, patch("null"), v1alpha1.CutLabel)
}

// The controllers' right to change pods is for what it is for.
func TestControllersChangeNothingElseOfPods(t *testing.T) {
	w := judged(t)
	pod := plainPod("own-pod", corev1.PodSpec{})
	w.runningOn(t, "no-node", pod)
	own, err := client.New(w.controllers, client.Options{Scheme: w.admin.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	for name, patch := range map[string]string{
		"image":  `{"spec":{"containers":[{"name":"c","image":"example.test/other"}]}}`,
		"labels": `{"metadata":{"labels":{"a":"b"}}}`,
	} {
		err := own.Patch(t.Context(), pod.DeepCopy(), client.RawPatch(types.StrategicMergePatchType, []byte(patch)))
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, patch := range map[string]string{
		"address": `{"status":{"hostIP":"10.0.0.1"}}`,
		"phase":   `{"status":{"phase":"Failed"}}`,
		"ready":   `{"status":{"conditions":[{"type":"Ready","status":"True","reason":"x"}]}}`,
		"other":   `{"status":{"conditions":[{"type":"Ready","status":"False"},{"type":"ContainersReady","status":"False"}]}}`,
	} {
		err := own.Status().Patch(t.Context(), pod.DeepCopy(), client.RawPatch(types.StrategicMergePatchType, []byte(patch)))
		if !apierrors.IsForbidden(err) {
			t.Errorf("status, %s: %v", name, err)
		}
	}
	err = own.Status().Patch(t.Context(), pod.DeepCopy(), client.RawPatch(types.StrategicMergePatchType, []byte(`{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`)))
	if err != nil {
		t.Errorf("taking Ready: %v", err)
	}
}
