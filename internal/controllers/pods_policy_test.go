//go:build linux

package controllers_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// outageTolerations are what a pod tolerates of an outage, by taint; nil is for
// ever.
func outageTolerations(pod *corev1.Pod) map[string][]*int64 {
	out := map[string][]*int64{}
	for _, t := range pod.Spec.Tolerations {
		if t.Key == corev1.TaintNodeUnreachable || t.Key == corev1.TaintNodeNotReady {
			out[t.Key] = append(out[t.Key], t.TolerationSeconds)
		}
	}
	return out
}

func tolerates(seconds *int64) map[string][]*int64 {
	return map[string][]*int64{corev1.TaintNodeUnreachable: {seconds}, corev1.TaintNodeNotReady: {seconds}}
}

func inPool(pool string) map[string]string { return map[string]string{v1alpha1.PoolLabel: pool} }

// requires is an affinity of alternatives.
func requires(terms ...corev1.NodeSelectorTerm) *corev1.Affinity {
	return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms},
	}}
}

func poolTerm(operator corev1.NodeSelectorOperator, pools ...string) corev1.NodeSelectorTerm {
	return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: v1alpha1.PoolLabel, Operator: operator, Values: pools}}}
}

func nodeTerm(names ...string) corev1.NodeSelectorTerm {
	return corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: names}}}
}

func plainPod(name string, spec corev1.PodSpec) *corev1.Pod {
	if spec.Containers == nil {
		spec.Containers = []corev1.Container{{Name: "c", Image: "example.test/app:1", ImagePullPolicy: corev1.PullAlways}}
	}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name}, Spec: spec}
}

// admitted is the pod as the apiserver would have it.
func (w *world) admitted(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	pod = pod.DeepCopy()
	if err := w.admin.Create(t.Context(), pod, client.DryRunAll); err != nil {
		t.Fatalf("create: %v", err)
	}
	return pod
}

func (w *world) places(t *testing.T, want func(data map[string]string) error) {
	t.Helper()
	eventually(t, "places", func() error {
		var configMap corev1.ConfigMap
		if err := w.admin.Get(t.Context(), client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.PlacesConfigMap}, &configMap); err != nil {
			return err
		}
		return want(configMap.Data)
	})
}

