package hub

import (
	"bytes"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

// TestLearnsOnceForEachReturn: an apiserver that does not take what it is handed back
// is not asked anew each time what pods may do.
func TestLearnsOnceForEachReturn(t *testing.T) {
	clk := testingclock.NewFakeClock(time.Now())
	r, _ := newLocalRigAt(t, clk)
	keys := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{newSigner(t).public}}
	r.api.setRefuse(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", wire.MediaJSON)
		switch {
		case answerIssuer(t, w, q, keys):
		case q.Method == http.MethodPost:
			w.WriteHeader(http.StatusInternalServerError)
		default:
			io.WriteString(w, "{}")
		}
	})
	var changes atomic.Int64 // of the link: a step of the clock may end a probe too
	r.hub.config.OnLink = func() { changes.Add(1) }
	event := &corev1.Event{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Event"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "e"}}
	if resp, body := r.do(r.caller(CallerKubelet), "POST", "/api/v1/namespaces/shop/events", bytes.NewReader(encoded(t, event)), http.Header{"Content-Type": {wire.MediaProtobuf}}); resp.StatusCode != 201 {
		t.Fatalf("%s %s", resp.Status, body)
	}
	count := func(what string) (n int) {
		for _, s := range r.api.sawAll() {
			if s.method+" "+s.path == what {
				n++
			}
		}
		return n
	}
	const sending, learning = "POST /api/v1/namespaces/shop/events", "GET /version"
	r.online(true)
	r.learned()
	for n := 1; n <= 2; n++ {
		for limit := time.Now().Add(patience); count(sending) < n; time.Sleep(time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("the event was sent %d times", count(sending))
			}
			if n == 2 {
				clk.Step(time.Second) // the wait may begin later than the sending ends
			}
		}
	}
	r.online(false)
	r.settled()
	if n, returns := count(learning), int(changes.Load()/2); n < 1 || n > returns {
		t.Errorf("it was asked %d times what it serves, and the link came back %d times", n, returns)
	}
}
