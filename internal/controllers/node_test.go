//go:build linux

package controllers_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

func TestRegistrationIsClosed(t *testing.T) {
	w := real(t)
	w.pool(t, "closed", v1alpha1.NodePoolSpec{})
	d := newDevice(t)
	response := d.mustJoin(t, w, w.mint(t, enroll.MintOptions{Pool: "closed"}), "closed-1")
	kubelet := clientset(t, d.identity(t, w, response.NodeCertificate))
	for _, c := range []struct {
		what string
		edit func(*corev1.Node)
		part string
	}{
		{"without the taint", func(n *corev1.Node) { n.Spec.Taints = nil }, "must register with the taint"},
		{"with a taint that keeps nothing away", func(n *corev1.Node) { n.Spec.Taints[0].Effect = corev1.TaintEffectPreferNoSchedule }, "must register with the taint"},
		{"in a pool", func(n *corev1.Node) { n.Labels[v1alpha1.PoolLabel] = "rich" }, "edgewright.dev/pool"},
		{"with a label of its own", func(n *corev1.Node) { n.Labels["team"] = "a" }, "team"},
		{"in another zone", func(n *corev1.Node) { n.Labels[corev1.LabelTopologyZone] = "rich" }, "topology.kubernetes.io/zone"},
		{"with a label in the kubelet's namespace", func(n *corev1.Node) { n.Labels["node.kubernetes.io/x"] = "a" }, "node.kubernetes.io/x"},
		{"as a control plane", func(n *corev1.Node) { n.Labels["node-role.kubernetes.io/control-plane"] = "" }, "node-role"},
		{"with a record of what is managed", func(n *corev1.Node) {
			n.Annotations = map[string]string{v1alpha1.ManagedAnnotation: "{}"}
		}, v1alpha1.ManagedAnnotation},
		{"with a pod range", func(n *corev1.Node) { n.Spec.PodCIDR, n.Spec.PodCIDRs = "10.96.0.0/24", []string{"10.96.0.0/24"} }, "pod range"},
		{"under another name", func(n *corev1.Node) { n.Name = "closed-2" }, "not allowed to modify node"},
	} {
		t.Run(c.what, func(t *testing.T) {
			node := freshNode("closed-1")
			c.edit(node)
			_, err := kubelet.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{})
			wantForbidden(t, err, c.part)
		})
	}
	if _, err := kubelet.CoreV1().Nodes().Create(t.Context(), freshNode("closed-1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestNodeMayNotMoveItself(t *testing.T) {
	w := real(t)
	_, kubelet, _ := w.joined(t, "moves", "moves-1")
	for _, c := range []struct {
		what, patch, part string
	}{
		{"into a pool", `{"metadata":{"labels":{"edgewright.dev/pool":"rich"}}}`, "edgewright.dev/pool"},
		{"out of its pool", `{"metadata":{"labels":{"edgewright.dev/pool":null}}}`, "edgewright.dev/pool"},
		{"into another zone", `{"metadata":{"labels":{"topology.kubernetes.io/zone":"rich"}}}`, "topology.kubernetes.io/zone"},
		{"to a label of its own", `{"metadata":{"labels":{"team":"a"}}}`, "team"},
		{"by the record of what is managed", `{"metadata":{"annotations":{"edgewright.dev/managed":"{}"}}}`, "edgewright.dev/managed"},
		{"by dropping that record", `{"metadata":{"annotations":{"edgewright.dev/managed":null}}}`, "edgewright.dev/managed"},
	} {
		for _, subresource := range []string{"", "status"} {
			t.Run(c.what+" "+subresource, func(t *testing.T) {
				var subresources []string
				if subresource != "" {
					subresources = append(subresources, subresource)
				}
				_, err := kubelet.CoreV1().Nodes().Patch(t.Context(), "moves-1", types.MergePatchType, []byte(c.patch), metav1.PatchOptions{}, subresources...)
				wantForbidden(t, err, c.part)
			})
		}
	}
	for what, patch := range map[string]string{
		"taint":     `{"spec":{"taints":[{"key":"x","effect":"NoSchedule"}]}}`,
		"pod range": `{"spec":{"podCIDR":"10.96.7.0/24","podCIDRs":["10.96.7.0/24"]}}`,
		"cordon":    `{"spec":{"unschedulable":true}}`,
	} {
		_, err := kubelet.CoreV1().Nodes().Patch(t.Context(), "moves-1", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		if !apierrors.IsForbidden(err) {
			t.Errorf("a node may change its %s: %v", what, err)
		}
	}
	// What a kubelet does all day still works.
	patch := `{"metadata":{"labels":{"kubernetes.io/arch":"arm64"},"annotations":{"volumes.kubernetes.io/x":"true"}}}`
	if _, err := kubelet.CoreV1().Nodes().Patch(t.Context(), "moves-1", types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		t.Error(err)
	}
}

// A node may not take its unplaced taint away, nor be placed by anything but
// the node controller.
func TestUnplacedNodeStaysClosed(t *testing.T) {
	w := real(t)
	w.create(t, &v1alpha1.NodePool{ObjectMeta: metav1.ObjectMeta{Name: "vanishing"}})
	d := newDevice(t)
	response := d.mustJoin(t, w, w.mint(t, enroll.MintOptions{Pool: "vanishing"}), "vanishing-1")
	// The pool goes, past its finalizer: nobody can place the node.
	w.delete(t, &v1alpha1.NodePool{ObjectMeta: metav1.ObjectMeta{Name: "vanishing"}})
	eventually(t, "pool without finalizer", func() error {
		var pool v1alpha1.NodePool
		if err := w.admin.Get(t.Context(), objectKey("vanishing"), &pool); apierrors.IsNotFound(err) {
			return nil
		} else if err != nil {
			return err
		}
		pool.Finalizers = nil
		if err := w.admin.Update(t.Context(), &pool); err != nil {
			return err
		}
		return errNotYet
	})
	kubelet := clientset(t, d.identity(t, w, response.NodeCertificate))
	if _, err := kubelet.CoreV1().Nodes().Create(t.Context(), freshNode("vanishing-1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.report(t, kubelet, "vanishing-1", true)
	node := w.phase(t, "vanishing-1", v1alpha1.NodeNotReady)
	placed := meta.FindStatusCondition(node.Status.Conditions, v1alpha1.ConditionPlaced)
	if placed == nil || placed.Status != metav1.ConditionFalse || placed.Reason != "PoolUnknown" {
		t.Errorf("condition Placed is %+v", placed)
	}
	_, err := kubelet.CoreV1().Nodes().Patch(t.Context(), "vanishing-1", types.MergePatchType, []byte(`{"spec":{"taints":null}}`), metav1.PatchOptions{})
	wantForbidden(t, err, "taints")
}

func TestPlacement(t *testing.T) {
	w := real(t)
	w.pool(t, "placed", v1alpha1.NodePoolSpec{
		Labels:      map[string]string{"tier": "pool", "site": "north", v1alpha1.PoolLabel: "forged"},
		Annotations: map[string]string{"example.com/site": "north"},
		Taints:      []corev1.Taint{{Key: "dedicated", Value: "edge", Effect: corev1.TaintEffectNoSchedule}},
	})
	w.create(t, &v1alpha1.EdgeNode{
		ObjectMeta: metav1.ObjectMeta{Name: "placed-1"},
		Spec: v1alpha1.EdgeNodeSpec{
			Pool: "placed", Labels: map[string]string{"tier": "node"},
			Taints: []corev1.Taint{{Key: "camera", Effect: corev1.TaintEffectNoExecute}},
		},
	})
	w.phase(t, "placed-1", v1alpha1.NodeDeclared)
	_, kubelet, _ := w.joined(t, "placed", "placed-1")

	var node corev1.Node
	w.get(t, &node, "placed-1")
	wantLabels(t, &node, map[string]string{"tier": "node", "site": "north", v1alpha1.PoolLabel: "placed", corev1.LabelTopologyZone: "placed"})
	if node.Annotations["example.com/site"] != "north" {
		t.Errorf("annotations are %v", node.Annotations)
	}
	wantTaints(t, &node, "camera:NoExecute", "dedicated:NoSchedule")

	// What others put there stays.
	update(t, w, &node, "placed-1", func(n *corev1.Node) {
		n.Labels["foreign"] = "yes"
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "foreign", Effect: corev1.TaintEffectPreferNoSchedule})
		delete(n.Labels, "site")
		n.Labels["tier"] = "wrong"
		n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(taint corev1.Taint) bool { return taint.Key == "camera" })
	})
	// What was changed by hand is put back.
	eventually(t, "labels are put back", func() error {
		w.get(t, &node, "placed-1")
		if node.Labels["site"] != "north" || node.Labels["tier"] != "node" ||
			!slices.ContainsFunc(node.Spec.Taints, func(taint corev1.Taint) bool { return taint.Key == "camera" }) {
			return errNotYet
		}
		return nil
	})
	wantLabels(t, &node, map[string]string{"foreign": "yes"})
	wantTaints(t, &node, "camera:NoExecute", "dedicated:NoSchedule", "foreign:PreferNoSchedule")

	// What is declared no more goes; what was never ours does not.
	update(t, w, &v1alpha1.NodePool{}, "placed", func(p *v1alpha1.NodePool) {
		p.Spec.Labels = map[string]string{"new": "label"}
		p.Spec.Annotations = nil
		p.Spec.Taints = nil
	})
	eventually(t, "pool's labels change", func() error {
		w.get(t, &node, "placed-1")
		if node.Labels["new"] != "label" {
			return errNotYet
		}
		return nil
	})
	if _, there := node.Labels["site"]; there || node.Annotations["example.com/site"] != "" {
		t.Errorf("left behind: labels %v, annotations %v", node.Labels, node.Annotations)
	}
	wantLabels(t, &node, map[string]string{"foreign": "yes", "tier": "node", "kubernetes.io/hostname": "placed-1"})
	wantTaints(t, &node, "camera:NoExecute", "foreign:PreferNoSchedule")

	// The status tells what was seen.
	edge := w.phase(t, "placed-1", v1alpha1.NodeReady)
	if !edge.Status.Connected || edge.Status.Architecture != "amd64" || edge.Status.KubeletVersion != "v1.36.3" || edge.Status.LastConnected == nil {
		t.Errorf("status is %+v", edge.Status)
	}
	for _, condition := range []string{v1alpha1.ConditionEnrolled, v1alpha1.ConditionPlaced, v1alpha1.ConditionReady, v1alpha1.ConditionConnected} {
		if !meta.IsStatusConditionTrue(edge.Status.Conditions, condition) {
			t.Errorf("condition %s is not true: %v", condition, edge.Status.Conditions)
		}
	}
	w.report(t, kubelet, "placed-1", false)
	w.phase(t, "placed-1", v1alpha1.NodeNotReady)

	// A value that no label can have is told, not tried for ever.
	update(t, w, &v1alpha1.NodePool{}, "placed", func(p *v1alpha1.NodePool) { p.Spec.Labels = map[string]string{"bad": "a b"} })
	eventually(t, "bad label is told", func() error {
		w.get(t, edge, "placed-1")
		placed := meta.FindStatusCondition(edge.Status.Conditions, v1alpha1.ConditionPlaced)
		if placed == nil || placed.Reason != "Rejected" {
			return fmt.Errorf("condition is %+v", placed)
		}
		return nil
	})
}

func wantLabels(t *testing.T, node *corev1.Node, want map[string]string) {
	t.Helper()
	for key, value := range want {
		if node.Labels[key] != value {
			t.Errorf("label %s is %q, want %q", key, node.Labels[key], value)
		}
	}
}

// wantTaints compares but for the order and the not-ready taint of admission.
func wantTaints(t *testing.T, node *corev1.Node, want ...string) {
	t.Helper()
	var got []string
	for _, taint := range node.Spec.Taints {
		if taint.Key != corev1.TaintNodeNotReady {
			got = append(got, taint.Key+":"+string(taint.Effect))
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("taints are %v, want %v", got, want)
	}
}

func TestSessionEndsAndBegins(t *testing.T) {
	w := real(t)
	w.joined(t, "session", "session-1")
	connected := func(want bool) {
		t.Helper()
		eventually(t, "session is told", func() error {
			var node v1alpha1.EdgeNode
			w.get(t, &node, "session-1")
			if node.Status.Connected != want {
				return fmt.Errorf("connected %v", node.Status.Connected)
			}
			return nil
		})
	}
	connected(true)
	w.pastGrace(t)
	w.sessions.set("session-1", false)
	connected(false)
	w.sessions.set("session-1", true)
	connected(true)
}

func TestPoolStatus(t *testing.T) {
	w := real(t)
	w.joined(t, "counted", "counted-2")
	w.joined(t, "counted", "counted-1")
	w.create(t, &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "counted-3"}, Spec: v1alpha1.EdgeNodeSpec{Pool: "counted"}})
	var node corev1.Node
	update(t, w, &node, "counted-1", func(n *corev1.Node) { n.Spec.PodCIDR, n.Spec.PodCIDRs = "10.96.9.0/24", []string{"10.96.9.0/24"} })
	eventually(t, "pool counts", func() error {
		var pool v1alpha1.NodePool
		w.get(t, &pool, "counted")
		s := pool.Status
		if s.Nodes != 3 || s.ReadyNodes != 2 || s.CutNodes != 0 || len(s.Members) != 2 {
			return fmt.Errorf("status is %+v", s)
		}
		if s.Members[0].Name != "counted-1" || !slices.Equal(s.Members[0].PodCIDRs, []string{"10.96.9.0/24"}) ||
			!slices.Equal(s.Members[0].Addresses, []string{"192.168.1.11"}) || s.Members[1].Name != "counted-2" {
			return fmt.Errorf("members are %+v", s.Members)
		}
		return nil
	})
}

