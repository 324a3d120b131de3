//go:build linux

package tunnel

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/controllers"
	"github.com/edgewright/terraform-provider-edge/internal/controllers/apitest"
	"github.com/edgewright/terraform-provider-edge/internal/controlplane"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/gateway/process"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

// patience bounds waits for what takes milliseconds to seconds.
const patience = 90 * time.Second

// world is an apiserver, a cluster directory for it, and gateway processes.
type world struct {
	t      *testing.T
	edge   string // the program
	dir    string // cluster directory
	server *apitest.Server
	admin  client.Client
	store  *pki.Store
	ca     *pki.Authority
	gws    map[string]*gatewayProcess
	ports  map[string]int
}

// newWorld starts an apiserver and installs the cluster's objects.
func newWorld(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real apiserver; run make test-tunnel")
	}
	_, file, _, _ := runtime.Caller(0)
	w := &world{t: t, edge: filepath.Join(filepath.Dir(file), "../../../bin/edge"), gws: map[string]*gatewayProcess{}, ports: map[string]int{}}
	if _, err := os.Stat(w.edge); err != nil {
		t.Fatalf("%v; run make build first", err)
	}
	// Socket addresses are short: not t.TempDir, whose name has the test's.
	dir, err := os.MkdirTemp("", "edge-tun-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	w.dir = dir
	if w.server, err = apitest.Start(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.server.Stop(); err != nil {
			t.Error(err)
		}
	})
	config, err := w.server.Admin()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := controllers.Install(ctx, config, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatalf("%v (%v)", err, w.server.Ready(ctx))
	}
	scheme := apiruntime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	if w.admin, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	if w.store, err = pki.Open(filepath.Join(dir, "pki"), nil); err != nil {
		t.Fatal(err)
	}
	w.ca = w.server.CA
	if _, _, _, err := w.store.Ensure(w.ca, pki.Request{Name: "super-admin", CommonName: "super-admin", Organizations: []string{"system:masters"}, Client: true}); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(w.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	spec, err := json.Marshal(controlplane.Spec{
		ClusterID: "local/test-00000001", Name: "test", UID: "00000001", KubernetesVersion: "1.36.3", DNSDomain: "cluster.local",
		PodCIDRs: []string{"10.244.0.0/16"}, ServiceCIDRs: []string{"10.97.0.0/16"}, NodeMask: 24,
		Ports: controlplane.Ports{API: port},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, controlplane.SpecFile), spec, 0o600); err != nil {
		t.Fatal(err)
	}
	w.create(&v1alpha1.NodePool{ObjectMeta: metav1.ObjectMeta{Name: "pool"}})
	return w
}

func (w *world) create(o client.Object) {
	w.t.Helper()
	if err := w.admin.Create(w.t.Context(), o); err != nil {
		w.t.Fatal(err)
	}
}

// issue makes the directories of gateways with the command, main being nowhere,
// and bounds their drain.
func (w *world) issue(drain time.Duration, ids ...string) {
	w.t.Helper()
	for i, id := range ids {
		w.ports[id] = freePort(w.t)
		args := []string{"gateway", "issue", "--cluster-dir", w.dir, "--id", id, "--out", w.gatewayDir(id),
			"--address", fmt.Sprintf("127.0.0.1:%d", w.ports[id])}
		if i == 0 {
			args = append(args, "--main-address", "127.0.0.1:1")
		}
		w.run(args...)
		path := filepath.Join(w.gatewayDir(id), process.SpecFile)
		spec, err := process.LoadSpec(w.gatewayDir(id))
		if err != nil {
			w.t.Fatal(err)
		}
		spec.DrainSeconds = int(drain / time.Second)
		raw, err := json.Marshal(spec)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	// There is no control plane's own here.
	w.run("gateway", "remove", "--cluster-dir", w.dir, "--id", controlplane.MainGateway)
}

func (w *world) run(args ...string) string {
	w.t.Helper()
	out, err := exec.CommandContext(w.t.Context(), w.edge, args...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("edge %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (w *world) gatewayDir(id string) string { return filepath.Join(w.dir, "gw-"+id) }

// freePort returns a port that is free for UDP and TCP, below those that the kernel
// gives to outgoing connections: a gateway may be down for a while and has to find
// its port free when it is back.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 10_000 + rand.IntN(10_000)
		pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			continue
		}
		ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		pc.Close()
		if err != nil {
			continue
		}
		ln.Close()
		return port
	}
	t.Fatal("no port of 100 between 10000 and 19999 is free")
	return 0
}

// gatewayProcess is a running `edge gateway run`.
type gatewayProcess struct {
	w    *world
	id   string
	cmd  *exec.Cmd
	log  *lineLog
	done chan error
}

// launch starts a gateway process; it may be the second of its directory.
func (w *world) launch(id string) *gatewayProcess {
	w.t.Helper()
	p := &gatewayProcess{w: w, id: id, log: &lineLog{}, done: make(chan error, 1)}
	p.cmd = exec.Command(w.edge, "gateway", "run", "--dir", w.gatewayDir(id))
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + w.dir}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() { p.done <- p.cmd.Wait() }()
	w.gws[id] = p
	w.t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill() // it may have just ended
		}
		if w.t.Failed() {
			w.t.Logf("gateway %s:\n%s", p.id, p.log.tail(60))
		}
	})
	return p
}

