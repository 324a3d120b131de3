//go:build linux

package hub

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
)

// seenTable is of a Table what hub and apiserver must agree on: all but what
// describes columns and conditions, the version of a list, and what the mirror drops
// of metadata.
type seenTable struct {
	Columns []metav1.TableColumnDefinition
	Rows    []seenRow
}

type seenRow struct {
	Cells      []any
	Conditions []metav1.TableRowCondition
	// Object's kind and metadata; zero where there is none.
	Object metav1.PartialObjectMetadata
}

func shownBy(t metav1.Table) (seenTable, error) {
	out := seenTable{Columns: t.ColumnDefinitions}
	for i := range out.Columns {
		out.Columns[i].Description = ""
	}
	for _, r := range t.Rows {
		row := seenRow{Cells: r.Cells, Conditions: r.Conditions}
		for i := range row.Conditions {
			row.Conditions[i].Message = ""
		}
		if len(r.Object.Raw) > 0 {
			if err := json.Unmarshal(r.Object.Raw, &row.Object); err != nil {
				return out, err
			}
			row.Object.ManagedFields = nil
		}
		out.Rows = append(out.Rows, row)
	}
	return out, nil
}

// tableClient asks as kubectl does.
type tableClient struct {
	t      *testing.T
	client *http.Client
	url    string
}

func newTableClient(t *testing.T, config *rest.Config) tableClient {
	t.Helper()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	return tableClient{t, client, strings.TrimSuffix(config.Host, "/")}
}

func (c tableClient) open(path string) (*http.Response, error) {
	q, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.url+path, nil)
	if err != nil {
		return nil, err
	}
	q.Header.Set("Accept", kubectlAccept)
	return c.client.Do(q)
}

func (c tableClient) table(path string) (seenTable, error) {
	response, err := c.open(path)
	if err != nil {
		return seenTable{}, err
	}
	defer response.Body.Close()
	var t metav1.Table
	if err := json.NewDecoder(response.Body).Decode(&t); err != nil {
		return seenTable{}, err
	}
	if t.Kind != "Table" || t.APIVersion != "meta.k8s.io/v1" {
		return seenTable{}, fmt.Errorf("%s: %s, a %s of %s", path, response.Status, t.Kind, t.APIVersion)
	}
	return shownBy(t)
}

// events reads a watch up to the bookmark that ends its initial events: of each its
// type and rows without their ages, and of which it named the columns.
func (c tableClient) events(path string) (rows []string, columns []int, err error) {
	response, err := c.open(path)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	for events, ends := json.NewDecoder(response.Body), false; !ends; {
		var event struct {
			Type   string
			Object metav1.Table
		}
		if err := events.Decode(&event); err != nil {
			return nil, nil, err
		}
		if len(event.Object.ColumnDefinitions) > 0 {
			columns = append(columns, len(rows))
		}
		t, err := shownBy(event.Object)
		if err != nil || len(t.Rows) != 1 {
			return nil, nil, fmt.Errorf("event %d of %s: %d rows, %w", len(rows), path, len(t.Rows), err)
		}
		row := t.Rows[0]
		cells := slices.Delete(slices.Clone(row.Cells), 5, 6) // a service's age
		rows = append(rows, fmt.Sprint(event.Type, cells, row.Object.Kind, row.Object.Name))
		ends = row.Object.Annotations[metav1.InitialEventsAnnotationKey] != ""
	}
	slices.Sort(rows) // initial events may come in any order
	return rows, columns, nil
}

