//go:build linux

package controllers_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

func unitDeployment(name string, pools ...v1alpha1.UnitPool) *v1alpha1.UnitDeployment {
	return &v1alpha1.UnitDeployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: v1alpha1.UnitDeploymentSpec{
			Template: v1alpha1.UnitTemplate{Containers: []v1alpha1.UnitContainer{{
				Name: "web", Image: "agnhost:1", Env: map[string]string{"SITE": "none", "COMMON": "1"},
				Ports: []v1alpha1.UnitPort{{Name: "http", Port: 8080}},
			}}},
			Pools: pools,
		},
	}
}

// unit waits until the unit of a pool satisfies want.
func (w *world) unit(t *testing.T, name, pool string, want func(v1alpha1.UnitStatus) bool) {
	t.Helper()
	eventually(t, "unit "+name+" in "+pool, func() error {
		var ud v1alpha1.UnitDeployment
		if err := w.admin.Get(t.Context(), objectKey("default/"+name), &ud); err != nil {
			return err
		}
		at := slices.IndexFunc(ud.Status.Pools, func(u v1alpha1.UnitStatus) bool { return u.Name == pool })
		if at < 0 || ud.Status.ObservedGeneration != ud.Generation || !want(ud.Status.Pools[at]) {
			return fmt.Errorf("status is %+v", ud.Status)
		}
		return nil
	})
}

func (w *world) condition(t *testing.T, name, condition string, status metav1.ConditionStatus, part string) {
	t.Helper()
	eventually(t, "condition "+condition+" of "+name, func() error {
		var ud v1alpha1.UnitDeployment
		if err := w.admin.Get(t.Context(), objectKey("default/"+name), &ud); err != nil {
			return err
		}
		have := meta.FindStatusCondition(ud.Status.Conditions, condition)
		if have == nil || have.Status != status || have.ObservedGeneration != ud.Generation || !strings.Contains(have.Message, part) {
			return fmt.Errorf("status is %+v", ud.Status)
		}
		return nil
	})
}

// podsOf waits for n pods of a workload's present template.
func (w *world) podsOf(t *testing.T, workload string, n int) []corev1.Pod {
	t.Helper()
	var pods []corev1.Pod
	eventually(t, "pods of "+workload, func() error {
		var deployment appsv1.Deployment
		if err := w.admin.Get(t.Context(), objectKey("default/"+workload), &deployment); err != nil {
			return err
		}
		var list corev1.PodList
		if err := w.admin.List(t.Context(), &list, client.InNamespace("default"), client.MatchingLabels(deployment.Spec.Selector.MatchLabels)); err != nil {
			return err
		}
		pods = slices.DeleteFunc(list.Items, func(p corev1.Pod) bool {
			return p.Spec.Containers[0].Image != deployment.Spec.Template.Spec.Containers[0].Image || p.DeletionTimestamp != nil
		})
		if len(pods) != n {
			return fmt.Errorf("%d pods, want %d", len(pods), n)
		}
		return nil
	})
	return pods
}

// start reports pods as running and ready, as a kubelet does.
func (w *world) start(t *testing.T, pods []corev1.Pod) {
	t.Helper()
	for i := range pods {
		w.podStatus(t, pods[i].Name, func(s *corev1.PodStatus) {
			s.Phase = corev1.PodRunning
			s.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Now())}}
			s.ContainerStatuses = []corev1.ContainerStatus{{Name: "web", Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
		})
	}
}

func (w *world) podStatus(t *testing.T, name string, edit func(*corev1.PodStatus)) {
	t.Helper()
	eventually(t, "status of pod "+name, func() error {
		var pod corev1.Pod
		if err := w.admin.Get(t.Context(), objectKey("default/"+name), &pod); err != nil {
			return err
		}
		edit(&pod.Status)
		return w.admin.Status().Update(t.Context(), &pod)
	})
}

