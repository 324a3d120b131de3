//go:build linux

package controllers_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

type realClock = clock.RealClock

var remote = netip.MustParseAddrPort("198.18.0.2:4711")

// real returns the shared control plane; the test is left out with -short.
func real(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real control plane; run without -short")
	}
	shared.alive(t)
	return shared
}

// alive fails the test if the controllers ended.
func (w *world) alive(t *testing.T) {
	t.Helper()
	select {
	case <-w.ended:
		t.Fatalf("the controllers ended: %v", w.runErr)
	default:
	}
}

func (w *world) tokenStore(passive clock.PassiveClock) *enroll.Store {
	return enroll.NewStore(enroll.StoreConfig{
		Client: w.kube, CAPin: enroll.Pin(w.server.CA.Certificate), Clock: passive, Random: rand.Reader,
	})
}

// eventually tries until try returns nil. It looks again at every change of the
// object it is given, so that nothing sleeps for a guess.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("%s: %v", what, err)
		case <-deadline.C:
			t.Fatalf("%s: not within %s: %v", what, patience, err)
		case <-ticker.C:
		}
	}
}

func (w *world) get(t *testing.T, object client.Object, key string) {
	t.Helper()
	if err := w.admin.Get(t.Context(), objectKey(key), object); err != nil {
		t.Fatalf("get %T %s: %v", object, key, err)
	}
}

func objectKey(key string) client.ObjectKey {
	if namespace, name, found := strings.Cut(key, "/"); found {
		return client.ObjectKey{Namespace: namespace, Name: name}
	}
	return client.ObjectKey{Name: key}
}

// gone returns nil once the object is not there.
func (w *world) gone(ctx context.Context, object client.Object, key string) error {
	err := w.admin.Get(ctx, objectKey(key), object)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil {
		return fmt.Errorf("%T %s is still there", object, key)
	}
	return err
}

func (w *world) create(t *testing.T, object client.Object) {
	t.Helper()
	if err := w.admin.Create(t.Context(), object); err != nil {
		t.Fatalf("create %T %s: %v", object, object.GetName(), err)
	}
}

func (w *world) delete(t *testing.T, object client.Object) {
	t.Helper()
	if err := w.admin.Delete(t.Context(), object); err != nil {
		t.Fatalf("delete %T %s: %v", object, object.GetName(), err)
	}
}

// cleanup deletes an object after a test, whose context has ended.
func (w *world) cleanup(t *testing.T, object client.Object) {
	t.Helper()
	if err := w.admin.Delete(context.WithoutCancel(t.Context()), object); client.IgnoreNotFound(err) != nil {
		t.Errorf("clean up %s: %v", object.GetName(), err)
	}
}

// update changes an object until nobody else did at the same time.
func update[T client.Object](t *testing.T, w *world, object T, key string, change func(T)) {
	t.Helper()
	eventually(t, "update "+key, func() error {
		if err := w.admin.Get(t.Context(), objectKey(key), object); err != nil {
			return err
		}
		change(object)
		return w.admin.Update(t.Context(), object)
	})
}

func (w *world) pool(t *testing.T, name string, spec v1alpha1.NodePoolSpec) {
	t.Helper()
	w.create(t, &v1alpha1.NodePool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec})
}

func (w *world) mint(t *testing.T, opts enroll.MintOptions) enroll.Token {
	t.Helper()
	token, err := w.tokens.Mint(t.Context(), opts)
	if err != nil {
		t.Fatalf("mint: %v", err)
	}
	return token
}

// device is one piece of hardware with its key.
type device struct {
	key *ecdsa.PrivateKey
}

func newDevice(t *testing.T) *device {
	t.Helper()
	key, err := pki.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return &device{key: key}
}

