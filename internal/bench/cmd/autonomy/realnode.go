//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/component"
	"github.com/edgewright/terraform-provider-edge/internal/edgenode"
	"github.com/edgewright/terraform-provider-edge/internal/engine"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
	edgesite "github.com/edgewright/terraform-provider-edge/internal/site"
)

const (
	realVersion = "1.36.3"
	realCluster = "bench-reboot"
	realPool    = "site"
	realName    = "edge-1"
	realPods    = 10
	// realApp is the name of the Deployment and of its container.
	realApp = "web"
	// realPatience bounds what a real cluster or node takes a minute for.
	realPatience = 5 * time.Minute
	// realLook is how often something is looked at that says when it happens only
	// if it is asked.
	realLook = 50 * time.Millisecond
)

// ground is where a real cluster stands. Its daemons outlive a benchmark that is
// killed, so it has one place, where the next run finds them.
type ground struct {
	dir    string
	lock   *flock.Flock
	engine *engine.Engine
}

// openGround takes the place and removes what a killed run has left there. The
// caller must call close.
func openGround(ctx context.Context, edge string) (*ground, error) {
	edge, err := filepath.Abs(edge)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(edge); err != nil {
		return nil, fmt.Errorf("%w: run make build first", err)
	}
	g := &ground{dir: filepath.Join(os.TempDir(), fmt.Sprintf("edge-bench-autonomy-%d-nodes", os.Getuid()))}
	if err := os.Mkdir(g.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if st, err := os.Lstat(g.dir); err != nil || !st.IsDir() || st.Mode().Perm() != 0o700 {
		return nil, fmt.Errorf("%s is not a directory that only this user may enter: remove it", g.dir)
	}
	g.lock = flock.New(g.dir + ".lock")
	if ok, err := g.lock.TryLock(); err != nil || !ok {
		return nil, fmt.Errorf("take %s.lock, which another benchmark may hold: %w", g.dir, errors.Join(err, errors.New("one at a time")))
	}
	g.engine, err = engine.New(engine.Options{StateDir: filepath.Join(g.dir, "state"), Components: component.DefaultOptions(os.Getenv), EdgeBinary: edge})
	if err == nil {
		err = g.clear(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("remove what an earlier run left: %w", err), g.lock.Close())
	}
	return g, os.MkdirAll(g.engine.StateDir(), 0o700)
}

// clear destroys every cluster of the place.
func (g *ground) clear(ctx context.Context) error {
	if _, err := os.Stat(g.engine.StateDir()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	clusters, err := g.engine.ListClusters(ctx)
	if err != nil {
		return err
	}
	for _, c := range clusters {
		if err := g.engine.DeleteCluster(ctx, c.ID); err != nil {
			return err
		}
	}
	return os.RemoveAll(g.engine.StateDir())
}

// close removes everything, also after an interrupt. What cannot be destroyed keeps
// its files, so that the next run can try again.
func (g *ground) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), realPatience)
	defer cancel()
	err := g.clear(ctx)
	if err == nil {
		err = os.RemoveAll(g.dir)
	}
	return errors.Join(err, os.Remove(g.lock.Path()), g.lock.Close())
}

// realNode is a node of a real cluster with real pods.
type realNode struct {
	engine  *engine.Engine
	cluster *engine.Cluster
	dir     string // of the node
	spec    *edgenode.Spec
	edge    string // program of its daemon
	site    *edgesite.Site
	creds   *engine.Credentials
	kube    kubernetes.Interface
	// bare: what runs is without a hub.
	bare bool
}

// makeNode makes a cluster with a node, and its pods on it.
func (g *ground) makeNode(ctx context.Context) (*realNode, error) {
	ctx, cancel := context.WithTimeout(ctx, realPatience)
	defer cancel()
	n := &realNode{engine: g.engine}
	var err error
	if n.cluster, err = g.engine.CreateCluster(ctx, engine.ClusterSpec{Name: realCluster, Version: realVersion}); err != nil {
		return nil, err
	}
	if _, err := g.engine.CreatePool(ctx, n.cluster.ID, realPool, v1alpha1.NodePoolSpec{Type: v1alpha1.PoolEdge}); err != nil {
		return nil, err
	}
	_, err = g.engine.CreateNode(ctx, engine.NodeSpec{
		ClusterID: n.cluster.ID, Name: realName, Spec: v1alpha1.EdgeNodeSpec{Pool: realPool}, Local: true, WaitReady: true,
	})
	if err != nil {
		return nil, err
	}
	if err := n.find(ctx); err != nil {
		return nil, err
	}
	return n, n.deploy(ctx)
}

