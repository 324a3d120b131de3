//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// What a kubelet of Kubernetes 1.36 writes where nothing happens, at its defaults.
const (
	// leaseEvery is a quarter of nodeLeaseDurationSeconds.
	leaseEvery = 10 * time.Second
	// statusEvery is nodeStatusReportFrequency.
	statusEvery = 5 * time.Minute
	// tokenEvery is how often one pod's token is asked for anew: after 80 % of
	// the 3,607 s it is valid (pkg/kubelet/token).
	tokenEvery = 3607 * time.Second * 8 / 10
	leaseSpace = "kube-node-lease"
)

// kubelet writes what an idle one writes.
type kubelet struct {
	node  string
	pods  []string
	kube  kubernetes.Interface
	lease *coordinationv1.Lease
}

// newKubelet makes one that talks to what config names.
func newKubelet(node string, pods []string, config *rest.Config) (*kubelet, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.UserAgent = -1, "kubelet/v1.36.3"
	config.ContentType, config.AcceptContentTypes = wire.MediaProtobuf, wire.MediaProtobuf
	kube, err := kubernetes.NewForConfig(config)
	return &kubelet{node: node, pods: pods, kube: kube}, err
}

// run writes until ctx ends.
func (k *kubelet) run(ctx context.Context) error {
	lease, status, token := time.NewTicker(leaseEvery), time.NewTicker(statusEvery), time.NewTicker(tokenEvery/time.Duration(max(1, len(k.pods))))
	defer lease.Stop()
	defer status.Stop()
	defer token.Stop()
	if err := k.renew(ctx); err != nil {
		return err
	}
	for next := 0; ; {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-lease.C:
			err = k.renew(ctx)
		case <-status.C:
			err = k.report(ctx)
		case <-token.C:
			if len(k.pods) == 0 {
				continue
			}
			err = k.token(ctx, k.pods[next%len(k.pods)])
			next++
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("kubelet of node %s: %w", k.node, err)
		}
	}
}

// renew renews the node's lease, as k8s.io/component-helpers'
// lease controller does: from the last answer, without reading it first.
func (k *kubelet) renew(ctx context.Context) (err error) {
	leases := k.kube.CoordinationV1().Leases(leaseSpace)
	now := metav1.NewMicroTime(time.Now())
	if k.lease == nil {
		k.lease, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: k.node, Namespace: leaseSpace},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &k.node, LeaseDurationSeconds: ptr.To[int32](40), RenewTime: &now},
		}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			k.lease, err = leases.Get(ctx, k.node, metav1.GetOptions{})
		}
		return err
	}
	wanted := k.lease.DeepCopy()
	wanted.Spec.RenewTime = &now
	k.lease, err = leases.Update(ctx, wanted, metav1.UpdateOptions{})
	if err != nil {
		k.lease = nil // and read anew next time
	}
	if apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// conditionTypes are those of a node's conditions that a kubelet writes.
var conditionTypes = []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure, corev1.NodeReady}

// report says that the node is still what it was.
func (k *kubelet) report(ctx context.Context) error {
	var order, conditions []map[string]string
	for _, c := range conditionTypes {
		order = append(order, map[string]string{"type": string(c)})
		conditions = append(conditions, map[string]string{"type": string(c), "lastHeartbeatTime": time.Now().UTC().Format(time.RFC3339)})
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"$setElementOrder/conditions": order, "conditions": conditions}})
	if err != nil {
		return err
	}
	_, err = k.kube.CoreV1().Nodes().Patch(ctx, k.node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// token asks for a pod's token.
func (k *kubelet) token(ctx context.Context, pod string) error {
	uid, err := k.uid(ctx, pod)
	if err != nil {
		return err
	}
	return k.tokenOf(ctx, pod, uid)
}

func (k *kubelet) uid(ctx context.Context, pod string) (types.UID, error) {
	have, err := k.kube.CoreV1().Pods(metav1.NamespaceDefault).Get(ctx, pod, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return "", err
	}
	return have.UID, nil
}

func (k *kubelet) tokenOf(ctx context.Context, pod string, uid types.UID) error {
	_, err := k.kube.CoreV1().ServiceAccounts(metav1.NamespaceDefault).CreateToken(ctx, "default", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: ptr.To[int64](3607),
			BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod, UID: uid},
		},
	}, metav1.CreateOptions{})
	return err
}

// registered gives a Node the status of a small device, as its kubelet registers.
func registered(ctx context.Context, kube kubernetes.Interface, node string) error {
	have, err := kube.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if err != nil {
		return err
	}
	now := metav1.Now()
	for _, c := range conditionTypes {
		have.Status.Conditions = append(have.Status.Conditions, corev1.NodeCondition{
			Type: c, Status: corev1.ConditionFalse, LastHeartbeatTime: now, LastTransitionTime: now,
			Reason: "KubeletHasSufficient" + string(c), Message: "kubelet has sufficient resources available",
		})
	}
	have.Status.Capacity = corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("110"),
		corev1.ResourceEphemeralStorage: resource.MustParse("32Gi"),
	}
	have.Status.Allocatable = have.Status.Capacity
	have.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.1.10"}, {Type: corev1.NodeHostName, Address: node}}
	have.Status.NodeInfo = corev1.NodeSystemInfo{KubeletVersion: "v1.36.3", ContainerRuntimeVersion: "containerd://2.2.0", OperatingSystem: "linux", Architecture: "arm64", OSImage: "Debian GNU/Linux 12 (bookworm)", KernelVersion: "6.1.0-40-arm64"}
	for i := range 6 {
		have.Status.Images = append(have.Status.Images, corev1.ContainerImage{
			Names:     []string{fmt.Sprintf("registry.example/app-%d@sha256:%064d", i, i), fmt.Sprintf("registry.example/app-%d:1.2.3", i)},
			SizeBytes: 50_000_000,
		})
	}
	_, err = kube.CoreV1().Nodes().UpdateStatus(ctx, have, metav1.UpdateOptions{})
	return err
}
