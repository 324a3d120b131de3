package mirror_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/edgewright/terraform-provider-edge/internal/controllers"
	"github.com/edgewright/terraform-provider-edge/internal/controllers/apitest"
	"github.com/edgewright/terraform-provider-edge/internal/hub/mirror"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/store"
)

// patience bounds every wait; what is waited for takes seconds at most, but for
// an apiserver that starts on a busy machine.
const patience = 2 * time.Minute

// cluster is a real control plane.
type cluster struct {
	t       *testing.T
	server  *apitest.Server
	kube    kubernetes.Interface
	dynamic dynamic.Interface
	node    http.RoundTripper
	hub     http.RoundTripper
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real control plane")
	}
	server, err := apitest.Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	c := &cluster{t: t, server: server}
	admin, err := server.Admin()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := controllers.Install(t.Context(), admin, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if c.kube, err = kubernetes.NewForConfig(admin); err != nil {
		t.Fatal(err)
	}
	if c.dynamic, err = dynamic.NewForConfig(admin); err != nil {
		t.Fatal(err)
	}
	c.node, c.hub = c.transport("system:node:n1", "system:nodes"), c.transport("edge:hub:n1", "edge:hubs")
	c.must(c.kube.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "edge:hub:n1"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "edge-hub"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "edge:hub:n1"}},
	}, metav1.CreateOptions{}))
	for _, name := range []string{"n1", "n2"} {
		c.must(c.kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))
	}
	return c
}

func (c *cluster) must(_ any, err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) transport(user string, groups ...string) http.RoundTripper {
	c.t.Helper()
	config, err := c.server.Config(user, groups...)
	if err != nil {
		c.t.Fatal(err)
	}
	rt, err := rest.TransportFor(config)
	if err != nil {
		c.t.Fatal(err)
	}
	return rt
}

func (c *cluster) pod(name, node string, secrets ...string) {
	c.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	for _, s := range secrets {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: s, VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: s}}})
	}
	c.must(c.kube.CoreV1().Pods("default").Create(c.t.Context(), p, metav1.CreateOptions{}))
}

func (c *cluster) unpod(name string) {
	c.t.Helper()
	c.must(nil, c.kube.CoreV1().Pods("default").Delete(c.t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}))
}

func (c *cluster) slice(name, address string) {
	c.t.Helper()
	c.must(c.kube.DiscoveryV1().EndpointSlices("default").Create(c.t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{"filler": strings.Repeat("x", 60)}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address}}},
	}, metav1.CreateOptions{}))
}

// fresh is what a list from the apiserver says now, as key to uid and version.
func (c *cluster) fresh(id replica.Collection) (map[string]string, error) {
	o := metav1.ListOptions{}
	switch {
	case id.Name != "":
		o.FieldSelector = "metadata.name=" + id.Name
	case id.Node != "":
		o.FieldSelector = "spec.nodeName=" + id.Node
	}
	list, err := c.dynamic.Resource(id.Resource).Namespace(id.Namespace).List(c.t.Context(), o)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, item := range list.Items {
		all[item.GetNamespace()+"/"+item.GetName()] = string(item.GetUID()) + "@" + item.GetResourceVersion()
	}
	return all, nil
}

func held(m *mirror.Mirror, id replica.Collection) (map[string]string, error) {
	s, err := m.Snapshot(id)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, o := range s.Objects {
		all[o.Namespace+"/"+o.Name] = string(o.UID) + "@" + o.Version.String()
	}
	return all, nil
}

