package hub

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	testingclock "k8s.io/utils/clock/testing"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// TestPodDialFails: what a failed dial says of the link.
func TestPodDialFails(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		cut  bool
	}{
		{"the session breaks", errors.New("tunnel: idle timeout"), true},
		{"it has no stream left", fmt.Errorf("dial apiserver: %w", tunnel.ErrStreamLimit), false},
		{"the gateway stops", fmt.Errorf("dial apiserver: %w", &tunnel.StatusError{Status: tunnel.StatusDraining}), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Time stands still: the apiserver is probed when something fails.
			r, _ := newLocalRigAt(t, testingclock.NewFakeClock(time.Now()))
			r.online(true)
			online, _ := r.hub.Link().Online()
			address := servedPods(t, r, func(context.Context) (net.Conn, error) { return nil, c.err })
			// The reset may be as early as while the pod still connects.
			pod, err := net.Dial("tcp", address)
			if err != nil && !isReset(err) {
				t.Fatal(err)
			}
			if c.cut {
				select {
				case <-online.Done():
				case <-time.After(patience):
					t.Fatal("the link is not told")
				}
			}
			if err == nil {
				defer pod.Close()
				pod.SetDeadline(time.Now().Add(patience))
				answered(t, pod, r)
			}
			if got := online.Err() != nil; got != c.cut {
				t.Errorf("the link was cut: %v", got)
			}
		})
	}
}

// answered waits until a pod's connection is over, whatever it is answered before:
// it is while the link is there, which it is soon.
func answered(t *testing.T, pod net.Conn, r *rig) {
	t.Helper()
	roots := r.cluster.pool()
	roots.AddCert(r.podCA.cert)
	secured := tls.Client(pod, &tls.Config{RootCAs: roots, ServerName: "kubernetes.default.svc"})
	if _, err := io.WriteString(secured, "GET /version HTTP/1.1\r\nHost: kubernetes.default.svc\r\n\r\n"); err != nil {
		return
	}
	from := bufio.NewReader(secured)
	response, err := http.ReadResponse(from, nil)
	if err != nil {
		return
	}
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return
	}
	_, err = from.ReadByte()
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		t.Errorf("a connection that was answered %s while the link is there stays open", response.Status)
	}
}

// TestHandedOverOnline: a connection that is handed over when the link is back
// already is closed, and no request on one is told that the node is cut off.
func TestHandedOverOnline(t *testing.T) {
	r, _ := newLocalRig(t)
	r.online(true)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	here := newHandOff(listener.Addr())
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- r.hub.local.pods.serve(ctx, here) }()
	pod := dialPod(t, listener.Addr().String())
	here.give(accept(t, listener))
	answered(t, pod, r)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}

	w := httptest.NewRecorder()
	r.hub.local.pods.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/api/v1/namespaces/shop/configmaps", nil))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Connection") != "close" || strings.Contains(w.Body.String(), "has been cut off since") {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
}

// TestReleaseWaitsForNobody: a pod that does not read does not hold up the link.
func TestReleaseWaitsForNobody(t *testing.T) {
	pods := newAuthority(t, "pods")
	certificate := pods.server("kubernetes.default.svc")
	now := time.Now() // its own, not the bubble's
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		client := tls.Client(far, &tls.Config{RootCAs: pods.pool(), ServerName: "kubernetes.default.svc", Time: func() time.Time { return now }})
		server := tls.Server(near, &tls.Config{Certificates: []tls.Certificate{*certificate}, SessionTicketsDisabled: true})
		shaken := make(chan error, 1)
		go func() { shaken <- client.HandshakeContext(t.Context()) }()
		if err := errors.Join(server.HandshakeContext(t.Context()), <-shaken); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		p := &podServer{conns: map[net.Conn]struct{}{server: {}}}
		p.release()
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %s", took)
		}
		far.Close()
	})
}