// find finds what is known of the node on this machine.
func (n *realNode) find(ctx context.Context) error {
	clusterDir, err := n.engine.ClusterDir(n.cluster.ID)
	if err != nil {
		return err
	}
	n.dir = filepath.Join(clusterDir, "nodes", realName)
	if n.spec, err = edgenode.LoadSpec(n.dir); err != nil {
		return err
	}
	status, err := edgenode.LoadStatus(n.dir)
	if err != nil {
		return err
	}
	n.edge = status.Executable
	n.site, err = edgesite.New(edgesite.Options{ClusterDir: clusterDir, ClusterUID: n.spec.ClusterUID, Pool: n.spec.Pool})
	if err != nil {
		return err
	}
	if n.creds, err = n.engine.ClusterCredentials(ctx, n.cluster.ID, engine.DefaultCredentialTTL); err != nil {
		return err
	}
	n.kube, err = kubernetes.NewForConfig(&rest.Config{Host: n.creds.Host, TLSClientConfig: rest.TLSClientConfig{
		CAData: []byte(n.creds.CACertificate), CertData: []byte(n.creds.ClientCertificate), KeyData: []byte(n.creds.ClientKey),
	}})
	return err
}

// deploy makes a Deployment of ordinary pods: with a Secret, a ConfigMap, and the
// token that every pod has.
func (n *realNode) deploy(ctx context.Context) error {
	release, err := component.Lookup(realVersion)
	if err != nil {
		return err
	}
	meta := metav1.ObjectMeta{Name: realApp, Namespace: metav1.NamespaceDefault, Labels: map[string]string{"app": realApp}}
	if _, err := n.kube.CoreV1().Secrets(meta.Namespace).Create(ctx, &corev1.Secret{ObjectMeta: meta, StringData: map[string]string{"word": "mellon"}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	if _, err := n.kube.CoreV1().ConfigMaps(meta.Namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"setting": "on"}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	reference := corev1.LocalObjectReference{Name: realApp}
	_, err = n.kube.AppsV1().Deployments(meta.Namespace).Create(ctx, &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{
		Replicas: ptr.To[int32](realPods), Selector: &metav1.LabelSelector{MatchLabels: meta.Labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: meta.Labels}, Spec: corev1.PodSpec{
			NodeSelector: map[string]string{v1alpha1.PoolLabel: realPool},
			Containers: []corev1.Container{{
				Name: realApp, Image: release.Image("agnhost"), Args: []string{"netexec", "--http-port=8080"},
				Env: []corev1.EnvVar{{Name: "WORD", ValueFrom: &corev1.EnvVarSource{
					SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: reference, Key: "word"},
				}}},
				VolumeMounts: []corev1.VolumeMount{{Name: "settings", MountPath: "/settings"}},
			}},
			Volumes: []corev1.Volume{{Name: "settings", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: reference}}}},
		}},
	}}, metav1.CreateOptions{})
	return err
}

// until waits until check finds nothing wrong.
func until(ctx context.Context, what string, check func(context.Context) error) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, 4*realLook, realPatience, true, func(ctx context.Context) (bool, error) {
		last = check(ctx)
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w: %w", what, err, last)
	}
	return nil
}

// converged waits until the cluster knows all pods ready, with the containers that
// run on the node.
func (n *realNode) converged(ctx context.Context) error {
	return until(ctx, "the cluster knows the pods ready", func(ctx context.Context) error {
		running, err := n.running(ctx, time.Time{})
		if err != nil {
			return err
		}
		list, err := n.kube.CoreV1().Pods(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: "app=" + realApp})
		if err != nil {
			return err
		}
		known := 0
		for _, p := range list.Items {
			for _, c := range p.Status.ContainerStatuses {
				if c.Ready && running[strings.TrimPrefix(c.ContainerID, "containerd://")] {
					known++
				}
			}
		}
		if len(running) != realPods || known != realPods || len(list.Items) != realPods {
			return fmt.Errorf("%d containers run, of %d of %d pods it is known", len(running), known, len(list.Items))
		}
		return nil
	})
}

