//go:build linux

package controllers_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/controllers"
	"github.com/edgewright/terraform-provider-edge/internal/controllers/apitest"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// monitorGrace is what the node lifecycle controller of these tests waits for a
// node's lease, in place of 50 s.
const monitorGrace = 4 * time.Second

// judged returns the control plane whose node lifecycle controller runs.
func judged(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real control plane; run without -short")
	}
	monitored.once.Do(func() {
		monitored.world, monitored.stop, monitored.err = startWorld(apitest.Options{
			Controllers: []string{"node-lifecycle-controller", "taint-eviction-controller", "endpointslice-controller", "daemonset-controller"},
			ControllerManager: []string{
				"--node-monitor-grace-period=" + monitorGrace.String(), "--node-monitor-period=500ms",
				"--node-startup-grace-period=" + monitorGrace.String(),
				// Evictions one after the other would only make the tests longer.
				"--node-eviction-rate=100", "--secondary-node-eviction-rate=100", "--large-cluster-size-threshold=0",
			},
		})
	})
	if monitored.err != nil {
		t.Fatal(monitored.err)
	}
	monitored.world.alive(t)
	return monitored.world
}

// living is a node whose session and kubelet live until they are told not to.
type living struct {
	name string
	stop func()
}

// heartbeats keeps a node's lease as the control plane does: by what its agent
// says. What it returns ends that, as the loss of its session does.
func (w *world) heartbeats(t *testing.T, name string) *living {
	t.Helper()
	keeper, err := controllers.NewLeaseKeeper(controllers.LeaseKeeperConfig{RESTConfig: w.gateway, Logger: w.logger, Clock: &skippingClock{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = keeper.Run(ctx) })
	wg.Go(func() {
		ticker := time.NewTicker(monitorGrace / 8)
		defer ticker.Stop()
		for {
			keeper.Beat(name, tunnel.Heartbeat{}.WithKubeletAge(0))
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
	l := &living{name: name, stop: sync.OnceFunc(func() { cancel(); wg.Wait() })}
	t.Cleanup(l.stop)
	return l
}

// skippingClock makes every look at it ten seconds later than the last, so that a
// lease is renewed at every heartbeat, however short the test's are.
type skippingClock struct {
	mu   sync.Mutex
	skip time.Duration // guarded by mu
}

func (c *skippingClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.skip += 10 * time.Second
	return time.Now().Add(c.skip)
}

func (c *skippingClock) Since(at time.Time) time.Duration { return c.Now().Sub(at) }

// runningOn binds a pod to a node and reports it as its kubelet does.
func (w *world) runningOn(t *testing.T, node string, pod *corev1.Pod) types.UID {
	t.Helper()
	w.create(t, pod)
	t.Cleanup(func() {
		err := w.admin.Delete(context.WithoutCancel(t.Context()), pod, client.GracePeriodSeconds(0))
		if client.IgnoreNotFound(err) != nil {
			t.Errorf("clean up %s: %v", pod.Name, err)
		}
	})
	if pod.Spec.NodeName == "" {
		binding := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: node}}
		if err := w.admin.SubResource("binding").Create(t.Context(), pod, binding); err != nil {
			t.Fatalf("bind %s: %v", pod.Name, err)
		}
	}
	w.reportPod(t, pod.Name, corev1.ConditionTrue)
	return pod.UID
}

// reportPod writes a pod's Ready condition as its kubelet does.
func (w *world) reportPod(t *testing.T, name string, ready corev1.ConditionStatus) {
	t.Helper()
	eventually(t, "report "+name, func() error {
		var pod corev1.Pod
		if err := w.admin.Get(t.Context(), client.ObjectKey{Namespace: metav1.NamespaceDefault, Name: name}, &pod); err != nil {
			return err
		}
		pod.Status.Phase, pod.Status.PodIP = corev1.PodRunning, "10.96.7.7"
		pod.Status.PodIPs = []corev1.PodIP{{IP: "10.96.7.7"}}
		pod.Status.Conditions = []corev1.PodCondition{
			{Type: corev1.PodInitialized, Status: corev1.ConditionTrue},
			{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.Now()},
			{Type: corev1.ContainersReady, Status: ready},
		}
		return w.admin.Status().Update(t.Context(), &pod)
	})
}

func (w *world) pod(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	var pod corev1.Pod
	w.get(t, &pod, "default/"+name)
	return &pod
}

func podReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// untouched fails the test unless a pod is the same, not deleted and Ready.
func (w *world) untouched(t *testing.T, name string, uid types.UID) {
	t.Helper()
	pod := w.pod(t, name)
	if pod.UID != uid || pod.DeletionTimestamp != nil || !podReady(pod) {
		t.Errorf("pod %s: uid %s (was %s), deleted %v, ready %v", name, pod.UID, uid, pod.DeletionTimestamp, podReady(pod))
	}
}

// lose ends the sessions of nodes and, with the time that their agents have to come
// back, makes them cut. Where that is all of their pool, their pods are kept Ready.
// Their leases grow old after that only: on a busy machine the few seconds that
// stand for 50 s here are short.
func (w *world) lose(t *testing.T, wholePool bool, nodes ...*living) {
	t.Helper()
	for _, node := range nodes {
		w.sessions.set(node.name, false)
	}
	for _, node := range nodes {
		eventually(t, "session of "+node.name+" ends", func() error {
			var edge v1alpha1.EdgeNode
			w.get(t, &edge, node.name)
			if edge.Status.Connected {
				return errNotYet
			}
			return nil
		})
	}
	w.clock.offset.Add(int64(21 * time.Second))
	w.lookAgain(t)
	for _, node := range nodes {
		w.sessions.Notify(node.name)
		w.cut(t, node.name, true)
		w.kept(t, node.name, wholePool)
	}
	for _, node := range nodes {
		node.stop()
	}
}

// lookAgain makes the controllers that look at all pools do so: a clock that was put
// forward wakes nobody.
func (w *world) lookAgain(t *testing.T) {
	t.Helper()
	const name = "look-again"
	pool := &v1alpha1.NodePool{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := w.admin.Create(t.Context(), pool); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	update(t, w, pool, name, func(p *v1alpha1.NodePool) {
		p.Spec.Annotations = map[string]string{"example.com/at": time.Now().String()}
	})
}

// cut waits until a node counts as cut, or no longer does, everywhere.
func (w *world) cut(t *testing.T, name string, want bool) *v1alpha1.EdgeNode {
	t.Helper()
	var edge v1alpha1.EdgeNode
	eventually(t, "cut of "+name, func() error {
		w.get(t, &edge, name)
		var node corev1.Node
		w.get(t, &node, name)
		label, labelled := node.Labels[v1alpha1.CutLabel]
		if (edge.Status.CutSince != nil) != want || labelled != want || (want && label != "true") {
			return fmt.Errorf("cut since %v, label %q", edge.Status.CutSince, label)
		}
		return nil
	})
	return &edge
}

// unreachable waits until the node lifecycle controller has given a node up.
func (w *world) unreachable(t *testing.T, name string) {
	t.Helper()
	eventually(t, "node "+name+" is given up", func() error {
		var node corev1.Node
		w.get(t, &node, name)
		for _, taint := range node.Spec.Taints {
			if taint.Key == corev1.TaintNodeUnreachable && taint.Effect == corev1.TaintEffectNoExecute {
				return nil
			}
		}
		return fmt.Errorf("taints %v", node.Spec.Taints)
	})
}

// marked waits until the node lifecycle controller has written that a pod is not
// Ready: its event follows.
func (w *world) marked(t *testing.T, pod string) {
	t.Helper()
	eventually(t, "pod "+pod+" is marked", func() error {
		events, err := w.kube.CoreV1().Events(metav1.NamespaceDefault).List(t.Context(), metav1.ListOptions{
			FieldSelector: "involvedObject.kind=Pod,reason=NodeNotReady,involvedObject.name=" + pod,
		})
		if err != nil {
			return err
		}
		if len(events.Items) == 0 {
			return errNotYet
		}
		return nil
	})
}

// kept waits until the policy knows that a node's pods stay Ready, or no longer.
func (w *world) kept(t *testing.T, name string, want bool) {
	t.Helper()
	eventually(t, "kept "+name, func() error {
		var configMap corev1.ConfigMap
		w.get(t, &configMap, v1alpha1.SystemNamespace+"/"+v1alpha1.KeptReadyConfigMap)
		if _, is := configMap.Data[name]; is != want {
			return fmt.Errorf("kept: %v", configMap.Data)
		}
		return nil
	})
}

// otherZone is a node that lives as long as the test: a cluster all of whose zones
// are gone evicts nothing at all.
func (w *world) otherZone(t *testing.T, prefix string) *living {
	t.Helper()
	w.joined(t, prefix+"-other", prefix+"-other-1")
	return w.heartbeats(t, prefix+"-other-1")
}

// endpoint waits until a Service's only endpoint is ready, or is not.
func (w *world) endpoint(t *testing.T, service string, want bool) {
	t.Helper()
	eventually(t, "endpoint of "+service, func() error {
		var slices discoveryv1.EndpointSliceList
		if err := w.admin.List(t.Context(), &slices, client.InNamespace(metav1.NamespaceDefault), client.MatchingLabels{discoveryv1.LabelServiceName: service}); err != nil {
			return err
		}
		for _, slice := range slices.Items {
			for _, endpoint := range slice.Endpoints {
				if ptr.Deref(endpoint.Conditions.Ready, false) == want {
					return nil
				}
			}
		}
		return errNotYet
	})
}

// daemonPod waits for the only pod of a DaemonSet.
func (w *world) daemonPod(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	var pods corev1.PodList
	eventually(t, "pod of DaemonSet "+name, func() error {
		if err := w.admin.List(t.Context(), &pods, client.InNamespace(metav1.NamespaceDefault), client.MatchingLabels{"app": name}); err != nil {
			return err
		}
		if len(pods.Items) != 1 {
			return fmt.Errorf("%d pods", len(pods.Items))
		}
		return nil
	})
	return &pods.Items[0]
}

// withoutPolicy takes the policy for pods out of force for a test.
func (w *world) withoutPolicy(t *testing.T) {
	t.Helper()
	binding := &admissionv1.MutatingAdmissionPolicyBinding{}
	w.get(t, binding, "edge-only-pods")
	saved := binding.DeepCopy()
	w.delete(t, binding)
	t.Cleanup(func() {
		saved.ResourceVersion, saved.UID = "", ""
		if err := w.admin.Create(context.WithoutCancel(t.Context()), saved); err != nil {
			t.Errorf("put the policy's binding back: %v", err)
		}
	})
	eventually(t, "policy is out of force", func() error {
		got := outageTolerations(w.admitted(t, plainPod("probe", corev1.PodSpec{NodeSelector: inPool("lifted")})))
		if got[corev1.TaintNodeUnreachable][0] == nil {
			return errNotYet
		}
		return nil
	})
}
