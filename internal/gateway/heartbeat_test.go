package gateway_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/gateway"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

func TestHeartbeats(t *testing.T) {
	type beat struct {
		Node string
		Beat tunnel.Heartbeat
	}
	beats := make(chan beat, 100)
	var incomplete atomic.Bool
	inLab(t, func(_ *lab, c *gateway.Config) {
		c.OnHeartbeat = func(node string, b tunnel.Heartbeat) { beats <- beat{node, b} }
	}, func(t *testing.T, l *lab) {
		says := func() tunnel.Heartbeat {
			b := tunnel.Heartbeat{Autonomy: &tunnel.Autonomy{}}.WithKubeletAge(2 * time.Second)
			if incomplete.Load() {
				b.Autonomy.Faults = []tunnel.Fault{{Reason: "CacheIncomplete", Message: "pods"}}
			}
			return b
		}
		n := l.joined("berlin-1", nil, func(c *agent.Config) { c.Heartbeat = says })
		take := func(want int) beat {
			t.Helper()
			synctest.Wait()
			if len(beats) != want {
				t.Fatalf("%d heartbeats, want %d", len(beats), want)
			}
			var last beat
			for range want {
				last = <-beats
			}
			return last
		}
		<-time.After(time.Second)
		if d := cmp.Diff(beat{"berlin-1", says()}, take(1)); d != "" {
			t.Error("at the begin of the session:", d)
		}
		<-time.After(3 * tunnel.HeartbeatInterval)
		take(3)

		incomplete.Store(true)
		n.Beat()
		<-time.After(time.Second)
		if d := cmp.Diff(beat{"berlin-1", says()}, take(1)); d != "" {
			t.Error("after a change:", d)
		}

		// No session, no heartbeat: nothing speaks for a node that is cut.
		l.gw.Kick("berlin-1", "test")
		l.deny("berlin-1", errors.New("revoked"))
		<-time.After(time.Minute)
		take(0)
	})
}

// A node whose agent does not speak for its kubelet is not spoken for.
func TestNoHeartbeatsWithoutASource(t *testing.T) {
	var beats atomic.Int32
	inLab(t, func(_ *lab, c *gateway.Config) {
		c.OnHeartbeat = func(string, tunnel.Heartbeat) { beats.Add(1) }
	}, func(t *testing.T, l *lab) {
		l.joined("berlin-1", nil, nil)
		<-time.After(time.Minute)
		if n := beats.Load(); n != 0 {
			t.Errorf("%d heartbeats", n)
		}
	})
}

// What the agent of a superseded session says is not passed on.
func TestHeartbeatsOfTheCurrentSessionOnly(t *testing.T) {
	beats := make(chan tunnel.Heartbeat, 100)
	inLab(t, func(_ *lab, c *gateway.Config) {
		c.OnHeartbeat = func(_ string, b tunnel.Heartbeat) { beats <- b }
	}, func(t *testing.T, l *lab) {
		aged := func(age time.Duration) func(*agent.Config) {
			return func(c *agent.Config) {
				c.Heartbeat = func() tunnel.Heartbeat { return tunnel.Heartbeat{}.WithKubeletAge(age) }
			}
		}
		old := l.joined("berlin-1", nil, aged(time.Second))
		c := l.connected("berlin-1:10250") // holds the old session up when it is superseded
		defer c.Close()
		l.join("berlin-1", nil, aged(2*time.Second))
		l.await("berlin-1 true")
		<-time.After(time.Second)
		for len(beats) > 0 {
			<-beats
		}
		old.Beat()
		<-time.After(time.Second)
		synctest.Wait()
		if len(beats) != 0 {
			t.Errorf("the superseded session's heartbeat was passed on: %+v", <-beats)
		}
	})
}

// All nodes return over the same time, those too that came when there were few, and
// longer to a gateway to whom they cost much.
func TestSpreadOfAReturn(t *testing.T) {
	for _, tc := range []struct {
		name       string
		cost       time.Duration // of processor for a node, on each core; 0: not known
		least, max time.Duration
	}{
		{"as fast as any", 0, 700 * time.Millisecond, 720 * time.Millisecond},            // 420 a second
		{"slow", 4 * time.Millisecond, 2350 * time.Millisecond, 2450 * time.Millisecond}, // 125 a second
	} {
		t.Run(tc.name, func(t *testing.T) {
			const nodes = 300
			var longest, came atomic.Int64
			inLab(t, func(_ *lab, c *gateway.Config) {
				authorize := c.Authorize
				c.Authorize = func(node string, leaf *x509.Certificate) error {
					came.Add(1) // twice a session
					return authorize(node, leaf)
				}
				c.ProcessorTime = func() time.Duration {
					return time.Duration(came.Load()) * tc.cost * time.Duration(runtime.GOMAXPROCS(0)) / 2
				}
			}, func(t *testing.T, l *lab) {
				l.joined("first", nil, func(c *agent.Config) {
					c.Heartbeat = func() tunnel.Heartbeat { return tunnel.Heartbeat{} }
					c.Jitter = func(max time.Duration) time.Duration {
						if max != tunnel.SignOfLife {
							longest.Store(int64(max))
						}
						return max - 1
					}
				})
				for i := range nodes - 1 {
					l.join(fmt.Sprintf("node-%d", i), nil, nil)
				}
				<-time.After(tunnel.HeartbeatInterval + time.Second)
				if n := len(l.gw.Sessions()); n != nodes {
					t.Fatalf("%d sessions", n)
				}
				// Once more, for the last to come.
				<-time.After(tunnel.HeartbeatInterval)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if err := l.gw.Close(ctx); err != nil {
					t.Fatal(err)
				}
				<-time.After(time.Second / 2)
				synctest.Wait()
				if got := time.Duration(longest.Load()); got < tc.least || got > tc.max {
					t.Errorf("it returns within %s", got)
				}
			})
		})
	}
}
