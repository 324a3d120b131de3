//go:build linux

package hub

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/pager"

	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// follows is a collection as a component of the node follows it.
type follows struct {
	caller    Caller
	resource  string
	namespace string
	selector  metav1.ListOptions
	example   func() runtime.Object
	// rest is the client of the resource's group.
	rest func(*kubernetes.Clientset) rest.Interface
}

func coreREST(c *kubernetes.Clientset) rest.Interface      { return c.CoreV1().RESTClient() }
func discoveryREST(c *kubernetes.Clientset) rest.Interface { return c.DiscoveryV1().RESTClient() }
func networkREST(c *kubernetes.Clientset) rest.Interface   { return c.NetworkingV1().RESTClient() }
func storageREST(c *kubernetes.Clientset) rest.Interface   { return c.StorageV1().RESTClient() }
func nodeREST(c *kubernetes.Clientset) rest.Interface      { return c.NodeV1().RESTClient() }

func aService() runtime.Object { return &corev1.Service{} }
func aSlice() runtime.Object   { return &discoveryv1.EndpointSlice{} }

// followed is what kubelet, kube-proxy and CoreDNS of 1.36 follow of what the node
// mirrors.
var followed = []follows{
	{CallerKubelet, "nodes", "", metav1.ListOptions{FieldSelector: "metadata.name=n1"}, func() runtime.Object { return &corev1.Node{} }, coreREST},
	{CallerKubelet, "pods", "", metav1.ListOptions{FieldSelector: "spec.nodeName=n1"}, func() runtime.Object { return &corev1.Pod{} }, coreREST},
	{CallerKubelet, "services", "", metav1.ListOptions{FieldSelector: "spec.clusterIP!=None"}, aService, coreREST},
	{CallerKubelet, "secrets", "default", metav1.ListOptions{FieldSelector: "metadata.name=held"}, func() runtime.Object { return &corev1.Secret{} }, coreREST},
	{CallerKubelet, "configmaps", "default", metav1.ListOptions{FieldSelector: "metadata.name=held"}, func() runtime.Object { return &corev1.ConfigMap{} }, coreREST},
	{CallerKubelet, "configmaps", "default", metav1.ListOptions{FieldSelector: "metadata.name=" + rootBundle}, func() runtime.Object { return &corev1.ConfigMap{} }, coreREST},
	{CallerKubelet, "csidrivers", "", metav1.ListOptions{}, func() runtime.Object { return &storagev1.CSIDriver{} }, storageREST},
	{CallerKubelet, "runtimeclasses", "", metav1.ListOptions{}, func() runtime.Object { return &nodev1.RuntimeClass{} }, nodeREST},
	{CallerKubeProxy, "nodes", "", metav1.ListOptions{FieldSelector: "metadata.name=n1"}, func() runtime.Object { return &corev1.Node{} }, coreREST},
	{CallerKubeProxy, "servicecidrs", "", metav1.ListOptions{}, func() runtime.Object { return &networkingv1.ServiceCIDR{} }, networkREST},
	{CallerKubeProxy, "services", "", metav1.ListOptions{LabelSelector: "!service.kubernetes.io/service-proxy-name", FieldSelector: "spec.clusterIP!=None"}, aService, coreREST},
	{CallerKubeProxy, "endpointslices", "", metav1.ListOptions{LabelSelector: "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name"}, aSlice, discoveryREST},
	{CallerCoreDNS, "services", "", metav1.ListOptions{}, aService, coreREST},
	{CallerCoreDNS, "endpointslices", "", metav1.ListOptions{}, aSlice, discoveryREST},
	{CallerCoreDNS, "namespaces", "", metav1.ListOptions{}, func() runtime.Object { return &corev1.Namespace{} }, coreREST},
}

func (f follows) String() string {
	return fmt.Sprintf("%s's %s %s%s", f.caller, f.resource, f.selector.FieldSelector, f.selector.LabelSelector)
}

func (f follows) listWatch(c *kubernetes.Clientset) *cache.ListWatch {
	return cache.NewFilteredListWatchFromClient(f.rest(c), f.resource, f.namespace, func(o *metav1.ListOptions) {
		o.FieldSelector, o.LabelSelector = f.selector.FieldSelector, f.selector.LabelSelector
	})
}

