package hubload

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"
)

// namespace holds all that is made here.
const namespace = "default"

// writers is how many objects are made at once: enough to keep an apiserver busy
// that has one machine with its etcd.
const writers = 8

// FillNode makes a Node, the right of its hub to mirror, and its pods, each with
// a Secret and a ConfigMap of its own, and a token. No kubelet runs them: they are objects.
func FillNode(ctx context.Context, kube kubernetes.Interface, node string, pods int) error {
	_, err := kube.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: hubUser(node)},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "edge-hub"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: hubUser(node)}},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("let the hub of node %s mirror: %w", node, err)
	}
	if _, err := kube.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("make node %s: %w", node, err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for i := range pods {
		g.Go(func() error {
			if err := fillPod(ctx, kube, node, PodName(node, i)); err != nil {
				return fmt.Errorf("make pod %s: %w", PodName(node, i), err)
			}
			return nil
		})
	}
	return g.Wait()
}

// PodName is the name of the i-th pod that FillNode makes for a node.
func PodName(node string, i int) string { return fmt.Sprintf("%s-app-%d", node, i) }

func fillPod(ctx context.Context, kube kubernetes.Interface, node, name string) error {
	_, err := kube.CoreV1().Secrets(namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{"key": make([]byte, 512)},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, err = kube.CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"config": strings.Repeat("line\n", 200)},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, err = kube.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "default", Volumes: []corev1.Volume{
			{Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name}}},
			{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}}}},
			{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				// Without it the apiserver gives a kubelet no token for the pod.
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr.To[int64](3607)}},
			}}}},
		}, Containers: []corev1.Container{{Name: "c", Image: "registry.example/app:1", Env: []corev1.EnvVar{{Name: "FILLER", Value: strings.Repeat("x", 2000)}}}}},
	}, metav1.CreateOptions{})
	return err
}

// endpoints of each slice.
const endpoints = 5

// FillServices makes services numbered from first to last, last not included.
// Each has slices of five endpoints.
func FillServices(ctx context.Context, kube kubernetes.Interface, first, last, slices int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for i := first; i < last; i++ {
		g.Go(func() error {
			name := fmt.Sprint("svc-", i)
			_, err := kube.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: name},
				Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Port: 80}}},
			}, metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("make service %s: %w", name, err)
			}
			return fillSlices(ctx, kube, name, 0, slices)
		})
	}
	return g.Wait()
}

// MoreSlices gives services that FillServices made, numbered from 0, more slices:
// their number was from, and is to.
func MoreSlices(ctx context.Context, kube kubernetes.Interface, services, from, to int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for i := range services {
		g.Go(func() error { return fillSlices(ctx, kube, fmt.Sprint("svc-", i), from, to) })
	}
	return g.Wait()
}

func fillSlices(ctx context.Context, kube kubernetes.Interface, service string, first, last int) error {
	for i := first; i < last; i++ {
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", service, i), Labels: map[string]string{discoveryv1.LabelServiceName: service}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: ptr.To[int32](80)}},
		}
		for e := range endpoints {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{fmt.Sprintf("10.1.%d.%d", e, i%250+1)}, NodeName: ptr.To(fmt.Sprint("node-", e)),
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: fmt.Sprint(slice.Name, "-", e), UID: "11111111-2222-3333-4444-555555555555"},
			})
		}
		if _, err := kube.DiscoveryV1().EndpointSlices(namespace).Create(ctx, slice, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("make slice %s: %w", slice.Name, err)
		}
	}
	return nil
}