// converge waits until the mirror holds what the apiserver has, of all its
// collections, and returns how long it took.
func (c *cluster) converge(m *mirror.Mirror) time.Duration {
	c.t.Helper()
	begun := time.Now()
	for {
		wrong := ""
		for _, state := range m.Collections() {
			want, err := c.fresh(state.Collection)
			if err != nil {
				wrong = fmt.Sprintf("%s: %v", state.Collection, err)
				break
			}
			got, err := held(m, state.Collection)
			if err != nil || !maps.Equal(want, got) {
				wrong = fmt.Sprintf("%s: %v %v\n%s", state.Collection, err, state.Err, cmp.Diff(want, got))
				break
			}
		}
		if wrong == "" {
			return time.Since(begun)
		}
		if time.Since(begun) > patience {
			c.t.Fatalf("never converged: %s", wrong)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// link lets requests through, or cuts them and all bodies off.
type link struct {
	next http.RoundTripper
	// meddle may answer a request itself, or wrap the answer's body. May be nil.
	meddle func(*http.Request, io.ReadCloser) (code int, body io.ReadCloser)

	mu   sync.Mutex // guards what follows
	cut  bool
	open map[int]context.CancelFunc
	n    int
}

func (l *link) RoundTrip(r *http.Request) (*http.Response, error) {
	l.mu.Lock()
	if l.cut {
		l.mu.Unlock()
		return nil, errors.New("the link is cut")
	}
	ctx, cancel := context.WithCancel(r.Context())
	l.n++
	if l.open == nil {
		l.open = map[int]context.CancelFunc{}
	}
	l.open[l.n] = cancel
	l.mu.Unlock()
	if l.meddle != nil {
		if code, _ := l.meddle(r, nil); code != 0 {
			status := fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":"Invalid"}`, code)
			return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(status))}, nil
		}
	}
	response, err := l.next.RoundTrip(r.WithContext(ctx))
	if err == nil && l.meddle != nil {
		_, response.Body = l.meddle(r, response.Body)
	}
	return response, err
}

func (l *link) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if !cut {
		return
	}
	for _, cancel := range l.open {
		cancel()
	}
	clear(l.open)
}

// running is a mirror with its store.
type running struct {
	*mirror.Mirror
	dir   string
	links []*link
	stop  func()
}

func (c *cluster) run(dir string, meddle func(*http.Request, io.ReadCloser) (int, io.ReadCloser)) *running {
	c.t.Helper()
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	s, found, err := store.Open(store.Options{Path: filepath.Join(dir, "replica.db"), KeyPath: filepath.Join(dir, "replica.key"), Logger: log})
	if err != nil {
		c.t.Fatal(err)
	}
	r := &running{dir: dir, links: []*link{{next: c.node, meddle: meddle}, {next: c.hub, meddle: meddle}}}
	r.Mirror, err = mirror.New(mirror.Options{
		NodeName: "n1", Host: strings.TrimPrefix(c.server.URL, "https://"), Store: s, Found: found, Logger: log,
		Upstreams: map[mirror.Identity]http.RoundTripper{mirror.NodeIdentity: r.links[0], mirror.HubIdentity: r.links[1]},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			c.t.Error(err)
		}
	})
	c.t.Cleanup(r.stop)
	r.SetLink(true, time.Now())
	return r
}

func (r *running) setCut(cut bool) {
	r.SetLink(!cut, time.Now())
	for _, l := range r.links {
		l.set(cut)
	}
}

// client lists and watches one collection, and begins anew where it must.
type client struct {
	t      *testing.T
	m      *mirror.Mirror
	id     replica.Collection
	held   map[string]string
	at     replica.Version
	watch  *replica.Watch
	begins int
}

func (f *client) begin() {
	f.t.Helper()
	s, err := f.m.Snapshot(f.id)
	if err != nil {
		f.t.Fatal(err)
	}
	f.begins++
	f.held, f.at = map[string]string{}, s.Version
	for _, o := range s.Objects {
		f.held[o.Namespace+"/"+o.Name] = string(o.UID) + "@" + o.Version.String()
	}
	if f.watch, err = f.m.Watch(f.id, s.Version); err != nil {
		f.t.Fatal(err)
	}
}

// follow takes all events there are, and compares with the mirror.
func (f *client) follow() {
	f.t.Helper()
	for {
		events, err := f.watch.Take(100)
		if errors.Is(err, replica.ErrExpired) {
			f.begin()
			continue
		}
		if err != nil {
			f.t.Fatal(err)
		}
		if len(events) == 0 {
			break
		}
		for _, e := range events {
			if e.Version() <= f.at {
				f.t.Errorf("an event of %s after %s", e.Version(), f.at)
			}
			f.at = e.Version()
			key := e.Object.Namespace + "/" + e.Object.Name
			if e.Type == watch.Deleted {
				delete(f.held, key)
			} else {
				f.held[key] = string(e.Object.UID) + "@" + e.Version().String()
			}
		}
	}
	want, err := held(f.m, f.id)
	if err != nil {
		f.t.Fatal(err)
	}
	if diff := cmp.Diff(want, f.held); diff != "" {
		f.t.Errorf("a client of %s: %s", f.id, diff)
	}
}

