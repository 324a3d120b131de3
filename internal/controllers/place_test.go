package controllers

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

func taint(key, value string, effect corev1.TaintEffect) corev1.Taint {
	return corev1.Taint{Key: key, Value: value, Effect: effect}
}

func TestDesiredPlacement(t *testing.T) {
	pool := &v1alpha1.NodePool{
		ObjectMeta: metav1.ObjectMeta{Name: "berlin"},
		Spec: v1alpha1.NodePoolSpec{
			Labels:      map[string]string{"a": "pool", "b": "pool", v1alpha1.PoolLabel: "forged"},
			Annotations: map[string]string{"x": "y", v1alpha1.ManagedAnnotation: "forged"},
			Taints:      []corev1.Taint{taint("b", "pool", corev1.TaintEffectNoSchedule), taint("a", "", corev1.TaintEffectNoExecute), taint(v1alpha1.UnplacedTaint, "", corev1.TaintEffectNoSchedule)},
		},
	}
	node := &v1alpha1.EdgeNode{Spec: v1alpha1.EdgeNodeSpec{
		Labels: map[string]string{"a": "node", v1alpha1.PoolLabel: "forged"},
		Taints: []corev1.Taint{taint("b", "node", corev1.TaintEffectNoSchedule), taint("b", "other effect", corev1.TaintEffectNoExecute)},
	}}
	want := placement{
		labels:      map[string]string{"a": "node", "b": "pool", v1alpha1.PoolLabel: "berlin", corev1.LabelTopologyZone: "berlin"},
		annotations: map[string]string{"x": "y"},
		taints: []corev1.Taint{
			taint("a", "", corev1.TaintEffectNoExecute), taint("b", "other effect", corev1.TaintEffectNoExecute), taint("b", "node", corev1.TaintEffectNoSchedule),
		},
	}
	if diff := cmp.Diff(want, desiredPlacement(pool, node), cmp.AllowUnexported(placement{})); diff != "" {
		t.Error(diff)
	}
	// Whoever has zones of his own keeps them.
	node.Spec.Labels[corev1.LabelTopologyZone] = "eu-1"
	if got := desiredPlacement(pool, node).labels[corev1.LabelTopologyZone]; got != "eu-1" {
		t.Errorf("zone is %s", got)
	}
	if pool.Spec.Labels[v1alpha1.PoolLabel] != "forged" || pool.Spec.Annotations[v1alpha1.ManagedAnnotation] != "forged" {
		t.Error("the pool itself was changed")
	}
}

func TestApplyPlacement(t *testing.T) {
	since := metav1.NewTime(time.Unix(1000, 0))
	foreign := corev1.Taint{Key: "node.kubernetes.io/unreachable", Effect: corev1.TaintEffectNoExecute, TimeAdded: &since}
	kept := corev1.Taint{Key: "kept", Value: "old", Effect: corev1.TaintEffectNoExecute, TimeAdded: &since}
	wanted := placement{
		labels:      map[string]string{v1alpha1.PoolLabel: "berlin", "new": "1"},
		annotations: map[string]string{"note": "1"},
		taints:      []corev1.Taint{taint("kept", "new", corev1.TaintEffectNoExecute), taint("added", "", corev1.TaintEffectNoSchedule)},
	}
	const record = `{"labels":["edgewright.dev/pool","new"],"annotations":["note"],"taints":["kept:NoExecute","added:NoSchedule"]}`
	for _, c := range []struct {
		what       string
		node, want corev1.Node
	}{
		{
			"a fresh node",
			corev1.Node{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"kubernetes.io/os": "linux"}},
				Spec:       corev1.NodeSpec{Taints: []corev1.Taint{taint(v1alpha1.UnplacedTaint, "", corev1.TaintEffectNoSchedule), taint(v1alpha1.UnplacedTaint, "", corev1.TaintEffectNoExecute), foreign}},
			},
			corev1.Node{
				ObjectMeta: metav1.ObjectMeta{
					Labels:      map[string]string{"kubernetes.io/os": "linux", v1alpha1.PoolLabel: "berlin", "new": "1"},
					Annotations: map[string]string{"note": "1", v1alpha1.ManagedAnnotation: record},
				},
				Spec: corev1.NodeSpec{Taints: []corev1.Taint{foreign, taint("kept", "new", corev1.TaintEffectNoExecute), taint("added", "", corev1.TaintEffectNoSchedule)}},
			},
		},
		{
			"a node that was placed otherwise",
			corev1.Node{
				ObjectMeta: metav1.ObjectMeta{
					Labels: map[string]string{"foreign": "1", "old": "1", v1alpha1.PoolLabel: "berlin"},
					Annotations: map[string]string{"foreign": "1", "oldnote": "1",
						v1alpha1.ManagedAnnotation: `{"labels":["edgewright.dev/pool","old"],"annotations":["oldnote"],"taints":["kept:NoExecute","gone:NoSchedule"]}`},
				},
				Spec: corev1.NodeSpec{Taints: []corev1.Taint{foreign, kept, taint("gone", "", corev1.TaintEffectNoSchedule), taint("gone", "", corev1.TaintEffectNoExecute)}},
			},
			corev1.Node{
				ObjectMeta: metav1.ObjectMeta{
					Labels:      map[string]string{"foreign": "1", v1alpha1.PoolLabel: "berlin", "new": "1"},
					Annotations: map[string]string{"foreign": "1", "note": "1", v1alpha1.ManagedAnnotation: record},
				},
				Spec: corev1.NodeSpec{Taints: []corev1.Taint{foreign, {Key: "kept", Value: "new", Effect: corev1.TaintEffectNoExecute, TimeAdded: &since},
					taint("gone", "", corev1.TaintEffectNoExecute), taint("added", "", corev1.TaintEffectNoSchedule)}},
			},
		},
		{
			"a record that cannot be read removes nothing",
			corev1.Node{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"old": "1"}, Annotations: map[string]string{v1alpha1.ManagedAnnotation: "{"}},
				Spec:       corev1.NodeSpec{Taints: []corev1.Taint{taint("gone", "", corev1.TaintEffectNoSchedule)}},
			},
			corev1.Node{
				ObjectMeta: metav1.ObjectMeta{
					Labels:      map[string]string{"old": "1", v1alpha1.PoolLabel: "berlin", "new": "1"},
					Annotations: map[string]string{"note": "1", v1alpha1.ManagedAnnotation: record},
				},
				Spec: corev1.NodeSpec{Taints: []corev1.Taint{taint("gone", "", corev1.TaintEffectNoSchedule), taint("kept", "new", corev1.TaintEffectNoExecute), taint("added", "", corev1.TaintEffectNoSchedule)}},
			},
		},
	} {
		t.Run(c.what, func(t *testing.T) {
			node := c.node.DeepCopy()
			if err := applyPlacement(node, wanted); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, *node); diff != "" {
				t.Error(diff)
			}
			again := node.DeepCopy()
			if err := applyPlacement(again, wanted); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(node, again); diff != "" {
				t.Error("a second time changes it:", diff)
			}
			if !isPlaced(node, "berlin") || isPlaced(node, "tokyo") {
				t.Error("isPlaced is wrong")
			}
		})
	}
}