func TestUnits(t *testing.T) {
	w := real(t)
	w.joined(t, "u-berlin", "u-berlin-1")
	w.joined(t, "u-tokyo", "u-tokyo-1")
	ud := unitDeployment("u-web",
		v1alpha1.UnitPool{Name: "u-berlin", Replicas: ptr.To[int32](2), Env: map[string]string{"SITE": "berlin"}},
		v1alpha1.UnitPool{Name: "u-tokyo", Containers: []v1alpha1.ContainerOverride{{
			Name: "web", Image: "agnhost:2", Env: map[string]string{"SITE": "tokyo"},
		}}},
	)
	ud.Spec.Service = &v1alpha1.UnitService{Ports: []v1alpha1.UnitServicePort{{Name: "http", Port: 80, TargetPort: "http"}}}
	started := time.Now()
	w.create(t, ud)
	berlin, tokyo := w.podsOf(t, "u-web-u-berlin", 2), w.podsOf(t, "u-web-u-tokyo", 1)
	t.Logf("pods after %s", time.Since(started))
	wantEnv(t, berlin[0], "COMMON=1 SITE=berlin")
	wantEnv(t, tokyo[0], "COMMON=1 SITE=tokyo")
	if berlin[0].Spec.NodeSelector[v1alpha1.PoolLabel] != "u-berlin" || tokyo[0].Spec.Containers[0].Image != "agnhost:2" {
		t.Errorf("pods are %+v, %+v", berlin[0].Spec, tokyo[0].Spec)
	}
	w.condition(t, "u-web", v1alpha1.ConditionUnitsReady, metav1.ConditionFalse, "waiting for u-berlin, u-tokyo")
	w.start(t, berlin)
	w.start(t, tokyo)
	w.condition(t, "u-web", v1alpha1.ConditionUnitsReady, metav1.ConditionTrue, "2 of 2 units are ready")

	var service corev1.Service
	w.get(t, &service, "default/u-web")
	if service.Spec.Ports[0].TargetPort != intstr.FromString("http") || service.Spec.Type != corev1.ServiceTypeClusterIP ||
		service.Spec.Selector[v1alpha1.UnitDeploymentLabel] != "u-web" || len(service.Spec.Selector) != 1 {
		t.Errorf("service is %+v", service.Spec)
	}

	// A drift of the workload is put back.
	var deployment appsv1.Deployment
	update(t, w, &deployment, "default/u-web-u-tokyo", func(d *appsv1.Deployment) { d.Spec.Replicas = ptr.To[int32](7) })
	eventually(t, "replicas are put back", func() error {
		w.get(t, &deployment, "default/u-web-u-tokyo")
		if *deployment.Spec.Replicas != 1 {
			return errNotYet
		}
		return nil
	})

	// Replicas and env change in place; the pool that did not change does not
	// roll; the service goes.
	w.get(t, &deployment, "default/u-web-u-tokyo")
	template := deployment.Spec.Template.DeepCopy()
	update(t, w, ud, "default/u-web", func(ud *v1alpha1.UnitDeployment) {
		ud.Spec.Pools[0].Replicas = ptr.To[int32](1)
		ud.Spec.Pools[0].Env["SITE"] = "berlin2"
		ud.Spec.Service = nil
	})
	eventually(t, "service goes", func() error { return w.gone(t.Context(), &corev1.Service{}, "default/u-web") })
	eventually(t, "env changes", func() error {
		w.get(t, &deployment, "default/u-web-u-berlin")
		if *deployment.Spec.Replicas != 1 || deployment.Spec.Template.Spec.Containers[0].Env[1].Value != "berlin2" {
			return errNotYet
		}
		return nil
	})
	w.get(t, &deployment, "default/u-web-u-tokyo")
	if diff := cmp.Diff(*template, deployment.Spec.Template); diff != "" {
		t.Error("the unit of another pool was changed", diff)
	}

	// A pool that is asked for no more loses its workload; deleting all of it
	// leaves nothing.
	update(t, w, ud, "default/u-web", func(ud *v1alpha1.UnitDeployment) { ud.Spec.Pools = ud.Spec.Pools[:1] })
	eventually(t, "workload goes", func() error { return w.gone(t.Context(), &appsv1.Deployment{}, "default/u-web-u-tokyo") })
	w.delete(t, ud)
	eventually(t, "the rest goes", func() error { return w.gone(t.Context(), &appsv1.Deployment{}, "default/u-web-u-berlin") })
}

