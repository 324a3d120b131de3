package hub

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/store"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// TestFaultOfDisk: a disk that takes nothing more is a fault until it does again.
func TestFaultOfDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a disk of its own needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Whatever a test that fails has left open.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	h := idleHub(t, dir)
	if got := faultsOf(h); strings.Contains(got, FaultDisk) {
		t.Fatalf("at first: %s", got)
	}
	large, err := (&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s", UID: "u", ResourceVersion: "6"}, Data: map[string][]byte{
		"k": bytes.Repeat([]byte{1}, 8<<20),
	}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	object, err := replica.NewObject(wire.MediaProtobuf, wire.Envelope{APIVersion: "v1", Kind: "Secret", Message: large}.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	kept := store.State{Kind: secret.Resource.GroupVersion().WithKind("Secret"), Version: 6, Changed: 6, Complete: true}
	if err := h.data.store.Commit(t.Context(), store.Change{Collection: secret, State: kept, Put: []*replica.Object{object}}); err == nil {
		t.Fatal("the disk took more than it holds")
	}
	if got := faultsOf(h); !strings.HasPrefix(got, "DiskError: the replica cannot be written: ") || !strings.Contains(got, "no space left") {
		t.Errorf("on a full disk: %s", got)
	}
	if err := h.data.store.Commit(t.Context(), store.Change{Collection: secret, Drop: true}); err != nil {
		t.Fatal(err)
	}
	if got := faultsOf(h); strings.Contains(got, FaultDisk) {
		t.Errorf("once there is room: %s", got)
	}
}