// furnish makes objects whose rows have something to say.
func (b *beside) furnish() {
	t, ctx, now := b.t, b.t.Context(), time.Now()
	t.Helper()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	kube := b.admin
	named := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }
	must(kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: named("shop")}, metav1.CreateOptions{}))
	must(kube.NodeV1().RuntimeClasses().Create(ctx, &nodev1.RuntimeClass{ObjectMeta: named("sandbox"), Handler: "runsc"}, metav1.CreateOptions{}))
	for _, d := range []*storagev1.CSIDriver{
		{ObjectMeta: named("a.example.com")},
		{ObjectMeta: named("b.example.com"), Spec: storagev1.CSIDriverSpec{
			AttachRequired: ptr.To(false), PodInfoOnMount: ptr.To(true), StorageCapacity: ptr.To(true), RequiresRepublish: ptr.To(true),
			TokenRequests: []storagev1.TokenRequest{{Audience: "x"}, {Audience: "y"}}, VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{"Persistent", "Ephemeral"},
		}},
	} {
		must(kube.StorageV1().CSIDrivers().Create(ctx, d, metav1.CreateOptions{}))
	}
	must(kube.CoreV1().ConfigMaps("shop").Create(ctx, &corev1.ConfigMap{ObjectMeta: named("c"), Data: map[string]string{"a": "1"}, BinaryData: map[string][]byte{"b": {1}}}, metav1.CreateOptions{}))
	must(kube.CoreV1().Secrets("shop").Create(ctx, &corev1.Secret{ObjectMeta: named("s"), Data: map[string][]byte{"a": {1}, "b": {2}}}, metav1.CreateOptions{}))

	node, err := kube.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
	must(node, err)
	node.Labels = map[string]string{"node-role.kubernetes.io/edge": "", "kubernetes.io/role": "camera"}
	node.Spec.Unschedulable = true
	node, err = kube.CoreV1().Nodes().Update(ctx, node, metav1.UpdateOptions{})
	must(node, err)
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeExternalIP, Address: "192.0.2.1"}}
	node.Status.NodeInfo = corev1.NodeSystemInfo{KubeletVersion: "v1.36.3", OSImage: "Debian", KernelVersion: "6.12", Architecture: "arm64", ContainerRuntimeVersion: "containerd://2.4.2"}
	must(kube.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{}))

	ports := []corev1.ServicePort{{Name: "a", Port: 80}, {Name: "b", Port: 53, Protocol: "UDP"}}
	for name, spec := range map[string]corev1.ServiceSpec{
		"cluster":  {Ports: ports, Selector: map[string]string{"b": "2", "a": "1"}},
		"headless": {Ports: ports, ClusterIP: "None"},
		"outside":  {Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"},
		"on-nodes": {Ports: ports, Type: corev1.ServiceTypeNodePort, ExternalIPs: []string{"192.0.2.7"}},
		"pending":  {Ports: ports, Type: corev1.ServiceTypeLoadBalancer},
		"balanced": {Ports: ports, Type: corev1.ServiceTypeLoadBalancer, ExternalIPs: []string{"192.0.2.9"}},
	} {
		s, err := kube.CoreV1().Services("shop").Create(ctx, &corev1.Service{ObjectMeta: named(name), Spec: spec}, metav1.CreateOptions{})
		must(s, err)
		if name == "balanced" {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.2"}, {Hostname: "lb.example.com"}, {IP: "192.0.2.1"}}
			must(kube.CoreV1().Services("shop").UpdateStatus(ctx, s, metav1.UpdateOptions{}))
		}
	}
	for name, addresses := range map[string][]string{"none": nil, "some": {"10.1.0.1"}, "many": {"10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5"}} {
		s := &discoveryv1.EndpointSlice{ObjectMeta: named(name), AddressType: discoveryv1.AddressTypeIPv4}
		for i, a := range addresses {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: ptr.To(fmt.Sprint("p", i)), Port: ptr.To(int32(80 + i))})
		}
		must(kube.DiscoveryV1().EndpointSlices("shop").Create(ctx, s, metav1.CreateOptions{}))
	}
	b.furnishPods(now)
}

