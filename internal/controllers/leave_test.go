//go:build linux

package controllers_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/controllers"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
)

// podOn makes a pod that is bound to a node and stops as soon as it is asked to
// (nobody runs it).
func (w *world) podOn(t *testing.T, node, name string, edit func(*corev1.Pod)) {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "pause"}},
			TerminationGracePeriodSeconds: ptr.To[int64](0),
		},
	}
	if edit != nil {
		edit(pod)
	}
	w.create(t, pod)
}

// running reports a pod as running and ready.
func (w *world) running(t *testing.T, name string) {
	t.Helper()
	var pod corev1.Pod
	eventually(t, "pod runs", func() error {
		if err := w.admin.Get(t.Context(), objectKey("default/"+name), &pod); err != nil {
			return err
		}
		pod.Status.Phase = corev1.PodRunning
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		return w.admin.Status().Update(t.Context(), &pod)
	})
}

// wantGone waits until nothing is left of a node.
func (w *world) wantGone(t *testing.T, name string) {
	t.Helper()
	eventually(t, "node is removed", func() error { return w.gone(t.Context(), &v1alpha1.EdgeNode{}, name) })
	for _, left := range []struct {
		object client.Object
		key    string
	}{
		{&corev1.Node{}, name},
		{&rbacv1.ClusterRoleBinding{}, controllers.HubBindingName(name)},
		{&coordinationv1.Lease{}, "kube-node-lease/" + name},
	} {
		if err := w.gone(t.Context(), left.object, left.key); err != nil {
			t.Error(err)
		}
	}
	var pods corev1.PodList
	if err := w.admin.List(t.Context(), &pods); err != nil {
		t.Fatal(err)
	}
	for i := range pods.Items {
		if pods.Items[i].Spec.NodeName == name {
			t.Errorf("pod %s is left", pods.Items[i].Name)
		}
	}
}

func (w *world) lease(t *testing.T, name string) {
	t.Helper()
	w.create(t, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-node-lease", Name: name},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: ptr.To(name)},
	})
}

func (w *world) drainedCondition(t *testing.T, name string) *metav1.Condition {
	t.Helper()
	var node v1alpha1.EdgeNode
	if err := w.admin.Get(t.Context(), objectKey(name), &node); err != nil {
		t.Fatal(err)
	}
	return meta.FindStatusCondition(node.Status.Conditions, v1alpha1.ConditionDrained)
}

func TestConnectedNodeIsDrained(t *testing.T) {
	w := real(t)
	d, kubelet, _ := w.joined(t, "drain", "drain-1")
	w.lease(t, "drain-1")
	w.podOn(t, "drain-1", "drain-guarded", nil)
	w.running(t, "drain-guarded")
	w.podOn(t, "drain-1", "drain-free", nil)
	w.podOn(t, "drain-1", "drain-daemon", func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "x", UID: "not-there", Controller: ptr.To(true)}}
		// The garbage collector would take it, its owner being absent.
		p.Finalizers = []string{"example.com/hold"}
	})
	minAvailable := intstr.FromInt32(1)
	budget := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "drain-budget"},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: &minAvailable, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "drain-guarded"}},
		},
	}
	w.create(t, budget)
	eventually(t, "budget is known", func() error {
		w.get(t, budget, "default/drain-budget")
		if budget.Status.ObservedGeneration == 0 || budget.Status.CurrentHealthy != 1 {
			return fmt.Errorf("status is %+v", budget.Status)
		}
		return nil
	})

	w.delete(t, &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "drain-1"}})
	edge := w.phase(t, "drain-1", v1alpha1.NodeLeaving)
	eventually(t, "the drain waits for the budget", func() error {
		condition := w.drainedCondition(t, "drain-1")
		if condition == nil || condition.Reason != "Draining" || !strings.Contains(condition.Message, "default/drain-guarded (its disruption budget") {
			return fmt.Errorf("condition is %+v", condition)
		}
		return w.gone(t.Context(), &corev1.Pod{}, "default/drain-free")
	})
	var node corev1.Node
	w.get(t, &node, "drain-1")
	if !node.Spec.Unschedulable {
		t.Error("the node is not cordoned")
	}
	w.get(t, &corev1.Pod{}, "default/drain-guarded")
	w.get(t, &corev1.Pod{}, "default/drain-daemon")
	// It cannot open itself again, its session and its identity are still there,
	// and nobody joins under its name.
	if len(w.kicks.of("drain-1")) != 0 {
		t.Error("the session was ended before the drain was over")
	}
	w.get(t, edge, "drain-1")
	if edge.Status.Key != d.fingerprint(t) {
		t.Error("the key was revoked before the drain was over")
	}
	if _, err := kubelet.CoreV1().Nodes().Get(t.Context(), "drain-1", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	wantRefusal(t, newDevice(t).join(t, w, w.mint(t, enroll.MintOptions{Pool: "drain", Node: "drain-1"}), "drain-1"), enroll.CodeNameConflict)

	update(t, w, &corev1.Pod{}, "default/drain-daemon", func(p *corev1.Pod) { p.Finalizers = nil })
	w.delete(t, budget)
	w.wantGone(t, "drain-1")
	if len(w.kicks.of("drain-1")) == 0 {
		t.Error("the session was not ended")
	}
}