// autonomous waits until the node could be without its cluster.
func (n *realNode) autonomous(ctx context.Context) error {
	return until(ctx, "the node could be without its cluster", func(context.Context) error {
		s, err := edgenode.LoadStatus(n.dir)
		if err != nil {
			return err
		}
		if s.Phase != edgenode.PhaseRunning || s.CutReason != "" || len(s.Faults) > 0 {
			return fmt.Errorf("%s, cut %q, %v", s.Phase, s.CutReason, s.Faults)
		}
		return nil
	})
}

// cutOff cuts the node's site off and waits until the node knows.
func (n *realNode) cutOff(ctx context.Context) error {
	if err := n.site.SetCut(ctx, "", true); err != nil {
		return err
	}
	return until(ctx, "the node notices that it is cut off", func(context.Context) error {
		s, err := edgenode.LoadStatus(n.dir)
		if err == nil && s.CutReason == "" {
			err = errors.New("its status names no reason")
		}
		return err
	})
}

// runtime is the node's container runtime. The caller must call Close.
func (n *realNode) runtime() (runtimeClient, error) {
	pid, err := recordedPID(n.dir, "runtime", edgenode.ProgramContainerd)
	if err != nil {
		return runtimeClient{}, err
	}
	return runtimeAt(filepath.Join("/proc", strconv.Itoa(pid), "root/run/containerd/containerd.sock"))
}

// running are the ids of the pods' containers that run, as the node's container
// runtime has them, and were made after a moment.
func (n *realNode) running(ctx context.Context, after time.Time) (map[string]bool, error) {
	c, err := n.runtime()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	all, err := c.containers(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, c := range all {
		if c.running && c.name == realApp && c.created.After(after) {
			out[c.id] = true
		}
	}
	return out, nil
}

// tidy removes what earlier reboots have left in the container runtime. A kubelet
// does it within minutes, and until then is slower to start the more there is.
func (n *realNode) tidy(ctx context.Context) error {
	c, err := n.runtime()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.removeDead(ctx)
}

// bared describes the node as it is, but for its hub, and writes that down for its
// daemon to be.
func (n *realNode) bared() error {
	var b bare
	var err error
	if b.Programs, err = seenPrograms(n.dir); err != nil {
		return err
	}
	s, err := edgenode.LoadStatus(n.dir)
	if err != nil {
		return err
	}
	for _, r := range []struct {
		to   *[]netip.Prefix
		from []string
	}{{&b.Own, s.PodCIDRs}, {&b.Pods, n.cluster.Spec.Network.PodCIDRs}, {&b.Services, n.cluster.Spec.Network.ServiceCIDRs}} {
		for _, text := range r.from {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return err
			}
			*r.to = append(*r.to, p)
		}
	}
	// One hierarchy, or one of several.
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, err := filepath.Glob(filepath.Join(mount, "edge", n.spec.ClusterUID, n.spec.Name, "host"))
		if err != nil {
			return err
		}
		b.Cgroups = append(b.Cgroups, found...)
	}
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.dir, bareFile), text, 0o600)
}

// straightWay lets the node's site reach the apiserver, on the machine's end of the
// site's link, until ctx ends.
func (n *realNode) straightWay(ctx context.Context, running *errgroup.Group) (server string, err error) {
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: n.spec.Local.Cloud.AsSlice()})
	if err != nil {
		return "", err
	}
	running.Go(func() error { return relay(ctx, listener, strings.TrimPrefix(n.creds.Host, "https://")) })
	return "https://" + listener.Addr().String(), nil
}

// pointStraight points the node's components at the apiserver: the kubelet as the
// node, and the others, whose rights are upstream's to say, as who may all.
func (n *realNode) pointStraight(server string) error {
	operator := pki.KubeconfigOptions{
		Server: server, TLSServerName: "localhost", CAPEM: []byte(n.creds.CACertificate),
		CertPEM: []byte(n.creds.ClientCertificate), KeyPEM: []byte(n.creds.ClientKey),
	}
	node := operator
	node.CertPEM, node.KeyPEM = nil, nil
	node.CertFile, node.KeyFile = filepath.Join(n.dir, "pki", "node.crt"), filepath.Join(n.dir, "pki", "device.key")
	for component, config := range map[string]pki.KubeconfigOptions{"kubelet": node, "kube-proxy": operator, "coredns": operator} {
		if _, err := pki.WriteKubeconfig(filepath.Join(n.dir, "conf", component+".kubeconfig"), config); err != nil {
			return err
		}
	}
	return nil
}
