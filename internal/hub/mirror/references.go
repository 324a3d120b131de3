package mirror

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// references returns the collections of the Secrets and ConfigMaps that a pod
// needs to be started: what the Node authorizer lets a node read by it, too
// (pkg/api/v1/pod/util.go, VisitPodSecretNames).
func references(o *replica.Object) ([]replica.Collection, error) {
	var pod corev1.Pod
	if err := pod.Unmarshal(o.Message); err != nil {
		return nil, err
	}
	f := &finder{namespace: pod.Namespace}
	if pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return nil, nil // it will not be started
	}
	for _, s := range pod.Spec.ImagePullSecrets {
		f.secret(s.Name)
	}
	for i := range pod.Spec.Volumes {
		f.volume(&pod.Spec.Volumes[i])
	}
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			f.environment(containers[i].EnvFrom, containers[i].Env)
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		f.environment(pod.Spec.EphemeralContainers[i].EnvFrom, pod.Spec.EphemeralContainers[i].Env)
	}
	return f.found, nil
}

type finder struct {
	namespace string
	found     []replica.Collection
}

func (f *finder) add(resource, name string) {
	if name != "" {
		f.found = append(f.found, replica.Collection{Resource: core(resource), Namespace: f.namespace, Name: name})
	}
}

func (f *finder) secret(name string)    { f.add("secrets", name) }
func (f *finder) configMap(name string) { f.add("configmaps", name) }

func (f *finder) local(r *corev1.LocalObjectReference) {
	if r != nil {
		f.secret(r.Name)
	}
}

func (f *finder) volume(v *corev1.Volume) {
	switch s := &v.VolumeSource; {
	case s.Secret != nil:
		f.secret(s.Secret.SecretName)
	case s.ConfigMap != nil:
		f.configMap(s.ConfigMap.Name)
	case s.Projected != nil:
		for _, p := range s.Projected.Sources {
			if p.Secret != nil {
				f.secret(p.Secret.Name)
			}
			if p.ConfigMap != nil {
				f.configMap(p.ConfigMap.Name)
			}
		}
	case s.CSI != nil:
		f.local(s.CSI.NodePublishSecretRef)
	case s.ISCSI != nil:
		f.local(s.ISCSI.SecretRef)
	case s.CephFS != nil:
		f.local(s.CephFS.SecretRef)
	case s.RBD != nil:
		f.local(s.RBD.SecretRef)
	case s.FlexVolume != nil:
		f.local(s.FlexVolume.SecretRef)
	case s.ScaleIO != nil:
		f.local(s.ScaleIO.SecretRef)
	case s.StorageOS != nil:
		f.local(s.StorageOS.SecretRef)
	case s.AzureFile != nil:
		f.secret(s.AzureFile.SecretName)
	}
}

func (f *finder) environment(from []corev1.EnvFromSource, env []corev1.EnvVar) {
	for _, e := range from {
		if e.SecretRef != nil {
			f.secret(e.SecretRef.Name)
		}
		if e.ConfigMapRef != nil {
			f.configMap(e.ConfigMapRef.Name)
		}
	}
	for _, e := range env {
		if e.ValueFrom == nil {
			continue
		}
		if r := e.ValueFrom.SecretKeyRef; r != nil {
			f.secret(r.Name)
		}
		if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
			f.configMap(r.Name)
		}
	}
}