// holding is one client's copy of a collection.
type holding struct {
	follows
	name string
	list func() []any
}

// held are the versions of what there is, less the slice that the hub makes up; of a
// Node, whose heartbeats are not followed, what else it says.
func held(t *testing.T, objects []any) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, o := range objects {
		m, err := meta.Accessor(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, slice := o.(*discoveryv1.EndpointSlice); slice && m.GetNamespace() == sliceNamespace && m.GetName() == sliceName {
			continue
		}
		is := string(m.GetUID()) + " at " + m.GetResourceVersion()
		if node, ok := o.(*corev1.Node); ok {
			is = beyondHeartbeats(t, node)
		}
		out[cache.ObjectName{Namespace: m.GetNamespace(), Name: m.GetName()}.String()] = is
	}
	return out
}

func beyondHeartbeats(t *testing.T, node *corev1.Node) string {
	t.Helper()
	node = node.DeepCopy()
	node.ResourceVersion, node.ManagedFields = "", nil
	for i := range node.Status.Conditions {
		node.Status.Conditions[i].LastHeartbeatTime.Reset()
	}
	return canonicalJSON(t, node)
}

// followAll follows every collection by client-go's reflector and by its shared
// informer, in both encodings, by a streamed list and by list and watch, until stop
// is called.
func (b *beside) followAll() (all []holding, stop func()) {
	t := b.t
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var done []chan struct{}
	stop = sync.OnceFunc(func() {
		cancel()
		for _, d := range done {
			<-d
		}
	})
	t.Cleanup(stop)
	run := func(f func(context.Context)) {
		d := make(chan struct{})
		done = append(done, d)
		go func() { defer close(d); f(ctx) }()
	}
	for i, f := range followed {
		for j, media := range []string{wire.MediaJSON, wire.MediaProtobuf} {
			client, err := kubernetes.NewForConfig(b.config(f.caller, media))
			if err != nil {
				t.Fatal(err)
			}
			for k, streamed := range []bool{true, false} {
				var source cache.ListerWatcher = f.listWatch(client)
				if !streamed {
					source = legacy{f.listWatch(client)}
				}
				name := fmt.Sprintf("%s, %s, streamed list %v", f, media, streamed)
				if (i+j+k)%2 == 0 {
					informer := cache.NewSharedIndexInformer(source, f.example(), 0, cache.Indexers{})
					run(informer.RunWithContext)
					all = append(all, holding{f, name + ", informer", informer.GetStore().List})
					continue
				}
				store := cache.NewStore(cache.MetaNamespaceKeyFunc)
				reflector := cache.NewReflectorWithOptions(source, f.example(), store, cache.ReflectorOptions{
					Backoff: &wait.Backoff{Duration: 10 * time.Millisecond, Factor: 1, Steps: 1, Cap: 10 * time.Millisecond},
				})
				run(reflector.RunWithContext)
				all = append(all, holding{f, name + ", reflector", store.List})
			}
		}
	}
	client, err := kubernetes.NewForConfig(b.config(CallerCoreDNS, wire.MediaProtobuf))
	if err != nil {
		t.Fatal(err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	for _, f := range followed {
		if f.caller == CallerCoreDNS {
			resource := corev1.SchemeGroupVersion.WithResource(f.resource)
			if f.resource == "endpointslices" {
				resource = discoveryv1.SchemeGroupVersion.WithResource(f.resource)
			}
			informer, err := factory.ForResource(resource)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, holding{f, fmt.Sprintf("%s, factory", f), informer.Informer().GetStore().List})
		}
	}
	factory.StartWithContext(ctx)
	run(func(ctx context.Context) { <-ctx.Done(); factory.Shutdown() })
	return all, stop
}

// agree waits until every client holds what a fresh list of the apiserver does, and
// so does the node's replica. It returns how long that took.
func (b *beside) agree(when string, all []holding) {
	b.t.Helper()
	began := time.Now()
	b.eventually(when, func(ctx context.Context) error {
		var errs []error
		fresh := map[string]map[string]string{}
		for _, h := range all {
			want, ok := fresh[h.String()]
			if !ok {
				list, err := h.listWatch(b.admin).ListWithContext(ctx, metav1.ListOptions{})
				if err != nil {
					return err
				}
				var items []any
				if err := meta.EachListItem(list, func(o runtime.Object) error { items = append(items, o); return nil }); err != nil {
					return err
				}
				want = held(b.t, items)
				fresh[h.String()] = want
			}
			if d := cmp.Diff(want, held(b.t, h.list())); d != "" {
				errs = append(errs, fmt.Errorf("%s: apiserver - client +\n%s", h.name, d))
			}
		}
		return errors.Join(errs...)
	})
	b.t.Logf("%s: %d clients agree with the apiserver after %v", when, len(all), time.Since(began).Round(time.Millisecond))
}

// stir changes something of everything that is followed, n times.
func (b *beside) stir(n int) {
	t, ctx := b.t, b.t.Context()
	t.Helper()
	core, slices := b.admin.CoreV1(), b.admin.DiscoveryV1().EndpointSlices("default")
	ok := func(err error) {
		t.Helper()
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	b.churn(n)
	for range n {
		name, mark := fmt.Sprint("o", rand.N(6)), []byte(fmt.Sprintf(`{"metadata":{"annotations":{"mark":"%d"}}}`, rand.Int()))
		annotate := func(patch func(context.Context, string, types.PatchType, []byte) error, name string) {
			t.Helper()
			ok(patch(ctx, name, types.MergePatchType, mark))
		}
		annotate(func(ctx context.Context, n string, p types.PatchType, body []byte) error {
			_, err := core.Secrets("default").Patch(ctx, n, p, body, metav1.PatchOptions{})
			return err
		}, "held")
		annotate(func(ctx context.Context, n string, p types.PatchType, body []byte) error {
			_, err := core.ConfigMaps("default").Patch(ctx, n, p, body, metav1.PatchOptions{})
			return err
		}, "held")
		annotate(func(ctx context.Context, n string, p types.PatchType, body []byte) error {
			_, err := core.Nodes().Patch(ctx, n, p, body, metav1.PatchOptions{})
			return err
		}, "n1")
		b.heartbeat(t, time.Unix(rand.Int64N(1<<32), 0))
		annotate(func(ctx context.Context, n string, p types.PatchType, body []byte) error {
			_, err := core.ConfigMaps("default").Patch(ctx, n, p, body, metav1.PatchOptions{})
			return err
		}, rootBundle)
		annotate(func(ctx context.Context, n string, p types.PatchType, body []byte) error {
			_, err := b.admin.NetworkingV1().ServiceCIDRs().Patch(ctx, n, p, body, metav1.PatchOptions{})
			return err
		}, "kubernetes")
		b.stirClasses(name, mark)
		now := int64(0)
		switch rand.N(3) {
		case 0:
			ok(core.Pods("default").Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}))
			ok(slices.Delete(ctx, name, metav1.DeleteOptions{}))
		case 1:
			_, err := core.Pods("default").Patch(ctx, name, types.MergePatchType, mark, metav1.PatchOptions{})
			ok(err)
			_, err = slices.Patch(ctx, name, types.MergePatchType, mark, metav1.PatchOptions{})
			ok(err)
		default:
			b.heldPod(name)
			labels := map[string]string{}
			if rand.N(2) == 0 {
				labels["service.kubernetes.io/headless"] = ""
			}
			_, err := slices.Create(ctx, &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, AddressType: discoveryv1.AddressTypeIPv4,
				Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0." + strconv.Itoa(1+rand.N(200))}}},
			}, metav1.CreateOptions{})
			ok(err)
			_, err = core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "ns-"}}, metav1.CreateOptions{})
			ok(err)
		}
	}
}

