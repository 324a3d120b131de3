//go:build linux

package apitest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/client-go/rest"

	"github.com/edgewright/terraform-provider-edge/internal/component"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

// kubernetesVersion is the one under test.
const kubernetesVersion = "1.36.3"

// programsVariable names a directory that holds the programs, instead of the
// component cache.
const programsVariable = "EDGE_TEST_COMPONENTS"

// startBound is how long one program may take to listen on a busy machine.
const startBound = time.Minute

// Server is a running control plane.
type Server struct {
	URL string
	// EtcdURL is where etcd answers, in the clear.
	EtcdURL string
	CA      *pki.Authority

	dir      string
	programs component.Paths
	store    *pki.Store
	children []*child
	identity atomic.Int64
}

type child struct {
	name string
	args []string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// Options of StartWith.
type Options struct {
	// Controllers of the controller manager beside those that every test has.
	Controllers []string
	// ControllerManager has further flags of the controller manager.
	ControllerManager []string
}

// baseControllers sign certificates and make pods of Deployments.
var baseControllers = []string{
	"certificatesigningrequest-signing-controller", "deployment-controller", "replicaset-controller",
	"garbage-collector-controller", "disruption-controller",
}

// Start starts a control plane in dir, which must be empty. It returns once the
// apiserver is started; it may not be ready yet, as where an apiserver is
// brought up for real. The caller must call Stop.
func Start(ctx context.Context, dir string) (*Server, error) {
	return StartWith(ctx, dir, Options{})
}

// StartWith is Start with options.
func StartWith(ctx context.Context, dir string, opts Options) (*Server, error) {
	programs, err := findPrograms(ctx)
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, programs: programs}
	if err := s.start(opts); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// findPrograms looks in the directory EDGE_TEST_COMPONENTS, or takes what the
// component cache (or mirror) holds. It builds nothing: that takes minutes.
func findPrograms(ctx context.Context) (component.Paths, error) {
	if dir := os.Getenv(programsVariable); dir != "" {
		paths := component.Paths{}
		for _, name := range []string{"etcd", "etcdutl", "kube-apiserver", "kube-controller-manager"} {
			paths[name] = filepath.Join(dir, name)
			if _, err := os.Stat(paths[name]); err != nil {
				return nil, fmt.Errorf("%s: %w", programsVariable, err)
			}
		}
		return paths, nil
	}
	opts := component.DefaultOptions(os.Getenv)
	opts.Source = component.SourceCache
	if opts.Mirror != "" {
		opts.Source = component.SourceMirror
	}
	store, err := component.Open(opts)
	if err != nil {
		return nil, err
	}
	paths, err := store.Ensure(ctx, kubernetesVersion, component.ControlPlane)
	if err != nil {
		return nil, fmt.Errorf("these tests need a real control plane; fetch it with `make components`, set %s, or leave them out with -short: %w", programsVariable, err)
	}
	return paths, nil
}

func (s *Server) start(opts Options) error {
	var err error
	if s.store, err = pki.Open(filepath.Join(s.dir, "pki"), nil); err != nil {
		return err
	}
	if s.CA, err = s.store.Authority("ca", "test-ca"); err != nil {
		return err
	}
	saKey, saPub, err := s.store.ServiceAccountKey("sa")
	if err != nil {
		return err
	}
	cert, key, _, err := s.store.Ensure(s.CA, pki.Request{
		Name: "apiserver", CommonName: "kube-apiserver", Server: true,
		DNSNames: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		return err
	}
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	caFile, caKey := s.store.CertFile("ca"), s.store.KeyFile("ca")
	etcdURL := fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	s.EtcdURL = etcdURL
	peerURL := fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	s.URL = fmt.Sprintf("https://127.0.0.1:%d", ports[2])

	if err := s.run("etcd",
		"--data-dir="+filepath.Join(s.dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL, "--initial-cluster=default="+peerURL,
	); err != nil {
		return err
	}
	if err := s.run("kube-apiserver",
		"--etcd-servers="+etcdURL, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", ports[2]), "--client-ca-file="+caFile,
		"--tls-cert-file="+cert, "--tls-private-key-file="+key,
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		// Pods of these tests are made without their service accounts.
		"--disable-admission-plugins=ServiceAccount",
		"--service-cluster-ip-range=10.97.0.0/16", "--endpoint-reconciler-type=none",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-signing-key-file="+saKey, "--service-account-key-file="+saPub,
	); err != nil {
		return err
	}
	// As an administrator, who makes the controllers' service accounts: what they
	// write is told from what others write by these.
	config, err := s.Config("kube-controller-manager", "system:masters")
	if err != nil {
		return err
	}
	kubeconfig := filepath.Join(s.dir, "controller-manager.kubeconfig")
	text, err := pki.Kubeconfig(pki.KubeconfigOptions{
		Server: s.URL, CAPEM: s.CA.PEM(), CertFile: config.CertFile, KeyFile: config.KeyFile,
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(kubeconfig, text, 0o600); err != nil {
		return err
	}
	return s.run("kube-controller-manager", append([]string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--leader-elect=false", "--secure-port=0", "--use-service-account-credentials=true",
		"--cluster-signing-cert-file=" + caFile, "--cluster-signing-key-file=" + caKey,
		"--controllers=" + strings.Join(append(slices.Clone(baseControllers), opts.Controllers...), ","),
		"--kube-api-qps=200", "--kube-api-burst=400",
	}, opts.ControllerManager...)...)
}

func (s *Server) run(name string, args ...string) error {
	path := filepath.Join(s.dir, name+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(s.programs[name], args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + s.dir}
	cmd.Stdout, cmd.Stderr = log, log
	// A test binary that is killed leaves no processes behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c := &child{name: name, args: args, cmd: cmd, log: path, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(c.done)
		// Pdeathsig is of the thread that starts the child, which may end where
		// others enter namespaces. This one stays for as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if started <- err; err == nil {
			// How it ended is in its log; Stop and Ready say that it did.
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	s.children = append(s.children, c)
	return nil
}

// Config returns a client configuration of a user, by client certificate.
func (s *Server) Config(user string, groups ...string) (*rest.Config, error) {
	name := fmt.Sprintf("clients/%d", s.identity.Add(1))
	cert, key, _, err := s.store.Ensure(s.CA, pki.Request{Name: name, CommonName: user, Organizations: groups, Client: true})
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", user, err)
	}
	return &rest.Config{
		Host: s.URL, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAFile: s.store.CertFile("ca"), CertFile: cert, KeyFile: key},
	}, nil
}

// Admin returns a client configuration of a cluster administrator.
func (s *Server) Admin() (*rest.Config, error) { return s.Config("admin", "system:masters") }

// Ready waits until the apiserver is ready, or says what its log ended with.
func (s *Server) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startBound)
	defer cancel()
	config, err := s.Admin()
	if err != nil {
		return err
	}
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/readyz", nil)
		if err != nil {
			return err
		}
		if response, err := httpClient.Do(request); err == nil {
			_, _ = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		for _, c := range s.children {
			select {
			case <-c.done:
				return fmt.Errorf("%s ended: %s", c.name, tail(c.log))
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("apiserver not ready after %s", startBound)
		case <-ticker.C:
		}
	}
}

// Stop ends all programs, the last started first.
func (s *Server) Stop() error {
	var errs []error
	for i := len(s.children) - 1; i >= 0; i-- {
		if err := s.children[i].kill(); err != nil {
			errs = append(errs, err)
		}
	}
	s.children = nil
	return errors.Join(errs...)
}

// freePorts finds n free ports on loopback, all different.
func (c *child) kill() error {
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", c.name, err)
	}
	<-c.done
	return nil
}

func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer listener.Close()
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// tail returns the last kilobyte of a log.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-1024):])
}
