package hub

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// TestRememberedIsWhole: somebody at the device who looks at an object through
// kubectl, as a table, takes nothing away from the kubelet that needs it in a cut, and
// is shown in a cut what the kubelet was told.
func TestRememberedIsWhole(t *testing.T) {
	r, _ := newLocalRig(t)
	r.online(true)
	const path = "/api/v1/namespaces/shop/persistentvolumeclaims/c"
	claim := &corev1.PersistentVolumeClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "c", ResourceVersion: "5"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "v"},
	}
	r.api.setRefuse(func(w http.ResponseWriter, q *http.Request) {
		switch accept := q.Header.Get("Accept"); {
		case q.URL.Path != path:
			http.NotFound(w, q)
		case strings.Contains(accept, "as="):
			w.Header().Set("Content-Type", wire.MediaJSON)
			_ = json.NewEncoder(w).Encode(metav1.Table{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "Table"}})
		default:
			w.Header().Set("Content-Type", wire.MediaProtobuf)
			_, _ = w.Write(encoded(t, claim))
		}
	})
	kubelet, err := kubernetes.NewForConfig(r.restConfig(CallerKubelet, wire.MediaProtobuf))
	if err != nil {
		t.Fatal(err)
	}
	asked := func() {
		t.Helper()
		got, err := kubelet.CoreV1().PersistentVolumeClaims("shop").Get(t.Context(), "c", metav1.GetOptions{})
		if err != nil || got.Spec.VolumeName != "v" {
			t.Errorf("the kubelet: %v", err)
		}
	}
	shown := func(want string) {
		t.Helper()
		resp, body := r.do(r.caller(CallerAdmin), "GET", path, nil, http.Header{"Accept": {kubectlAccept}})
		var got metav1.TypeMeta
		if err := json.Unmarshal([]byte(body), &got); err != nil || resp.StatusCode != http.StatusOK || got.Kind != want {
			t.Errorf("the person: %s, %v, a %q and not a %q", resp.Status, err, got.Kind, want)
		}
	}
	asked()
	shown("Table")
	r.online(false)
	r.settled()
	asked()
	shown("PersistentVolumeClaim")
	onlyTables, _, _ := strings.Cut(kubectlAccept, ",")
	resp, body := r.do(r.caller(CallerAdmin), "GET", path, nil, http.Header{"Accept": {onlyTables}})
	if s := statusOf(t, resp, body); s.Code != http.StatusNotAcceptable {
		t.Errorf("who takes nothing but a table: %d", s.Code)
	}
}