func TestPodsThatOnlyLandOnEdgeNodes(t *testing.T) {
	w := real(t)
	w.pool(t, "only-edge", v1alpha1.NodePoolSpec{})
	w.pool(t, "only-cloud", v1alpha1.NodePoolSpec{Type: v1alpha1.PoolCloud})
	w.pool(t, "only-kept", v1alpha1.NodePoolSpec{Autonomy: &v1alpha1.AutonomySpec{ImagePullPolicy: v1alpha1.PullAsDeclared}})
	for name, pool := range map[string]string{"only-edge-1": "only-edge", "only-cloud-1": "only-cloud"} {
		w.create(t, &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.EdgeNodeSpec{Pool: pool}})
	}
	w.places(t, func(data map[string]string) error {
		got := map[string]string{}
		for _, key := range []string{"pool.only-edge", "pool.only-cloud", "pool.only-kept", "node.only-edge-1", "node.only-cloud-1"} {
			if value, ok := data[key]; ok {
				got[key] = value
			}
		}
		want := map[string]string{"pool.only-cloud": "cloud", "pool.only-kept": "as-declared", "node.only-edge-1": "only-edge"}
		if d := cmp.Diff(want, got); d != "" {
			return errors.New(d)
		}
		return nil
	})
	// The policy follows the ConfigMap by a watch of its own.
	eventually(t, "policy", func() error {
		if got := outageTolerations(w.admitted(t, plainPod("probe", corev1.PodSpec{NodeSelector: inPool("only-cloud")}))); !cmp.Equal(got, tolerates(ptr.To[int64](300))) {
			return fmt.Errorf("a cloud pool's pod tolerates %v", got)
		}
		if got := outageTolerations(w.admitted(t, plainPod("probe", corev1.PodSpec{NodeName: "only-edge-1"}))); !cmp.Equal(got, tolerates(nil)) {
			return fmt.Errorf("a pod of an edge node tolerates %v", got)
		}
		if got := w.admitted(t, plainPod("probe", corev1.PodSpec{NodeSelector: inPool("only-kept")})); got.Spec.Containers[0].ImagePullPolicy != corev1.PullAlways {
			return errors.New("pull policy of a pool that keeps them was changed")
		}
		return nil
	})

	for _, tc := range []struct {
		name string
		spec corev1.PodSpec
		// edge: tolerates outages for ever. pulls: keeps "Always".
		edge, pulls bool
	}{
		{"no restriction", corev1.PodSpec{}, false, true},
		{"another label", corev1.PodSpec{NodeSelector: map[string]string{"example.com/site": "x"}}, false, true},
		{"pool", corev1.PodSpec{NodeSelector: inPool("only-edge")}, true, false},
		{"pool that is not known yet", corev1.PodSpec{NodeSelector: inPool("only-tomorrow")}, true, false},
		{"cloud pool", corev1.PodSpec{NodeSelector: inPool("only-cloud")}, false, true},
		{"pool that keeps pull policies", corev1.PodSpec{NodeSelector: inPool("only-kept")}, true, true},
		{"hostname", corev1.PodSpec{NodeSelector: map[string]string{corev1.LabelHostname: "only-edge-1"}}, true, false},
		{"hostname of no edge node", corev1.PodSpec{NodeSelector: map[string]string{corev1.LabelHostname: "only-cloud-1"}}, false, true},
		{"bound by name", corev1.PodSpec{NodeName: "only-edge-1"}, true, false},
		{"bound by name elsewhere", corev1.PodSpec{NodeName: "only-cloud-1"}, false, true},
		{"affinity", corev1.PodSpec{Affinity: requires(poolTerm(corev1.NodeSelectorOpIn, "only-edge"))}, true, false},
		{"two edge pools", corev1.PodSpec{Affinity: requires(poolTerm(corev1.NodeSelectorOpIn, "only-edge", "only-kept"))}, true, true},
		{"edge or cloud", corev1.PodSpec{Affinity: requires(poolTerm(corev1.NodeSelectorOpIn, "only-edge", "only-cloud"))}, false, true},
		{"edge or anything", corev1.PodSpec{Affinity: requires(poolTerm(corev1.NodeSelectorOpIn, "only-edge"),
			corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "example.com/a", Operator: corev1.NodeSelectorOpExists}}})}, false, true},
		{"not a pool", corev1.PodSpec{Affinity: requires(poolTerm(corev1.NodeSelectorOpNotIn, "only-cloud"))}, false, true},
		{"alternatives", corev1.PodSpec{Affinity: requires(poolTerm(corev1.NodeSelectorOpIn, "only-edge"), nodeTerm("only-edge-1"))}, true, false},
		{"as a DaemonSet's pod", corev1.PodSpec{Affinity: requires(nodeTerm("only-edge-1"))}, true, false},
		{"as a DaemonSet's pod elsewhere", corev1.PodSpec{Affinity: requires(nodeTerm("only-cloud-1"))}, false, true},
		{"preferred only", corev1.PodSpec{Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 1, Preference: poolTerm(corev1.NodeSelectorOpIn, "only-edge")}}}}}, false, true},
		{"selector and a wide affinity", corev1.PodSpec{NodeSelector: inPool("only-edge"), Affinity: requires(poolTerm(corev1.NodeSelectorOpExists))}, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := w.admitted(t, plainPod("only", tc.spec))
			want := tolerates(ptr.To[int64](300))
			if tc.edge {
				want = tolerates(nil)
			}
			if d := cmp.Diff(want, outageTolerations(got)); d != "" {
				t.Error("tolerations:", d)
			}
			policy := corev1.PullIfNotPresent
			if tc.pulls {
				policy = corev1.PullAlways
			}
			if got := got.Spec.Containers[0].ImagePullPolicy; got != policy {
				t.Errorf("pull policy %s, want %s", got, policy)
			}
		})
	}

	t.Run("what was declared stays", func(t *testing.T) {
		short := []corev1.Toleration{
			{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](30)},
			{Key: "example.com/gpu", Operator: corev1.TolerationOpEqual, Value: "a", Effect: corev1.TaintEffectNoSchedule},
		}
		got := w.admitted(t, plainPod("only", corev1.PodSpec{NodeSelector: inPool("only-edge"), Tolerations: short}))
		want := append(slices.Clone(short), corev1.Toleration{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})
		if d := cmp.Diff(want, got.Spec.Tolerations); d != "" {
			t.Error(d)
		}
		all := []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		got = w.admitted(t, plainPod("only", corev1.PodSpec{NodeSelector: inPool("only-edge"), Tolerations: all}))
		if d := cmp.Diff(all, got.Spec.Tolerations); d != "" {
			t.Error("tolerates everything:", d)
		}
	})

	t.Run("every container and image volume", func(t *testing.T) {
		got := w.admitted(t, plainPod("only", corev1.PodSpec{
			NodeSelector:   inPool("only-edge"),
			InitContainers: []corev1.Container{{Name: "i", Image: "example.test/i:latest"}, {Name: "n", Image: "example.test/i:1", ImagePullPolicy: corev1.PullNever}},
			Containers:     []corev1.Container{{Name: "a", Image: "example.test/a:1"}, {Name: "b", Image: "example.test/b", ImagePullPolicy: corev1.PullAlways}},
			Volumes:        []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "example.test/v:1", PullPolicy: corev1.PullAlways}}}},
		}))
		var policies []corev1.PullPolicy
		for _, c := range append(slices.Clone(got.Spec.InitContainers), got.Spec.Containers...) {
			policies = append(policies, c.ImagePullPolicy)
		}
		policies = append(policies, got.Spec.Volumes[0].Image.PullPolicy)
		want := []corev1.PullPolicy{corev1.PullIfNotPresent, corev1.PullNever, corev1.PullIfNotPresent, corev1.PullIfNotPresent, corev1.PullIfNotPresent}
		if d := cmp.Diff(want, policies); d != "" {
			t.Error(d)
		}
	})

	t.Run("a mirror pod is left alone", func(t *testing.T) {
		pod := plainPod("only", corev1.PodSpec{NodeSelector: inPool("only-edge"), NodeName: "only-edge-1"})
		pod.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
		got := w.admitted(t, pod)
		if d := cmp.Diff(tolerates(ptr.To[int64](300)), outageTolerations(got)); d != "" || got.Spec.Containers[0].ImagePullPolicy != corev1.PullAlways {
			t.Error(d, got.Spec.Containers[0].ImagePullPolicy)
		}
	})
}

