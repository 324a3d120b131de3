package hub

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

const csiPath = "/apis/storage.k8s.io/v1/csinodes/n1"

// volumes is an apiserver that has the node's CSINode, and takes what is said of the
// node. While it is busy it takes no CSINode.
type volumes struct {
	t *testing.T

	mu      sync.Mutex // guards what follows
	busy    bool
	turned  int // away, because of it
	version int
	csi     storagev1.CSINode
	patches []string // of the node's status
}

func (v *volumes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	w.Header().Set("Content-Type", wire.MediaJSON)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		v.t.Error(err)
	}
	switch {
	case r.URL.Path == "/api/v1/nodes/n1/status":
		v.patches = append(v.patches, string(body))
		io.WriteString(w, "{}")
	case r.URL.Path != csiPath:
		io.WriteString(w, "{}")
	case v.busy:
		v.turned++
		w.WriteHeader(http.StatusTooManyRequests)
	case r.Method == http.MethodPut:
		object, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
		csi, ok := object.(*storagev1.CSINode)
		if !ok {
			v.t.Errorf("a %T is put: %v", object, err)
			return
		}
		if csi.ResourceVersion != "" && csi.ResourceVersion != strconv.Itoa(v.version) {
			w.WriteHeader(http.StatusConflict)
			return
		}
		v.version++
		v.csi = *csi
		fallthrough
	default:
		v.csi.TypeMeta = metav1.TypeMeta{APIVersion: "storage.k8s.io/v1", Kind: "CSINode"}
		v.csi.Name, v.csi.UID, v.csi.ResourceVersion = "n1", "csi", strconv.Itoa(v.version)
		if err := json.NewEncoder(w).Encode(v.csi); err != nil {
			v.t.Error(err)
		}
	}
}

func (v *volumes) setBusy(busy bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.busy = busy
}

// state is the drivers that the cluster knows of, and what was said of the node.
func (v *volumes) state() (drivers, patches []string, turned int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, d := range v.csi.Spec.Drivers {
		drivers = append(drivers, d.Name)
	}
	return drivers, append(patches, v.patches...), v.turned
}

// TestWritesAfterDeclarations: what kubelet writes online comes after what it declared
// of the same object in the cut before, also where that could not be handed back yet:
// neither is lost.
func TestWritesAfterDeclarations(t *testing.T) {
	// Time stands still: what is handed back in vain is not tried again by itself.
	clk := testingclock.NewFakeClock(time.Now())
	r, _ := newLocalRigAt(t, clk)
	api := &volumes{t: t}
	r.api.setRefuse(api.ServeHTTP)
	r.online(true)
	kubelet := r.caller(CallerKubelet)
	asJSON := http.Header{"Accept": {wire.MediaJSON}, "Content-Type": {wire.MediaJSON}}
	get := func() (int, storagev1.CSINode) {
		t.Helper()
		resp, body := r.do(kubelet, http.MethodGet, csiPath, nil, asJSON)
		var csi storagev1.CSINode
		if err := json.Unmarshal([]byte(body), &csi); err != nil {
			t.Errorf("GET: %s %s: %v", resp.Status, body, err)
		}
		return resp.StatusCode, csi
	}
	put := func(csi storagev1.CSINode, version string, drivers ...string) *http.Response {
		t.Helper()
		csi.TypeMeta = metav1.TypeMeta{APIVersion: "storage.k8s.io/v1", Kind: "CSINode"}
		csi.ResourceVersion = version
		for _, d := range drivers {
			csi.Spec.Drivers = append(csi.Spec.Drivers, storagev1.CSINodeDriver{Name: d, NodeID: "n1"})
		}
		body, err := json.Marshal(csi)
		if err != nil {
			t.Fatal(err)
		}
		resp, _ := r.do(kubelet, http.MethodPut, csiPath, strings.NewReader(string(body)), asJSON)
		return resp
	}
	patch := func(body string) int {
		t.Helper()
		resp, _ := r.do(kubelet, http.MethodPatch, "/api/v1/nodes/n1/status", strings.NewReader(body), http.Header{"Content-Type": {string(types.StrategicMergePatchType)}})
		return resp.StatusCode
	}
	declare := func(driver, label string) {
		t.Helper()
		r.online(false)
		_, csi := get()
		if resp := put(csi, csi.ResourceVersion, driver); resp.StatusCode != http.StatusOK {
			t.Fatalf("declare %s: %s", driver, resp.Status)
		}
		if code := patch(fmt.Sprintf(`{"metadata":{"labels":{"l":%q}}}`, label)); code != http.StatusOK {
			t.Fatalf("declare label %s: %d", label, code)
		}
		// The CSINode is first, and the apiserver does not take it: the round ends.
		api.setBusy(true)
		_, _, before := api.state()
		r.online(true)
		for limit := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			if _, _, turned := api.state(); turned > before {
				break
			}
			if time.Now().After(limit) {
				t.Fatal("nothing is handed back")
			}
		}
	}
	get() // to know it
	declare("a", "cut")

	// While the apiserver does not take it, kubelet sees what it said, and waits.
	if code, csi := get(); code != http.StatusOK || len(csi.Spec.Drivers) != 1 {
		t.Errorf("a read of what is still to be handed back: %d, %+v", code, csi.Spec)
	}
	if resp := put(storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, "", "b"); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a write before it is handed back: %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	if !r.hub.Link().State().Online {
		t.Error("an apiserver that is busy is taken for one that is cut off")
	}
	// How the node is does not wait, and what is said of its labels keeps its order.
	const well = `{"status":{"phase":"Running"}}`
	for _, body := range []string{well, `{"metadata":{"labels":{"l":"online"}}}`} {
		if code := patch(body); code != http.StatusOK {
			t.Errorf("%s: %d", body, code)
		}
	}
	want := []string{well, `{"metadata":{"uid":"node","labels":{"l":"cut"}}}`, `{"metadata":{"labels":{"l":"online"}}}`}
	if _, patches, _ := api.state(); !cmp.Equal(patches, want) {
		t.Errorf("said of the node: %s", cmp.Diff(want, patches))
	}

	// It takes it again: what kubelet reads has all it has said.
	api.setBusy(false)
	_, csi := get()
	if resp := put(csi, csi.ResourceVersion, "b"); resp.StatusCode != http.StatusOK {
		t.Errorf("read, change and write: %s", resp.Status)
	}
	if drivers, _, _ := api.state(); !cmp.Equal(drivers, []string{"a", "b"}) {
		t.Errorf("the cluster has drivers %v", drivers)
	}

	// A write that was not preceded by a read is the last word, too.
	declare("c", "again")
	api.setBusy(false)
	if resp := put(storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, "", "d"); resp.StatusCode != http.StatusOK {
		t.Errorf("a write: %s", resp.Status)
	}
	for limit := time.Now().Add(patience); r.hub.local.overlay.Waiting() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("the rest is never handed back")
		}
		clk.Step(time.Second)
	}
	if drivers, patches, _ := api.state(); !cmp.Equal(drivers, []string{"d"}) || !strings.Contains(patches[len(patches)-1], "again") {
		t.Errorf("in the end the cluster has drivers %v; the node was said to be %s", drivers, patches[len(patches)-1])
	}
}
