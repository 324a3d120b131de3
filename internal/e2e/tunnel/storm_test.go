//go:build linux

package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/e2e/crowd"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// storm is how many nodes return in TestGatewayKilled.
func storm() int {
	if os.Getenv("EDGE_TEST_SCALE") == "full" {
		return 10_000
	}
	return 1000
}

// A gateway with a thousand (ten thousand) nodes is killed and started again.
// All of them return, the apiserver is asked nothing for it but to renew leases, as
// often as without a storm, and the process takes no more than twice the memory that
// it takes afterwards.
func TestGatewayKilled(t *testing.T) {
	w := newWorld(t)
	n := storm()
	w.issue(time.Second, "a")
	w.launch("a").says("serving nodes")
	nodes := w.crowd(n)
	empty := w.gws["a"].memory(crowd.Resident)
	running := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { running <- nodes.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-running; err != nil {
			t.Error(err)
		}
	}()
	w.eventually("all nodes connected", nodes.Connected)
	idle := w.quiet()
	t.Logf("%d idle nodes: %d KiB, %.1f KiB a node", n, idle, float64(idle-empty)/float64(n))

	first := w.gws["a"]
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-first.done
	killed := time.Now()
	renewals := w.renewals()
	w.launch("a").says("serving nodes")
	restarted := time.Now()
	calls := w.calls()
	w.eventually("all nodes back", func() error { return nodes.Returned(killed) })
	noticed, took := nodes.Return(killed)
	t.Logf("noticed after p50 %s, p99 %s", noticed.Quantile(0.5).Round(time.Millisecond), noticed.Quantile(0.99).Round(time.Millisecond))
	t.Logf("restarted after %s; nodes back after p50 %s, p99 %s, last %s (from the kill)", restarted.Sub(killed).Round(time.Millisecond),
		took.Quantile(0.5).Round(time.Millisecond), took.Quantile(0.99).Round(time.Millisecond), took.Quantile(1).Round(time.Millisecond))
	// The promise is that 99 of a hundred are back within 30 s of the kill, of ten
	// thousand; a thousand take 8 s on a quiet machine. Here the nodes are on the gateway's
	// own, whose other work they wait for too. Nodes that learn of it only when a silent
	// cut is noticed (20 s), and then back off, take longer.
	bound := 30 * time.Second
	if n > 1000 {
		bound *= 2
	}
	if late := took.Quantile(0.99); late > bound {
		t.Errorf("a hundredth of the nodes came back later than %s after the kill, want %s at most", late, bound)
	}
	var renewed int
	w.eventually("all leases renewed", func() error {
		if renewed = w.renewals() - renewals; renewed < n {
			return fmt.Errorf("%d leases of %d are renewed", renewed, n)
		}
		return nil
	})
	// Each node's first word, and one for each of its heartbeats since.
	beats := n + int(float64(n)*time.Since(killed).Seconds()/tunnel.HeartbeatInterval.Seconds())
	t.Logf("leases renewed %d times while the nodes returned", renewed)
	if renewed > beats {
		t.Errorf("leases were renewed %d times, and there were %d heartbeats at most", renewed, beats)
	}
	again := w.quiet()
	for resource, before := range calls {
		if after := w.calls()[resource]; after != before {
			t.Errorf("the apiserver was asked for %s %d times while the nodes returned", resource, after-before)
		}
	}
	peak := w.gws["a"].memory(crowd.Peak)
	t.Logf("memory: %d KiB after the storm, %d KiB at its peak", again, peak)
	if peak > 2*again {
		t.Errorf("the storm took %d KiB, more than twice the %d KiB after it", peak, again)
	}
}

