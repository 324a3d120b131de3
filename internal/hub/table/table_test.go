package table

import (
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

func named(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, CreationTimestamp: before(26 * time.Hour)}
}

// TestCells: what the rows of each kind say.
func TestCells(t *testing.T) {
	slice := func(ports []discoveryv1.EndpointPort, addresses ...string) *discoveryv1.EndpointSlice {
		s := &discoveryv1.EndpointSlice{ObjectMeta: named("s"), AddressType: discoveryv1.AddressTypeIPv4, Ports: ports}
		for _, a := range addresses {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
		}
		return s
	}
	service := func(spec corev1.ServiceSpec, balancers ...corev1.LoadBalancerIngress) *corev1.Service {
		return &corev1.Service{ObjectMeta: named("s"), Spec: spec, Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: balancers}}}
	}
	custom := func(kind string, fields map[string]any) *unstructured.Unstructured {
		fields["kind"], fields["metadata"] = kind, map[string]any{"name": "c", "creationTimestamp": "2030-01-01T10:00:00Z"}
		return &unstructured.Unstructured{Object: fields}
	}
	for _, c := range []struct {
		apiVersion, kind string
		object           runtime.Object
		want             string // of the cells, in JSON
	}{
		{"v1", "Node", &corev1.Node{ObjectMeta: named("n")}, `["n","Unknown","<none>","26h","","<none>","<none>","<unknown>","<unknown>","<unknown>"]`},
		{"v1", "Node", &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{
				"node-role.kubernetes.io/edge": "", "node-role.kubernetes.io/": "", "kubernetes.io/role": "camera", "x": "y",
			}},
			Spec: corev1.NodeSpec{Unschedulable: true},
			Status: corev1.NodeStatus{
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionTrue}, {Type: corev1.NodeReady, Status: corev1.ConditionUnknown}},
				Addresses: []corev1.NodeAddress{
					{Type: corev1.NodeHostName, Address: "h"}, {Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeInternalIP, Address: "10.0.0.2"},
					{Type: corev1.NodeExternalIP, Address: "192.0.2.1"},
				},
				NodeInfo: corev1.NodeSystemInfo{KubeletVersion: "v1.36.3", OSImage: "Debian", KernelVersion: "6.12", Architecture: "arm64", ContainerRuntimeVersion: "containerd://2.4.2"},
			},
		}, `["n","NotReady,SchedulingDisabled","camera,edge","<unknown>","v1.36.3","10.0.0.1","192.0.2.1","Debian","6.12 (arm64)","containerd://2.4.2"]`},
		{"v1", "Node", &corev1.Node{ObjectMeta: named("n"), Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		}}, `["n","Ready","<none>","26h","","<none>","<none>","<unknown>","<unknown>","<unknown>"]`},
		{"v1", "Service", service(corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIPs: []string{"10.96.0.1", "fd00::1"}, Selector: map[string]string{"b": "2", "a": "1"},
			Ports: []corev1.ServicePort{{Port: 80, Protocol: "TCP"}, {Port: 53, NodePort: 30053, Protocol: "UDP"}},
		}), `["s","ClusterIP","10.96.0.1","<none>","80/TCP,53:30053/UDP","26h","a=1,b=2"]`},
		{"v1", "Service", service(corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, ClusterIP: "None", ExternalIPs: []string{"192.0.2.1", "192.0.2.2"}}),
			`["s","NodePort","None","192.0.2.1,192.0.2.2","<none>","26h","<none>"]`},
		{"v1", "Service", service(corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"}), `["s","ExternalName","<none>","example.com","<none>","26h","<none>"]`},
		{"v1", "Service", service(corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}), `["s","LoadBalancer","<none>","<pending>","<none>","26h","<none>"]`},
		{"v1", "Service", service(corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ExternalIPs: []string{"192.0.2.9"}},
			corev1.LoadBalancerIngress{IP: "192.0.2.2"}, corev1.LoadBalancerIngress{Hostname: "lb"}, corev1.LoadBalancerIngress{IP: "192.0.2.1"}, corev1.LoadBalancerIngress{IP: "192.0.2.1"}),
			`["s","LoadBalancer","<none>","192.0.2.1,192.0.2.2,lb,192.0.2.9","<none>","26h","<none>"]`},
		{"v1", "Service", service(corev1.ServiceSpec{}), `["s","","<none>","<unknown>","<none>","26h","<none>"]`},
		{"discovery.k8s.io/v1", "EndpointSlice", slice(nil), `["s","IPv4","<unset>","<unset>","26h"]`},
		{"discovery.k8s.io/v1", "EndpointSlice", slice([]discoveryv1.EndpointPort{{Port: ptr.To(int32(80))}, {Name: ptr.To("web")}, {}}, "a", "b", "c"), `["s","IPv4","80,web,*","a,b,c","26h"]`},
		{"discovery.k8s.io/v1", "EndpointSlice", slice(make([]discoveryv1.EndpointPort, 4), "a", "b", "c", "d", "e"), `["s","IPv4","*,*,* + 1 more...","a,b,c + 2 more...","26h"]`},
		{"v1", "Namespace", &corev1.Namespace{ObjectMeta: named("n"), Status: corev1.NamespaceStatus{Phase: corev1.NamespaceTerminating}}, `["n","Terminating","26h"]`},
		{"v1", "ConfigMap", &corev1.ConfigMap{ObjectMeta: named("c"), Data: map[string]string{"a": "", "b": ""}, BinaryData: map[string][]byte{"c": nil}}, `["c",3,"26h"]`},
		{"v1", "Secret", &corev1.Secret{ObjectMeta: named("s"), Type: "Opaque", Data: map[string][]byte{"password": []byte("hunter2")}}, `["s","Opaque",1,"26h"]`},
		{"networking.k8s.io/v1", "ServiceCIDR", &networkingv1.ServiceCIDR{ObjectMeta: named("k"), Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/12", "fd00::/108"}}}, `["k","10.96.0.0/12,fd00::/108","26h"]`},
		{"node.k8s.io/v1", "RuntimeClass", &nodev1.RuntimeClass{ObjectMeta: named("r"), Handler: "runsc"}, `["r","runsc","26h"]`},
		{"storage.k8s.io/v1", "CSIDriver", &storagev1.CSIDriver{ObjectMeta: named("d")}, `["d",true,false,false,"<unset>",false,"<none>","26h"]`},
		{"storage.k8s.io/v1", "CSIDriver", &storagev1.CSIDriver{ObjectMeta: named("d"), Spec: storagev1.CSIDriverSpec{
			AttachRequired: ptr.To(false), PodInfoOnMount: ptr.To(true), StorageCapacity: ptr.To(true), RequiresRepublish: ptr.To(true),
			TokenRequests: []storagev1.TokenRequest{{Audience: "a"}, {Audience: "b"}}, VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{"Persistent", "Ephemeral"},
		}}, `["d",false,true,true,"a,b",true,"Persistent,Ephemeral","26h"]`},
		{"edgewright.dev/v1alpha1", "NodePool", custom("NodePool", map[string]any{
			"spec": map[string]any{"type": "Edge"}, "status": map[string]any{"nodes": int64(3), "readyNodes": int64(2), "cutNodes": "?"},
		}), `["c","Edge",3,2,null,"26h"]`},
		{"edgewright.dev/v1alpha1", "NodePool", custom("NodePool", map[string]any{}), `["c",null,null,null,null,"26h"]`},
		{"example.com/v1", "Widget", custom("Widget", map[string]any{}), `["c","26h"]`},
	} {
		p := printer(c.apiVersion, c.kind)
		row, err := p.Row(c.object)
		if err != nil {
			t.Fatalf("%s: %v", c.kind, err)
		}
		var want []any
		if err := json.Unmarshal([]byte(c.want), &want); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, asRead(t, row).Cells); d != "" {
			t.Errorf("%s: %s", c.kind, d)
		}
		if len(row.Cells) != len(p.Columns()) {
			t.Errorf("%s: %d cells in %d columns", c.kind, len(row.Cells), len(p.Columns()))
		}
	}
}

