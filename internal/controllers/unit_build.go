package controllers

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// maxLabel is the longest a label value or a DNS label may be.
const maxLabel = 63

// nameHash is how much of a hash a shortened name ends with: 40 bits, so that
// two long names of one namespace do not meet by chance.
const nameHash = 10

// shortName returns name, or, where it is longer than a label may be, its
// beginning and a hash of the whole.
func shortName(name string) string {
	if len(name) <= maxLabel {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	head := strings.TrimRight(name[:maxLabel-nameHash-1], "-.")
	return head + "-" + hex.EncodeToString(sum[:])[:nameHash]
}

// workloadName is the name of a unit's Deployment.
func workloadName(ud *v1alpha1.UnitDeployment, pool string) string {
	return shortName(ud.Name + "-" + pool)
}

// unitLabels are on everything of one unit, and select its pods. They never
// change, since a Deployment's selector cannot.
func unitLabels(ud *v1alpha1.UnitDeployment, pool string) map[string]string {
	return map[string]string{
		v1alpha1.UnitDeploymentLabel: shortName(ud.Name),
		v1alpha1.PoolLabel:           pool,
	}
}

// buildWorkload makes the Deployment of one unit. The error is for the person
// who wrote the spec.
func buildWorkload(ud *v1alpha1.UnitDeployment, pool *v1alpha1.UnitPool) (*appsv1.Deployment, error) {
	known := map[string]bool{}
	for _, container := range ud.Spec.Template.Containers {
		known[container.Name] = true
	}
	overrides := map[string]*v1alpha1.ContainerOverride{}
	for i := range pool.Containers {
		override := &pool.Containers[i]
		if !known[override.Name] {
			return nil, fmt.Errorf("pool %s overrides container %q, which the template does not have", pool.Name, override.Name)
		}
		overrides[override.Name] = override
	}
	labels := unitLabels(ud, pool.Name)
	podLabels := map[string]string{}
	maps.Copy(podLabels, ud.Spec.Template.Labels)
	maps.Copy(podLabels, labels)

	var containers []corev1.Container
	for i := range ud.Spec.Template.Containers {
		container := &ud.Spec.Template.Containers[i]
		containers = append(containers, buildContainer(container, pool, overrides[container.Name]))
	}
	return &appsv1.Deployment{
		TypeMeta: metav1.TypeMeta{APIVersion: appsv1.SchemeGroupVersion.String(), Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       ud.Namespace,
			Name:            workloadName(ud, pool.Name),
			Labels:          labels,
			OwnerReferences: []metav1.OwnerReference{ownerOf(ud, "UnitDeployment")},
		},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(replicasOf(pool)),
			// A container without a readiness probe is ready the moment it runs,
			// also one that exits at once: a rollout would count it as done.
			MinReadySeconds: minReadySeconds,
			Selector:        &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: podLabels, Annotations: maps.Clone(ud.Spec.Template.Annotations)},
				Spec: corev1.PodSpec{
					NodeSelector: map[string]string{v1alpha1.PoolLabel: pool.Name},
					Containers:   containers,
				},
			},
		},
	}, nil
}

// replicasOf a unit; one where nothing is said.
func replicasOf(pool *v1alpha1.UnitPool) int32 { return ptr.Deref(pool.Replicas, 1) }

// buildContainer merges template, pool and override: the later wins.
func buildContainer(template *v1alpha1.UnitContainer, pool *v1alpha1.UnitPool, override *v1alpha1.ContainerOverride) corev1.Container {
	if override == nil {
		override = &v1alpha1.ContainerOverride{}
	}
	container := corev1.Container{
		// The end of its log says why a container that fails did so.
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		Name:                     template.Name,
		Image:                    template.Image,
		Command:                  slices.Clone(template.Command),
		Args:                     slices.Clone(template.Args),
	}
	if override.Image != "" {
		container.Image = override.Image
	}
	if len(override.Command) > 0 {
		container.Command = slices.Clone(override.Command)
	}
	if len(override.Args) > 0 {
		container.Args = slices.Clone(override.Args)
	}
	resources := template.Resources
	if override.Resources != nil {
		resources = override.Resources
	}
	if resources != nil {
		container.Resources = corev1.ResourceRequirements{
			Requests: resources.Requests.DeepCopy(),
			Limits:   resources.Limits.DeepCopy(),
		}
	}
	for _, port := range template.Ports {
		container.Ports = append(container.Ports, corev1.ContainerPort{
			Name: port.Name, ContainerPort: port.Port, Protocol: protocolOf(port.Protocol),
		})
	}
	env := map[string]string{}
	maps.Copy(env, template.Env)
	maps.Copy(env, pool.Env)
	maps.Copy(env, override.Env)
	// Sorted, so that the same spec is the same pod template: any other order
	// would roll every pod anew.
	for _, name := range slices.Sorted(maps.Keys(env)) {
		container.Env = append(container.Env, corev1.EnvVar{Name: name, Value: env[name]})
	}
	return container
}

func protocolOf(protocol corev1.Protocol) corev1.Protocol {
	if protocol == "" {
		return corev1.ProtocolTCP
	}
	return protocol
}

// minReadySeconds is how long a pod must stay ready to count: longer than a
// container that exits at once looks as if it ran. The kubelet notices an exit
// with its next look at the runtime, a second later, and the time since which a
// pod is ready is written in whole seconds; the rest is for a busy machine.
const minReadySeconds = 4

// buildService makes the Service in front of all units; nil if none is asked
// for.
func buildService(ud *v1alpha1.UnitDeployment) *corev1.Service {
	spec := ud.Spec.Service
	if spec == nil {
		return nil
	}
	label := map[string]string{v1alpha1.UnitDeploymentLabel: shortName(ud.Name)}
	service := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       ud.Namespace,
			Name:            ud.Name,
			Labels:          label,
			OwnerReferences: []metav1.OwnerReference{ownerOf(ud, "UnitDeployment")},
		},
		Spec: corev1.ServiceSpec{
			Type:     spec.Type,
			Selector: maps.Clone(label),
			// A site's own pods first: links are thin, and pods of other sites
			// answer only where the pod network reaches them.
			TrafficDistribution: ptr.To(corev1.ServiceTrafficDistributionPreferSameZone),
		},
	}
	if service.Spec.Type == "" {
		service.Spec.Type = corev1.ServiceTypeClusterIP
	}
	for _, port := range spec.Ports {
		service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{
			Name: port.Name, Port: port.Port, Protocol: protocolOf(port.Protocol), TargetPort: targetPort(port),
		})
	}
	return service
}

func targetPort(port v1alpha1.UnitServicePort) intstr.IntOrString {
	if port.TargetPort == "" {
		return intstr.FromInt32(port.Port)
	}
	if number, err := strconv.ParseInt(port.TargetPort, 10, 32); err == nil {
		return intstr.FromInt32(int32(number))
	}
	return intstr.FromString(port.TargetPort)
}
