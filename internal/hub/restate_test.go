package hub

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/edgewright/terraform-provider-edge/internal/hub/memo"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// TestRestates: as the link returns, the cluster is told of a pod that it took for lost
// what kubelet holds of it, if kubelet has renewed its lease for long enough, has not
// begun anew, and does not write itself.
func TestRestates(t *testing.T) {
	const (
		status = "/api/v1/namespaces/shop/pods/p/status"
		lease  = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
	)
	protobuf := http.Header{"Content-Type": {wire.MediaProtobuf}}
	strategic := http.Header{"Content-Type": {string(types.StrategicMergePatchType)}}
	for name, c := range map[string]struct {
		// before is done in the cut, after as the link is back.
		before, after func(t *testing.T, r *rig, kubelet *http.Client)
		want          int // patches of the hub's own
	}{
		"kubelet is there": {want: 1},
		"kubelet has begun anew": {before: func(t *testing.T, r *rig, kubelet *http.Client) {
			node := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
			r.do(kubelet, http.MethodPost, "/api/v1/nodes", bytes.NewReader(encoded(t, node)), protobuf)
		}},
		"kubelet says it itself": {after: func(t *testing.T, r *rig, kubelet *http.Client) {
			if resp, _ := r.do(kubelet, http.MethodPatch, status, strings.NewReader(`{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`), strategic); resp.StatusCode != http.StatusOK {
				t.Error(resp.Status)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r, l, clk := newEndpointsRig(t, memo.New(nil, nil, nil))
			var mu sync.Mutex // guards own
			var own []string
			r.api.setRefuse(func(w http.ResponseWriter, q *http.Request) {
				body, err := io.ReadAll(q.Body)
				if err != nil {
					t.Error(err)
				}
				if q.Method == http.MethodPatch && q.URL.Path == status && q.Header.Get("User-Agent") == hubAgent {
					mu.Lock()
					own = append(own, string(body))
					mu.Unlock()
				}
				io.WriteString(w, "{}")
			})
			kubelet := r.caller(CallerKubelet)
			renew := func() {
				t.Helper()
				o := &coordinationv1.Lease{TypeMeta: metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"}, ObjectMeta: metav1.ObjectMeta{Namespace: leaseNamespace, Name: "n1"}}
				if resp, body := r.do(kubelet, http.MethodPut, lease+"/n1", bytes.NewReader(encoded(t, o)), protobuf); resp.StatusCode != http.StatusOK {
					t.Fatal(resp.Status, body)
				}
			}
			for range 4 {
				renew()
				clk.Step(leaseRenewal)
			}
			if c.before != nil {
				c.before(t, r, kubelet)
			}
			renew()
			r.online(true)
			if c.after != nil {
				c.after(t, r, kubelet)
			}
			lost := ownPodAt("10.1.0.1", "12")
			lost.Status.Conditions[0].Status = corev1.ConditionFalse
			o, err := replica.NewObject(wire.MediaProtobuf, encoded(t, lost))
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Publish(ownPods, []*replica.Event{{Type: watch.Modified, Object: o}}, 12); err != nil {
				t.Fatal(err)
			}
			asked := func() int {
				mu.Lock()
				defer mu.Unlock()
				return len(own)
			}
			// Some looks, and less time than after which a probe that is under way has
			// not been answered.
			for range 12 {
				clk.Step(300 * time.Millisecond)
				time.Sleep(5 * time.Millisecond)
			}
			for limit := time.Now().Add(patience); asked() < c.want && time.Now().Before(limit); time.Sleep(time.Millisecond) {
			}
			if n := asked(); n != c.want {
				t.Fatalf("%d patches, want %d: %v", n, c.want, own)
			}
			if c.want > 0 && (!strings.Contains(own[0], `"status":"True"`) || !strings.Contains(own[0], `"uid":"pod"`)) {
				t.Errorf("it is told %s", own[0])
			}
		})
	}
}

// TestOnlyHeartbeat: kubelet's patch of its Node says that it is there, or how it is.
func TestOnlyHeartbeat(t *testing.T) {
	for patch, want := range map[string]bool{
		`{"status":{"conditions":[{"lastHeartbeatTime":"2026-01-01T00:00:00Z","type":"Ready"}]}}`: true,
		`{"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.1"}]}}`:                   true,
		`{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`:                           false,
		`{"status":7}`: false,
	} {
		if got := onlyHeartbeat([]byte(patch)); got != want {
			t.Errorf("%s: %v", patch, got)
		}
	}
}