// asRead is a row as a client has it.
func asRead(t *testing.T, row metav1.TableRow) metav1.TableRow {
	t.Helper()
	b, err := json.Marshal(row)
	if err != nil {
		t.Fatal(err)
	}
	var out metav1.TableRow
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestColumns: kubectl finds the name by its format, and hides what is of a lower
// priority.
func TestColumns(t *testing.T) {
	for kind := range forms {
		var names []string
		for i, c := range (Printer{Kind: kind}).Columns() {
			names = append(names, c.Name)
			if c.Description == "" || c.Type == "" || (c.Format == "name") != (i == 0) {
				t.Errorf("%s: column %+v", kind.Kind, c)
			}
		}
		if names[0] != "Name" {
			t.Errorf("%s: %v", kind.Kind, names)
		}
	}
	var narrow, wide []string
	for _, c := range printer("v1", "Pod").Columns() {
		if c.Priority == 0 {
			narrow = append(narrow, c.Name)
		} else {
			wide = append(wide, c.Name)
		}
	}
	if d := cmp.Diff([]string{"Name", "Ready", "Status", "Restarts", "Age"}, narrow); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"IP", "Node", "Nominated Node", "Readiness Gates"}, wide); d != "" {
		t.Error(d)
	}
}

// TestCustomColumns are those of the definitions that the cluster has.
func TestCustomColumns(t *testing.T) {
	for kind, columns := range customColumns {
		data, err := os.ReadFile(filepath.Join("..", "..", "api", "v1alpha1", "crds", kind.Group+"_"+strings.ToLower(kind.Kind)+"s.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(data, &crd); err != nil {
			t.Fatal(err)
		}
		var want, got [][4]string
		for _, v := range crd.Spec.Versions {
			if v.Name != kind.Version {
				continue
			}
			for _, c := range v.AdditionalPrinterColumns {
				want = append(want, [4]string{c.Name, c.Type, c.Format, c.JSONPath})
			}
		}
		for _, c := range columns {
			got = append(got, [4]string{c.Name, c.Type, c.Format, "." + strings.Join(c.path, ".")})
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", kind.Kind, d)
		}
	}
}

// TestInclude: what of the object is in a row.
func TestInclude(t *testing.T) {
	secret := &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: named("s"), Data: map[string][]byte{"password": []byte("hunter2")}}
	ends := secret.DeepCopy()
	ends.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	for _, c := range []struct {
		query  string
		object *corev1.Secret
		want   string // kind of the object; "" is none, "!" an error
	}{
		{"", secret, "PartialObjectMetadata"},
		{"includeObject=Metadata", secret, "PartialObjectMetadata"},
		{"includeObject=None", secret, ""},
		{"includeObject=None", ends, "PartialObjectMetadata"},
		{"includeObject=Object", secret, "Secret"},
		{"includeObject=none", secret, "!"},
	} {
		query, err := url.ParseQuery(c.query)
		if err != nil {
			t.Fatal(err)
		}
		p := printer("v1", "Secret")
		if p.Include, err = Include(query); (err != nil) != (c.want == "!") {
			t.Errorf("%s: %v", c.query, err)
		}
		if err != nil {
			continue
		}
		row, err := p.Row(c.object)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(row)
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Object *struct {
				metav1.PartialObjectMetadata
				Data map[string][]byte
			}
		}
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		switch {
		case (got.Object == nil) != (c.want == ""):
			t.Errorf("%s: %s", c.query, b)
		case got.Object != nil && (got.Object.Kind != c.want || got.Object.Name != "s" || (len(got.Object.Data) > 0) != (c.want == "Secret")):
			t.Errorf("%s: %s", c.query, b)
		}
	}
}

func TestTable(t *testing.T) {
	p := printer("v1", "Namespace")
	for _, columns := range []bool{true, false} {
		b, err := json.Marshal(p.Table(metav1.ListMeta{ResourceVersion: "7", Continue: "c"}, columns))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`"kind":"Table"`, `"apiVersion":"meta.k8s.io/v1"`, `"resourceVersion":"7"`, `"continue":"c"`, `"rows":[]`} {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s lacks %s", b, want)
			}
		}
		if columns == strings.Contains(string(b), `"columnDefinitions":null`) {
			t.Errorf("columns %v: %s", columns, b)
		}
	}
	if _, err := p.Row(&corev1.Pod{}); err == nil {
		t.Error("a pod is in a table of namespaces")
	}
	if _, err := printer("example.com/v1", "Widget").Row(&corev1.Pod{}); err == nil {
		t.Error("a pod is in a table of widgets")
	}
}