// stirClasses makes, changes or removes a RuntimeClass and a CSIDriver.
func (b *beside) stirClasses(name string, mark []byte) {
	t, ctx := b.t, b.t.Context()
	t.Helper()
	classes, drivers := b.admin.NodeV1().RuntimeClasses(), b.admin.StorageV1().CSIDrivers()
	var errs [2]error
	switch rand.N(3) {
	case 0:
		errs = [2]error{classes.Delete(ctx, name, metav1.DeleteOptions{}), drivers.Delete(ctx, name, metav1.DeleteOptions{})}
	case 1:
		_, errs[0] = classes.Patch(ctx, name, types.MergePatchType, mark, metav1.PatchOptions{})
		_, errs[1] = drivers.Patch(ctx, name, types.MergePatchType, mark, metav1.PatchOptions{})
	default:
		_, errs[0] = classes.Create(ctx, &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Handler: "runc"}, metav1.CreateOptions{})
		_, errs[1] = drivers.Create(ctx, &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	}
	for _, err := range errs {
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
}

// hold makes a Secret, ConfigMaps, and a pod of the node that refers to them.
func (b *beside) hold() {
	b.t.Helper()
	held := metav1.ObjectMeta{Name: "held"}
	_, err := b.admin.CoreV1().Secrets("default").Create(b.t.Context(), &corev1.Secret{ObjectMeta: held}, metav1.CreateOptions{})
	if err == nil {
		_, err = b.admin.CoreV1().ConfigMaps("default").Create(b.t.Context(), &corev1.ConfigMap{ObjectMeta: held}, metav1.CreateOptions{})
	}
	if err == nil {
		_, err = b.admin.CoreV1().ConfigMaps("default").Create(b.t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: rootBundle}, Data: map[string]string{"ca.crt": "cluster authority\n"},
		}, metav1.CreateOptions{})
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.heldPod("always")
}

