package engine

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/component"
	"github.com/edgewright/terraform-provider-edge/internal/edgenode"
	"github.com/edgewright/terraform-provider-edge/internal/enroll"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

// joinTokenTTL bounds the token of a node that is made here: it is used within
// seconds, or after the programs of a first node have been built.
const joinTokenTTL = time.Hour

func (s NodeSpec) id() string { return s.ClusterID + "/" + s.Name }

func nodeResource(s NodeSpec, m mark) *v1alpha1.EdgeNode {
	n := &v1alpha1.EdgeNode{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "EdgeNode"},
		ObjectMeta: metav1.ObjectMeta{Name: s.Name},
		Spec:       s.Spec,
	}
	if m != finished {
		n.Annotations = map[string]string{unfinishedAnnotation: string(m)}
	}
	return n
}

// CreateNode declares a node, places it where asked, and waits until it is
// Ready where asked. A node of that name that this did not begin is
// AlreadyExists.
func (e *Engine) CreateNode(ctx context.Context, s NodeSpec) (*Node, error) {
	const op = "create node"
	if err := checkLabel("node", s.Name, maxNodeName); err != nil {
		return nil, &Error{Class: Invalid, Op: op, Object: s.id(), Field: "name", Err: err}
	}
	if v1alpha1.ReservedNodeName(s.Name) {
		return nil, &Error{Class: Invalid, Op: op, Object: s.id(), Field: "name", Err: fmt.Errorf("%q is a name of the cluster's own", s.Name)}
	}
	if s.Local {
		if err := e.CheckLocalNode(ctx); err != nil {
			return nil, err
		}
	}
	conn, err := e.connect(ctx, op, s.id(), s.ClusterID)
	if err != nil {
		return nil, err
	}
	if s.Local && conn.dir == "" {
		return nil, &Error{Class: Refused, Op: op, Object: s.id(), Field: "local",
			Err: errors.New("a local node runs beside its cluster, and the cluster's control plane is not on this machine"), Next: "Apply this where the cluster was made"}
	}
	if err := e.checkPool(ctx, conn, op, s); err != nil {
		return nil, err
	}
	n := nodeResource(s, unfinishedCreate)
	err = e.create(ctx, conn, n)
	if apierrors.IsAlreadyExists(err) {
		found := &v1alpha1.EdgeNode{}
		if err := conn.client.Get(ctx, client.ObjectKeyFromObject(n), found); err != nil {
			return nil, fault(ctx, op, s.id(), err)
		}
		switch {
		case mark(found.Annotations[unfinishedAnnotation]) != unfinishedCreate:
			return nil, &Error{Class: AlreadyExists, Op: op, Object: s.id(), Err: errors.New("a node of that name exists"), ImportID: s.id()}
		case found.Spec.Pool != s.Spec.Pool:
			return nil, &Error{Class: Refused, Op: op, Object: s.id(), Field: "pool",
				Err: fmt.Errorf("its unfinished create was for pool %s", found.Spec.Pool), Next: "Destroy it first"}
		}
		err = e.apply(ctx, conn, nodeResource(s, unfinishedCreate))
	}
	if err != nil {
		return nil, fault(ctx, op, s.id(), err)
	}
	return e.finishNode(ctx, conn, op, s)
}

func (e *Engine) checkPool(ctx context.Context, conn *connection, op string, s NodeSpec) error {
	pools := &v1alpha1.NodePoolList{}
	if err := conn.client.List(ctx, pools); err != nil {
		return fault(ctx, op, s.id(), err)
	}
	known := map[string]bool{}
	for _, p := range pools.Items {
		known[p.Name] = p.DeletionTimestamp.IsZero()
	}
	if !known[s.Spec.Pool] {
		return &Error{Class: Invalid, Op: op, Object: s.id(), Field: "pool", Err: unknownPool(s.Spec.Pool, sortedKeys(known))}
	}
	return nil
}

