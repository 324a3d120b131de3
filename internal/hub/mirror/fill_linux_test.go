package mirror_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// metered is a way to the apiserver whose bytes are counted as a link carries
// them: TLS records, HTTP/2 frames and headers, in both directions.
type metered struct {
	http.RoundTripper
	bytes atomic.Int64
}

type meteredConn struct {
	net.Conn
	bytes *atomic.Int64
}

func (c meteredConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.bytes.Add(int64(n))
	return n, err
}

func (c meteredConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.bytes.Add(int64(n))
	return n, err
}

func (c *cluster) metered(user string, groups ...string) *metered {
	c.t.Helper()
	config, err := c.server.Config(user, groups...)
	if err != nil {
		c.t.Fatal(err)
	}
	m := &metered{}
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return meteredConn{conn, &m.bytes}, err
	}
	if m.RoundTripper, err = rest.TransportFor(config); err != nil {
		c.t.Fatal(err)
	}
	return m
}

func (m *metered) get(t *testing.T, from string, query url.Values) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, from+"?"+query.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", wire.MediaProtobuf)
	r.Header.Set("Accept-Encoding", "gzip")
	response, err := m.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		b, err := io.ReadAll(response.Body)
		t.Fatalf("%s: %s %v", response.Status, b, err)
	}
	return response
}

// streamed reads a collection as a watch with initial events.
func (m *metered) streamed(t *testing.T, from, selector string) (objects int) {
	t.Helper()
	response := m.get(t, from, url.Values{
		"watch": {"true"}, "allowWatchBookmarks": {"true"}, "sendInitialEvents": {"true"}, "resourceVersionMatch": {"NotOlderThan"}, "fieldSelector": {selector},
	})
	defer response.Body.Close()
	if coding := response.Header.Get("Content-Encoding"); coding != "" {
		t.Errorf("a stream is encoded with %q: see Bytes in the package's doc", coding)
	}
	events, err := wire.NewEventReader(wire.MediaProtobuf, response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for {
		e, err := events.Next()
		if err != nil {
			t.Fatal(err)
		}
		if e.Type == "BOOKMARK" {
			return objects
		}
		objects++
	}
}

// many does something n times, some at once.
func many(t *testing.T, n int, do func(i int) error) {
	t.Helper()
	next := int64(-1)
	var workers sync.WaitGroup
	for range 16 {
		workers.Go(func() {
			for i := int(atomic.AddInt64(&next, 1)); i < n; i = int(atomic.AddInt64(&next, 1)) {
				if err := do(i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	workers.Wait()
}

// realSlice is an EndpointSlice as the cluster's controller writes them, but
// without an owner, which would have to be there.
func realSlice(i int) *discoveryv1.EndpointSlice {
	name := fmt.Sprintf("service-%04d", i)
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: name + "-", Labels: map[string]string{
				"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "endpointslice-test.example.com",
				"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "shop",
			},
			Annotations: map[string]string{"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-26T03:00:00Z"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To(int32(8080))}},
	}
	for e := range 3 {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{fmt.Sprintf("10.%d.%d.%d", 64+e, i/250, i%250)},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)},
			NodeName:   ptr.To(fmt.Sprintf("berlin-%03d", (i+e)%200)),
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: name + "-6d4cf56db6-" + utilrand.String(5), UID: uuid.NewUUID()},
		})
	}
	return s
}

