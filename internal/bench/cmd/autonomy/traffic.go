//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
	"github.com/edgewright/terraform-provider-edge/internal/hub/hubload"
	"github.com/edgewright/terraform-provider-edge/internal/netlab"
)

const (
	trafficPods = 5
	// trafficAim is of one node and day, both ways.
	trafficAim = 15 // MB
	// trafficSettle is let pass before bytes are counted: what starts is over.
	trafficSettle = 20 * time.Second
	// trafficChanges of other pools' slices are made to learn what one costs.
	trafficChanges = 100
	straightName   = "straight to the apiserver"
)

// trafficPools are numbers of pools, with a node, a service and a slice each.
var trafficPools = []int{1, 200}

// trafficNode is a measured node and its line to the cloud.
type trafficNode struct {
	name string
	link *netlab.Link
}

// bytes that crossed the line so far, as IP packets, both ways.
func (n trafficNode) bytes() float64 {
	return float64(n.link.AToB.Stats().Bytes + n.link.BToA.Stats().Bytes)
}

func total(nodes []trafficNode) bench.Sample {
	var s bench.Sample
	for _, n := range nodes {
		s = append(s, n.bytes())
	}
	return s
}

// since is what crossed each node's line since then, times a factor.
func since(nodes []trafficNode, then bench.Sample, factor float64) bench.Sample {
	now := total(nodes)
	for i := range now {
		now[i] = (now[i] - then[i]) * factor
	}
	return now
}

// site is a cluster with its measured nodes.
type site struct {
	*cluster
	*laboratory
	pools          int
	ours, straight []trafficNode
}

// measureTraffic counts the bytes of idle nodes, in clusters of all sizes at the
// same time: nodes that wait need no processor.
func measureTraffic(ctx context.Context, w *world) (rows []bench.Row, err error) {
	err = inLaboratory(ctx, func(ctx context.Context, l *laboratory) (err error) {
		rows, err = w.idleTraffic(ctx, l)
		return err
	})
	return rows, err
}

func (w *world) idleTraffic(ctx context.Context, l *laboratory) (rows []bench.Row, err error) {
	var sites []*site
	for _, pools := range trafficPools {
		s := &site{laboratory: l, pools: pools}
		sites = append(sites, s)
		if err := s.start(ctx, w); err != nil {
			return nil, fmt.Errorf("cluster of %d pools: %w", pools, err)
		}
		w.say("cluster of %d pools is there", pools)
	}
	if err := pause(ctx, trafficSettle); err != nil {
		return nil, err
	}
	for _, s := range sites {
		what := fmt.Sprintf("a node's start with empty hands, cluster of %d: bytes both ways", s.pools)
		rows = append(rows, bench.Spread(what, "MB", since(s.ours, make(bench.Sample, w.rounds), 1e-6), straightName, since(s.straight, make(bench.Sample, w.rounds), 1e-6))...)
	}
	ours, straight := map[*site]bench.Sample{}, map[*site]bench.Sample{}
	for _, s := range sites {
		ours[s], straight[s] = total(s.ours), total(s.straight)
	}
	if err := pause(ctx, w.window); err != nil {
		return nil, err
	}
	day := 24 * time.Hour.Seconds() / w.window.Seconds()
	idle := map[*site][2]float64{} // bytes a second
	for _, s := range sites {
		mine, theirs := since(s.ours, ours[s], 1), since(s.straight, straight[s], 1)
		idle[s] = [2]float64{mine.Median() / w.window.Seconds(), theirs.Median() / w.window.Seconds()}
		for i := range mine {
			mine[i], theirs[i] = mine[i]*day/1e6, theirs[i]*day/1e6
		}
		row := bench.Spread(fmt.Sprintf("idle node with %d pods, cluster of %d: bytes of a day, both ways", trafficPods, s.pools), "MB", mine, straightName, theirs)
		row[0] = row[0].Aiming(trafficAim)
		rows = append(rows, row...)
	}
	for _, s := range sites {
		if s.pools == 1 {
			continue
		}
		then, thenStraight, began := total(s.ours), total(s.straight), time.Now()
		if err := s.change(ctx); err != nil {
			return nil, err
		}
		took := time.Since(began).Seconds()
		mine, theirs := since(s.ours, then, 1), since(s.straight, thenStraight, 1)
		for i := range mine {
			mine[i], theirs[i] = (mine[i]-took*idle[s][0])/trafficChanges, (theirs[i]-took*idle[s][1])/trafficChanges
		}
		rows = append(rows, bench.Spread("what a change of a slice of another pool costs a node", "B", mine, straightName, theirs)...)
	}
	return rows, nil
}

// start starts the cluster, its other pools and all measured nodes.
func (s *site) start(ctx context.Context, w *world) (err error) {
	if s.cluster, err = w.startCluster(ctx, fmt.Sprint("pools-", s.pools)); err != nil {
		return err
	}
	s.atEnd(s.stop)
	if err := s.makeDefaultAccount(ctx); err != nil {
		return err
	}
	if err := hubload.FillServices(ctx, s.kube, 0, s.pools, 1); err != nil {
		return err
	}
	for i := range w.rounds {
		ours, straight := fmt.Sprint("ours-", i), fmt.Sprint("straight-", i)
		for _, name := range []string{ours, straight} {
			if err := hubload.FillNode(ctx, s.kube, name, trafficPods); err != nil {
				return err
			}
			if err := registered(ctx, s.kube, name); err != nil {
				return err
			}
		}
		if err := s.startOurs(ctx, ours); err != nil {
			return fmt.Errorf("node %s: %w", ours, err)
		}
		if err := s.startStraight(ctx, straight); err != nil {
			return fmt.Errorf("node %s: %w", straight, err)
		}
	}
	return s.startOthers(ctx)
}