func TestPoolDeletionWaitsForNodes(t *testing.T) {
	w := real(t)
	for _, name := range []string{"doomed-1", "doomed-2"} {
		w.joined(t, "doomed", name)
	}
	w.delete(t, &v1alpha1.NodePool{ObjectMeta: metav1.ObjectMeta{Name: "doomed"}})
	wantCondition := func(status metav1.ConditionStatus, reason, message string) {
		t.Helper()
		eventually(t, "pool says what it waits for", func() error {
			var pool v1alpha1.NodePool
			if err := w.admin.Get(t.Context(), objectKey("doomed"), &pool); err != nil {
				return err
			}
			condition := meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.ConditionPoolDeleting)
			if condition == nil || condition.Status != status || condition.Reason != reason || condition.Message != message {
				return fmt.Errorf("condition is %+v", condition)
			}
			return nil
		})
	}
	wantCondition(metav1.ConditionFalse, "NodesRemain", "these nodes are still declared: doomed-1, doomed-2")
	// A pool that is being deleted takes nobody in.
	wantRefusal(t, newDevice(t).join(t, w, w.mint(t, enroll.MintOptions{Pool: "doomed"}), "doomed-3"), enroll.CodePoolUnknown)
	w.delete(t, &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "doomed-1"}})
	wantCondition(metav1.ConditionFalse, "NodesRemain", "these nodes are still declared: doomed-2")
	w.delete(t, &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "doomed-2"}})
	eventually(t, "pool goes with its last node", func() error { return w.gone(t.Context(), &v1alpha1.NodePool{}, "doomed") })
	if err := w.gone(t.Context(), &v1alpha1.EdgeNode{}, "doomed-2"); err != nil {
		t.Error(err)
	}
}

