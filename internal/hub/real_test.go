//go:build linux

package hub

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/controllers/apitest"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// besideCA stands for the node's own authority in the bundles of its pods.
const besideCA = "node authority"

// beside is a hub beside the real apiserver it mirrors.
type beside struct {
	t       *testing.T
	api     *apitest.Server
	admin   *kubernetes.Clientset
	local   *authority
	dir     string
	cut     atomic.Bool
	flows   atomic.Pointer[chan struct{}] // closed while what the apiserver sends arrives
	hub     *Hub
	address string
	stop    func()
	conns   chan net.Conn
}

func newBeside(t *testing.T) *beside {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a real apiserver; run make test-autonomy")
	}
	b := &beside{t: t, local: newAuthority(t, "local"), dir: t.TempDir(), conns: make(chan net.Conn, 1024)}
	b.stall()()
	// On a machine that is busy its parts may give each other up once.
	var api *apitest.Server
	for again := true; api == nil; again = false {
		started, err := apitest.Start(t.Context(), t.TempDir())
		if err == nil {
			if err = started.Ready(t.Context()); err == nil {
				api = started
				break
			}
			err = errors.Join(err, started.Stop())
		}
		if !again {
			t.Fatal(err)
		}
		t.Logf("starting the control plane again: %v", err)
	}
	t.Cleanup(func() {
		if err := api.Stop(); err != nil {
			t.Error(err)
		}
	})
	b.api = api
	config, err := api.Admin()
	if err != nil {
		t.Fatal(err)
	}
	if b.admin, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	read := []string{"get", "list", "watch"}
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "edge-hub"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"services", "namespaces"}, Verbs: read},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
		{APIGroups: []string{"networking.k8s.io"}, Resources: []string{"servicecidrs"}, Verbs: read},
		{NonResourceURLs: []string{"/openid/v1/jwks", "/.well-known/openid-configuration"}, Verbs: []string{"get"}},
	}}
	if _, err := b.admin.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "edge-hub"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "edge-hub"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "edge:hub:n1"}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.admin.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	b.start()
	t.Cleanup(func() { b.stop() })
	return b
}

// start starts the hub, on what an earlier one has stored.
func (b *beside) start() { b.startAt("127.0.0.1:0") }

// startAt is start at an address.
func (b *beside) startAt(address string) {
	t := b.t
	t.Helper()
	certificate := func(user string, groups ...string) func() (*tls.Certificate, error) {
		config, err := b.api.Config(user, groups...)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.LoadX509KeyPair(config.CertFile, config.KeyFile)
		if err != nil {
			t.Fatal(err)
		}
		return func() (*tls.Certificate, error) { return &pair, nil }
	}
	at, err := url.Parse(b.api.URL)
	if err != nil {
		t.Fatal(err)
	}
	serving := b.local.server("localhost")
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	b.address = listener.Addr().String()
	b.hub, err = New(Config{
		NodeName: "n1", Listener: listener, LocalCA: b.local.pool(),
		ServingCertificate: func() (*tls.Certificate, error) { return serving, nil },
		DialUpstream: func(ctx context.Context) (net.Conn, error) {
			if b.cut.Load() {
				return nil, fmt.Errorf("the link is cut")
			}
			c, err := new(net.Dialer).DialContext(ctx, "tcp", at.Host)
			if err != nil {
				return nil, err
			}
			slow := &stallable{Conn: c, flows: &b.flows, closed: make(chan struct{})}
			b.conns <- slow
			return slow, nil
		},
		UpstreamCA: b.api.CA.Pool(), UpstreamServerName: "localhost",
		NodeCertificate: certificate("system:node:n1", "system:nodes"), HubCertificate: certificate("edge:hub:n1", "edge:hubs"),
		KubernetesEndpoint: netip.MustParseAddrPort("169.254.20.11:443"),
		DataDir:            b.dir, RootCA: besideCA,
		PodCertificate: func() (*tls.Certificate, error) { return serving, nil },
		Logger:         slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.hub.Serve(ctx) }()
	b.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		b.stop = func() {}
	}
	b.hub.Link().Session(!b.cut.Load())
}

// setCut cuts or restores the link.
func (b *beside) setCut(cut bool) {
	b.t.Helper()
	b.cut.Store(cut)
	for cut {
		select {
		case c := <-b.conns:
			c.Close()
			continue
		default:
		}
		break
	}
	b.hub.Link().Session(!cut)
}