// finishNode does what is left until a declared node is as asked for, and takes
// the unfinished mark away.
func (e *Engine) finishNode(ctx context.Context, conn *connection, op string, s NodeSpec) (*Node, error) {
	key := client.ObjectKey{Name: s.Name}
	describe := func() *Node {
		n := &v1alpha1.EdgeNode{}
		read, cancel := context.WithTimeout(context.WithoutCancel(ctx), DefaultReadTimeout)
		defer cancel()
		if err := conn.client.Get(read, key, n); err != nil {
			n = nodeResource(s, unfinishedCreate)
		}
		return e.nodeOf(s.ClusterID, n)
	}
	fail := func(phase string, err error) (*Node, error) {
		if interrupted(ctx, err) {
			err = &Error{Class: Unfinished, Op: op, Object: s.id(), Err: fmt.Errorf("stopped in phase %q: %w", phase, err), Next: "Apply again to go on"}
		} else if own := new(Error); !errors.As(err, &own) {
			err = &Error{Class: Failed, Op: op, Object: s.id(), Err: fmt.Errorf("phase %q: %w", phase, err),
				Next: fmt.Sprintf("`edge logs %s --node %s` shows what its processes said", s.ClusterID, s.Name)}
		}
		return describe(), err
	}
	if s.Local {
		if err := e.placeLocal(ctx, conn, s); err != nil {
			return fail("placement", err)
		}
	}
	if s.WaitReady {
		if err := e.waitNodeReady(ctx, conn, s); err != nil {
			return fail("join", err)
		}
	}
	if err := e.apply(ctx, conn, nodeResource(s, finished)); err != nil {
		return fail("declare", err)
	}
	n := describe()
	if err := e.keepDeclared(conn, n); err != nil {
		return fail("declare", err)
	}
	return n, nil
}

func (e *Engine) nodeDir(conn *connection, name string) string {
	return filepath.Join(conn.dir, "nodes", name)
}

// nodeSets are what a node's programs are of: those it runs, and the kubectl of who
// is at the device, needed just when nothing can be fetched any more.
const nodeSets = component.Node | component.Client

// nodePrograms are the paths for a node's spec.
func nodePrograms(paths component.Paths) map[string]string {
	out := map[string]string{edgenode.ProgramKubectl: paths["kubectl"]}
	for _, name := range edgenode.Programs() {
		out[name] = paths[name]
	}
	out[edgenode.ProgramCNI] = filepath.Dir(paths["bridge"])
	return out
}

// placeLocal converges this machine to the node: `edge node up`, as root.
func (e *Engine) placeLocal(ctx context.Context, conn *connection, s NodeSpec) error {
	parsed, err := parseClusterID(s.ClusterID)
	if err != nil {
		return err
	}
	r, err := e.state.load(parsed)
	if err != nil {
		return err
	}
	release, err := component.Lookup(r.Spec.Version)
	if err != nil {
		return err
	}
	report := e.report(s.id(), filepath.Join(conn.dir, "progress.ndjson"))
	report.phase(ctx, "components", "upstream programs for nodes")
	programs, err := e.programs(ctx, report, r.Spec.Version, nodeSets)
	if err != nil {
		return err
	}
	archives, err := e.programs(ctx, report, r.Spec.Version, component.Images)
	if err != nil {
		return err
	}
	edge, err := e.installEdge()
	if err != nil {
		return err
	}
	spec := &edgenode.Spec{
		ClusterID:         parsed.String(),
		ClusterName:       parsed.Name,
		ClusterUID:        parsed.UID,
		Name:              s.Name,
		Pool:              s.Spec.Pool,
		KubernetesVersion: r.Spec.Version,
		Programs:          nodePrograms(programs),
		PauseImage:        release.Image("pause"),
		Local:             &edgenode.LocalPlacement{GatewayPort: r.Spec.Gateway.Port},
		OwnerUID:          os.Getuid(),
		OwnerGID:          os.Getgid(),
	}
	if err := os.MkdirAll(e.state.images(), 0o700); err != nil {
		return fmt.Errorf("make the image directory: %w", err)
	}
	spec.Images = []string{e.state.images()}
	for _, path := range archives {
		if dir := filepath.Dir(path); !slices.Contains(spec.Images, dir) {
			spec.Images = append(spec.Images, dir)
		}
	}
	slices.Sort(spec.Images)
	dir := e.nodeDir(conn, s.Name)
	if err := edgenode.WriteSpec(dir, spec); err != nil {
		return err
	}
	token := ""
	if !edgenode.Enrolled(dir) {
		if token, err = e.mintToken(ctx, conn, s.Spec.Pool, s.Name, joinTokenTTL); err != nil {
			return err
		}
	}
	cmd, err := nodeUpCommand(edge, dir, token, os.Getenv)
	if err != nil {
		return err
	}
	report.phase(ctx, "join", "starting the node and joining it")
	return e.runEdge(ctx, report, cmd)
}