// furnishPods makes pods of the node in many states.
func (b *beside) furnishPods(now time.Time) {
	t, pods := b.t, b.admin.CoreV1().Pods("shop")
	t.Helper()
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	waits := func(reason string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
	}
	ended := func(reason string, code, signal int32) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: reason, ExitCode: code, Signal: signal}}
	}
	container := func(name string, ready bool, restarts int32, state corev1.ContainerState) corev1.ContainerStatus {
		c := corev1.ContainerStatus{Name: name, Ready: ready, Started: ptr.To(ready), RestartCount: restarts, State: state, Image: "i", ImageID: "i"}
		if restarts > 0 {
			c.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(now.Add(-30 * time.Hour))}
		}
		return c
	}
	inits := []corev1.Container{{Name: "s", Image: "i", RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways)}, {Name: "i", Image: "i"}}
	ready := []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	for name, c := range map[string]struct {
		init   []corev1.Container
		gates  []corev1.PodReadinessGate
		status corev1.PodStatus
		delete bool
	}{
		"pending": {},
		"running": {gates: []corev1.PodReadinessGate{{ConditionType: "x/a"}, {ConditionType: "x/b"}}, status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.1.0.7", PodIPs: []corev1.PodIP{{IP: "10.1.0.7"}},
			Conditions:        append(slices.Clone(ready), corev1.PodCondition{Type: "x/a", Status: corev1.ConditionTrue}),
			ContainerStatuses: []corev1.ContainerStatus{container("a", true, 0, running), container("b", true, 3, running)},
		}},
		"crashing":  {status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{container("a", false, 5, waits("CrashLoopBackOff")), container("b", true, 0, running)}}},
		"half-done": {status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{container("a", false, 0, ended("Completed", 0, 0)), container("b", true, 0, running)}}},
		"half-done-ready": {status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: ready,
			ContainerStatuses: []corev1.ContainerStatus{container("a", false, 0, ended("Completed", 0, 0)), container("b", true, 0, running)}}},
		"done":    {status: corev1.PodStatus{Phase: corev1.PodSucceeded, ContainerStatuses: []corev1.ContainerStatus{container("a", false, 0, ended("Completed", 0, 0)), container("b", false, 0, ended("Completed", 0, 0))}}},
		"failed":  {status: corev1.PodStatus{Phase: corev1.PodFailed, ContainerStatuses: []corev1.ContainerStatus{container("a", false, 0, ended("Completed", 0, 0)), container("b", false, 0, ended("Error", 2, 0))}}},
		"killed":  {status: corev1.PodStatus{Phase: corev1.PodFailed, ContainerStatuses: []corev1.ContainerStatus{container("a", false, 0, ended("", 137, 9)), container("b", false, 0, ended("", 3, 0))}}},
		"evicted": {status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted"}},
		"starting": {init: inits, status: corev1.PodStatus{Phase: corev1.PodPending,
			InitContainerStatuses: []corev1.ContainerStatus{container("s", true, 2, running), container("i", false, 1, running)},
			ContainerStatuses:     []corev1.ContainerStatus{container("a", false, 0, waits("PodInitializing")), container("b", false, 0, waits("PodInitializing"))}}},
		"not-starting": {init: inits, status: corev1.PodStatus{Phase: corev1.PodPending,
			InitContainerStatuses: []corev1.ContainerStatus{container("s", false, 0, waits("ErrImagePull")), container("i", false, 0, waits("PodInitializing"))}}},
		"init-failed": {init: inits, status: corev1.PodStatus{Phase: corev1.PodFailed,
			InitContainerStatuses: []corev1.ContainerStatus{container("s", true, 0, running), container("i", false, 1, ended("", 4, 0))}}},
		"with-sidecar": {init: inits, status: corev1.PodStatus{Phase: corev1.PodRunning,
			InitContainerStatuses: []corev1.ContainerStatus{container("s", true, 2, running), container("i", false, 7, ended("Completed", 0, 0))},
			ContainerStatuses:     []corev1.ContainerStatus{container("a", true, 1, running), container("b", false, 0, running)}}},
		"going": {delete: true, status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{container("a", true, 0, running), container("b", true, 0, running)}}},
		"lost":  {delete: true, status: corev1.PodStatus{Phase: corev1.PodRunning, Reason: "NodeLost"}},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
			NodeName: "n1", InitContainers: c.init, ReadinessGates: c.gates, Containers: []corev1.Container{{Name: "a", Image: "i"}, {Name: "b", Image: "i"}},
			// The kubelet of the node may read them.
			Volumes: []corev1.Volume{
				{Name: "c", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}}},
				{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}},
			},
		}}
		p, err := pods.Create(t.Context(), p, metav1.CreateOptions{})
		if err == nil && c.status.Phase != "" {
			p.Status = c.status
			_, err = pods.UpdateStatus(t.Context(), p, metav1.UpdateOptions{})
		}
		if err == nil && c.delete {
			err = pods.Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(3600))})
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

