//go:build linux

package edgenode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/hub"
	"github.com/edgewright/terraform-provider-edge/internal/memory"
	"github.com/edgewright/terraform-provider-edge/internal/netwatch"
	"github.com/edgewright/terraform-provider-edge/internal/podnet"
	"github.com/edgewright/terraform-provider-edge/internal/supervise"
	"github.com/edgewright/terraform-provider-edge/internal/timekeep"
)

// RunOptions of Run. Dir is required.
type RunOptions struct {
	// Dir is the node dir, absolute.
	Dir string
	// Version of this program.
	Version string
	Logger  *slog.Logger
}

// Run directories of the two groups of programs below run/: containerd starts
// before the node has joined, the others after.
const (
	runtimeGroup   = "runtime"
	componentGroup = "components"
)

// hubDir below the node's data is where the hub keeps its replica of the API.
const hubDir = "hub"

// clockFile below the node's data tells the last time seen; see timekeep.
const clockFile = "clock"

// Run is the node daemon. It must be started inside of the node's namespaces,
// which Up does. It returns nil when ctx ends and leaves its children running;
// any error is one that starting again may cure.
func Run(ctx context.Context, o RunOptions) error {
	n, err := newNode(o)
	if err != nil {
		return err
	}
	right, err := supervise.AcquireDaemon(filepath.Join(n.dir, runDir))
	if err != nil {
		return err
	}
	err = n.begin()
	if err == nil {
		err = n.run(ctx)
	}
	if err != nil && ctx.Err() == nil {
		n.status.update(func(s *Status) {
			s.Phase, s.Message, s.LastFailure = PhaseStarting, "the daemon starts again: "+err.Error(), err.Error()
		})
		return err
	}
	n.log.Info("the daemon ends; its programs go on")
	return right.Release()
}

// node is the running daemon.
type node struct {
	dir     string
	version string
	spec    *Spec
	digest  string // of spec; see readSpec
	log     *slog.Logger
	status  *statusWriter
	cg      cgroups
	now     func() time.Time
	// renewed is called when an ended certificate has a successor; nil until there
	// is an agent.
	renewed func()

	podCIDRs atomic.Pointer[[]netip.Prefix] // nil until known
	// connected: the tunnel has a session. Whoever sets one of the two looks at
	// the other after, so that the link learns of it in any order.
	connected atomic.Bool
	hub       atomic.Pointer[hub.Hub]     // nil until it serves
	linkMoved chan struct{}               // the hub judges the link otherwise
	clock     *timekeep.Keeper            // of the machine
	agent     atomic.Pointer[agent.Agent] // nil until there is one
	transport *transport                  // of sessions; there with the agent
}

func newNode(o RunOptions) (*node, error) {
	if !filepath.IsAbs(o.Dir) {
		return nil, fmt.Errorf("node dir %q must be absolute", o.Dir)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	spec, digest, err := readSpec(o.Dir)
	if err != nil {
		return nil, err
	}
	id, err := os.ReadFile(identityFile)
	if err != nil || string(id) != nodeIdentity(spec.ClusterUID, spec.Name) {
		return nil, &NextError{
			Err:  fmt.Errorf("this process is not inside of node %s", spec.Name),
			Next: "Start the node with `edge node up --dir " + o.Dir + "`.",
		}
	}
	n := &node{dir: o.Dir, version: o.Version, spec: spec, digest: digest, log: o.Logger, now: time.Now, linkMoved: make(chan struct{}, 1)}
	n.status = &statusWriter{dir: n.dir, uid: spec.OwnerUID, gid: spec.OwnerGID, log: n.log, now: n.now}
	n.cg, err = hostCgroups()
	return n, err
}

func (n *node) pki(name string) string { return filepath.Join(n.dir, pkiDir, name) }

// begin takes the daemon's place among the node's processes and says so.
func (n *node) begin() error {
	host := nodeCgroup(n.spec) + "/" + cgroupHost
	if err := n.cg.join(host, os.Getpid()); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	var failure string
	if last, err := LoadStatus(n.dir); err == nil {
		failure = last.LastFailure
	}
	n.status.update(func(s *Status) {
		*s = Status{
			LastFailure: failure,
			Node:        n.spec.Name, Cluster: n.spec.ClusterID, Pool: n.spec.Pool,
			Phase: PhaseStarting, Message: "the daemon is starting", Link: LinkConnecting,
			Started: time.Now(), KubernetesVersion: n.spec.KubernetesVersion, EngineVersion: n.version,
			Address: n.spec.Local.Address.String(), DaemonPID: os.Getpid(), Executable: exe, SpecDigest: n.digest,
			Processes: map[string]string{},
		}
	})
	return nil
}

// run does everything in the order of the package's doc. The first part that
// fails ends the others.
func (n *node) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return supervise.WatchParent(ctx, n.log, nil) })
	g.Go(func() error { return n.keepOwner(ctx) })
	g.Go(func() error { memory.Keep(ctx, memory.Node); return nil })
	// Before anything asks whether a certificate is valid yet.
	clock, err := timekeep.New(timekeep.Options{
		Path: filepath.Join(n.dir, dataDir, clockFile), Set: timekeep.SetMachine, Logger: n.log.With("part", "clock"),
	})
	if err != nil {
		n.log.Warn("whether the clock is behind is not known", "error", err)
	}
	n.clock = clock
	g.Go(func() error { clock.Run(ctx); return nil })

	engine, err := n.startRuntime(ctx, g)
	if err != nil {
		g.Go(func() error { return err }) // which ends the others
		return g.Wait()
	}
	g.Go(func() error { return n.serve(ctx, g, engine) })
	return g.Wait()
}