var (
	podsOfNode = replica.Collection{Resource: schema.GroupVersionResource{Version: "v1", Resource: "pods"}, Node: "n1"}
	allSlices  = replica.Collection{Resource: schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}}
)

// TestRealAPI mirrors a real apiserver through what happens to one.
func TestRealAPI(t *testing.T) {
	c := newCluster(t)
	ctx := t.Context()
	const plain = "the-plaintext-of-a-real-secret"
	for _, name := range []string{"key", "unused"} {
		c.must(c.kube.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"password": plain},
		}, metav1.CreateOptions{}))
	}
	c.pod("a", "n1", "key")
	c.pod("other", "n2")
	for i := range 1300 { // several pages
		c.slice(fmt.Sprintf("s%04d", i), "10.1.0.1")
	}

	m := c.run(t.TempDir(), nil)
	c.converge(m.Mirror)
	states := m.Collections()
	var mirrored []string
	for _, s := range states {
		mirrored = append(mirrored, s.Collection.String())
		if s.Bytes == 0 || s.Requests == 0 {
			t.Errorf("%s: %d bytes in %d requests", s.Collection, s.Bytes, s.Requests)
		}
	}
	want := []string{
		"csidrivers.v1.storage.k8s.io", "endpointslices.v1.discovery.k8s.io", "namespaces.v1", "nodes.v1 name=n1", "pods.v1 node=n1",
		"runtimeclasses.v1.node.k8s.io", "secrets.v1/default name=key", "servicecidrs.v1.networking.k8s.io", "services.v1",
	}
	if diff := cmp.Diff(want, mirrored); diff != "" {
		t.Error(diff)
	}
	clients := []*client{{t: t, m: m.Mirror, id: podsOfNode}, {t: t, m: m.Mirror, id: allSlices}}
	for _, f := range clients {
		f.begin()
	}

	t.Run("changes", func(t *testing.T) {
		c.pod("b", "n1")
		c.unpod("a")
		c.pod("a", "n1", "key")
		c.slice("new", "10.1.0.2")
		c.must(nil, c.kube.DiscoveryV1().EndpointSlices("default").Delete(ctx, "s0007", metav1.DeleteOptions{}))
		c.converge(m.Mirror)
		for _, f := range clients {
			f.follow()
			if f.begins != 1 {
				t.Errorf("a client of %s began anew", f.id)
			}
		}
	})

	t.Run("secrets by name", func(t *testing.T) {
		unused := replica.Query{Resource: schema.GroupVersionResource{Version: "v1", Resource: "secrets"}, Namespace: "default", Name: "unused"}
		if _, cover := m.Cover(unused); cover != replica.CoverWhole {
			t.Errorf("cover %d", cover)
		}
		// The Node authorizer refuses what no pod of the node refers to.
		for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
			if _, err := m.Snapshot(replica.Collection(unused)); errors.Is(err, replica.ErrNotMirrored) {
				break
			} else if !errors.Is(err, replica.ErrIncomplete) || time.Since(begun) > patience {
				t.Fatalf("a Secret the node may not read: %v", err)
			}
		}
	})

	t.Run("store", func(t *testing.T) {
		m.stop()
		raw, err := os.ReadFile(filepath.Join(m.dir, "replica.db"))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(raw, []byte(plain)) || !bytes.Contains(raw, []byte("s0001")) {
			t.Error("a Secret is readable in the store, or nothing is")
		}
		// It goes on from there: not a byte of what it has comes again.
		c.pod("c", "n1")
		m = c.run(m.dir, nil)
		c.converge(m.Mirror)
		for _, s := range m.Collections() {
			if s.Collection == allSlices && s.Bytes > 20_000 {
				t.Errorf("after a restart %d bytes of %d slices came anew", s.Bytes, s.Objects)
			}
		}
		clients = []*client{{t: t, m: m.Mirror, id: podsOfNode}, {t: t, m: m.Mirror, id: allSlices}}
		for _, f := range clients {
			f.begin()
		}
	})

	t.Run("410", func(t *testing.T) {
		m.setCut(true)
		c.unpod("b")
		c.unpod("c")
		c.pod("c", "n1")
		c.pod("d", "n1")
		for i := range 20 {
			c.must(nil, c.kube.DiscoveryV1().EndpointSlices("default").Delete(ctx, fmt.Sprintf("s%04d", 100+i), metav1.DeleteOptions{}))
		}
		c.slice("s0100", "10.1.0.9")
		list, err := c.kube.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		now, err := replica.ParseVersion(list.ResourceVersion)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.server.Compact(ctx, uint64(now)); err != nil {
			t.Fatal(err)
		}
		// Its cache begins anew, and knows nothing of before.
		if err := c.server.Restart(nil, "kube-apiserver"); err != nil {
			t.Fatal(err)
		}
		if err := c.server.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		before := bytesOf(m.Mirror, allSlices)
		m.setCut(false)
		t.Logf("converged after %v", c.converge(m.Mirror))
		if bytesOf(m.Mirror, allSlices)-before < 100_000 {
			t.Error("slices were not listed anew: the test does not test")
		}
		for _, f := range clients {
			f.follow()
			if f.begins != 1 {
				t.Errorf("a client of %s began anew", f.id)
			}
		}
	})

	t.Run("the apiserver dies in the middle of a list", func(t *testing.T) {
		var once sync.Once
		killed := make(chan error, 1)
		var begun atomic.Int64
		partial := c.run(t.TempDir(), func(r *http.Request, body io.ReadCloser) (int, io.ReadCloser) {
			if body == nil {
				if strings.HasSuffix(r.URL.Path, "/endpointslices") && r.URL.Query().Has("limit") && !r.URL.Query().Has("continue") {
					begun.Add(1)
				}
				return 0, nil
			}
			if !strings.HasSuffix(r.URL.Path, "/endpointslices") || !strings.Contains(r.URL.RawQuery, "continue=") {
				return 0, body
			}
			return 0, &dying{ReadCloser: body, at: 2_000, die: func() {
				once.Do(func() { killed <- c.server.Restart(nil, "kube-apiserver") })
			}}
		})
		if err := <-killed; err != nil {
			t.Fatal(err)
		}
		if _, err := partial.Snapshot(allSlices); !errors.Is(err, replica.ErrIncomplete) {
			t.Errorf("half a list is served: %v", err)
		}
		if err := c.server.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		c.converge(partial.Mirror)
		partial.stop()
		if n := begun.Load(); n != 1 {
			t.Errorf("the list was begun %d times: what came of it was of no use", n)
		}
	})

	t.Run("etcd restored", func(t *testing.T) {
		if err := c.server.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		c.converge(m.Mirror)
		backup := filepath.Join(t.TempDir(), "db")
		if err := c.server.Backup(backup); err != nil {
			t.Fatal(err)
		}
		if err := c.server.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		c.pod("after", "n1")
		c.unpod("d")
		c.unpod("a")
		c.pod("a", "n1", "key")
		c.slice("after", "10.1.0.3")
		c.must(nil, c.kube.DiscoveryV1().EndpointSlices("default").Delete(ctx, "s0200", metav1.DeleteOptions{}))
		c.converge(m.Mirror)
		for _, f := range clients {
			f.follow()
		}
		if err := c.server.Restore(backup); err != nil {
			t.Fatal(err)
		}
		if err := c.server.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("converged after %v", c.converge(m.Mirror))
		for _, f := range clients {
			f.follow()
			if _, there := f.held["default/after"]; there {
				t.Errorf("a client of %s holds what the cluster has forgotten", f.id)
			}
		}
	})
}

func bytesOf(m *mirror.Mirror, id replica.Collection) int64 {
	for _, s := range m.Collections() {
		if s.Collection == id {
			return s.Bytes
		}
	}
	return 0
}

// dying is a body that does something in its middle.
type dying struct {
	io.ReadCloser
	at  int
	die func()
}

func (d *dying) Read(p []byte) (int, error) {
	if d.at <= 0 {
		d.die()
		return d.ReadCloser.Read(p)
	}
	n, err := d.ReadCloser.Read(p[:min(len(p), d.at)])
	d.at -= n
	return n, err
}