func TestDrainIsBounded(t *testing.T) {
	w := real(t)
	w.joined(t, "bounded", "bounded-1")
	update(t, w, &v1alpha1.EdgeNode{}, "bounded-1", func(n *v1alpha1.EdgeNode) {
		n.Spec.Drain = &v1alpha1.DrainSpec{Timeout: &metav1.Duration{Duration: 2 * time.Second}}
	})
	// Held by a finalizer, it never goes by itself.
	w.podOn(t, "bounded-1", "bounded-held", func(p *corev1.Pod) { p.Finalizers = []string{"example.com/hold"} })
	started := time.Now()
	w.delete(t, &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "bounded-1"}})
	eventually(t, "node is removed", func() error { return w.gone(t.Context(), &v1alpha1.EdgeNode{}, "bounded-1") })
	if took := time.Since(started); took < time.Second {
		t.Errorf("it left after %s, without waiting", took)
	}
	update(t, w, &corev1.Pod{}, "default/bounded-held", func(p *corev1.Pod) { p.Finalizers = nil })
}

func TestDrainMayBeDisabled(t *testing.T) {
	w := real(t)
	w.joined(t, "undrained", "undrained-1")
	update(t, w, &v1alpha1.EdgeNode{}, "undrained-1", func(n *v1alpha1.EdgeNode) { n.Spec.Drain = &v1alpha1.DrainSpec{Disabled: true} })
	w.podOn(t, "undrained-1", "undrained-pod", func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](600) })
	w.delete(t, &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "undrained-1"}})
	w.wantGone(t, "undrained-1")
}

func TestCutNodeIsNotWaitedFor(t *testing.T) {
	w := real(t)
	d, kubelet, response := w.joined(t, "cutoff", "cutoff-1")
	w.podOn(t, "cutoff-1", "cutoff-pod", func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](600) })
	w.pastGrace(t)
	w.sessions.set("cutoff-1", false)
	started := time.Now()
	w.delete(t, &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "cutoff-1"}})
	w.wantGone(t, "cutoff-1")
	if took := time.Since(started); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
	if kicks := w.kicks.of("cutoff-1"); len(kicks) == 0 {
		t.Error("the session was not ended")
	}
	// Its certificates are worth nothing any more: it cannot renew them, and
	// its hub may read nothing.
	request, err := enroll.NodeCSR("cutoff-1", d.key)
	if err != nil {
		t.Fatal(err)
	}
	if verdict := w.decide(t, kubelet, nodeSigner, clientUsages, request); verdict != denied {
		t.Errorf("renewal of a removed node was %s", verdict)
	}
	hub := clientset(t, d.identity(t, w, response.HubCertificate))
	eventually(t, "hub rights are gone", func() error {
		if _, err := hub.CoreV1().Services("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			return fmt.Errorf("answer is %v", err)
		}
		return nil
	})
	// Nor can it come back: what it registers goes again.
	again, err := kubelet.CoreV1().Nodes().Create(t.Context(), freshNode("cutoff-1"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "orphan goes", func() error { return w.gone(t.Context(), &corev1.Node{}, again.Name) })
	// Other hardware may have the name now.
	newDevice(t).mustJoin(t, w, w.mint(t, enroll.MintOptions{Pool: "cutoff"}), "cutoff-1")
	var edge v1alpha1.EdgeNode
	w.get(t, &edge, "cutoff-1")
	if slices.Contains(edge.Status.RevokedKeys, d.fingerprint(t)) {
		t.Error("a new record knows of an old key")
	}
}

