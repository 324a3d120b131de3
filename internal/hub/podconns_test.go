package hub

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/utils/clock"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// fromAddress is a connection from the nth of many addresses.
func fromAddress(n int) *tunneltest.PipeConn {
	a := netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)})
	near, _ := tunneltest.PipeBetween(net.TCPAddrFromAddrPort(netip.MustParseAddrPort("169.254.20.11:443")), net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 4000)))
	return near
}

// TestPodConnectionsBound: no address has more than its part, all together leave
// streams for the hub, and what is refused is told, but not each time.
func TestPodConnectionsBound(t *testing.T) {
	if reserve := tunnel.MaxStreams - maxPodConnections; reserve < 200 {
		t.Errorf("%d streams are left for the hub", reserve)
	}
	clk := testingclock.NewFakeClock(time.Unix(0, 0))
	var log bytes.Buffer
	p := newPodConnections(slog.New(slog.NewTextHandler(&log, nil)), clk)
	var open []net.Conn
	for i := range maxFromAddress + 2 {
		c, ok := p.admit(fromAddress(0))
		if ok != (i < maxFromAddress) {
			t.Fatalf("the %dth of one address: %v", i+1, ok)
		}
		if ok {
			open = append(open, c)
		}
	}
	for i := maxFromAddress; i < maxPodConnections+3; i++ {
		c, ok := p.admit(fromAddress(i))
		if ok != (i < maxPodConnections) {
			t.Fatalf("the %dth of all: %v", i+1, ok)
		}
		if ok {
			open = append(open, c)
		}
	}
	if n := strings.Count(log.String(), "refused pods' connections"); n != 1 {
		t.Errorf("told %d times of five: %s", n, log.String())
	}
	clk.Step(refusalsTold)
	refused := fromAddress(0)
	if _, ok := p.admit(refused); ok || !strings.Contains(log.String(), "refused=5") {
		t.Errorf("%v, and told %s", ok, log.String())
	}
	if _, err := refused.Write([]byte("x")); err == nil {
		t.Error("what was refused is open")
	}
	for _, c := range open {
		c.Close()
		c.Close() // gives no second place
	}
	if p.open != 0 || len(p.from) != 0 {
		t.Errorf("%d are open, from %v", p.open, p.from)
	}
}

// servedPods is a hub's door of pods, through which it dials with dial.
func servedPods(t *testing.T, r *rig, dial func(context.Context) (net.Conn, error)) (address string) {
	t.Helper()
	h := *r.hub
	if dial != nil {
		h.config.DialUpstream = dial
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- h.ServePods(t.Context(), listener) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Errorf("ServePods: %v", err)
		}
	})
	return listener.Addr().String()
}

// TestPodConnectionsInACut: a connection that the node itself answers has its place
// until it is closed.
func TestPodConnectionsInACut(t *testing.T) {
	r, _ := newLocalRig(t)
	r.online(false)
	address := servedPods(t, r, nil)
	var open []net.Conn
	for range maxFromAddress {
		open = append(open, dialPod(t, address))
	}
	// The reset may be as early as while the pod still connects.
	c, err := net.Dial("tcp", address)
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
	}
	if !isReset(err) {
		t.Fatalf("one more than %d: %v", maxFromAddress, err)
	}
	if got := r.hub.PodConnections(); got.Open != maxFromAddress || got.Refused != 1 {
		t.Errorf("%+v", got)
	}
	for _, c := range open {
		c.Close()
	}
	for limit := time.Now().Add(patience); r.hub.PodConnections().Open != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%+v after all were closed", r.hub.PodConnections())
		}
	}
}

// stream is a stream of a session whose other end is a pipe's.
type stream struct {
	*tunneltest.PipeConn
	stalls *tunnel.Stalls
}

func (s stream) Reset(tunnel.ResetCode) {
	s.SetLinger(0)
	s.Close()
}
func (stream) SetUrgency(int8)          {}
func (stream) SetBulk(bool)             {}
func (s stream) Stalls() *tunnel.Stalls { return s.stalls }

// TestPodThatDoesNotRead: a connection that a pod does not read is cut when the
// session has nothing left for others, and not before.
func TestPodThatDoesNotRead(t *testing.T) {
	for name, limit := range map[string]int64{"others wait": 64 << 10, "there is room": 64 << 20} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				carried := &traffic{}
				stalls := tunnel.NewStalls(limit, nil)
				apiserver, near := tunneltest.Pipe()
				pod, accepted := tunneltest.Pipe()
				log := slog.New(slog.DiscardHandler)
				h := &Hub{log: log, clock: clock.RealClock{}, carried: carried, pods: newPodConnections(log, clock.RealClock{})}
				h.config.DialUpstream = carried.counted(func(context.Context) (net.Conn, error) { return stream{near, stalls}, nil })
				done := make(chan struct{})
				go func() {
					defer close(done)
					h.carry(t.Context(), accepted, nil)
				}()
				sent := make(chan error, 1)
				go func() {
					_, err := apiserver.Write(make([]byte, 8<<20))
					sent <- err
				}()
				time.Sleep(time.Hour)
				synctest.Wait()
				cut := len(sent) > 0
				if cut != (limit < 1<<20) {
					t.Errorf("cut: %v", cut)
				}
				if carried.received.Load() == 0 {
					t.Error("its bytes are not counted")
				}
				apiserver.Close()
				pod.Close()
				<-done
			})
		})
	}
}
