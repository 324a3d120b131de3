package badnetworks

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/agent"
	"github.com/edgewright/terraform-provider-edge/internal/netlab"
)

// wholePackets is how large IP packets become on a path of 1500 bytes at least:
// discovery ends some 20 bytes below the 1452 that quic-go can send.
const wholePackets = 1430 + 28

// A site's way out fails over to one with a smaller MTU, and no ICMP message says
// so: LTE, PPPoE, a VPN. What the session carries goes on, each way, and an exec
// session that was idle meanwhile lives.
func TestPathMTUShrinks(t *testing.T) {
	shape := netlab.WAN(50, 60*time.Millisecond)
	for _, tc := range []struct {
		name   string
		shrink func(w *world)
	}{
		{"in between", func(w *world) { w.link.SetShape(shape.WithMTU(1400)) }},
		{"at both ends", func(w *world) {
			w.must(w.link.A.SetMTU(1400))
			w.must(w.link.B.SetMTU(1400))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, 1, shape)
			w.start(nil)
			before := w.gw.Sessions()
			idle := w.exec("echo")
			defer idle.Close()
			w.must(echo(idle))
			w.eventually("packets have grown both ways", func() bool {
				w.must(upload(w))
				w.must(download(w))
				return w.link.AToB.Stats().Largest >= wholePackets && w.link.BToA.Stats().Largest >= wholePackets
			})
			w.must(upload(w)) // what was large was a probe
			w.must(download(w))

			tc.shrink(w)
			for name, run := range map[string]func(*world) error{"to the node": upload, "from the node": download} {
				start := time.Now()
				done := make(chan error, 1)
				go func() { done <- run(w) }()
				select {
				case err := <-done:
					if err != nil {
						t.Fatalf("copy %s: %v", name, err)
					}
				case <-time.After(time.Minute):
					t.Fatalf("copy %s has not ended after a minute", name)
				}
				took := time.Since(start)
				t.Logf("copy %s in %s", name, took.Round(time.Millisecond))
				// The promise is a few seconds, most of them probe timeouts, which a
				// busy machine makes longer. Without it the session ends when nothing was
				// heard for 20 s, or stands still for as long as small packets keep it.
				if took > 15*time.Second {
					t.Errorf("copy %s took %s", name, took)
				}
			}
			if err := echo(idle); err != nil {
				t.Errorf("the exec session that was idle: %v", err)
			}
			after := w.gw.Sessions()
			if len(after) != 1 || len(before) != 1 || after[0].Epoch != before[0].Epoch {
				t.Errorf("the session was replaced: %+v, then %+v", before, after)
			}
		})
	}
}

// A node that comes up behind a path of a small MTU is served over QUIC.
func TestSmallPathMTU(t *testing.T) {
	for _, mtu := range []int{1280, 1400} {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			w := newWorld(t, 1, netlab.WAN(50, 60*time.Millisecond).WithMTU(mtu))
			w.start(nil)
			if got := w.agent.Carrier(); got != agent.QUIC {
				t.Errorf("carried by %q", got)
			}
			w.must(upload(w))
			w.must(download(w))
		})
	}
}

// echo types one byte and reads it.
func echo(c net.Conn) error {
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}