// crowd enrols n nodes that share one key: what is measured is the gateway.
func (w *world) crowd(n int) *crowd.Crowd {
	w.t.Helper()
	key, err := pki.GenerateKey()
	if err != nil {
		w.t.Fatal(err)
	}
	fingerprint, err := pki.Fingerprint(&key.PublicKey)
	if err != nil {
		w.t.Fatal(err)
	}
	var group sync.WaitGroup
	next := make(chan int)
	for range 16 {
		group.Go(func() {
			for i := range next {
				edge := &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("crowd-%d", i)}, Spec: v1alpha1.EdgeNodeSpec{Pool: "pool"}}
				if err := w.admin.Create(w.t.Context(), edge); err != nil {
					w.t.Error(err)
					continue
				}
				w.setKey(edge.Name, fingerprint)
				lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: edge.Name}}
				if err := w.admin.Create(w.t.Context(), lease); err != nil {
					w.t.Error(err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	group.Wait()
	if w.t.Failed() {
		w.t.FailNow()
	}
	out, err := crowd.New(n, func(i int) (agent.Config, error) {
		name := fmt.Sprintf("crowd-%d", i)
		cert := w.certificate(name, key)
		return agent.Config{
			Gateways: []string{fmt.Sprintf("127.0.0.1:%d", w.ports["a"])}, RootCAs: w.ca.Pool(), CA: w.ca.Certificate, NodeName: name,
			Certificate: func() (*tls.Certificate, error) { return cert, nil },
			Heartbeat:   func() tunnel.Heartbeat { return tunnel.Heartbeat{}.WithKubeletAge(time.Second) },
		}, nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// quiet waits until the gateway's memory has settled, and returns it in KiB.
func (w *world) quiet() int {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	kib, err := crowd.Settled(ctx, w.gws["a"].cmd.Process.Pid)
	if err != nil {
		w.t.Fatal(err)
	}
	return kib
}

// memory reads a line of the process's status, in KiB.
func (p *gatewayProcess) memory(field string) int {
	p.w.t.Helper()
	kib, err := crowd.Memory(p.cmd.Process.Pid, field)
	if err != nil {
		p.w.t.Fatal(err)
	}
	return kib
}

// calls counts, per resource, the requests that the apiserver has answered for
// what a gateway could ask of it, but for lists and watches, which its start
// makes, and the leases of nodes.
func (w *world) calls() map[string]int {
	w.t.Helper()
	out := map[string]int{"edgenodes": 0, "nodes": 0, "secrets": 0, "certificatesigningrequests": 0, "tokenreviews": 0, "subjectaccessreviews": 0}
	w.answered(func(labels string, n int) {
		if strings.Contains(labels, `verb="WATCH"`) || strings.Contains(labels, `verb="LIST"`) {
			return
		}
		for resource := range out {
			if strings.Contains(labels, `resource="`+resource+`"`) {
				out[resource] += n
			}
		}
	})
	if out["edgenodes"] == 0 {
		w.t.Fatal("the apiserver counts nothing")
	}
	return out
}

// renewals counts what gateways have renewed of leases: the apiserver's own are no
// patches.
func (w *world) renewals() (n int) {
	w.t.Helper()
	w.answered(func(labels string, answered int) {
		if strings.Contains(labels, `resource="leases"`) && strings.Contains(labels, `verb="PATCH"`) {
			n += answered
		}
	})
	return n
}

// answered tells of each kind of request how often the apiserver has answered it.
func (w *world) answered(tell func(labels string, n int)) {
	w.t.Helper()
	config, err := w.server.Admin()
	if err != nil {
		w.t.Fatal(err)
	}
	config.APIPath, config.GroupVersion = "/", nil
	transport, err := rest.HTTPClientFor(config)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := transport.Get(w.server.URL + "/metrics")
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line, ok := strings.CutPrefix(sc.Text(), "apiserver_request_total{")
		if !ok {
			continue
		}
		labels, value, ok := strings.Cut(line, "} ")
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			w.t.Fatal(err)
		}
		tell(labels, int(v))
	}
	if err := sc.Err(); err != nil {
		w.t.Fatal(err)
	}
}
