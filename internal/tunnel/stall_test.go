package tunnel_test

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel/tunneltest"
)

// carried is a stream that is spliced to a connection, and the far ends of both.
type carried struct {
	far    tunnel.Stream
	local  *tunneltest.PipeConn
	result chan tunnel.Spliced
}

func carry(t *testing.T, client, server tunnel.Session, s *tunnel.Stalls) *carried {
	t.Helper()
	far, near := streams(t, client, server)
	local, inner := tunneltest.Pipe()
	c := &carried{far, local, make(chan tunnel.Spliced, 1)}
	go func() { c.result <- tunnel.Splice(near, inner, tunnel.SpliceOptions{Stalls: s}) }()
	return c
}

// fill sends all that the stream takes and nobody reads.
func (c *carried) fill() { go c.far.Write(make([]byte, 8<<20)) }

func (c *carried) done() bool {
	synctest.Wait()
	return len(c.result) > 0
}

func (c *carried) close() {
	c.far.Reset(tunnel.ResetAborted)
	c.local.Close()
	<-c.result
}

func TestStalls(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		// Each stalled stream counts for 128 KiB and what its pipe took: some 220.
		stalls := tunnel.NewStalls(700<<10, nil)
		quiet := carry(t, client, server, stalls) // an exec session, a watch
		slow := carry(t, client, server, stalls)
		go func() { // reads, if slowly
			for b := make([]byte, 64<<10); ; {
				if _, err := io.ReadFull(slow.local, b); err != nil {
					return
				}
				time.Sleep(3 * time.Second)
			}
		}()
		slow.fill()
		first := carry(t, client, server, stalls)
		first.fill()
		<-time.After(time.Second)
		second := carry(t, client, server, stalls)
		second.fill()
		<-time.After(time.Hour)
		for name, c := range map[string]*carried{"quiet": quiet, "slow": slow, "first": first, "second": second} {
			if c.done() {
				t.Errorf("%s: cut although there was room", name)
			}
		}
		// Two more are too many: those that stand still the longest have to go, and
		// nobody else.
		third, fourth := carry(t, client, server, stalls), carry(t, client, server, stalls)
		third.fill()
		fourth.fill()
		<-time.After(time.Minute)
		if !first.done() || quiet.done() || slow.done() || fourth.done() {
			t.Fatalf("cut: first %v, quiet %v, slow %v, fourth %v", first.done(), quiet.done(), slow.done(), fourth.done())
		}
		if r := <-first.result; !errors.Is(r.Err, tunnel.ErrStalled) {
			t.Errorf("%v", r.Err)
		}
		_, err := first.far.Read(make([]byte, 1))
		if re, ok := errors.AsType[*tunnel.ResetError](err); !ok || re.Code != tunnel.ResetStalled || !re.Remote {
			t.Errorf("the sender sees %v", err)
		}
		first.local.Close()
		first.far.Close()
		for _, c := range []*carried{quiet, slow, second, third, fourth} {
			c.close()
		}
	})
}

// Sessions that are well below their limits are too much together.
func TestStallPool(t *testing.T) {
	pair(t, func(t *testing.T, client, server tunnel.Session) {
		pool := tunnel.NewStallPool(300 << 10)
		var all []*carried
		for range 4 {
			c := carry(t, client, server, tunnel.NewStalls(1<<30, pool))
			c.fill()
			all = append(all, c)
		}
		<-time.After(time.Minute)
		cut := 0
		for _, c := range all {
			if c.done() {
				cut++
			}
		}
		if cut == 0 || cut == len(all) || pool.Held() > 300<<10 {
			t.Errorf("%d of %d cut, %d KiB held", cut, len(all), pool.Held()>>10)
		}
		for _, c := range all {
			c.close()
		}
		if pool.Held() != 0 {
			t.Errorf("%d bytes held by nobody", pool.Held())
		}
	})
}
