//go:build linux

package tunnel

import (
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/controllers"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/signed"
)

// Who gets through, at two real gateways: every node answers for itself although
// all have one LAN address, and what is forged, used up, not allowed or revoked
// is refused and logged.
func TestWhoGetsThrough(t *testing.T) {
	w := newWorld(t)
	config, err := w.server.Config(v1alpha1.ControllersUser)
	if err != nil {
		t.Fatal(err)
	}
	sessions := noSessions{controllers.NewNotifier()}
	ended := make(chan error, 1)
	go func() {
		ended <- controllers.Run(t.Context(), controllers.Config{
			RESTConfig: config, Sessions: sessions, Kick: func(string, string) {}, Authority: w.ca, Logger: slog.New(slog.DiscardHandler),
		})
	}()
	t.Cleanup(func() { // after the test's context has ended
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	w.issue(5*time.Second, "a", "b")
	for _, id := range []string{"a", "b"} {
		w.launch(id).says("serving nodes")
	}
	seed := fmt.Sprintf("127.0.0.1:%d", w.ports["a"])

	// Two sites, one LAN address; each kubelet says whose it is.
	nodes := map[string]*node{}
	for i, name := range []string{"berlin-1", "tokyo-1"} {
		n := w.enroll(name)
		nodes[name] = n
		w.create(&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1alpha1.PoolLabel: "pool"}},
			Spec:       corev1.NodeSpec{PodCIDR: fmt.Sprintf("127.77.%d.0/24", i+1), PodCIDRs: []string{fmt.Sprintf("127.77.%d.0/24", i+1)}},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.1.10"}}},
		})
		w.connect(n, func(c net.Conn) {
			defer c.Close()
			b := make([]byte, 1)
			if _, err := io.ReadFull(c, b); err == nil {
				_, _ = io.WriteString(c, name+"\n")
			}
		}, seed)
	}
	for name := range nodes {
		for _, id := range []string{"a", "b"} {
			w.eventually(name+" through "+id, func() error { return w.asks(id, name) })
		}
	}
	for range 200 {
		for name := range nodes {
			for _, id := range []string{"a", "b"} {
				if err := w.asks(id, name); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	refused := func(id, target, want string) {
		t.Helper()
		c, err := w.dial(id, target)
		if err == nil {
			c.Close()
			t.Errorf("%s through %s was reached", target, id)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%s through %s: %v, want %q", target, id, err, want)
		}
	}
	refused("a", "192.168.1.10:10250", "ambiguous address")
	refused("b", "192.168.1.10:10250", "502 Bad Gateway")
	refused("b", "127.0.0.1:22", "not dialled")
	refused("a", "berlin-1:22", "only the kubelet's")
	refused("b", "nobody:10250", "no edge node has this name")

	t.Run("outside the allow-list", func(t *testing.T) {
		// The policy is the node's pod range.
		w.eventually("policy", func() error {
			if !nodes["berlin-1"].log.has("new document") || !strings.Contains(nodes["berlin-1"].log.tail(1000), "edge-node-policy/1") {
				return errors.New("not yet")
			}
			return nil
		})
		refused("a", "127.77.1.9:1", "refused") // allowed, and nobody there
		if nodes["berlin-1"].log.has("denied") {
			t.Error("the node's own pod range is denied")
		}
		// Somebody with a gateway's rights and more cannot write a policy either: the
		// agent believes the authority alone.
		other, err := pki.Open(t.TempDir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		impostor, err := other.Authority("ca", w.ca.Certificate.Subject.CommonName)
		if err != nil {
			t.Fatal(err)
		}
		everything := signed.Policy{Node: "berlin-1", Version: 1 << 62, Allow: []signed.Rule{{Network: signed.TCP, Prefix: netip.MustParsePrefix("0.0.0.0/0")}}}
		forged, err := everything.Sign(impostor)
		if err != nil {
			t.Fatal(err)
		}
		edge := &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: "berlin-1"}}
		patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.PolicyAnnotation, forged))
		if err := w.admin.Patch(t.Context(), edge, patch); err != nil {
			t.Fatal(err)
		}
		w.eventually("the forged policy is refused", func() error {
			if !nodes["berlin-1"].log.has("document is not signed by the cluster's authority") {
				return errors.New("not yet")
			}
			return nil
		})
	})

	t.Run("a forged identity", func(t *testing.T) {
		key, err := pki.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		// Signed by the cluster, for berlin-1, of another key than the enrolled.
		thief := &node{name: "berlin-1", key: key, log: &lineLog{}}
		w.connect(thief, echo, seed)
		w.eventually("the thief is refused", func() error {
			if !thief.log.has("is not the one it is enrolled with") {
				return errors.New("not yet")
			}
			return nil
		})
		if thief.up.Load() != 0 {
			t.Error("a key that was not enrolled had a session")
		}
		w.gws["a"].says(`msg="session refused"`)
		thief.stop()
		if err := w.asks("b", "berlin-1"); err != nil {
			t.Error(err)
		}
		// A node's certificate is none of a gateway.
		cert := w.certificate("tokyo-1", nodes["tokyo-1"].key)
		qc, err := quic.DialAddr(t.Context(), seed, &tls.Config{
			NextProtos: []string{tunnel.MeshALPN}, ServerName: tunnel.ServerName, RootCAs: w.ca.Pool(), Certificates: []tls.Certificate{*cert},
		}, tunnel.MeshConfig())
		if err == nil {
			_, err = qc.AcceptStream(t.Context())
			_ = qc.CloseWithError(0, "")
		}
		if err == nil || !strings.Contains(err.Error(), "no gateway's certificate") {
			t.Errorf("a node in the mesh: %v", err)
		}
	})

	t.Run("a used token", func(t *testing.T) {
		admin, err := w.server.Admin()
		if err != nil {
			t.Fatal(err)
		}
		kube, err := kubernetes.NewForConfig(admin)
		if err != nil {
			t.Fatal(err)
		}
		store := enroll.NewStore(enroll.StoreConfig{Client: kube, CAPin: enroll.Pin(w.ca.Certificate), Random: rand.Reader, Clock: clock.RealClock{}})
		token, err := store.Mint(t.Context(), enroll.MintOptions{Pool: "pool"})
		if err != nil {
			t.Fatal(err)
		}
		join := func(name, gateway string) error {
			key, err := pki.GenerateKey()
			if err != nil {
				return err
			}
			req := enroll.Request{Token: token.Reveal(), Name: name}
			var err1, err2 error
			req.NodeCSR, err1 = enroll.NodeCSR(name, key)
			req.HubCSR, err2 = enroll.HubCSR(name, key)
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			_, err = agent.Enroll(t.Context(), agent.EnrollConfig{Gateways: []string{gateway}, CAPin: token.Pin()}, req)
			return err
		}
		if err := join("osaka-1", seed); err != nil {
			t.Fatal(err)
		}
		err = join("osaka-2", fmt.Sprintf("127.0.0.1:%d", w.ports["b"])) // used at another gateway
		if remote, ok := errors.AsType[*enroll.RemoteError](err); !ok || remote.Code != enroll.CodeTokenUsed {
			t.Errorf("second use: %v", err)
		}
		w.gws["b"].says("token-used")
	})

	t.Run("a revoked node", func(t *testing.T) {
		c, err := w.dial("b", "tokyo-1:10250")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		w.setKey("tokyo-1", "")
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); errors.Is(err, net.ErrClosed) || isTimeout(err) {
			t.Errorf("the stream of a revoked node goes on: %v", err)
		}
		w.eventually("gone at both gateways", func() error {
			for _, id := range []string{"a", "b"} {
				if err := w.asks(id, "tokyo-1"); err == nil || !strings.Contains(err.Error(), "503") {
					return fmt.Errorf("at %s: %w", id, errors.Join(err, errors.New("want 503")))
				}
			}
			return nil
		})
		w.eventually("the agent knows", func() error { // a moment after its gateway
			if _, up := nodes["tokyo-1"].Connected(); up {
				return errors.New("the agent is connected")
			}
			return nil
		})
	})
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// asks dials a node's kubelet and checks that it is that node's.
func (w *world) asks(id, name string) error {
	c, err := w.dial(id, name+":10250")
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("?")); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if string(got) != name+"\n" {
		return fmt.Errorf("%s answered for %s", got, name)
	}
	return nil
}

// noSessions is the controllers' view where no gateway is in their process.
type noSessions struct{ *controllers.Notifier }

func (noSessions) Connected(string) bool { return true }