// heldPod makes a pod of the node that refers to the Secret and the ConfigMaps.
func (b *beside) heldPod(name string) {
	b.t.Helper()
	held := corev1.LocalObjectReference{Name: "held"}
	_, err := b.admin.CoreV1().Pods("default").Create(b.t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i", EnvFrom: []corev1.EnvFromSource{
			{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: held}}, {ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: held}},
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: rootBundle}}},
		}}}},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		b.t.Fatal(err)
	}
}

// restart ends the hub while the link is cut, and starts another on its data.
func (b *beside) restart(meanwhile func()) {
	b.t.Helper()
	address := b.address
	b.setCut(true)
	b.stop()
	meanwhile()
	b.startAt(address)
}

// TestFollowersBesideApiserver: whatever follows the API through the hub ends with
// what the apiserver has, through changes, cuts, restarts, versions that are gone,
// and an etcd that was set back.
func TestFollowersBesideApiserver(t *testing.T) {
	b := newBeside(t)
	ctx := t.Context()
	b.hold()
	all, stop := b.followAll()
	b.agree("at first", all)
	b.stir(10)
	b.agree("after changes", all)
	b.fillPages()
	b.agree("with more than a page", all)
	b.pages()
	old, err := b.admin.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b.setCut(true)
	b.stir(10)
	b.setCut(false)
	b.agree("after a cut", all)
	b.restart(func() { b.stir(10) })
	b.setCut(false)
	b.agree("after a restart in a cut", all)

	// The versions that the hub has come to are gone when it asks again.
	b.setCut(true)
	b.stir(10)
	b.compact()
	b.setCut(false)
	b.agree("after a compaction in a cut", all)

	for i, how := range []string{"connected", "cut off", "restarted while it is cut off"} {
		backup := filepath.Join(t.TempDir(), "db")
		if err := b.api.Backup(backup); err != nil {
			t.Fatal(err)
		}
		if err := b.api.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		// An informer waits longer with every watch that ends, until two minutes pass
		// without; in a test of seconds that would be what is measured.
		stop()
		all, stop = b.followAll()
		b.stir(10)
		b.heldPod(fmt.Sprint("forgotten", i))
		b.agree("before etcd is set back, hub "+how, all)
		restore := func() {
			if err := b.api.Restore(backup); err != nil {
				t.Fatal(err)
			}
			if err := b.api.Ready(ctx); err != nil {
				t.Fatal(err)
			}
		}
		switch i {
		case 0:
			restore()
		case 1:
			b.setCut(true)
			restore()
			b.setCut(false)
		case 2:
			b.restart(func() {})
			restore()
			b.setCut(false)
		}
		b.agree("after etcd was set back, hub "+how, all)
	}
	b.gone(old.ResourceVersion)
}

