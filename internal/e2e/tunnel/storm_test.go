//go:build linux

package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"slices"
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
// All of them return, the apiserver is asked nothing of them for it but to renew
// leases, as often as without a storm, and no more of all else than one gateway lists
// and watches at its start; and the process takes no more than twice the memory that
// the nodes took before, idle.
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
	looks, others := 0, 0
	for c, after := range w.calls() {
		n := after - calls[c]
		if n == 0 {
			continue
		}
		t.Logf("the apiserver was asked to %s %s %d times while the nodes returned", c.verb, c.resource, n)
		switch {
		case c.verb == "LIST" || c.verb == "WATCH":
			looks += n
		case slices.Contains(ofNodes, c.resource):
			t.Errorf("the apiserver was asked to %s %s %d times while the nodes returned", c.verb, c.resource, n)
		default:
			others += n
		}
	}
	if looks > maxLooks {
		t.Errorf("the apiserver was asked for %d lists and watches while the nodes returned, want %d at most", looks, maxLooks)
	}
	if others > maxOthers {
		t.Errorf("the apiserver was asked %d other things while the nodes returned, want %d at most", others, maxOthers)
	}
	peak := w.gws["a"].memory(crowd.Peak)
	t.Logf("memory: %d KiB before the storm, %d KiB after it, %d KiB at its peak", idle, again, peak)
	if peak > 2*idle {
		t.Errorf("the storm took %d KiB, more than twice the %d KiB before it", peak, idle)
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

// call is a kind of request.
type call struct{ verb, resource string }

// ofNodes is what a gateway could ask about a node that returns, and nobody else asks
// for here.
var ofNodes = []string{"edgenodes", "nodes", "secrets", "certificatesigningrequests", "tokenreviews", "subjectaccessreviews"}

const (
	// maxLooks is how many lists and watches there may be, however many nodes return:
	// a gateway makes one of each of all that it wants to know at its start, and the
	// watches of the apiserver and its controllers end every few minutes.
	maxLooks = 100
	// maxOthers is the same of all else: the apiserver looks after its own service and
	// its endpoints every ten seconds, and after its namespaces and configuration.
	maxOthers = 200
)

// calls counts the requests that the apiserver has answered for resources: all but
// leases, of which renewals has the nodes', and the others are held by programs that
// are one of several.
func (w *world) calls() map[call]int {
	w.t.Helper()
	out := map[call]int{}
	w.answered(func(labels string, n int) {
		if c := (call{label(labels, "verb"), label(labels, "resource")}); c.resource != "" && c.resource != "leases" {
			out[c] += n
		}
	})
	if out[call{"POST", "edgenodes"}] == 0 {
		w.t.Fatal("the apiserver counts nothing")
	}
	return out
}

// label is the value of a label of a metric, of which none has a quote in it here.
func label(labels, name string) string {
	for l := range strings.SplitSeq(labels, ",") {
		if v, ok := strings.CutPrefix(l, name+`="`); ok {
			return strings.TrimSuffix(v, `"`)
		}
	}
	return ""
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
