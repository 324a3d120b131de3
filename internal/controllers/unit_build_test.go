package controllers

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

func sampleUnits() *v1alpha1.UnitDeployment {
	return &v1alpha1.UnitDeployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u"},
		Spec: v1alpha1.UnitDeploymentSpec{Template: v1alpha1.UnitTemplate{
			Labels:      map[string]string{"app": "web", v1alpha1.PoolLabel: "forged", v1alpha1.UnitDeploymentLabel: "forged"},
			Annotations: map[string]string{"note": "1"},
			Containers: []v1alpha1.UnitContainer{
				{Name: "web", Image: "web:1", Args: []string{"serve"}, Env: map[string]string{"Z": "template", "A": "template", "M": "template"},
					Ports:     []v1alpha1.UnitPort{{Name: "http", Port: 80}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}},
					Resources: &v1alpha1.UnitResources{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}}},
				{Name: "side", Image: "side:1"},
			},
		}},
	}
}

func TestBuildWorkload(t *testing.T) {
	ud := sampleUnits()
	pool := &v1alpha1.UnitPool{
		Name: "berlin", Replicas: ptr.To[int32](0), Env: map[string]string{"M": "pool", "A": "pool", "SITE": "berlin"},
		Containers: []v1alpha1.ContainerOverride{{
			Name: "web", Image: "web:2", Env: map[string]string{"A": "override"}, Command: []string{"/run"},
			Resources: &v1alpha1.UnitResources{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m")}},
		}},
	}
	got, err := buildWorkload(ud, pool)
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{v1alpha1.UnitDeploymentLabel: "web", v1alpha1.PoolLabel: "berlin"}
	if got.Name != "web-berlin" || *got.Spec.Replicas != 0 || !madeBy(got, ud) {
		t.Errorf("workload is %+v", got.ObjectMeta)
	}
	if diff := cmp.Diff(labels, got.Spec.Selector.MatchLabels); diff != "" {
		t.Error(diff)
	}
	want := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{
			Labels:      map[string]string{"app": "web", v1alpha1.UnitDeploymentLabel: "web", v1alpha1.PoolLabel: "berlin"},
			Annotations: map[string]string{"note": "1"},
		},
		Spec: corev1.PodSpec{
			NodeSelector: map[string]string{v1alpha1.PoolLabel: "berlin"},
			Containers: []corev1.Container{
				{
					TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
					Name:                     "web", Image: "web:2", Command: []string{"/run"}, Args: []string{"serve"},
					Env: []corev1.EnvVar{{Name: "A", Value: "override"}, {Name: "M", Value: "pool"}, {Name: "SITE", Value: "berlin"}, {Name: "Z", Value: "template"}},
					Ports: []corev1.ContainerPort{
						{Name: "http", ContainerPort: 80, Protocol: corev1.ProtocolTCP}, {Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP},
					},
					Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m")}},
				},
				{TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError, Name: "side", Image: "side:1", Env: []corev1.EnvVar{{Name: "A", Value: "pool"}, {Name: "M", Value: "pool"}, {Name: "SITE", Value: "berlin"}}},
			},
		},
	}
	if got.Spec.MinReadySeconds == 0 {
		t.Error("a pod that exits at once would count as rolled out")
	}
	if diff := cmp.Diff(want, got.Spec.Template); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(sampleUnits(), ud); diff != "" {
		t.Error("the unit deployment itself was changed:", diff)
	}

	plain, err := buildWorkload(ud, &v1alpha1.UnitPool{Name: "tokyo"})
	if err != nil {
		t.Fatal(err)
	}
	if *plain.Spec.Replicas != 1 || plain.Spec.Template.Spec.Containers[0].Image != "web:1" || len(plain.Spec.Template.Spec.Containers[0].Command) != 0 {
		t.Errorf("a pool without overrides gets %+v", plain.Spec)
	}
	if _, err := buildWorkload(ud, &v1alpha1.UnitPool{Name: "x", Containers: []v1alpha1.ContainerOverride{{Name: "wbe"}}}); err == nil || !strings.Contains(err.Error(), `"wbe"`) {
		t.Errorf("an override of no container gives %v", err)
	}
}

func TestBuildService(t *testing.T) {
	ud := sampleUnits()
	if buildService(ud) != nil {
		t.Error("a service nobody asked for")
	}
	ud.Spec.Service = &v1alpha1.UnitService{Type: corev1.ServiceTypeNodePort, Ports: []v1alpha1.UnitServicePort{
		{Name: "a", Port: 80, TargetPort: "http"}, {Name: "b", Port: 81, TargetPort: "8081"}, {Name: "c", Port: 82, Protocol: corev1.ProtocolUDP},
	}}
	got := buildService(ud)
	want := corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Selector: map[string]string{v1alpha1.UnitDeploymentLabel: "web"},
		TrafficDistribution: ptr.To(corev1.ServiceTrafficDistributionPreferSameZone),
		Ports: []corev1.ServicePort{
			{Name: "a", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("http")},
			{Name: "b", Port: 81, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8081)},
			{Name: "c", Port: 82, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(82)},
		},
	}
	if diff := cmp.Diff(want, got.Spec); diff != "" {
		t.Error(diff)
	}
}

func TestShortName(t *testing.T) {
	if got := shortName("web-berlin"); got != "web-berlin" {
		t.Errorf("a short name became %s", got)
	}
	exact := strings.Repeat("a", 63)
	if got := shortName(exact); got != exact {
		t.Errorf("a name of 63 became %s", got)
	}
	long := strings.Repeat("a", 60) + "-berlin"
	got := shortName(long)
	if len(got) > 63 || len(validation.IsDNS1123Label(got)) > 0 || got != shortName(long) {
		t.Errorf("a long name became %q", got)
	}
	if got == shortName(strings.Repeat("a", 60)+"-tokyo1") {
		t.Error("two long names are one")
	}
	if got := shortName(strings.Repeat("a", 51) + "-." + strings.Repeat("b", 30)); len(validation.IsValidLabelValue(got)) > 0 {
		t.Errorf("%q is no label value", got)
	}
}