// TestSameTables: kubectl is shown the same by the hub and by the apiserver, online
// and cut off.
func TestSameTables(t *testing.T) {
	b := newBeside(t)
	b.furnish()
	theirs := newTableClient(t, b.direct(""))
	lists := []string{
		"/api/v1/pods?limit=500&fieldSelector=spec.nodeName%3Dn1", "/api/v1/namespaces/shop/pods?fieldSelector=spec.nodeName%3Dn1&includeObject=None",
		"/api/v1/namespaces/shop/pods/crashing", "/api/v1/namespaces/shop/pods/running?includeObject=Object",
		"/api/v1/nodes?fieldSelector=metadata.name%3Dn1", "/api/v1/nodes/n1",
		"/api/v1/services", "/api/v1/namespaces/shop/services?includeObject=Object", "/api/v1/namespaces/shop/services/cluster",
		"/api/v1/namespaces", "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices",
		"/apis/networking.k8s.io/v1/servicecidrs", "/apis/storage.k8s.io/v1/csidrivers", "/apis/node.k8s.io/v1/runtimeclasses",
	}
	same := func(caller Caller, paths ...string) {
		t.Helper()
		ours := newTableClient(t, b.config(caller, ""))
		for _, path := range paths {
			// A second may pass between the two, and the hub may not have come so far.
			var difference string
			for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
				want, err := theirs.table(path)
				if err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				got, err := ours.table(path)
				switch {
				case err != nil:
					difference = err.Error()
				case len(want.Rows) == 0:
					t.Fatalf("%s: nothing is compared", path)
				default:
					difference = cmp.Diff(want, got)
				}
				if difference == "" || time.Now().After(deadline) {
					break
				}
			}
			if difference != "" {
				t.Errorf("%s to %s: apiserver - hub +\n%s", path, caller, difference)
			}
		}
	}
	// Of any version, so that the hub answers from its replica though it is online:
	// after that, it has what it needs for a cut.
	var anyVersion []string
	for _, path := range lists {
		separator := "?"
		if strings.Contains(path, "?") {
			separator = "&"
		}
		anyVersion = append(anyVersion, path+separator+"resourceVersion=0")
	}
	const one = "/api/v1/namespaces/shop/"
	same(CallerAdmin, anyVersion...)
	for _, cut := range []bool{false, true} {
		b.setCut(cut)
		same(CallerAdmin, lists...)
		same(CallerKubelet, one+"configmaps/c?resourceVersion=0", one+"secrets/s?resourceVersion=0")
		const initial = "/api/v1/services?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
		for _, include := range []string{"", "&includeObject=None", "&includeObject=Object"} {
			want, wantColumns, err := theirs.events(initial + include)
			if err != nil {
				t.Fatal(err)
			}
			got, columns, err := newTableClient(t, b.config(CallerAdmin, "")).events(initial + include)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("watched, cut %v, %s: apiserver - hub +\n%s", cut, include, d)
			}
			if d := cmp.Diff(wantColumns, columns); d != "" {
				t.Errorf("columns of a watch, cut %v, %s: apiserver - hub +\n%s", cut, include, d)
			}
		}
	}
}