func (d *device) fingerprint(t *testing.T) string {
	t.Helper()
	fingerprint, err := enroll.Fingerprint(d.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return fingerprint
}

func (d *device) request(t *testing.T, token enroll.Token, name string) enroll.Request {
	t.Helper()
	node, err := enroll.NodeCSR(name, d.key)
	if err != nil {
		t.Fatal(err)
	}
	hub, err := enroll.HubCSR(name, d.key)
	if err != nil {
		t.Fatal(err)
	}
	return enroll.Request{
		Token: token.Reveal(), Name: name, NodeCSR: node, HubCSR: hub, EngineVersion: "0.1.0", Architecture: "amd64",
	}
}

func (d *device) join(t *testing.T, w *world, token enroll.Token, name string) enroll.Response {
	t.Helper()
	return w.service.Enroll(t.Context(), d.request(t, token, name), remote)
}

func (d *device) mustJoin(t *testing.T, w *world, token enroll.Token, name string) enroll.Response {
	t.Helper()
	response := d.join(t, w, token, name)
	if response.Error != nil {
		t.Fatalf("join %s: %v", name, response.Error)
	}
	return response
}

// identity is a client configuration with one of the device's certificates.
func (d *device) identity(t *testing.T, w *world, certificate string) *rest.Config {
	t.Helper()
	key, err := pki.EncodeKeyPEM(d.key)
	if err != nil {
		t.Fatal(err)
	}
	return &rest.Config{Host: w.server.URL, QPS: -1, TLSClientConfig: rest.TLSClientConfig{
		CAData: w.server.CA.PEM(), CertData: []byte(certificate), KeyData: key,
	}}
}

func clientset(t *testing.T, config *rest.Config) kubernetes.Interface {
	t.Helper()
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return kube
}

// joined makes a pool (unless it exists), joins a new device into it and
// registers its Node, ready. It returns the device and its kubelet's client.
func (w *world) joined(t *testing.T, pool, name string) (*device, kubernetes.Interface, enroll.Response) {
	t.Helper()
	err := w.admin.Create(t.Context(), &v1alpha1.NodePool{ObjectMeta: metav1.ObjectMeta{Name: pool}})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	d := newDevice(t)
	response := d.mustJoin(t, w, w.mint(t, enroll.MintOptions{Pool: pool}), name)
	kubelet := clientset(t, d.identity(t, w, response.NodeCertificate))
	w.sessions.set(name, true)
	if _, err := kubelet.CoreV1().Nodes().Create(t.Context(), freshNode(name), metav1.CreateOptions{}); err != nil {
		t.Fatalf("register %s: %v", name, err)
	}
	w.report(t, kubelet, name, true)
	w.phase(t, name, v1alpha1.NodeReady)
	return d, kubelet, response
}

// freshNode is a Node as a kubelet of ours registers it.
func freshNode(name string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
			"beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": "amd64",
		}},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: v1alpha1.UnplacedTaint, Effect: corev1.TaintEffectNoSchedule}}},
	}
}

// report writes a Node's status as its kubelet does.
func (w *world) report(t *testing.T, kubelet kubernetes.Interface, name string, ready bool) {
	t.Helper()
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	eventually(t, "report "+name, func() error {
		node, err := kubelet.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		node.Status.NodeInfo.Architecture, node.Status.NodeInfo.KubeletVersion = "amd64", "v1.36.3"
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.1.11"}}
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, Reason: "KubeletReady", Message: "test"}}
		_, err = kubelet.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
		return err
	})
}

func (w *world) phase(t *testing.T, name string, want v1alpha1.EdgeNodePhase) *v1alpha1.EdgeNode {
	t.Helper()
	var node v1alpha1.EdgeNode
	eventually(t, "phase of "+name, func() error {
		if err := w.admin.Get(t.Context(), client.ObjectKey{Name: name}, &node); err != nil {
			return err
		}
		if node.Status.Phase != want {
			return fmt.Errorf("phase is %q, want %q; conditions %v", node.Status.Phase, want, node.Status.Conditions)
		}
		return nil
	})
	return &node
}

func wantRefusal(t *testing.T, response enroll.Response, code enroll.Code) {
	t.Helper()
	if response.Error == nil || response.Error.Code != code {
		t.Fatalf("answer is %+v, want refusal %s", response, code)
	}
	if response.NodeCertificate != "" || response.HubCertificate != "" {
		t.Fatal("a refusal carries a certificate")
	}
}

func wantForbidden(t *testing.T, err error, part string) {
	t.Helper()
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), part) {
		t.Fatalf("error is %v, want Forbidden with %q", err, part)
	}
}

var errNotYet = errors.New("not yet")

// pastGrace puts the clock past the time after a start in which nodes that are
// not connected yet count as connected. Some node must be there already: the
// controllers have then started.
func (w *world) pastGrace(t *testing.T) {
	t.Helper()
	w.clock.offset.Add(int64(time.Minute))
}

// crcOf makes the check digits of a token's body.
func crcOf(body string) string { return fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(body))) }
