//go:build linux

package hub

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// lastMark is the annotation of the last change of all.
const lastMark = "last"

// TestSameSequences: of everything that a node's components follow, the hub and the
// apiserver tell the same events in the same order, by every way to watch and in
// both encodings, but for the differences that TestSameEvents shows to be there.
func TestSameSequences(t *testing.T) {
	b := newBeside(t)
	ctx := t.Context()
	b.hold()
	all, stop := b.followAll() // so that the hub mirrors everything
	b.stir(10)
	b.agree("before", all)
	stop()
	list, err := b.admin.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	began := list.ResourceVersion
	b.mark("first") // so that all caches have come so far

	type pair struct {
		name         string
		ours, theirs []seenEvent
		err          error
	}
	var pairs []*pair
	var opening, watching sync.WaitGroup
	for _, f := range followed {
		for _, media := range []string{wire.MediaJSON, wire.MediaProtobuf} {
			for how, options := range map[string]metav1.ListOptions{
				"from a version": {ResourceVersion: began},
				"with bookmarks": {ResourceVersion: began, AllowWatchBookmarks: true},
				"streamed list": {
					ResourceVersion: began, AllowWatchBookmarks: true, SendInitialEvents: ptr.To(true), ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
				},
			} {
				p := &pair{name: fmt.Sprintf("%s, %s, %s", f, media, how)}
				pairs = append(pairs, p)
				ours, err := kubernetes.NewForConfig(b.config(f.caller, media))
				if err != nil {
					t.Fatal(err)
				}
				theirs, err := kubernetes.NewForConfig(b.direct(media))
				if err != nil {
					t.Fatal(err)
				}
				opening.Add(2)
				watching.Go(func() {
					var inner sync.WaitGroup
					var errs [2]error
					inner.Go(func() { p.ours, errs[0] = f.sequence(t, ours, options, opening.Done) })
					inner.Go(func() { p.theirs, errs[1] = f.sequence(t, theirs, options, opening.Done) })
					inner.Wait()
					p.err = errors.Join(errs[:]...)
				})
			}
		}
	}
	opening.Wait() // all begin with the same
	b.stir(40)
	b.mark(lastMark)
	watching.Wait()
	for _, p := range pairs {
		if p.err != nil {
			t.Errorf("%s: %v", p.name, p.err)
			continue
		}
		ours, theirs := sortInitial(hide(p.ours, "")), sortInitial(hide(p.theirs, ""))
		if d := cmp.Diff(theirs, ours); d != "" {
			t.Errorf("%s: apiserver - hub +\n%s", p.name, d)
		}
		if len(ours) < 2 {
			t.Errorf("%s: only %d events", p.name, len(ours))
		}
	}
	t.Logf("%d pairs of watches", len(pairs))
}

func second[T any](_ T, err error) error { return err }

// sequence watches a collection until the last change of all.
func (f follows) sequence(t *testing.T, c *kubernetes.Clientset, o metav1.ListOptions, opened func()) ([]seenEvent, error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w, err := f.listWatch(c).WatchWithContext(ctx, o)
	opened()
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	var events []seenEvent
	for e := range w.ResultChan() {
		m, err := meta.Accessor(e.Object)
		if err != nil {
			return events, fmt.Errorf("after %d events: %v", len(events), e.Object)
		}
		events = append(events, seenEvent{string(e.Type), m.GetNamespace() + "/" + m.GetName(), m.GetResourceVersion(), canonicalJSON(t, m)})
		if m.GetAnnotations()["mark"] == lastMark {
			return events, nil
		}
	}
	return events, fmt.Errorf("it ended after %d events", len(events))
}

// mark changes something of everything that is followed, to be known by.
func (b *beside) mark(mark string) {
	t, ctx, none := b.t, b.t.Context(), metav1.PatchOptions{}
	t.Helper()
	core := b.admin.CoreV1()
	patch := []byte(`{"metadata":{"annotations":{"mark":"` + mark + `"}}}`)
	named := metav1.ObjectMeta{Name: "zz-" + mark, Annotations: map[string]string{"mark": mark}}
	for what, err := range map[string]error{
		"node":      second(core.Nodes().Patch(ctx, "n1", types.MergePatchType, patch, none)),
		"secret":    second(core.Secrets("default").Patch(ctx, "held", types.MergePatchType, patch, none)),
		"configmap": second(core.ConfigMaps("default").Patch(ctx, "held", types.MergePatchType, patch, none)),
		"bundle":    second(core.ConfigMaps("default").Patch(ctx, rootBundle, types.MergePatchType, patch, none)),
		"addresses": second(b.admin.NetworkingV1().ServiceCIDRs().Patch(ctx, "kubernetes", types.MergePatchType, patch, none)),
		"driver":    second(b.admin.StorageV1().CSIDrivers().Create(ctx, &storagev1.CSIDriver{ObjectMeta: named}, metav1.CreateOptions{})),
		"class":     second(b.admin.NodeV1().RuntimeClasses().Create(ctx, &nodev1.RuntimeClass{ObjectMeta: named, Handler: "runc"}, metav1.CreateOptions{})),
		"pod":       second(core.Pods("default").Patch(ctx, "always", types.MergePatchType, patch, none)),
		"namespace": second(core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: named}, metav1.CreateOptions{})),
		"service": second(core.Services("default").Create(ctx, &corev1.Service{
			ObjectMeta: named, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
		}, metav1.CreateOptions{})),
		"slice": second(b.admin.DiscoveryV1().EndpointSlices("default").Create(ctx, &discoveryv1.EndpointSlice{
			ObjectMeta: named, AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.9.9.9"}}},
		}, metav1.CreateOptions{})),
	} {
		if err != nil {
			t.Fatalf("mark %s as %s: %v", what, mark, err)
		}
	}
}