// Whatever a Node's annotation holds, placing it neither panics nor loses what
// is wanted.
func FuzzApplyPlacement(f *testing.F) {
	f.Add(`{"labels":["a"],"taints":["x:NoSchedule"]}`)
	f.Add(`[]`)
	f.Add(`{"labels":"a"}`)
	f.Fuzz(func(t *testing.T, record string) {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "1"}, Annotations: map[string]string{v1alpha1.ManagedAnnotation: record}}}
		wanted := placement{labels: map[string]string{v1alpha1.PoolLabel: "p"}, annotations: map[string]string{}}
		if err := applyPlacement(node, wanted); err != nil {
			t.Fatal(err)
		}
		if node.Labels[v1alpha1.PoolLabel] != "p" {
			t.Fatal("not placed")
		}
	})
}

func TestPoolStatusOf(t *testing.T) {
	node := func(name, pool string, ready corev1.ConditionStatus) *corev1.Node {
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1alpha1.PoolLabel: pool}},
			Status: corev1.NodeStatus{
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}},
				Addresses:  []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: "192.168.1.11"}},
			},
		}
	}
	edge := func(name, key string, connected bool) v1alpha1.EdgeNode {
		edge := v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.EdgeNodeStatus{Key: key, Connected: connected}}
		if key != "" && !connected {
			edge.Status.CutSince = &metav1.Time{Time: time.Unix(1e9, 0)}
		}
		return edge
	}
	unplaced := node("e", "p", corev1.ConditionTrue)
	unplaced.Spec.Taints = []corev1.Taint{taint(v1alpha1.UnplacedTaint, "", corev1.TaintEffectNoSchedule)}
	status := poolStatus(&v1alpha1.NodePool{ObjectMeta: metav1.ObjectMeta{Name: "p", Generation: 3}},
		[]v1alpha1.EdgeNode{edge("d", "", false), edge("c", "k", false), edge("b", "k", true), edge("a", "k", true), edge("e", "k", true), edge("f", "k", true)},
		map[string]*corev1.Node{
			"a": node("a", "p", corev1.ConditionTrue), "b": node("b", "p", corev1.ConditionUnknown), "c": node("c", "p", corev1.ConditionTrue),
			"e": unplaced, "f": node("f", "other", corev1.ConditionTrue),
		})
	want := v1alpha1.NodePoolStatus{ObservedGeneration: 3, Nodes: 6, ReadyNodes: 2, CutNodes: 1, Members: []v1alpha1.PoolMember{
		{Name: "a", Addresses: []string{"192.168.1.11"}}, {Name: "b", Addresses: []string{"192.168.1.11"}}, {Name: "c", Addresses: []string{"192.168.1.11"}},
	}}
	if diff := cmp.Diff(want, status); diff != "" {
		t.Error(diff)
	}
}
