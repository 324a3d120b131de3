package hub

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/controllers"
	"github.com/edgewright/terraform-provider-edge/internal/controllers/apitest"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// processEnv makes this binary a hub, as the JSON in it says.
const processEnv = "EDGE_TEST_HUB_PROCESS"

// process is a hub on its own, to look at from outside.
type process struct {
	APIServer, UpstreamCA, ServerName string
	NodeCert, NodeKey                 string
	HubCert, HubKey                   string
	LocalCA, ServingCert, ServingKey  string
	DataDir                           string
}

func TestMain(m *testing.M) {
	if config := os.Getenv(processEnv); config != "" {
		if err := runProcess(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runProcess(config string) error {
	var p process
	if err := json.Unmarshal([]byte(config), &p); err != nil {
		return err
	}
	pair := func(cert, key string) func() (*tls.Certificate, error) {
		return sync.OnceValues(func() (*tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(cert, key)
			return &c, err
		})
	}
	pool := func(path string) (*x509.CertPool, error) {
		text, err := os.ReadFile(path)
		pool := x509.NewCertPool()
		if err == nil && !pool.AppendCertsFromPEM(text) {
			err = fmt.Errorf("%s holds no certificate", path)
		}
		return pool, err
	}
	upstreamCA, err := pool(p.UpstreamCA)
	if err != nil {
		return err
	}
	localCA, err := pool(p.LocalCA)
	if err != nil {
		return err
	}
	rootCA, err := os.ReadFile(p.LocalCA)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	debug.SetGCPercent(50) // the node daemon's
	h, err := New(Config{
		NodeName: "n1", Listener: listener, ServingCertificate: pair(p.ServingCert, p.ServingKey), LocalCA: localCA,
		DialUpstream: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", p.APIServer)
		},
		UpstreamCA: upstreamCA, UpstreamServerName: p.ServerName,
		NodeCertificate: pair(p.NodeCert, p.NodeKey), HubCertificate: pair(p.HubCert, p.HubKey),
		KubernetesEndpoint: netip.MustParseAddrPort("169.254.20.11:443"), DataDir: p.DataDir,
		PodCertificate: pair(p.ServingCert, p.ServingKey), RootCA: string(rootCA),
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	h.Link().Session(true)
	fmt.Println(listener.Addr())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return h.Serve(ctx)
}

// writePair writes a certificate and its key as files.
func writePair(t *testing.T, dir, name string, c *tls.Certificate) (cert, key string) {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(c.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, key: {Type: "EC PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// resident reads what a process has in memory, in KiB: pages of its program, and
// all else (its own memory, and pages of the store).
func resident(t *testing.T, pid int) (program, own int) {
	t.Helper()
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	ofProgram := false
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 5 && strings.Contains(f[0], "-"):
			// A mapping begins; data that was written to counts as the process's.
			ofProgram = len(f) > 5 && f[5] == exe && !strings.Contains(f[1], "w")
		case len(f) == 3 && f[0] == "Rss:":
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			if ofProgram {
				program += n
			} else {
				own += n
			}
		}
	}
	return program, own
}

// The node that is measured: a full one.
const (
	memoryPods     = 110
	memoryServices = 500
	// memoryAim is what a hub may have resident with that, in KiB, beside the
	// pages of its program: those are shared with all that run it, and this
	// program is a test.
	memoryAim = 40_000_000 / 1024
)

// TestResidentMemory measures a hub with a full node's replica and a full node's
// clients: kubelet with its watches of each Secret and ConfigMap, kube-proxy and
// CoreDNS.
func TestResidentMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a real control plane")
	}
	ctx := t.Context()
	server, err := apitest.Start(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := server.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	admin, err := server.Admin()
	if err != nil {
		t.Fatal(err)
	}
	if err := controllers.Install(ctx, admin, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	kube, err := kubernetes.NewForConfig(admin)
	if err != nil {
		t.Fatal(err)
	}
	fillNode(t, kube)

	dir := t.TempDir()
	local := newAuthority(t, "local")
	p := process{APIServer: strings.TrimPrefix(server.URL, "https://"), ServerName: "localhost", DataDir: filepath.Join(dir, "data"), LocalCA: filepath.Join(dir, "ca.crt")}
	p.ServingCert, p.ServingKey = writePair(t, dir, "serving", local.server("localhost"))
	if err := os.WriteFile(p.LocalCA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: local.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	node, err := server.Config("system:node:n1", "system:nodes")
	if err != nil {
		t.Fatal(err)
	}
	hub, err := server.Config("edge:hub:n1", "edge:hubs")
	if err != nil {
		t.Fatal(err)
	}
	p.UpstreamCA, p.NodeCert, p.NodeKey, p.HubCert, p.HubKey = node.CAFile, node.CertFile, node.KeyFile, hub.CertFile, hub.KeyFile
	config, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(context.WithoutCancel(ctx), os.Args[0])
	child.Env = append(os.Environ(), processEnv+"="+string(config))
	child.Stderr = os.Stderr
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := child.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := child.Wait(); err != nil {
			t.Error(err)
		}
	}()
	var address string
	if _, err := fmt.Fscan(stdout, &address); err != nil {
		t.Fatal(err)
	}
	followAsNode(t, local, address)

	program, own := resident(t, child.Process.Pid)
	t.Logf("resident with %d pods and %d services: %d KiB, and %d KiB of the program", memoryPods, memoryServices, own, program)
	if own > memoryAim {
		t.Errorf("%d KiB are resident, more than %d", own, memoryAim)
	}
}

// fillNode makes a full node's objects.
func fillNode(t *testing.T, kube kubernetes.Interface) {
	t.Helper()
	ctx := t.Context()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(kube.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "edge:hub:n1"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "edge-hub"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "edge:hub:n1"}},
	}, metav1.CreateOptions{}))
	must(kube.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{}))
	for i := range memoryPods {
		name := fmt.Sprint("app-", i)
		must(kube.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{"key": make([]byte, 512)},
		}, metav1.CreateOptions{}))
		must(kube.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"config": strings.Repeat("line\n", 200)},
		}, metav1.CreateOptions{}))
		must(kube.CoreV1().Pods("default").Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
			Spec: corev1.PodSpec{NodeName: "n1", Volumes: []corev1.Volume{
				{Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name}}},
				{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}}}},
			}, Containers: []corev1.Container{{Name: "c", Image: "registry.example/app:1", Env: []corev1.EnvVar{{Name: "FILLER", Value: strings.Repeat("x", 2000)}}}}},
		}, metav1.CreateOptions{}))
	}
	for i := range memoryServices {
		name := fmt.Sprint("svc-", i)
		must(kube.CoreV1().Services("default").Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Port: 80}}},
		}, metav1.CreateOptions{}))
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: ptr.To[int32](80)}},
		}
		for e := range 5 {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{fmt.Sprintf("10.1.%d.%d", e, i%250+1)}, NodeName: ptr.To(fmt.Sprint("node-", e)),
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: fmt.Sprint(name, "-", e), UID: "11111111-2222-3333-4444-555555555555"},
			})
		}
		must(kube.DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{}))
	}
}

