//go:build linux

package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"log/slog"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
	"github.com/edgewright/terraform-provider-edge/internal/pki"
)

// storm is how many nodes return in TestGatewayKilled.
func storm() int {
	if os.Getenv("EDGE_TEST_SCALE") == "full" {
		return 10_000
	}
	return 1000
}

// A gateway with a thousand (ten thousand) nodes is killed and started again.
// All of them return, the apiserver is asked nothing for it, and the process
// takes no more than twice the memory that it takes afterwards.
func TestGatewayKilled(t *testing.T) {
	w := newWorld(t)
	n := storm()
	w.issue(time.Second, "a")
	w.launch("a").says("serving nodes")
	nodes := w.crowd(n)
	empty := w.gws["a"].memory("VmRSS")
	var agents sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	defer agents.Wait()
	defer cancel()
	for _, c := range nodes {
		agents.Go(func() {
			if err := c.agent.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	w.eventually("all nodes connected", func() error { return connected(nodes, n) })
	w.quiet()
	idle := w.gws["a"].memory("VmRSS")
	t.Logf("%d idle nodes: %d KiB, %.1f KiB a node", n, idle, float64(idle-empty)/float64(n))

	first := w.gws["a"]
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-first.done
	killed := time.Now()
	w.launch("a").says("serving nodes")
	restarted := time.Now()
	calls := w.calls()
	w.eventually("all nodes back", func() error {
		return count(nodes, n, func(b *bystander) bool { return b.up && b.at.After(killed) })
	})
	var took, noticed []time.Duration
	for _, c := range nodes {
		took = append(took, c.since().Sub(killed))
		noticed = append(noticed, c.lost.Sub(killed))
	}
	slices.Sort(took)
	slices.Sort(noticed)
	t.Logf("noticed after p50 %s, p99 %s", noticed[n/2].Round(time.Millisecond), noticed[n*99/100].Round(time.Millisecond))
	t.Logf("restarted after %s; nodes back after p50 %s, p99 %s, last %s (from the kill)", restarted.Sub(killed).Round(time.Millisecond),
		took[n/2].Round(time.Millisecond), took[n*99/100].Round(time.Millisecond), took[n-1].Round(time.Millisecond))
	w.quiet()
	for resource, before := range calls {
		if after := w.calls()[resource]; after != before {
			t.Errorf("the apiserver was asked for %s %d times while the nodes returned", resource, after-before)
		}
	}
	again, peak := w.gws["a"].memory("VmRSS"), w.gws["a"].memory("VmHWM")
	t.Logf("memory: %d KiB after the storm, %d KiB at its peak", again, peak)
	if peak > 2*again {
		t.Errorf("the storm took %d KiB, more than twice the %d KiB after it", peak, again)
	}
}

// bystander is a node of a crowd: enrolled, and with nothing but its session.
type bystander struct {
	agent *agent.Agent

	mu   sync.Mutex
	up   bool
	at   time.Time // of the last change
	lost time.Time // when the last session was lost
}

func (b *bystander) state(up bool, _ string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.up, b.at = up, time.Now()
	if !up {
		b.lost = b.at
	}
}

func (b *bystander) since() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at
}

func connected(nodes []*bystander, n int) error {
	return count(nodes, n, func(b *bystander) bool { return b.up })
}

func count(nodes []*bystander, n int, is func(*bystander) bool) error {
	have := 0
	for _, b := range nodes {
		b.mu.Lock()
		if is(b) {
			have++
		}
		b.mu.Unlock()
	}
	if have < n {
		return fmt.Errorf("%d of %d", have, n)
	}
	return nil
}

// crowd enrols n nodes that share one key: what is measured is the gateway.
func (w *world) crowd(n int) []*bystander {
	w.t.Helper()
	key, err := pki.GenerateKey()
	if err != nil {
		w.t.Fatal(err)
	}
	fingerprint, err := pki.Fingerprint(&key.PublicKey)
	if err != nil {
		w.t.Fatal(err)
	}
	out := make([]*bystander, n)
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
			}
		})
	}
	for i := range n {
		name := fmt.Sprintf("crowd-%d", i)
		cert := w.certificate(name, key)
		b := &bystander{}
		b.agent, err = agent.New(agent.Config{
			Gateways: []string{fmt.Sprintf("127.0.0.1:%d", w.ports["a"])}, RootCAs: w.ca.Pool(), CA: w.ca.Certificate, NodeName: name,
			Certificate: func() (*tls.Certificate, error) { return cert, nil },
			DialKubelet: func(context.Context) (net.Conn, error) { return nil, net.ErrClosed },
			OnState:     b.state, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			w.t.Fatal(err)
		}
		out[i] = b
		next <- i
	}
	close(next)
	group.Wait()
	if w.t.Failed() {
		w.t.FailNow()
	}
	return out
}

// quiet waits until the gateway's memory has settled: no change of more than a
// hundredth within two seconds.
func (w *world) quiet() {
	last := 0
	w.eventually("memory settles", func() error {
		now := w.gws["a"].memory("VmRSS")
		defer func() { last = now }()
		if d := now - last; d > now/100 || -d > now/100 {
			time.Sleep(2 * time.Second) // what is measured is a change over time
			return fmt.Errorf("%d KiB after %d KiB", now, last)
		}
		return nil
	})
}

// memory reads a line of the process's status, in KiB.
func (p *gatewayProcess) memory(field string) int {
	p.w.t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.w.t.Fatal(err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), field+":"); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(v), " kB"))
			if err != nil {
				p.w.t.Fatal(err)
			}
			return n
		}
	}
	p.w.t.Fatalf("no %s in the status of gateway %s", field, p.id)
	return 0
}

// calls counts, per resource, the requests that the apiserver has answered for
// what a gateway could ask of it, but for lists and watches, which its start
// makes.
func (w *world) calls() map[string]int {
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
	out := map[string]int{"edgenodes": 0, "nodes": 0, "secrets": 0, "certificatesigningrequests": 0, "tokenreviews": 0, "subjectaccessreviews": 0}
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line, ok := strings.CutPrefix(sc.Text(), "apiserver_request_total{")
		if !ok {
			continue
		}
		labels, value, ok := strings.Cut(line, "} ")
		if !ok || strings.Contains(labels, `verb="WATCH"`) || strings.Contains(labels, `verb="LIST"`) {
			continue
		}
		for resource := range out {
			if strings.Contains(labels, `resource="`+resource+`"`) {
				v, err := strconv.ParseFloat(value, 64)
				if err != nil {
					w.t.Fatal(err)
				}
				out[resource] += int(v)
			}
		}
	}
	if err := sc.Err(); err != nil {
		w.t.Fatal(err)
	}
	if out["edgenodes"] == 0 {
		w.t.Fatal("the apiserver counts nothing")
	}
	return out
}
