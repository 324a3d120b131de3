//go:build linux

package engine

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

// A create goes on with what an interrupted create has left, and with nothing else.
func TestCreatePoolFindsItsOwn(t *testing.T) {
	const id = "local/c-1f2e3d4c"
	spec := v1alpha1.NodePoolSpec{Type: v1alpha1.PoolEdge, Labels: map[string]string{"site": "berlin"}, Network: &v1alpha1.NetworkSpec{Transport: v1alpha1.TransportTCP}}
	for _, c := range []struct {
		name   string
		exists *v1alpha1.NodePool
		want   Class // empty: created
	}{
		{"none of that name", nil, ""},
		{"interrupted", poolResource("berlin", v1alpha1.NodePoolSpec{}, unfinishedCreate), ""},
		{"finished", poolResource("berlin", v1alpha1.NodePoolSpec{}, finished), AlreadyExists},
		{"finished, an update interrupted", poolResource("berlin", v1alpha1.NodePoolSpec{}, unfinishedUpdate), AlreadyExists},
	} {
		t.Run(c.name, func(t *testing.T) {
			scheme := runtime.NewScheme()
			if err := v1alpha1.AddToScheme(scheme); err != nil {
				t.Fatal(err)
			}
			e := newTestEngineAt(t, t.TempDir())
			api := fake.NewClientBuilder().WithScheme(scheme).Build()
			conn := &connection{client: api, expires: e.opts.Now().Add(time.Hour)}
			e.conns[id] = conn
			if c.exists != nil {
				if err := e.create(t.Context(), conn, c.exists); err != nil {
					t.Fatal(err)
				}
			}

			got, err := e.CreatePool(t.Context(), id, "berlin", spec)
			if c.want != "" {
				if own, ok := err.(*Error); !ok || own.Class != c.want || own.ImportID != id+"/berlin" {
					t.Fatalf("got %+v, want class %q and an id to import", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(spec, got.Spec); diff != "" {
				t.Errorf("spec (-want +got):\n%s", diff)
			}
			found := &v1alpha1.NodePool{}
			if err := api.Get(t.Context(), client.ObjectKey{Name: "berlin"}, found); err != nil {
				t.Fatal(err)
			}
			if m, marked := found.Annotations[unfinishedAnnotation]; marked {
				t.Errorf("it is still marked %q", m)
			}
		})
	}
}