// realPod is a pod of a Deployment on the node, and its status once it runs.
func realPod(i int) (*corev1.Pod, corev1.PodStatus) {
	name := fmt.Sprintf("service-%04d", i)
	now := metav1.Now()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name + "-6d4cf56db6-" + utilrand.String(5), Labels: map[string]string{"app.kubernetes.io/name": name, "pod-template-hash": "6d4cf56db6"},
		},
		Spec: corev1.PodSpec{
			NodeName: "n1", AutomountServiceAccountToken: ptr.To(false),
			Containers: []corev1.Container{{
				Name: "web", Image: "registry.example.com/shop/" + name + "@sha256:" + fmt.Sprintf("%064d", i),
				Env:            []corev1.EnvVar{{Name: "STORE", Value: name}, {Name: "LOG_LEVEL", Value: "info"}},
				Ports:          []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				Resources:      corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("10m"), "memory": resource.MustParse("32Mi")}},
				ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{}}},
			}},
		},
	}
	p.Spec.Containers[0].ReadinessProbe.TCPSocket.Port.StrVal, p.Spec.Containers[0].ReadinessProbe.TCPSocket.Port.Type = "http", 1
	status := corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.64.%d.%d", i/250, i%250), HostIP: "192.168.1.10", StartTime: &now,
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: "web", Ready: true, Started: ptr.To(true), Image: p.Spec.Containers[0].Image, ImageID: p.Spec.Containers[0].Image,
			ContainerID: "containerd://" + utilrand.String(64), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		}},
	}
	for _, c := range []corev1.PodConditionType{"PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: c, Status: "True", LastTransitionTime: now})
	}
	return p, status
}

// TestFirstFill weighs what a node that has nothing reads first, beside the same as
// a stream, which an apiserver does not compress. What the mirror says it took is
// what the link carried.
func TestFirstFill(t *testing.T) {
	c := newCluster(t)
	config, err := c.server.Config("system:kube-controller-manager", "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	writer, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	pods, slices := 50, 500
	if os.Getenv("EDGE_TEST_SCALE") == "full" {
		pods, slices = 110, 5000
	}
	many(t, pods, func(i int) error {
		p, status := realPod(i)
		p, err := writer.CoreV1().Pods("default").Create(t.Context(), p, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		p.Status = status
		_, err = writer.CoreV1().Pods("default").UpdateStatus(t.Context(), p, metav1.UpdateOptions{})
		return err
	})
	many(t, slices, func(i int) error {
		_, err := writer.DiscoveryV1().EndpointSlices("default").Create(t.Context(), realSlice(i), metav1.CreateOptions{})
		return err
	})

	node, hub := c.metered("system:node:n1", "system:nodes"), c.metered("edge:hub:n1", "edge:hubs")
	c.node, c.hub = node, hub
	m := c.run(t.TempDir(), nil)
	c.converge(m.Mirror)
	m.stop()
	var counted int64
	took := map[replica.Collection]int64{}
	for _, s := range m.Collections() {
		took[s.Collection] = s.Bytes
		counted += s.Bytes
	}
	carried := node.bytes.Load() + hub.bytes.Load()
	t.Logf("%d bytes in all, of which %d in bodies", carried, counted)
	// TLS, HTTP/2 and headers come on top, handshakes above all.
	if counted != m.Bytes() || counted > carried || carried > counted+counted/20+64<<10 {
		t.Errorf("%d bytes counted by collection and %d in all, %d carried", counted, m.Bytes(), carried)
	}
	for _, w := range []struct {
		collection replica.Collection
		who        []string
		path       string
		selector   string
	}{
		{allSlices, []string{"edge:hub:n1", "edge:hubs"}, "/apis/discovery.k8s.io/v1/endpointslices", ""},
		{podsOfNode, []string{"system:node:n1", "system:nodes"}, "/api/v1/pods", "spec.nodeName=n1"},
	} {
		stream := c.metered(w.who[0], w.who[1:]...)
		objects := stream.streamed(t, c.server.URL+w.path, w.selector)
		t.Logf("%d objects of %s: %d bytes, as a stream %d", objects, w.collection, took[w.collection], stream.bytes.Load())
		// It is a tenth or less; a page below 128 KiB is not compressed.
		if took[w.collection]*3 > stream.bytes.Load() {
			t.Errorf("%d objects of %s took %d bytes, as a stream %d", objects, w.collection, took[w.collection], stream.bytes.Load())
		}
	}
}