func TestDeclaredNodeLeavesAtOnce(t *testing.T) {
	w := real(t)
	w.pool(t, "neverjoined", v1alpha1.NodePoolSpec{})
	w.create(t, &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "neverjoined-1"}, Spec: v1alpha1.EdgeNodeSpec{Pool: "neverjoined"}})
	w.phase(t, "neverjoined-1", v1alpha1.NodeDeclared)
	w.delete(t, &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "neverjoined-1"}})
	w.wantGone(t, "neverjoined-1")
}

// A declaration under the name of a node that the cluster has anyway gives
// nobody power over that node, and leaves it alone when it goes.
func TestForeignNodeIsLeftAlone(t *testing.T) {
	w := real(t)
	w.pool(t, "foreign", v1alpha1.NodePoolSpec{Labels: map[string]string{"tier": "pool"}})
	w.create(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "foreign-cp"}})
	t.Cleanup(func() { w.cleanup(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "foreign-cp"}}) })
	w.podOn(t, "foreign-cp", "foreign-pod", nil)
	w.create(t, &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "foreign-cp"}, Spec: v1alpha1.EdgeNodeSpec{Pool: "foreign"}})
	eventually(t, "the name is told to be taken", func() error {
		var edge v1alpha1.EdgeNode
		w.get(t, &edge, "foreign-cp")
		placed := meta.FindStatusCondition(edge.Status.Conditions, v1alpha1.ConditionPlaced)
		if placed == nil || placed.Reason != "NameTaken" {
			return fmt.Errorf("condition is %+v", placed)
		}
		return nil
	})
	token := w.mint(t, enroll.MintOptions{Pool: "foreign", Node: "foreign-cp"})
	wantRefusal(t, newDevice(t).join(t, w, token, "foreign-cp"), enroll.CodeNameConflict)
	w.delete(t, &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "foreign-cp"}})
	eventually(t, "the declaration goes", func() error { return w.gone(t.Context(), &v1alpha1.EdgeNode{}, "foreign-cp") })
	var node corev1.Node
	w.get(t, &node, "foreign-cp")
	if node.Spec.Unschedulable || node.Labels["tier"] != "" || node.Annotations[v1alpha1.ManagedAnnotation] != "" {
		t.Errorf("it was touched: %+v", node)
	}
	w.get(t, &corev1.Pod{}, "default/foreign-pod")
}

// Controllers that are stopped in the middle of a drain go on with it.
func TestDrainGoesOnAfterARestart(t *testing.T) {
	w := real(t)
	w.joined(t, "resumed", "resumed-1")
	update(t, w, &v1alpha1.EdgeNode{}, "resumed-1", func(n *v1alpha1.EdgeNode) {
		n.Spec.Drain = &v1alpha1.DrainSpec{Timeout: &metav1.Duration{Duration: 10 * time.Minute}}
	})
	w.podOn(t, "resumed-1", "resumed-held", func(p *corev1.Pod) { p.Finalizers = []string{"example.com/hold"} })
	w.delete(t, &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "resumed-1"}})
	draining := func() *metav1.Condition {
		t.Helper()
		var condition *metav1.Condition
		eventually(t, "it drains", func() error {
			condition = w.drainedCondition(t, "resumed-1")
			if condition == nil || condition.Reason != "Draining" || !strings.Contains(condition.Message, "resumed-held (stopping)") {
				return fmt.Errorf("condition is %+v", condition)
			}
			return nil
		})
		return condition
	}
	before := draining()
	if err := w.stopControllers(); err != nil {
		t.Fatal(err)
	}
	w.startControllers(t)
	if after := draining(); !after.LastTransitionTime.Equal(&before.LastTransitionTime) {
		t.Error("the drain began anew")
	}
	update(t, w, &corev1.Pod{}, "default/resumed-held", func(p *corev1.Pod) { p.Finalizers = nil })
	w.wantGone(t, "resumed-1")
}