// stall keeps from the hub what the apiserver sends until the link flows again; it is
// there all the while, until somebody has waited for it too long.
func (b *beside) stall() (flow func()) {
	stalled := make(chan struct{})
	b.flows.Store(&stalled)
	return func() { close(stalled) }
}

// stallable is a connection to the apiserver.
type stallable struct {
	net.Conn
	flows  *atomic.Pointer[chan struct{}]
	closed chan struct{}
	once   sync.Once
}

func (c *stallable) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	select {
	case <-*c.flows.Load():
	case <-c.closed:
	}
	return n, err
}

func (c *stallable) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// config is a component's way to the hub, or the admin's to the apiserver.
func (b *beside) config(c Caller, media string) *rest.Config {
	b.t.Helper()
	r := &rig{t: b.t, local: b.local, address: b.address}
	return r.restConfig(c, media)
}

func (b *beside) direct(media string) *rest.Config {
	b.t.Helper()
	config, err := b.api.Admin()
	if err != nil {
		b.t.Fatal(err)
	}
	config.ContentType, config.AcceptContentTypes = media, media
	return config
}

// seenEvent is one event as a client has it.
type seenEvent struct {
	Type, Key, Version string
	// Object in full, in JSON, so that both encodings compare.
	Object string
}

// collect watches until an object named end was added. It returns what came, and
// what went wrong.
func collect(t *testing.T, open func(metav1.ListOptions) (watch.Interface, error), o metav1.ListOptions, end string) ([]seenEvent, error) {
	w, err := open(o)
	if err != nil {
		return nil, fmt.Errorf("%+v: %w", o, err)
	}
	defer w.Stop()
	var events []seenEvent
	late := time.After(time.Minute)
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				return events, fmt.Errorf("%+v: the watch ended after %d events", o, len(events))
			}
			m, err := meta.Accessor(e.Object)
			if err != nil {
				return events, fmt.Errorf("%+v: %v", o, e.Object)
			}
			events = append(events, seenEvent{string(e.Type), m.GetNamespace() + "/" + m.GetName(), m.GetResourceVersion(), canonicalJSON(t, m)})
			if m.GetName() == end && e.Type == watch.Added {
				return events, nil
			}
		case <-late:
			return events, fmt.Errorf("%+v: %s never comes; %d events", o, end, len(events))
		}
	}
}

func canonicalJSON(t *testing.T, o any) string {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Error(err)
	}
	var generic map[string]any
	if err := json.Unmarshal(b, &generic); err != nil {
		t.Error(err)
	}
	delete(generic, "kind") // JSON keeps it, protobuf clients do not
	delete(generic, "apiVersion")
	if b, err = json.Marshal(generic); err != nil {
		t.Error(err)
	}
	return string(b)
}

