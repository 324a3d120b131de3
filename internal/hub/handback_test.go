//go:build linux

package hub

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// TestHandedBackToApiserver: what a node writes while it is cut off is, after the
// cut, in a real apiserver as the node had it, and nothing else has changed there;
// what was refused is as it was.
func TestHandedBackToApiserver(t *testing.T) {
	b := newBeside(t)
	ctx := t.Context()
	kubelet, err := kubernetes.NewForConfig(b.config(CallerKubelet, wire.MediaProtobuf))
	if err != nil {
		t.Fatal(err)
	}
	ok := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	newPod := func(name string) {
		_, err := b.admin.CoreV1().Pods("default").Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}, metav1.CreateOptions{})
		ok("the pod "+name, err)
	}
	newPod("p")
	newPod("gone")
	_, err = b.admin.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm"}}, metav1.CreateOptions{})
	ok("a ConfigMap", err)
	_, err = kubelet.StorageV1().CSINodes().Create(ctx, &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{})
	ok("the CSINode, online", err)
	b.mirrored("default/p", "default/gone")
	before := b.versions()

	b.setCut(true)
	b.untilCut()
	patchNode := func(patch string) error {
		_, err := kubelet.CoreV1().Nodes().PatchStatus(ctx, "n1", []byte(patch))
		return err
	}
	ready := `{"metadata":{"labels":{"example.com/disk":"ssd"},"annotations":{"example.com/a":"1"}},"status":{"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady"}]}}`
	ok("the node's status", patchNode(ready))
	patchPod := func(name, patch string) error {
		_, err := kubelet.CoreV1().Pods("default").Patch(ctx, name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
		return err
	}
	running := `{"metadata":{"annotations":{"example.com/p":"1"}},"status":{"phase":"Running","podIP":"10.1.1.1","podIPs":[{"ip":"10.1.1.1"}]}}`
	ok("a pod's status", patchPod("p", running))
	ok("another pod's status", patchPod("gone", running))
	csi, err := kubelet.StorageV1().CSINodes().Get(ctx, "n1", metav1.GetOptions{})
	ok("the CSINode", err)
	for _, driver := range []string{"one.example.com", "two.example.com"} {
		csi.Spec.Drivers = append(csi.Spec.Drivers, storagev1.CSINodeDriver{Name: driver, NodeID: "n1"})
		csi, err = kubelet.StorageV1().CSINodes().Update(ctx, csi, metav1.UpdateOptions{})
		ok("the CSINode with "+driver, err)
	}
	event, err := kubelet.CoreV1().Events("default").Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "old."}, InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "p"}, Reason: "Killing", Count: 1,
	}, metav1.CreateOptions{})
	ok("an event", err)
	_, err = kubelet.CoreV1().Events("default").Patch(ctx, event.Name, types.StrategicMergePatchType, []byte(`{"count":4}`), metav1.PatchOptions{})
	ok("the event again", err)
	_, err = kubelet.EventsV1().Events("default").Create(ctx, &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "new.1"}, EventTime: metav1.NowMicro(), ReportingController: "kubelet", ReportingInstance: "n1", Action: "Killing", Reason: "Killing",
		Type: "Normal", Regarding: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "p"},
	}, metav1.CreateOptions{})
	ok("an event of the newer kind", err)
	leased := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: leaseNamespace, Name: "n1"}, Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To("n1"), LeaseDurationSeconds: ptr.To[int32](40), RenewTime: ptr.To(metav1.NowMicro())}}
	_, err = kubelet.CoordinationV1().Leases(leaseNamespace).Create(ctx, leased, metav1.CreateOptions{})
	ok("the lease", err)
	raw := &rig{t: t, local: b.local, address: b.address} // client-go would ask again, ten times
	for _, refused := range []struct{ method, path, media, body string }{
		{"DELETE", "/api/v1/namespaces/default/pods/p", wire.MediaJSON, ""},
		{"POST", "/api/v1/namespaces/kube-system/pods", wire.MediaJSON, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"static"}}`},
		{"PATCH", "/api/v1/nodes/n1", string(types.MergePatchType), `{"metadata":{"labels":{"x":"y"}}}`},
		{"PUT", "/api/v1/namespaces/default/configmaps/cm", wire.MediaJSON, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"cm"},"data":{"a":"b"}}`},
		{"POST", "/api/v1/namespaces/default/events?dryRun=All", wire.MediaJSON, `{"apiVersion":"v1","kind":"Event","metadata":{"name":"never"}}`},
	} {
		resp, body := raw.do(raw.caller(CallerKubelet), refused.method, refused.path, strings.NewReader(refused.body), http.Header{"Content-Type": {refused.media}})
		if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "cut off") {
			t.Errorf("%s %s: %s %s", refused.method, refused.path, resp.Status, body)
		}
	}
	// What the node shows of itself now is what the cloud must come to.
	nodeThere, err := kubelet.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
	ok("the node", err)
	podThere, err := kubelet.CoreV1().Pods("default").Get(ctx, "p", metav1.GetOptions{})
	ok("the pod", err)
	csiThere, err := kubelet.StorageV1().CSINodes().Get(ctx, "n1", metav1.GetOptions{})
	ok("the CSINode", err)
	if len(csiThere.Spec.Drivers) != 2 || podThere.Status.PodIP != "10.1.1.1" || nodeThere.Labels["example.com/disk"] != "ssd" {
		t.Errorf("the node shows %+v %+v %+v", csiThere.Spec, podThere.Status, nodeThere.Labels)
	}
	// Meanwhile the cloud goes its own way.
	ok("delete a pod in the cloud", b.admin.CoreV1().Pods("default").Delete(ctx, "gone", metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}))
	_, err = b.admin.StorageV1().CSINodes().Patch(ctx, "n1", types.MergePatchType, []byte(`{"metadata":{"annotations":{"cloud":"moved"}}}`), metav1.PatchOptions{})
	ok("the CSINode in the cloud", err)
	_, err = b.admin.CoreV1().Nodes().Patch(ctx, "n1", types.MergePatchType, []byte(`{"metadata":{"labels":{"cloud":"new"}}}`), metav1.PatchOptions{})
	ok("the node in the cloud", err)

	// The hub starts anew in the cut, and then the link is back.
	address := b.address
	b.stop()
	b.startAt(address)
	b.setCut(false)
	core := b.admin.CoreV1()
	b.eventually("the cloud is what the node was", func(ctx context.Context) error {
		n, err := core.Nodes().Get(ctx, "n1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		want := maps.Clone(nodeThere.Labels)
		want["cloud"] = "new"
		if d := cmp.Diff(want, n.Labels) + cmp.Diff(nodeThere.Annotations, n.Annotations); d != "" {
			return fmt.Errorf("the node's labels and annotations: %s", d)
		}
		p, err := core.Pods("default").Get(ctx, "p", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if d := cmp.Diff(podThere.Annotations, p.Annotations); d != "" {
			return fmt.Errorf("the pod's annotations: %s", d)
		}
		c, err := b.admin.StorageV1().CSINodes().Get(ctx, "n1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if d := cmp.Diff(csiThere.Spec, c.Spec); d != "" {
			return fmt.Errorf("the CSINode: %s", d)
		}
		e, err := core.Events("default").Get(ctx, event.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if e.Count != 4 || e.Reason != "Killing" {
			return fmt.Errorf("the event: %+v", e)
		}
		if _, err := b.admin.EventsV1().Events("default").Get(ctx, "new.1", metav1.GetOptions{}); err != nil {
			return err
		}
		if n := b.hub.local.overlay.Waiting(); n != 0 {
			return fmt.Errorf("%d writes wait", n)
		}
		return nil
	})
	// The status is kubelet's to write anew, as soon as it sees the apiserver's.
	b.eventually("kubelet sees the apiserver's status again", func(ctx context.Context) error {
		p, err := kubelet.CoreV1().Pods("default").Get(ctx, "p", metav1.GetOptions{ResourceVersion: "0"})
		if err == nil && p.Status.Phase == "Running" {
			err = errors.New("still the overlay's")
		}
		return err
	})
	ok("the node's status after the cut", patchNode(ready))
	ok("the pod's status after the cut", patchPod("p", running))
	p, err := core.Pods("default").Get(ctx, "p", metav1.GetOptions{})
	ok("the pod in the cloud", err)
	if d := cmp.Diff(podThere.Status, p.Status); d != "" {
		t.Errorf("the pod's status -node +cloud: %s", d)
	}
	if err := patchPod("gone", running); !apierrors.IsNotFound(err) {
		t.Errorf("the status of a pod that is gone: %v", err)
	}
	// Nothing else was touched.
	after := b.versions()
	for _, written := range []string{"node n1", "pod default/p", "pod default/gone", "csinode n1", "event default/" + event.Name, "event default/new.1"} {
		delete(before, written)
		delete(after, written)
	}
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("the cluster before - after +\n%s", d)
	}
}

// versions are the resourceVersions of all that the test's kubelet may have tried
// to write.
func (b *beside) versions() map[string]string {
	t, ctx := b.t, b.t.Context()
	t.Helper()
	out := map[string]string{}
	add := func(kind string, list runtime.Object, err error) {
		t.Helper()
		if err == nil {
			err = meta.EachListItem(list, func(o runtime.Object) error {
				m, err := meta.Accessor(o)
				if err == nil {
					name := cache.ObjectName{Namespace: m.GetNamespace(), Name: m.GetName()}
					out[kind+" "+name.String()] = m.GetResourceVersion()
				}
				return err
			})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var all metav1.ListOptions
	pods, err := b.admin.CoreV1().Pods("").List(ctx, all)
	add("pod", pods, err)
	nodes, err := b.admin.CoreV1().Nodes().List(ctx, all)
	add("node", nodes, err)
	configMaps, err := b.admin.CoreV1().ConfigMaps("").List(ctx, all)
	add("configmap", configMaps, err)
	events, err := b.admin.CoreV1().Events("").List(ctx, all)
	add("event", events, err)
	csi, err := b.admin.StorageV1().CSINodes().List(ctx, all)
	add("csinode", csi, err)
	return out
}

// mirrored waits until the node holds itself and these pods of its own.
func (b *beside) mirrored(pods ...string) {
	b.t.Helper()
	held := b.hub.local.config.Replica
	b.eventually(fmt.Sprint("the node holds ", pods), func(context.Context) error {
		node, _, err := held.Get(ownNode, "", "n1")
		for _, p := range pods {
			namespace, name, _ := strings.Cut(p, "/")
			var pod *replica.Object
			if err == nil {
				pod, _, err = held.Get(ownPods, namespace, name)
			}
			if err == nil && pod == nil {
				err = fmt.Errorf("pod %s is not there yet", p)
			}
		}
		if err == nil && node == nil {
			err = errors.New("the node itself is not there yet")
		}
		return err
	})
}

// untilCut waits until the hub knows of the cut.
func (b *beside) untilCut() {
	b.t.Helper()
	b.eventually("the hub knows of the cut", func(context.Context) error {
		if b.hub.Link().State().Online {
			return errors.New("it takes the link for whole")
		}
		return nil
	})
}

// eventually asks until there is no error.
func (b *beside) eventually(what string, ask func(context.Context) error) {
	b.t.Helper()
	var err error
	for limit := time.Now().Add(patience); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
		if err = ask(b.t.Context()); err == nil {
			return
		}
	}
	b.t.Fatalf("%s: never: %v", what, err)
}
