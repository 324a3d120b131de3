package hub

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// TestBundleComesFromTheReplica: kubelet is never given the apiserver's bundle, which
// lacks the node's authority: not where the node may not read it yet, either.
func TestBundleComesFromTheReplica(t *testing.T) {
	clk := testingclock.NewFakeClock(time.Now())
	r, l := newLocalRigAt(t, clk)
	r.hub.config.RootCA = "node"
	r.api.setRefuse(func(w http.ResponseWriter, q *http.Request) {
		if strings.Contains(q.URL.Path, "/configmaps") {
			t.Errorf("the apiserver is asked for %s", q.URL)
		}
		io.WriteString(w, "{}")
	})
	r.online(true)
	// ask steps time while there is no answer, and begins what with the second step.
	ask := func(path string, begin func()) (int, string) {
		t.Helper()
		type answer struct {
			code int
			body string
		}
		got := make(chan answer, 1)
		go func() {
			resp, body := r.get(CallerKubelet, path)
			got <- answer{resp.StatusCode, body}
		}()
		for n := 0; ; n++ {
			select {
			case a := <-got:
				return a.code, a.body
			case <-time.After(5 * time.Millisecond):
			}
			if n == 1 && begin != nil {
				begin()
			}
			if n < 3*bundleTrials {
				clk.Step(bundleAgain / 2) // below what a probe of the link may take
			}
		}
	}
	const listed, named = "/api/v1/namespaces/shop/configmaps?fieldSelector=metadata.name%3Dkube-root-ca.crt", "/api/v1/namespaces/shop/configmaps/kube-root-ca.crt"
	for _, path := range []string{listed, listed + "&watch=1", named} {
		if code, body := ask(path, nil); code != http.StatusServiceUnavailable {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	code, body := ask(listed, func() {
		l.fill(t, replica.Collection{Resource: core("configmaps"), Namespace: "shop", Name: rootBundle}, 10, &corev1.ConfigMap{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: rootBundle, UID: "b", ResourceVersion: "5"},
			Data: map[string]string{"ca.crt": "cluster and node"},
		})
	})
	if code != http.StatusOK || !strings.Contains(body, "cluster and node") {
		t.Errorf("a bundle that comes while kubelet waits: %d %s", code, body)
	}
}