// churn makes n random changes of services.
func (b *beside) churn(n int) {
	t := b.t
	t.Helper()
	services := b.admin.CoreV1().Services("default")
	for i := range n {
		name := fmt.Sprintf("s%d", rand.N(12))
		labels := map[string]string{"app": fmt.Sprint(rand.N(3))}
		switch rand.N(3) {
		case 0:
			labels["service.kubernetes.io/headless"] = ""
		case 1:
			labels["service.kubernetes.io/service-proxy-name"] = "other"
		}
		have, err := services.Get(t.Context(), name, metav1.GetOptions{})
		switch {
		case err != nil:
			s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
			if rand.N(2) == 0 {
				s.Spec.ClusterIP = "None"
			}
			_, err = services.Create(t.Context(), s, metav1.CreateOptions{})
		case rand.N(4) == 0:
			err = services.Delete(t.Context(), name, metav1.DeleteOptions{})
		default:
			have.Labels = labels
			have.Annotations = map[string]string{"change": fmt.Sprint(i, " <&>")}
			_, err = services.Update(t.Context(), have, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// end makes the service that tells watches that all is over.
func (b *beside) end(name string) {
	b.t.Helper()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "0"}}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
	if _, err := b.admin.CoreV1().Services("default").Create(b.t.Context(), s, metav1.CreateOptions{}); err != nil {
		b.t.Fatal(err)
	}
}

// TestSameEvents: clients of the hub and clients of the apiserver see the same
// events, in the same order, but for the differences listed.
func TestSameEvents(t *testing.T) {
	b := newBeside(t)
	// The hub's ring begins with what it first reads.
	first, err := kubernetes.NewForConfig(b.config(CallerKubeProxy, wire.MediaProtobuf))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.CoreV1().Services("").List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	b.churn(30)
	list, err := b.admin.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	began := list.ResourceVersion
	b.churn(1) // so that the apiserver's cache, and the hub, have come so far
	type one struct {
		name, media string
		options     metav1.ListOptions
	}
	var watches []one
	for _, media := range []string{wire.MediaJSON, wire.MediaProtobuf} {
		for _, selector := range []metav1.ListOptions{
			{},
			{FieldSelector: "spec.clusterIP!=None"},
			{LabelSelector: "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name"},
			{LabelSelector: "!service.kubernetes.io/service-proxy-name", FieldSelector: "spec.clusterIP!=None"},
			{LabelSelector: "app in (0,1),app!=1"},
			{FieldSelector: "metadata.namespace=default,metadata.name!=s1"},
		} {
			name := media + " " + selector.LabelSelector + " " + selector.FieldSelector
			streaming, plain, bookmarks := selector, selector, selector
			streaming.SendInitialEvents, streaming.ResourceVersionMatch, streaming.AllowWatchBookmarks = ptr.To(true), metav1.ResourceVersionMatchNotOlderThan, true
			streaming.ResourceVersion = began
			plain.ResourceVersion = began
			bookmarks.ResourceVersion, bookmarks.AllowWatchBookmarks = began, true
			watches = append(watches, one{name + " streamed list", media, streaming}, one{name + " from a version", media, plain}, one{name + " with bookmarks", media, bookmarks})
		}
	}
	type result struct {
		ours, theirs []seenEvent
		err          error
	}
	results := make([]chan result, len(watches))
	end := "zz-end"
	var opening sync.WaitGroup
	for i, w := range watches {
		results[i] = make(chan result, 1)
		ours, err := kubernetes.NewForConfig(b.config(CallerKubeProxy, w.media))
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := kubernetes.NewForConfig(b.direct(w.media))
		if err != nil {
			t.Fatal(err)
		}
		both := make(chan result, 1)
		opening.Add(2)
		watchOf := func(c *kubernetes.Clientset) func(metav1.ListOptions) (watch.Interface, error) {
			return func(o metav1.ListOptions) (watch.Interface, error) {
				defer opening.Done()
				o.Watch = true
				return c.CoreV1().Services("").Watch(t.Context(), o)
			}
		}
		go func() {
			events, err := collect(t, watchOf(theirs), w.options, end)
			both <- result{theirs: events, err: err}
		}()
		go func() {
			events, err := collect(t, watchOf(ours), w.options, end)
			r := <-both
			r.ours, r.err = events, errors.Join(err, r.err)
			results[i] <- r
		}()
	}
	opening.Wait() // all begin with the same
	b.churn(80)
	b.end(end)
	all := make([]result, len(watches))
	for i := range watches {
		all[i] = <-results[i]
	}
	now := b.version()
	for i, w := range watches {
		r := all[i]
		if r.err != nil {
			t.Error(r.err)
			continue
		}
		least := 0
		if w.options.SendInitialEvents != nil {
			least = 1
		}
		checkBookmarks(t, w.name+", hub", r.ours, w.options.AllowWatchBookmarks, least, now)
		checkBookmarks(t, w.name+", apiserver", r.theirs, w.options.AllowWatchBookmarks, least, now)
		// Initial events may come in any order; what follows may not.
		ours, theirs := sortInitial(hide(r.ours, "")), sortInitial(hide(r.theirs, ""))
		if d := cmp.Diff(theirs, ours); d != "" {
			t.Errorf("%s: apiserver - hub +\n%s", w.name, d)
		}
		if len(ours) < 2 {
			t.Errorf("%s: only %d events", w.name, len(ours))
		}
	}

	t.Run("bookmarks", b.bookmarks)
	for _, d := range differences {
		t.Run(d.name, func(t *testing.T) { b.shows(t, d) })
	}
}

// sortInitial orders the run of ADDED events that a watch may begin with.
func sortInitial(events []seenEvent) []seenEvent {
	events = slices.Clone(events)
	n := slices.IndexFunc(events, func(e seenEvent) bool { return e.Type != "ADDED" })
	if n < 0 {
		n = len(events)
	}
	slices.SortFunc(events[:n], func(a, b seenEvent) int { return strings.Compare(a.Key+" "+a.Version, b.Key+" "+b.Version) })
	return events
}

// TestReflectorsBesideApiserver: client-go's reflectors end with what the
// apiserver has, through cuts and restarts of the hub, streamed list or not.
func TestReflectorsBesideApiserver(t *testing.T) {
	b := newBeside(t)
	type follower struct {
		name  string
		store *watched
	}
	var followers []follower
	for _, media := range []string{wire.MediaJSON, wire.MediaProtobuf} {
		for _, watchList := range []bool{true, false} {
			config := b.config(CallerKubeProxy, media)
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			services := client.CoreV1().Services("")
			lw := &cache.ListWatch{
				ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return services.List(ctx, o) },
				WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
					return services.Watch(ctx, o)
				},
			}
			var source cache.ListerWatcher = lw
			if !watchList {
				source = legacy{lw}
			}
			f := follower{fmt.Sprintf("%s watchlist=%v", media, watchList), &watched{Store: cache.NewStore(cache.MetaNamespaceKeyFunc), changed: make(chan struct{}, 1)}}
			reflector := cache.NewReflectorWithOptions(source, &corev1.Service{}, f.store, cache.ReflectorOptions{
				Backoff: &wait.Backoff{Duration: 10 * time.Millisecond, Factor: 1, Steps: 1, Cap: 10 * time.Millisecond},
			})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); reflector.RunWithContext(ctx) }()
			defer func() { cancel(); <-done }()
			followers = append(followers, f)
		}
	}
	agree := func(when string) {
		t.Helper()
		list, err := b.admin.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{}
		for _, s := range list.Items {
			want[s.Namespace+"/"+s.Name] = s.ResourceVersion
		}
		for _, f := range followers {
			f.store.until(t, when+": "+f.name, func(w *watched) bool {
				got := map[string]string{}
				for _, o := range w.List() {
					s := o.(*corev1.Service)
					got[s.Namespace+"/"+s.Name] = s.ResourceVersion
				}
				return maps.Equal(got, want)
			})
		}
	}
	b.churn(20)
	agree("at first")
	b.setCut(true)
	b.churn(20)
	b.setCut(false)
	agree("after a cut")
	address := b.address
	b.setCut(true)
	b.stop()
	b.churn(20)
	b.startAt(address)
	b.setCut(false)
	agree("after a restart in a cut")
}