// What a node says of itself is on both of its objects, and stays while it is
// silent.
func TestNodeSaysWhetherItIsAutonomous(t *testing.T) {
	w := real(t)
	w.joined(t, "says", "says-1")
	says := func(want metav1.ConditionStatus, reason string, onNode bool) {
		t.Helper()
		eventually(t, "condition "+reason, func() error {
			var edge v1alpha1.EdgeNode
			w.get(t, &edge, "says-1")
			c := meta.FindStatusCondition(edge.Status.Conditions, v1alpha1.ConditionAutonomy)
			if c == nil || c.Status != want || c.Reason != reason {
				return fmt.Errorf("condition %+v", c)
			}
			var node corev1.Node
			w.get(t, &node, "says-1")
			found := false
			for _, n := range node.Status.Conditions {
				if n.Type != v1alpha1.ConditionAutonomy {
					continue
				}
				found = true
				if string(n.Status) != string(want) || n.Reason != reason || n.Message != c.Message {
					return fmt.Errorf("the Node's condition is %+v", n)
				}
			}
			if found != onNode {
				return fmt.Errorf("on the Node: %v", found)
			}
			if ready := slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
				return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
			}); !ready {
				return errors.New("the kubelet's conditions are gone")
			}
			return nil
		})
	}
	says(metav1.ConditionUnknown, v1alpha1.ReasonNotReported, false)
	w.reports.Set("says-1", tunnel.Heartbeat{Autonomy: &tunnel.Autonomy{Faults: []tunnel.Fault{{Reason: v1alpha1.ReasonCacheIncomplete, Message: "secrets"}}}})
	says(metav1.ConditionFalse, v1alpha1.ReasonCacheIncomplete, true)
	w.reports.Set("says-1", tunnel.Heartbeat{Autonomy: &tunnel.Autonomy{}})
	says(metav1.ConditionTrue, v1alpha1.ReasonAutonomous, true)
	w.reports.Forget("says-1") // as after a restart
	w.sessions.Notify("says-1")
	says(metav1.ConditionTrue, v1alpha1.ReasonAutonomous, true)
}