func wantEnv(t *testing.T, pod corev1.Pod, want string) {
	t.Helper()
	var got []string
	for _, variable := range pod.Spec.Containers[0].Env {
		got = append(got, variable.Name+"="+variable.Value)
	}
	if strings.Join(got, " ") != want {
		t.Errorf("env is %v, want %s", got, want)
	}
}

func TestUnitFailsFast(t *testing.T) {
	w := real(t)
	w.joined(t, "f-pool", "f-1")
	w.create(t, unitDeployment("f-web", v1alpha1.UnitPool{Name: "f-pool"}))
	pod := w.podsOf(t, "f-web-f-pool", 1)[0]
	w.create(t, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: "default", GenerateName: "f-"},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: pod.Name, UID: pod.UID},
		Type:           corev1.EventTypeWarning, Reason: "Failed", Message: "pull access denied for agnhost",
		LastTimestamp: metav1.Now(),
	})
	w.podStatus(t, pod.Name, func(s *corev1.PodStatus) {
		s.ContainerStatuses = []corev1.ContainerStatus{{Name: "web", Image: "agnhost:1", State: corev1.ContainerState{
			Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: `Back-off pulling image "agnhost:1"`},
		}}}
	})
	w.condition(t, "f-web", v1alpha1.ConditionUnitsFailed, metav1.ConditionTrue, `ImagePullBackOff: Back-off pulling image "agnhost:1"; last event: pull access denied for agnhost`)

	// A better template is judged by its own pods.
	var ud v1alpha1.UnitDeployment
	update(t, w, &ud, "default/f-web", func(ud *v1alpha1.UnitDeployment) { ud.Spec.Template.Containers[0].Image = "agnhost:3" })
	w.condition(t, "f-web", v1alpha1.ConditionUnitsFailed, metav1.ConditionFalse, "")
	pod = w.podsOf(t, "f-web-f-pool", 1)[0]
	w.podStatus(t, pod.Name, func(s *corev1.PodStatus) {
		s.ContainerStatuses = []corev1.ContainerStatus{{
			Name: "web", RestartCount: 2,
			State:                corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 10s"}},
			LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 3, Reason: "Error", Message: "no config"}},
		}}
	})
	w.condition(t, "f-web", v1alpha1.ConditionUnitsFailed, metav1.ConditionTrue, "CrashLoopBackOff: exited with code 3: no config")
	w.start(t, []corev1.Pod{pod})
	w.condition(t, "f-web", v1alpha1.ConditionUnitsReady, metav1.ConditionTrue, "1 of 1")
}

func TestCutAndUnknownPools(t *testing.T) {
	w := real(t)
	w.joined(t, "c-there", "c-there-1")
	w.pool(t, "c-empty", v1alpha1.NodePoolSpec{})
	w.create(t, unitDeployment("c-web", v1alpha1.UnitPool{Name: "c-there"}, v1alpha1.UnitPool{Name: "c-empty"}))
	w.start(t, w.podsOf(t, "c-web-c-there", 1))
	w.unit(t, "c-web", "c-empty", func(u v1alpha1.UnitStatus) bool {
		return u.State == v1alpha1.UnitCut && strings.Contains(u.Message, "no node has joined") && u.Workload == "c-web-c-empty"
	})
	w.condition(t, "c-web", v1alpha1.ConditionUnitsReady, metav1.ConditionTrue, "1 of 2 units are ready; 1 cut")

	// The link of the other goes, too, and comes back.
	w.pastGrace(t)
	w.sessions.set("c-there-1", false)
	w.unit(t, "c-web", "c-there", func(u v1alpha1.UnitStatus) bool {
		return u.State == v1alpha1.UnitCut && strings.Contains(u.Message, "no node of the pool is connected")
	})
	w.sessions.set("c-there-1", true)
	w.unit(t, "c-web", "c-there", func(u v1alpha1.UnitStatus) bool { return u.State == v1alpha1.UnitReady })

	// A pool that does not exist is a failure until it does.
	update(t, w, &v1alpha1.UnitDeployment{}, "default/c-web", func(ud *v1alpha1.UnitDeployment) {
		ud.Spec.Pools = append(ud.Spec.Pools, v1alpha1.UnitPool{Name: "c-late"})
	})
	w.unit(t, "c-web", "c-late", func(u v1alpha1.UnitStatus) bool { return u.State == v1alpha1.UnitUnknownPool })
	w.condition(t, "c-web", v1alpha1.ConditionUnitsFailed, metav1.ConditionTrue, "pool c-late does not exist")
	w.pool(t, "c-late", v1alpha1.NodePoolSpec{})
	w.unit(t, "c-web", "c-late", func(u v1alpha1.UnitStatus) bool { return u.State == v1alpha1.UnitCut })
}