// TestTokensOfApiserver: the node knows a real pod by its real token, and what it
// may do, when nobody can be asked.
func TestTokensOfApiserver(t *testing.T) {
	b := newBeside(t)
	core := b.admin.CoreV1()
	if _, err := core.ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "web"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod, err := core.Pods("default").Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec: corev1.PodSpec{
			NodeName: "n1", ServiceAccountName: "web", Containers: []corev1.Container{{Name: "c", Image: "i"}},
			// A kubelet may ask for tokens that its pods mount.
			Volumes: []corev1.Volume{{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}},
			}}}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "web"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "edge-hub"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "default", Name: "web"}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	kubelet, err := kubernetes.NewForConfig(b.config(CallerKubelet, wire.MediaProtobuf))
	if err != nil {
		t.Fatal(err)
	}
	var token *authenticationv1.TokenRequest
	for limit := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		// The Node authorizer takes a moment to learn of the pod.
		token, err = kubelet.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "web", &authenticationv1.TokenRequest{
			Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "p", UID: pod.UID}},
		}, metav1.CreateOptions{})
		if err == nil {
			break
		}
		if time.Now().After(limit) {
			t.Fatal(err)
		}
	}
	local := b.hub.local
	shown := &http.Request{Header: http.Header{"Authorization": {"Bearer " + token.Status.Token}}}
	read := func(resource string) request {
		return request{method: http.MethodGet, verb: "list", version: "v1", resource: resource, query: url.Values{}}
	}
	for limit := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		who, _, err := local.authenticatePod(shown)
		if err == nil {
			err = local.allowed(who, read("services"))
		}
		if err == nil {
			if who != (serviceAccount{"default", "web"}) {
				t.Errorf("the pod is %s", who)
			}
			if err := local.allowed(who, read("secrets")); err == nil {
				t.Error("it may list secrets")
			}
			break
		}
		if time.Now().After(limit) {
			t.Fatal(err)
		}
	}
	b.setCut(true)
	again, err := kubelet.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "web", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "p", UID: pod.UID}},
	}, metav1.CreateOptions{})
	if err != nil || again.Status.Token != token.Status.Token {
		t.Errorf("the token in a cut: %v", err)
	}
}