// nodeUpCommand starts a node, with a token unless it has joined, and tells it the
// HTTP proxy of this environment or that there is none. Both are read from its
// input: sudo hands no such variable on, and everybody can read arguments.
func nodeUpCommand(edge, dir, token string, getenv func(string) string) (edgeCommand, error) {
	cmd := edgeCommand{Binary: edge, Root: true, Args: []string{"node", "up", "--dir", dir, "--proxy-stdin"}}
	proxy, err := json.Marshal(edgenode.ProxyEnvOf(getenv))
	if err != nil {
		return cmd, fmt.Errorf("pass the proxy variables on: %w", err)
	}
	if token != "" {
		cmd.Args = append(cmd.Args, "--token-stdin")
		cmd.Stdin = token + "\n"
	}
	cmd.Stdin += string(proxy) + "\n"
	return cmd, nil
}

func (e *Engine) waitNodeReady(ctx context.Context, conn *connection, s NodeSpec) error {
	n := &v1alpha1.EdgeNode{}
	err := wait.PollUntilContextCancel(ctx, pollInterval, true, func(ctx context.Context) (bool, error) {
		if err := conn.client.Get(ctx, client.ObjectKey{Name: s.Name}, n); err != nil {
			return false, err
		}
		return n.Status.Phase == v1alpha1.NodeReady && n.Status.ObservedGeneration >= n.Generation, nil
	})
	if err != nil {
		for _, c := range n.Status.Conditions {
			if c.Status != metav1.ConditionTrue && c.Message != "" {
				err = fmt.Errorf("%w (%s: %s)", err, c.Type, c.Message)
			}
		}
		return fmt.Errorf("wait for node %s to be Ready (phase %q): %w", s.Name, n.Status.Phase, err)
	}
	return nil
}

func (e *Engine) nodeOf(clusterID string, n *v1alpha1.EdgeNode) *Node {
	out := &Node{
		ID: clusterID + "/" + n.Name, ClusterID: clusterID, Name: n.Name, Spec: n.Spec, Status: StatusReady,
		Architecture: n.Status.Architecture, KubernetesVersion: normalVersion(n.Status.KubeletVersion), EngineVersion: n.Status.EngineVersion,
	}
	if n.Annotations[unfinishedAnnotation] != "" {
		out.Status = StatusIncompletePrefix + "join"
	}
	if parsed, err := parseClusterID(clusterID); err == nil {
		dir := filepath.Join(e.state.dir(parsed), "nodes", n.Name)
		if _, err := os.Stat(filepath.Join(dir, "node.json")); err == nil {
			out.Local = true
			if out.Status == StatusReady && !daemonRuns(dir) {
				out.Status = StatusStopped
			}
		}
	}
	return out
}