// compact makes etcd forget all but the present.
func (b *beside) compact() {
	b.t.Helper()
	list, err := b.admin.CoreV1().Services("").List(b.t.Context(), metav1.ListOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	revision, err := strconv.ParseUint(list.ResourceVersion, 10, 64)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.api.Compact(b.t.Context(), revision); err != nil {
		b.t.Fatal(err)
	}
}

// fillPages makes more than a page of services, slices and namespaces that everybody
// lists and that no change of stir takes away.
func (b *beside) fillPages() {
	t, ctx := b.t, b.t.Context()
	t.Helper()
	for i := range pageSize + 1 {
		named := metav1.ObjectMeta{Name: fmt.Sprint("page", i)}
		_, err := b.admin.CoreV1().Services("default").Create(ctx, &corev1.Service{
			ObjectMeta: named, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
		}, metav1.CreateOptions{})
		if err == nil {
			_, err = b.admin.DiscoveryV1().EndpointSlices("default").Create(ctx, &discoveryv1.EndpointSlice{
				ObjectMeta: named, AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}},
			}, metav1.CreateOptions{})
		}
		if err == nil {
			_, err = b.admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: named}, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// pageSize is that of the lists of pages.
const pageSize = 3

// pages: lists in pages hold the same as the apiserver's, of all that is followed, in
// both encodings.
func (b *beside) pages() {
	t := b.t
	t.Helper()
	paged := map[string]bool{} // resources of which there is more than a page
	for _, f := range followed {
		for _, media := range []string{wire.MediaJSON, wire.MediaProtobuf} {
			theirs, err := kubernetes.NewForConfig(b.direct(media))
			if err != nil {
				t.Fatal(err)
			}
			var all [2]map[string]string
			for i, client := range []*kubernetes.Clientset{b.client(t, f.caller, media), theirs} {
				pages := 0
				p := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
					pages++
					return f.listWatch(client).ListWithContext(ctx, o)
				})
				p.PageSize = pageSize
				var items []any
				if err := p.EachListItem(t.Context(), metav1.ListOptions{}, func(o runtime.Object) error { items = append(items, o); return nil }); err != nil {
					t.Errorf("%s, %s: %v", f, media, err)
				}
				all[i] = held(t, items)
				if least := (len(items) + pageSize - 1) / pageSize; pages < least { // more where a selector leaves a page short
					t.Errorf("%s, %s: %d items in %d pages of %d", f, media, len(items), pages, pageSize)
				}
				if pages > 1 && i == 0 {
					paged[f.resource] = true
				}
			}
			if d := cmp.Diff(all[1], all[0]); d != "" {
				t.Errorf("%s, %s, in pages: apiserver - hub +\n%s", f, media, d)
			}
		}
	}
	for _, resource := range []string{"services", "endpointslices", "namespaces"} {
		if !paged[resource] {
			t.Errorf("no list of %s had more than one page", resource)
		}
	}
}

// gone: to go on from a version that nobody has any more is answered with 410, by a
// list of just that version as by a watch, in both encodings, never with silence; by
// the hub as by the apiserver.
func (b *beside) gone(version string) {
	t := b.t
	t.Helper()
	for _, media := range []string{wire.MediaJSON, wire.MediaProtobuf} {
		for who, config := range map[string]*rest.Config{"hub": b.config(CallerKubeProxy, media), "apiserver": b.direct(media)} {
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			w, err := client.CoreV1().Services("").Watch(ctx, metav1.ListOptions{ResourceVersion: version})
			if err == nil {
				e := <-w.ResultChan()
				w.Stop()
				if e.Type != watch.Error {
					t.Errorf("%s, %s: a watch from %s begins with %v", who, media, version, e)
				} else {
					err = apierrors.FromObject(e.Object)
				}
			}
			cancel()
			if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
				t.Errorf("%s, %s: a watch from %s: %v", who, media, version, err)
			}
			_, err = client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{
				ResourceVersion: version, ResourceVersionMatch: metav1.ResourceVersionMatchExact,
			})
			if !apierrors.IsResourceExpired(err) {
				t.Errorf("%s, %s: a list at exactly %s: %v", who, media, version, err)
			}
		}
	}
}