// startRuntime starts containerd, which needs nothing of the cluster.
func (n *node) startRuntime(ctx context.Context, g *errgroup.Group) (*supervise.Supervisor, error) {
	s, err := n.supervisor(runtimeGroup)
	if err != nil {
		return nil, err
	}
	spec, err := n.containerdSpec()
	if err != nil {
		return nil, err
	}
	g.Go(func() error { return s.Run(ctx, []supervise.Spec{spec}) })
	return s, nil
}

// serve is the node from the join on.
func (n *node) serve(ctx context.Context, g *errgroup.Group, engine *supervise.Supervisor) error {
	id, err := n.join(ctx)
	if err != nil {
		return err
	}
	n.status.update(func(s *Status) {
		s.Phase, s.Error, s.Next, s.Attempt = PhaseStarting, "", "", 0
	})
	n.status.step("joined", "connecting to the cluster")
	cache, err := n.loadPodCIDRs()
	if err != nil {
		return err
	}
	if len(cache) > 0 {
		n.podCIDRs.Store(&cache)
	}

	tunnel, err := n.startAgent(ctx, g, id)
	if err != nil {
		return err
	}
	local, err := openLocalPKI(n.pki(localDir), n.spec.Name, id.joined)
	if err != nil {
		return err
	}
	g.Go(func() error { return n.renewLocal(ctx, local) })
	if err := n.startHub(ctx, g, id, local, tunnel); err != nil {
		return err
	}
	config := &rest.Config{
		Host: fmt.Sprintf("https://%s:%d", loopback, hubPort),
		TLSClientConfig: rest.TLSClientConfig{
			CAData: local.ca.PEM(), CertFile: local.store.CertFile(localNode), KeyFile: local.store.KeyFile(localNode),
		},
		UserAgent: "edge-node/" + n.version,
		QPS:       -1, // the hub is on loopback and bounds nothing either
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	key, err := n.placeholder(local)
	if err != nil {
		return err
	}
	certified := make(chan struct{})
	g.Go(func() error { return n.keepCertificates(ctx, client, n.clusterCertificates(id, key), certified) })

	images := make(chan error, 1)
	g.Go(func() error { return n.importImages(ctx, engine, images) })
	network := make(chan struct{})
	g.Go(func() error {
		return n.runPodNetwork(ctx, podNetwork{id: id, client: client, config: config, ready: network})
	})
	components, err := n.startComponents(ctx, g, id, local)
	if err != nil {
		return err
	}
	return n.awaitRunning(ctx, ready{
		engine: engine, components: components, images: images, certified: certified, network: network, tunnel: tunnel,
	})
}

// startAgent connects the node to its cluster.
func (n *node) startAgent(ctx context.Context, g *errgroup.Group, id *identity) (*agent.Agent, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	n.transport = loadTransport(filepath.Join(n.dir, confDir, transportFile), n.log)
	a, err := agent.New(agent.Config{
		Gateways: n.spec.Gateways, RootCAs: id.ca, Certificate: n.certificate(nodeCertFile), NodeName: n.spec.Name,
		Info:        agent.Info{EngineVersion: n.version, Architecture: runtime.GOARCH, BootID: strings.TrimSpace(string(boot))},
		DialKubelet: dialKubelet,
		CA:          id.authority, Documents: documents{n.pki("")},
		Proxy:   n.proxy,
		Network: n.network, Transport: n.transport.begin(),
		OnState: n.linkChanged, Heartbeat: n.heartbeat,
		Logger: n.log.With("part", "agent"),
	})
	if err != nil {
		return nil, err
	}
	n.transport.agent = a
	n.agent.Store(a)
	n.renewed = a.Poke // it may be waiting to try again with the old one
	g.Go(func() error { return a.Run(ctx) })
	g.Go(func() error { return n.watcher().Run(ctx, a.Poke) })
	return a, nil
}

// dialKubelet connects to the node's kubelet.
func dialKubelet(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", net.JoinHostPort(loopback, fmt.Sprint(kubeletPort)))
}

func (n *node) watcher() netwatch.Watcher {
	return netwatch.Watcher{Logger: n.log.With("part", "netwatch")}
}

// network is what the agent remembers a transport by. Without an answer there is
// one network for all that are not known.
func (n *node) network() agent.Network {
	at, err := n.watcher().Current()
	if err != nil {
		n.log.Warn("which network this is is not known", "error", err)
		return agent.Network{}
	}
	return agent.Network(at)
}

func (n *node) linkChanged(connected bool, gateway string) {
	n.connected.Store(connected)
	if h := n.hub.Load(); h != nil {
		h.Link().Session(connected)
	}
	n.status.update(func(s *Status) {
		link := LinkConnected
		if !connected {
			link = LinkCut
		}
		if s.Link != link {
			s.Link, s.LinkSince = link, time.Now()
		}
	})
	if connected {
		n.status.step("connected", "")
		n.transport.session()
	}
	n.log.Info("link", "connected", connected, "gateway", gateway)
}

// startHub opens the node's API for its components and, once its address is
// there, for pods.
func (n *node) startHub(ctx context.Context, g *errgroup.Group, id *identity, local *localPKI, tunnel *agent.Agent) error {
	if err := addLoopback(podnet.DNSAddress, podnet.APIAddress); err != nil {
		return err
	}
	var lc net.ListenConfig
	components, err := lc.Listen(ctx, "tcp", net.JoinHostPort(loopback, fmt.Sprint(hubPort)))
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	endpoint := netip.AddrPortFrom(podnet.APIAddress, 443)
	pods, err := lc.Listen(ctx, "tcp", endpoint.String())
	if err != nil {
		components.Close()
		return fmt.Errorf("hub for pods: %w", err)
	}
	h, err := hub.New(hub.Config{
		NodeName: n.spec.Name, Listener: components,
		ServingCertificate: cachedCertificate(local.store.CertFile(localHub), local.store.KeyFile(localHub)),
		LocalCA:            local.ca.Pool(),
		DialUpstream:       tunnel.DialAPIServer, UpstreamCA: id.ca, UpstreamServerName: apiserverName,
		NodeCertificate: n.certificate(nodeCertFile), HubCertificate: n.certificate(hubCertFile),
		KubernetesEndpoint: endpoint, DataDir: filepath.Join(n.dir, dataDir, hubDir), Logger: n.log.With("part", "hub"),
		PodCertificate: cachedCertificate(local.store.CertFile(localAPI), local.store.KeyFile(localAPI)), RootCA: string(local.ca.PEM()),
		Pool: n.spec.Pool, RenewWindow: enroll.RenewWindow, ClockFault: n.clock.Fault,
		OnLink: func() {
			select {
			case n.linkMoved <- struct{}{}:
			default:
			}
		},
		Kubelet: &hub.Kubelet{
			Dial:        dialKubelet,
			Certificate: cachedCertificate(local.store.CertFile(localOperator), local.store.KeyFile(localOperator)),
			RootCAs:     n.kubeletRoots(id, local),
		},
	})
	if err != nil {
		components.Close()
		pods.Close()
		return err
	}
	n.hub.Store(h)
	h.Link().Session(n.connected.Load())
	g.Go(func() error { return h.Serve(ctx) })
	g.Go(func() error { return n.tellAutonomy(ctx, h) })
	g.Go(func() error { return n.serveTelling(ctx, h) })
	g.Go(func() error { return h.ServePods(ctx, pods) })
	return nil
}

// renewLocal keeps the local certificates fresh. Their readers load them anew.
func (n *node) renewLocal(ctx context.Context, local *localPKI) error {
	for n.wait(ctx, time.Hour) == nil {
		if err := local.ensure(); err != nil {
			n.log.Error("renew the node's local certificates", "error", err)
		}
	}
	return nil
}

// receive waits for a value or the end of a channel.
func receive[T any](ctx context.Context, c <-chan T) error {
	select {
	case v := <-c:
		if err, ok := any(v).(error); ok {
			return err
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// wait pauses for d, or until ctx ends, which is an error.
func (n *node) wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ownerLook is how often new files (rotated logs) are given to their owner.
const ownerLook = time.Minute

// keepOwner gives what the daemon and its children write to the owner of the
// state directory.
func (n *node) keepOwner(ctx context.Context) error {
	for n.wait(ctx, ownerLook) == nil {
		if err := handOver(n.dir, n.spec.OwnerUID, n.spec.OwnerGID); err != nil {
			n.log.Warn("give files to their owner", "error", err)
		}
	}
	return nil
}

func giveTo(path string, uid, gid int) error { return os.Lchown(path, uid, gid) }

// canLowerOOMScore says whether the daemon's children may protect themselves
// from the kernel's out-of-memory killer, which containers then inherit from.
func canLowerOOMScore() (bool, error) {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			var caps uint64
			if _, err := fmt.Sscanf(strings.TrimSpace(v), "%x", &caps); err != nil {
				return false, fmt.Errorf("capabilities %q: %w", v, err)
			}
			return caps&(1<<unix.CAP_SYS_RESOURCE) != 0, nil
		}
	}
	return false, errors.New("/proc/self/status has no CapEff line")
}