// ReadNode returns a node as the cluster holds it. A local node whose daemon is
// down on this machine reads "stopped".
func (e *Engine) ReadNode(ctx context.Context, clusterID, name string) (*Node, error) {
	const op = "read node"
	object := clusterID + "/" + name
	conn, err := e.connect(ctx, op, object, clusterID)
	if err != nil {
		if n := e.stoppedNode(clusterID, name); n != nil && ClassOf(err) == Unreachable {
			return n, nil
		}
		return nil, err
	}
	n := &v1alpha1.EdgeNode{}
	if err := conn.client.Get(ctx, client.ObjectKey{Name: name}, n); err != nil {
		return nil, fault(ctx, op, object, err)
	}
	return e.nodeOf(clusterID, n), nil
}

// UpdateNode brings a node to its spec: labels, taints and drain in place; an
// unfinished create is finished and a stopped local node started.
func (e *Engine) UpdateNode(ctx context.Context, s NodeSpec) (*Node, error) {
	const op = "update node"
	conn, err := e.connect(ctx, op, s.id(), s.ClusterID)
	if err != nil {
		return nil, err
	}
	n := &v1alpha1.EdgeNode{}
	if err := conn.client.Get(ctx, client.ObjectKey{Name: s.Name}, n); err != nil {
		return nil, fault(ctx, op, s.id(), err)
	}
	before := e.nodeOf(s.ClusterID, n)
	m := finished
	if before.Status != StatusReady {
		m = unfinishedUpdate
	}
	if err := e.apply(ctx, conn, nodeResource(s, m)); err != nil {
		return nil, fault(ctx, op, s.id(), err)
	}
	// A node that runs is only declared anew; its controller does the rest.
	s.Local = s.Local && before.Status != StatusReady
	if s.Local {
		if err := e.CheckLocalNode(ctx); err != nil {
			return before, err
		}
	}
	return e.finishNode(ctx, conn, op, s)
}

// DeleteNode drains a node within its bound, revokes it and removes it, also
// when it is cut off; then what of it is on this machine.
func (e *Engine) DeleteNode(ctx context.Context, clusterID, name string) error {
	const op = "delete node"
	object := clusterID + "/" + name
	conn, err := e.connectForDelete(ctx, op, object, clusterID)
	if err != nil {
		return err
	}
	if conn == nil {
		if parsed, err := parseClusterID(clusterID); err == nil && e.lost(parsed) {
			if err := e.deleteLostNode(ctx, parsed, name); err != nil {
				return fault(ctx, op, object, fmt.Errorf("remove what of it is on this machine: %w", err))
			}
		}
		return nil
	}
	n := &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := conn.client.Delete(ctx, n); err != nil && !apierrors.IsNotFound(err) {
		return fault(ctx, op, object, err)
	}
	if err := e.waitGone(ctx, conn, op, object, n); err != nil {
		return err
	}
	if conn.dir == "" {
		return nil
	}
	dir := e.nodeDir(conn, name)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	edge, err := e.installEdge()
	if err != nil {
		return &Error{Class: Failed, Op: op, Object: object, Err: err}
	}
	report := e.report(object, filepath.Join(conn.dir, "progress.ndjson"))
	if err := e.runEdge(ctx, report, edgeCommand{Binary: edge, Root: true, Args: []string{"node", "down", "--purge", "--dir", dir}}); err != nil {
		return fault(ctx, op, object, fmt.Errorf("remove what of it is on this machine: %w", err))
	}
	if err := os.RemoveAll(dir); err != nil {
		return &Error{Class: Failed, Op: op, Object: object, Err: err}
	}
	return nil
}

// NodeSummary is what a cluster knows of a node now.
type NodeSummary struct {
	Name      string `json:"name"`
	Pool      string `json:"pool"`
	Phase     string `json:"phase"`
	Connected bool   `json:"connected"`
	// CutSince is when the link of a cut node was lost; nil for others.
	CutSince *time.Time `json:"cutSince,omitempty"`
	// Autonomy is whether the node would go on through a cut: Autonomous, or the
	// reason why not; NotReported where it has not said.
	Autonomy string `json:"autonomy"`
	// AutonomyMessage says more.
	AutonomyMessage string `json:"autonomyMessage,omitempty"`
	Architecture    string `json:"architecture"`
	Kubelet         string `json:"kubelet"`
}