// startOurs starts a node with hub and agent.
func (s *site) startOurs(ctx context.Context, name string) error {
	n, err := s.startHub(ctx, name)
	if err != nil {
		return err
	}
	s.ours = append(s.ours, n.trafficNode)
	return s.live(ctx, name, n.config)
}

// hubNode is a node with hub and agent, whose components are still to be run.
type hubNode struct {
	trafficNode
	process *hubload.Running
	config  componentConfig
}

// startHub starts a node's hub and agent behind a line and a gateway of its own.
func (s *site) startHub(ctx context.Context, name string) (*hubNode, error) {
	n, cloud, edge := s.line(name)
	socket, err := cloud.ListenUDP(netip.AddrPortFrom(cloudPrefix.Addr(), 7443))
	if err != nil {
		return nil, err
	}
	stop, err := s.gateway(ctx, socket)
	if err != nil {
		return nil, err
	}
	s.atEnd(stop)
	identities, err := hubload.NewNode(filepath.Join(s.dir, name), name, s.server.Config)
	if err != nil {
		return nil, err
	}
	p := identities.Process(s.dataDir(name), s.address())
	p.Gateway = socket.LocalAddr().String()
	hub, err := p.Start(edge.Start)
	if err != nil {
		return nil, err
	}
	s.atEnd(hub.Stop)
	return &hubNode{n, hub, func(c hubload.Component) (*rest.Config, error) {
		config, err := identities.Config(c, hub.Address)
		if err == nil {
			config.Dial = dialer(edge)
		}
		return config, err
	}}, nil
}

// dataDir is where a node's hub keeps its replica.
func (s *site) dataDir(node string) string { return filepath.Join(s.dir, node+"-data") }

// componentConfig says where a node's component finds its API and who it is there.
type componentConfig func(hubload.Component) (*rest.Config, error)

// startStraight starts a node whose components talk to the apiserver themselves.
func (s *site) startStraight(ctx context.Context, name string) error {
	n, cloud, edge := s.line(name)
	listener, err := cloud.ListenTCP(netip.AddrPortFrom(cloudPrefix.Addr(), 6443))
	if err != nil {
		return err
	}
	s.running.Go(func() error { return relay(ctx, listener, s.address()) })
	node, err := s.server.Config("system:node:"+name, "system:nodes")
	if err != nil {
		return err
	}
	// What kube-proxy and CoreDNS may read is upstream's to say; here they may all.
	other, err := s.server.Admin()
	if err != nil {
		return err
	}
	s.straight = append(s.straight, n)
	return s.live(ctx, name, func(c hubload.Component) (*rest.Config, error) {
		config := rest.CopyConfig(other)
		if c == hubload.Kubelet {
			config = rest.CopyConfig(node)
		}
		config.Host, config.ServerName, config.Dial = "https://"+listener.Addr().String(), "localhost", dialer(edge)
		return config, nil
	})
}

// live runs a node's components, and returns once they have all they follow.
func (s *site) live(ctx context.Context, name string, config componentConfig) error {
	starting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	stop, err := hubload.Follow(starting, hubload.Followed{Node: name, Pods: trafficPods, Config: config})
	if err != nil {
		return err
	}
	s.atEnd(func() error { stop(); return nil })
	own, err := config(hubload.Kubelet)
	if err != nil {
		return err
	}
	var pods []string
	for i := range trafficPods {
		pods = append(pods, hubload.PodName(name, i))
	}
	k, err := newKubelet(name, pods, own)
	if err != nil {
		return err
	}
	s.running.Go(func() error { return k.run(ctx) })
	return nil
}

// startOthers makes the nodes of the other pools and keeps their kubelets' writes
// coming.
func (s *site) startOthers(ctx context.Context) error {
	admin, err := s.server.Admin()
	if err != nil {
		return err
	}
	for i := 1; i < s.pools; i++ {
		name := fmt.Sprint("other-", i)
		if _, err := s.kube.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			return err
		}
		if err := registered(ctx, s.kube, name); err != nil {
			return err
		}
		k, err := newKubelet(name, nil, admin)
		if err != nil {
			return err
		}
		s.running.Go(func() error { return k.run(ctx) })
	}
	return nil
}

// change makes one endpoint of other pools' slices unready and ready again.
func (s *site) change(ctx context.Context) error {
	slices := s.kube.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault)
	for i := range trafficChanges {
		slice, err := slices.Get(ctx, fmt.Sprintf("svc-%d-0", 1+i/2), metav1.GetOptions{})
		if err != nil {
			return err
		}
		slice.Endpoints[0].Conditions.Ready = ptr.To(i%2 == 1)
		if _, err := slices.Update(ctx, slice, metav1.UpdateOptions{}); err != nil {
			return err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return pause(ctx, 2*time.Second) // the last of them is on its way
}