// followAsNode runs the reflectors of a node's components against a hub until the
// test ends, and returns once all of them have synced.
func followAsNode(t *testing.T, local *authority, address string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	rig := &rig{t: t, local: local, address: address}
	type want struct {
		resource, namespace, field string
		group                      string
	}
	follow := map[Caller][]want{
		CallerKubelet:   {{"pods", "", "spec.nodeName=n1", ""}, {"nodes", "", "metadata.name=n1", ""}, {"services", "", "", ""}},
		CallerKubeProxy: {{"services", "", "", ""}, {"endpointslices", "", "", "discovery"}, {"nodes", "", "metadata.name=n1", ""}},
		CallerCoreDNS:   {{"services", "", "", ""}, {"endpointslices", "", "", "discovery"}, {"namespaces", "", "", ""}},
	}
	for i := range memoryPods {
		for _, r := range []string{"secrets", "configmaps"} {
			follow[CallerKubelet] = append(follow[CallerKubelet], want{r, "default", fmt.Sprint("metadata.name=app-", i), ""})
		}
	}
	types := map[string]runtime.Object{
		"pods": &corev1.Pod{}, "nodes": &corev1.Node{}, "services": &corev1.Service{}, "endpointslices": &discoveryv1.EndpointSlice{},
		"namespaces": &corev1.Namespace{}, "secrets": &corev1.Secret{}, "configmaps": &corev1.ConfigMap{},
	}
	var synced []*watched
	for caller, wants := range follow {
		client, err := kubernetes.NewForConfig(rig.restConfig(caller, wire.MediaProtobuf))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range wants {
			get := client.CoreV1().RESTClient()
			if w.group != "" {
				get = client.DiscoveryV1().RESTClient()
			}
			store := &watched{Store: cache.NewStore(cache.MetaNamespaceKeyFunc), changed: make(chan struct{}, 1)}
			synced = append(synced, store)
			selector, err := fields.ParseSelector(w.field)
			if err != nil {
				t.Fatal(err)
			}
			reflector := cache.NewReflectorWithOptions(cache.NewListWatchFromClient(get, w.resource, w.namespace, selector), types[w.resource], store, cache.ReflectorOptions{})
			running.Go(func() { reflector.RunWithContext(ctx) })
		}
	}
	deadline := time.Now().Add(5 * patience)
	for _, s := range synced {
		for s.synced.Load() == nil {
			if time.Now().After(deadline) {
				t.Fatal("a reflector never synced")
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}
