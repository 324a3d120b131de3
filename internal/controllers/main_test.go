//go:build linux

package controllers_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/controllers"
	"github.com/edgewright/terraform-provider-edge/internal/controllers/apitest"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
)

// patience bounds every wait of these tests. What they wait for takes
// milliseconds; the bound is for a busy machine.
const patience = 60 * time.Second

// world is one control plane with the controllers on it, shared by all tests
// of the package: each uses names of its own.
type world struct {
	server    *apitest.Server
	adminConf *rest.Config
	admin     client.WithWatch
	kube      kubernetes.Interface
	sessions  *fakeSessions
	reports   *controllers.ReportBoard
	kicks     *kickLog
	tokens    *enroll.Store
	service   *enroll.Service
	clock     *offsetClock
	// controllers is the identity they run as; ended is closed when they have,
	// with runErr.
	controllers *rest.Config
	gateway     *rest.Config // edge:gateway
	logger      *slog.Logger
	cancel      context.CancelFunc
	ended       chan struct{}
	runErr      error
}

var shared *world

// monitored is a second control plane, with the controllers of Kubernetes that
// judge nodes and evict pods, made short; the shared one has nodes that no
// kubelet speaks for. It is started by the first test that asks for it.
var monitored struct {
	once  sync.Once
	world *world
	err   error
	stop  func() error
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runMain(m))
}

func runMain(m *testing.M) (code int) {
	if testing.Short() {
		return m.Run()
	}
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "controllers_test:", err)
		return 1
	}
	w, stop, err := startWorld(apitest.Options{})
	if err != nil {
		return fail(err)
	}
	shared = w
	code = m.Run()
	if err := stop(); err != nil {
		code = fail(err)
	}
	if monitored.stop != nil {
		if err := monitored.stop(); err != nil {
			code = fail(err)
		}
	}
	return code
}

// startWorld starts a control plane and the controllers; stop ends both.
func startWorld(opts apitest.Options) (w *world, stop func() error, err error) {
	dir, err := os.MkdirTemp("", "edge-controllers-")
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	clean := func() error { cancel(); return os.RemoveAll(dir) }
	server, err := apitest.StartWith(ctx, dir, opts)
	if err != nil {
		return nil, nil, errors.Join(err, clean())
	}
	w, err = newWorld(ctx, server)
	if err != nil {
		err = fmt.Errorf("%w (apiserver: %v)", err, server.Ready(ctx))
		return nil, nil, errors.Join(err, server.Stop(), clean())
	}
	return w, func() error { return errors.Join(w.stopControllers(), server.Stop(), clean()) }, nil
}

func newWorld(ctx context.Context, server *apitest.Server) (*world, error) {
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	w := &world{server: server, sessions: newFakeSessions(), reports: controllers.NewReportBoard(), kicks: &kickLog{}, clock: &offsetClock{}}
	var err error
	if w.adminConf, err = server.Admin(); err != nil {
		return nil, err
	}
	installCtx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// The apiserver is still starting: that is when Install is called for real.
	if err := controllers.Install(installCtx, w.adminConf, logger); err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, appsv1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	if w.admin, err = client.NewWithWatch(w.adminConf, client.Options{Scheme: scheme}); err != nil {
		return nil, err
	}
	if w.kube, err = kubernetes.NewForConfig(w.adminConf); err != nil {
		return nil, err
	}
	w.tokens = w.tokenStore(realClock{})
	gateway, err := server.Config(v1alpha1.GatewayUser)
	if err != nil {
		return nil, err
	}
	w.gateway = gateway
	w.service, err = enroll.NewService(enroll.ServiceConfig{
		RESTConfig: gateway, Logger: logger,
		Cluster: enroll.Cluster{ID: "local/test-00000001", Name: "test", CACertificate: string(server.CA.PEM())},
	})
	if err != nil {
		return nil, err
	}
	if w.controllers, err = server.Config(v1alpha1.ControllersUser); err != nil {
		return nil, err
	}
	w.logger = logger
	w.run()
	return w, nil
}

// run starts the controllers; stopControllers ends them.
func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	w.ended, w.cancel = make(chan struct{}), cancel
	go func() {
		defer close(w.ended)
		w.runErr = controllers.Run(ctx, controllers.Config{
			RESTConfig: w.controllers, Sessions: w.sessions, Reports: w.reports, Kick: w.kicks.kick, Logger: w.logger, Clock: w.clock,
			Authority: w.server.CA,
		})
	}()
}

func (w *world) stopControllers() error {
	w.cancel()
	<-w.ended
	return w.runErr
}

func (w *world) startControllers(t *testing.T) {
	t.Helper()
	w.run()
	w.alive(t)
}

// fakeSessions stands for the gateway.
type fakeSessions struct {
	*controllers.Notifier
	mu        sync.Mutex
	connected map[string]bool // guarded by mu
}

func newFakeSessions() *fakeSessions {
	return &fakeSessions{Notifier: controllers.NewNotifier(), connected: map[string]bool{}}
}

func (s *fakeSessions) Connected(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connected[node]
}

func (s *fakeSessions) set(node string, connected bool) {
	s.mu.Lock()
	s.connected[node] = connected
	s.mu.Unlock()
	s.Notify(node)
}

// kickLog remembers whose session was ended.
type kickLog struct {
	mu    sync.Mutex
	kicks map[string][]string // guarded by mu
}

func (k *kickLog) kick(node, reason string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kicks == nil {
		k.kicks = map[string][]string{}
	}
	k.kicks[node] = append(k.kicks[node], reason)
}

func (k *kickLog) of(node string) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]string(nil), k.kicks[node]...)
}

// offsetClock is the real clock, and may be put forward.
type offsetClock struct {
	clock.RealClock
	offset atomic.Int64 // nanoseconds
}

func (c *offsetClock) Now() time.Time {
	return c.RealClock.Now().Add(time.Duration(c.offset.Load()))
}

func (c *offsetClock) Since(at time.Time) time.Duration { return c.Now().Sub(at) }