// ListNodes returns the declared nodes of a cluster.
func (e *Engine) ListNodes(ctx context.Context, clusterID string) ([]NodeSummary, error) {
	const op = "list nodes of"
	conn, err := e.connect(ctx, op, clusterID, clusterID)
	if err != nil {
		return nil, err
	}
	list := &v1alpha1.EdgeNodeList{}
	if err := conn.client.List(ctx, list); err != nil {
		return nil, fault(ctx, op, clusterID, err)
	}
	out := []NodeSummary{}
	for _, n := range list.Items {
		out = append(out, summaryOf(&n))
	}
	return out, nil
}

// LookUpNode returns what a cluster knows of one of its declared nodes.
func (e *Engine) LookUpNode(ctx context.Context, clusterID, name string) (*NodeSummary, error) {
	const op = "look up node"
	object := clusterID + "/" + name
	conn, err := e.connect(ctx, op, object, clusterID)
	if err != nil {
		return nil, err
	}
	n := &v1alpha1.EdgeNode{}
	if err := conn.client.Get(ctx, client.ObjectKey{Name: name}, n); err != nil {
		return nil, fault(ctx, op, object, err)
	}
	s := summaryOf(n)
	return &s, nil
}

func summaryOf(n *v1alpha1.EdgeNode) NodeSummary {
	s := NodeSummary{
		Name: n.Name, Pool: n.Spec.Pool, Phase: string(n.Status.Phase), Connected: n.Status.Connected,
		Architecture: n.Status.Architecture, Kubelet: n.Status.KubeletVersion, Autonomy: v1alpha1.ReasonNotReported,
	}
	if n.Status.CutSince != nil {
		s.CutSince = &n.Status.CutSince.Time
	}
	if c := meta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionAutonomy); c != nil {
		s.Autonomy, s.AutonomyMessage = c.Reason, c.Message
	}
	return s
}

func (e *Engine) mintToken(ctx context.Context, conn *connection, pool, node string, ttl time.Duration) (string, error) {
	kube, err := kubernetes.NewForConfig(conn.config)
	if err != nil {
		return "", err
	}
	pin, err := caPin(conn.config.CAData)
	if err != nil {
		return "", err
	}
	store := enroll.NewStore(enroll.StoreConfig{Client: kube, CAPin: pin, Clock: clock.RealClock{}, Random: rand.Reader})
	token, err := store.Mint(ctx, enroll.MintOptions{Pool: pool, Node: node, TTL: ttl})
	if err != nil {
		return "", err
	}
	return token.Reveal(), nil
}

func caPin(caPEM []byte) (string, error) {
	certs, err := pki.ParseCertificatesPEM(caPEM)
	if err != nil {
		return "", fmt.Errorf("the cluster's CA certificate: %w", err)
	}
	return enroll.Pin(certs[0]), nil
}

// CheckLocalNode says, before anything is made, whether this machine and user
// can run a local node. What it has found good once it does not ask again.
func (e *Engine) CheckLocalNode(ctx context.Context) error {
	e.mu.Lock()
	good := e.localNodes
	e.mu.Unlock()
	if good {
		return nil
	}
	const op, object = "check", "this machine for local nodes"
	if e.opts.GOOS != "linux" {
		return &Error{Class: Invalid, Op: op, Object: object, Field: "local", Err: fmt.Errorf("a local node runs on Linux and this is %s", e.opts.GOOS)}
	}
	if err := checkRoot(ctx); err != nil {
		return &Error{Class: Invalid, Op: op, Object: object, Field: "local", Err: err}
	}
	e.mu.Lock()
	e.localNodes = true
	e.mu.Unlock()
	return nil
}