// Whoever changes a pod after the policy has it looked at again; what was done
// already is not done twice.
func TestPodsPolicyIsIdempotent(t *testing.T) {
	w := real(t)
	w.pool(t, "twice", v1alpha1.NodePoolSpec{})
	// It adds a sidecar and a label, after which the apiserver invokes every policy
	// that asks for it once more. Names sort after ours, so it comes after it.
	policy := &admissionv1.MutatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "zz-sidecar"},
		Spec: admissionv1.MutatingAdmissionPolicySpec{
			FailurePolicy: ptr.To(admissionv1.Fail), ReinvocationPolicy: admissionv1.IfNeededReinvocationPolicy,
			MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}}}},
			MatchConditions: []admissionv1.MatchCondition{{Name: "once", Expression: `object.metadata.name == "twice" && object.spec.containers.size() == 1`}},
			Mutations: []admissionv1.Mutation{{PatchType: admissionv1.PatchTypeJSONPatch, JSONPatch: &admissionv1.JSONPatch{Expression: `[
				JSONPatch{op: "add", path: "/spec/containers/-", value: Object.spec.containers{name: "side", image: "example.test/side:1", imagePullPolicy: "Always", terminationMessagePath: "/dev/termination-log", terminationMessagePolicy: "File"}},
				JSONPatch{op: "add", path: "/spec/tolerations/-", value: Object.spec.tolerations{key: "example.com/side", operator: "Exists", effect: "NoExecute"}}]`}}},
		},
	}
	w.create(t, policy)
	t.Cleanup(func() { w.cleanup(t, policy) })
	binding := &admissionv1.MutatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "zz-sidecar"}, Spec: admissionv1.MutatingAdmissionPolicyBindingSpec{PolicyName: "zz-sidecar"}}
	w.create(t, binding)
	t.Cleanup(func() { w.cleanup(t, binding) })
	var pod *corev1.Pod
	eventually(t, "the other policy is in force", func() error {
		if pod = w.admitted(t, plainPod("twice", corev1.PodSpec{NodeSelector: inPool("twice")})); len(pod.Spec.Containers) != 2 {
			return errNotYet
		}
		return nil
	})
	if d := cmp.Diff(tolerates(nil), outageTolerations(pod)); d != "" || len(pod.Spec.Tolerations) != 3 {
		t.Error(d, pod.Spec.Tolerations)
	}
	for _, c := range pod.Spec.Containers {
		if c.ImagePullPolicy != corev1.PullIfNotPresent {
			t.Errorf("container %s is pulled %s", c.Name, c.ImagePullPolicy)
		}
	}
}