// says waits for a line of the log.
func (p *gatewayProcess) says(text string) {
	p.w.t.Helper()
	p.w.eventually("gateway "+p.id+" says "+text, func() error {
		if p.log.has(text) {
			return nil
		}
		select {
		case err := <-p.done:
			p.done <- err
			return fatal{fmt.Errorf("it ended: %w\n%s", errors.Join(err, errors.New("see its log")), p.log.tail(20))}
		default:
			return errors.New("not yet")
		}
	})
}

// stop asks it to end and returns how it did.
func (p *gatewayProcess) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	err := <-p.done
	p.done <- err
	return err
}

// sessions are what its admin socket shows.
func (p *gatewayProcess) sessions() []gateway.SessionInfo {
	p.w.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(p.w.gatewayDir(p.id), process.AdminSocket))
	}}}
	resp, err := client.Get("http://gateway/sessions")
	if err != nil {
		p.w.t.Fatal(err)
	}
	defer resp.Body.Close()
	var out []gateway.SessionInfo
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		p.w.t.Fatal(err)
	}
	return out
}

// fatal ends eventually at once.
type fatal struct{ error }

func (w *world) eventually(what string, try func() error) {
	w.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		if _, ok := errors.AsType[fatal](err); ok {
			w.t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("%s: %v", what, err)
		}
	}
}

// node is an enrolled node with its agent; its kubelet echoes.
type node struct {
	*agent.Agent
	name string
	key  *ecdsa.PrivateKey
	up   atomic.Int64 // sessions that began
	log  *lineLog
	stop func()
}

// enroll declares a node with a key of its own, as a join would have.
func (w *world) enroll(name string) *node {
	w.t.Helper()
	key, err := pki.GenerateKey()
	if err != nil {
		w.t.Fatal(err)
	}
	fingerprint, err := pki.Fingerprint(&key.PublicKey)
	if err != nil {
		w.t.Fatal(err)
	}
	edge := &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.EdgeNodeSpec{Pool: "pool"}}
	w.create(edge)
	w.setKey(name, fingerprint)
	return &node{name: name, key: key, log: &lineLog{}}
}

// setKey writes which key is enrolled; empty revokes it.
func (w *world) setKey(name, fingerprint string) {
	w.t.Helper()
	edge := &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: name}}
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"status":{"key":%q}}`, fingerprint))
	if err := w.admin.Status().Patch(w.t.Context(), edge, patch); err != nil {
		w.t.Fatal(err)
	}
}

// certificate signs the node's client certificate.
func (w *world) certificate(name string, key *ecdsa.PrivateKey) *tls.Certificate {
	w.t.Helper()
	cert, err := w.ca.Sign(pki.Request{Name: "node", CommonName: v1alpha1.NodeUserPrefix + name, Organizations: []string{"system:nodes"}, Client: true}, &key.PublicKey, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	pair, err := pki.TLSCertificate(key, cert)
	if err != nil {
		w.t.Fatal(err)
	}
	return &pair
}

// connect runs the node's agent until the test ends. kubelet serves its
// connections.
func (w *world) connect(n *node, kubelet func(net.Conn), seeds ...string) {
	w.t.Helper()
	cert := w.certificate(n.name, n.key)
	a, err := agent.New(agent.Config{
		Gateways: seeds, RootCAs: w.ca.Pool(), CA: w.ca.Certificate, NodeName: n.name,
		Certificate: func() (*tls.Certificate, error) { return cert, nil },
		DialKubelet: func(context.Context) (net.Conn, error) {
			a, b, err := socketPair()
			if err == nil {
				go kubelet(b)
			}
			return a, err
		},
		OnState: func(up bool, _ string) {
			if up {
				n.up.Add(1)
			}
		},
		Logger: slog.New(slog.NewTextHandler(n.log, nil)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	n.Agent = a
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(n.stop)
}

// socketPair is a connection with itself, with half-close, and no port used up.
func socketPair() (a, b net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	conn := func(fd int) (net.Conn, error) {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		return net.FileConn(f)
	}
	a, errA := conn(fds[0])
	b, errB := conn(fds[1])
	return a, b, errors.Join(errA, errB)
}

func echo(c net.Conn) {
	defer c.Close()
	_, _ = io.Copy(c, c) // ends with the connection
}

// dial sends a CONNECT to a gateway's egress socket as the apiserver does.
func (w *world) dial(id, target string) (net.Conn, error) {
	c, err := net.Dial("unix", filepath.Join(w.gatewayDir(id), "egress.sock"))
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", target); err != nil {
		c.Close()
		return nil, err
	}
	var head []byte
	one := make([]byte, 1)
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if _, err := io.ReadFull(c, one); err != nil {
			c.Close()
			return nil, fmt.Errorf("CONNECT %s at gateway %s: %q: %w", target, id, head, err)
		}
		head = append(head, one[0])
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		rest, _ := io.ReadAll(c)
		c.Close()
		return nil, fmt.Errorf("CONNECT %s at gateway %s: %s%s", target, id, head, rest)
	}
	return c, nil
}

// say sends text and awaits it back.
func say(c net.Conn, text string) error {
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("%q came back as %q", text, got)
	}
	return nil
}

// lineLog keeps what a program logs.
type lineLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lineLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lineLog) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.b.Bytes(), []byte(text))
}

func (l *lineLog) tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(l.b.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
