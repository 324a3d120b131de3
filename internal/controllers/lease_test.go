package controllers

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// TestLeaseKeeper runs in a bubble, where time passes only while all wait.
func TestLeaseKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "u"}})
		k := &LeaseKeeper{
			client: client, log: slog.New(slog.DiscardHandler), clock: clock.RealClock{},
			queue: workqueue.NewTyped[string](), beats: map[string]beat{},
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = k.Run(ctx) })
		defer wg.Wait()
		defer cancel()

		writes := func() int {
			synctest.Wait()
			n := 0
			for _, action := range client.Actions() {
				if action.Matches("patch", "leases") || action.Matches("create", "leases") {
					n++
				}
			}
			client.ClearActions()
			return n
		}
		lease := func(name string) *coordinationv1.Lease {
			t.Helper()
			l, err := client.CoordinationV1().Leases(leaseNamespace).Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			client.ClearActions()
			return l
		}
		fresh := tunnel.Heartbeat{}.WithKubeletAge(time.Second)

		k.Beat("n", fresh)
		writes()
		first := lease("n")
		if *first.Spec.HolderIdentity != "n" || *first.Spec.LeaseDurationSeconds != 40 || first.Spec.RenewTime.Unix() != time.Now().Unix() ||
			len(first.OwnerReferences) != 1 || first.OwnerReferences[0].UID != "u" {
			t.Errorf("the first lease is %+v", first)
		}

		// An agent that talks too much costs no more.
		for range 50 {
			k.Beat("n", fresh)
		}
		if n := writes(); n != 0 {
			t.Errorf("%d renewals at once", n)
		}
		time.Sleep(tunnel.HeartbeatInterval)
		k.Beat("n", fresh)
		if n := writes(); n != 1 || !lease("n").Spec.RenewTime.After(first.Spec.RenewTime.Time) {
			t.Errorf("%d renewals after an interval", n)
		}

		// A dead kubelet is not kept alive, whatever the session is.
		for _, dead := range []tunnel.Heartbeat{{}, tunnel.Heartbeat{}.WithKubeletAge(kubeletGrace), tunnel.Heartbeat{}.WithKubeletAge(time.Hour)} {
			time.Sleep(tunnel.HeartbeatInterval)
			k.Beat("n", dead)
			if n := writes(); n != 0 {
				t.Errorf("renewed for %+v", dead)
			}
		}
		// One that has not registered has no lease.
		k.Beat("unknown", fresh)
		if n := writes(); n != 1 { // the patch that finds none
			t.Errorf("%d writes for a node that has not registered", n)
		}
		if _, err := client.CoordinationV1().Leases(leaseNamespace).Get(t.Context(), "unknown", metav1.GetOptions{}); err == nil {
			t.Error("a lease of a node that has not registered")
		}
	})
}

// What is queued for a node whose session has ended meanwhile is not done, nor
// what has waited for too long.
func TestLeaseKeeperDropsWhatIsOld(t *testing.T) {
	for name, change := range map[string]func(k *LeaseKeeper){
		"session ended": func(k *LeaseKeeper) { k.Forget("n") },
		"waited":        func(*LeaseKeeper) { time.Sleep(kubeletGrace) },
		"neither":       func(*LeaseKeeper) {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := fake.NewClientset(&coordinationv1.Lease{
					ObjectMeta: metav1.ObjectMeta{Namespace: leaseNamespace, Name: "n"},
					Spec:       coordinationv1.LeaseSpec{HolderIdentity: ptr.To("n"), RenewTime: &metav1.MicroTime{Time: time.Unix(1, 0)}},
				})
				k := &LeaseKeeper{
					client: client, log: slog.New(slog.DiscardHandler), clock: clock.RealClock{},
					queue: workqueue.NewTyped[string](), beats: map[string]beat{},
				}
				k.Beat("n", tunnel.Heartbeat{}.WithKubeletAge(0))
				change(k)
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				wg.Go(func() { _ = k.Run(ctx) })
				synctest.Wait()
				cancel()
				wg.Wait()
				if renewed := len(client.Actions()) > 0; renewed != (name == "neither") {
					t.Errorf("actions %v", client.Actions())
				}
			})
		})
	}
}

func TestReportBoard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewReportBoard()
		ctx, cancel := context.WithCancel(t.Context())
		changes := b.Subscribe(ctx)
		told := func() int {
			n := 0
			for {
				synctest.Wait()
				select {
				case <-changes:
					n++
				default:
					return n
				}
			}
		}
		fault := tunnel.Heartbeat{Autonomy: &tunnel.Autonomy{Faults: []tunnel.Fault{{Reason: "DiskError", Message: "read-only"}, {Reason: "ClockUnset"}}}}
		for i, step := range []struct {
			beat tunnel.Heartbeat
			told int
			text string
		}{
			{tunnel.Heartbeat{}, 0, ""}, // says nothing of it
			{tunnel.Heartbeat{Autonomy: &tunnel.Autonomy{}}, 1, ""},
			{tunnel.Heartbeat{Autonomy: &tunnel.Autonomy{}}, 0, ""},
			{fault, 1, "DiskError: read-only; ClockUnset"},
			{fault, 0, "DiskError: read-only; ClockUnset"},
			{tunnel.Heartbeat{}, 0, "DiskError: read-only; ClockUnset"},
		} {
			b.Set("n", step.beat)
			if n := told(); n != step.told {
				t.Errorf("step %d: told %d times", i, n)
			}
			if said, ok := b.Autonomy("n"); ok != (i > 0) || autonomyText(said) != step.text {
				t.Errorf("step %d: %+v, %v", i, said, ok)
			}
		}
		cancel()
		synctest.Wait()
	})
}