func TestUnitTakesNothingOver(t *testing.T) {
	w := real(t)
	w.joined(t, "t-pool", "t-1")
	foreign := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "t-web-t-pool"},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To[int32](0), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "x", Image: "x"}}},
			},
		},
	}
	w.create(t, foreign)
	ud := unitDeployment("t-web", v1alpha1.UnitPool{Name: "t-pool"})
	w.create(t, ud)
	w.unit(t, "t-web", "t-pool", func(u v1alpha1.UnitStatus) bool {
		return u.State == v1alpha1.UnitFailed && strings.Contains(u.Message, "was not made by this unit deployment")
	})
	w.get(t, foreign, "default/t-web-t-pool")
	if len(foreign.OwnerReferences) != 0 || foreign.Spec.Template.Spec.Containers[0].Image != "x" {
		t.Errorf("it was taken over: %+v", foreign.ObjectMeta)
	}
	// What the apiserver refuses is told.
	update(t, w, ud, "default/t-web", func(ud *v1alpha1.UnitDeployment) {
		ud.Spec.Pools = nil
		ud.Spec.Service = &v1alpha1.UnitService{Ports: []v1alpha1.UnitServicePort{{Name: "a", Port: 80}, {Name: "b", Port: 80}}}
	})
	w.condition(t, "t-web", v1alpha1.ConditionUnitsFailed, metav1.ConditionTrue, "Service default/t-web")
}

// TestUnitMadeAnew: Terraform deletes a unit deployment and makes one of the same
// name within a second; the garbage collector may take longer.
func TestUnitMadeAnew(t *testing.T) {
	w := real(t)
	w.joined(t, "n-pool", "n-1")
	first := unitDeployment("n-web", v1alpha1.UnitPool{Name: "n-pool"})
	w.create(t, first)
	w.unit(t, "n-web", "n-pool", func(u v1alpha1.UnitStatus) bool { return u.Workload != "" })
	// Holds the first one's workload as a slow garbage collector would.
	const hold = "edgewright.dev/test-hold"
	update(t, w, &appsv1.Deployment{}, "default/n-web-n-pool", func(d *appsv1.Deployment) { d.Finalizers = append(d.Finalizers, hold) })
	w.delete(t, first)
	eventually(t, "the first unit deployment is gone", func() error {
		return w.gone(t.Context(), &v1alpha1.UnitDeployment{}, "default/n-web")
	})
	second := unitDeployment("n-web", v1alpha1.UnitPool{Name: "n-pool"})
	w.create(t, second)
	w.unit(t, "n-web", "n-pool", func(u v1alpha1.UnitStatus) bool {
		return u.State == v1alpha1.UnitProgressing && strings.Contains(u.Message, "left of a unit deployment of this name")
	})
	w.condition(t, "n-web", v1alpha1.ConditionUnitsFailed, metav1.ConditionFalse, "")
	update(t, w, &appsv1.Deployment{}, "default/n-web-n-pool", func(d *appsv1.Deployment) {
		d.Finalizers = slices.DeleteFunc(d.Finalizers, func(f string) bool { return f == hold })
	})
	eventually(t, "the workload is the second one's", func() error {
		var d appsv1.Deployment
		if err := w.admin.Get(t.Context(), objectKey("default/n-web-n-pool"), &d); err != nil {
			return err
		}
		if owner := metav1.GetControllerOf(&d); owner == nil || owner.UID != second.UID {
			return fmt.Errorf("its owner is %+v, want %s", owner, second.UID)
		}
		return nil
	})
}
