package badnetworks

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/edgewright/terraform-provider-edge/internal/netlab"
	"github.com/edgewright/terraform-provider-edge/internal/tunnel"
)

// Fifty dials a second, some of which the node resets and some of which are left
// half way, on a line that loses 1 %, goes away and comes back with another
// address: afterwards everything is as before.
func TestSoak(t *testing.T) {
	length, flap := 25*time.Second, 5*time.Second
	if full() {
		length, flap = 20*time.Minute, 20*time.Second
	}
	w := newWorld(t, 1, netlab.WAN(50, 60*time.Millisecond).WithLoss(0.01))
	w.start(nil)
	soakRound(w, 0) // what is made once is there
	w.settle()
	goroutines, files, heap := measure(t)

	var dials, failed, slowest atomic.Int64
	var wg sync.WaitGroup
	dial := time.NewTicker(20 * time.Millisecond)
	defer dial.Stop()
	change := time.NewTicker(flap)
	defer change.Stop()
	random := rand.New(rand.NewPCG(3, 4))
	end := time.After(length)
	for i, open := 0, true; open; {
		select {
		case <-end:
			open = false
		case <-change.C:
			w.link.Cut()
			time.Sleep(time.Duration(random.Int64N(int64(time.Second)))) // the outage itself
			w.must(w.link.B.Readdress(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, byte(10 + i%200)}), 24)))
			w.link.Restore()
		case <-dial.C:
			i++
			wg.Go(func() {
				start := time.Now()
				err := soakRound(w, i)
				dials.Add(1)
				if err != nil {
					failed.Add(1)
					t.Errorf("dial %d: %v", i, err)
				}
				for took := int64(time.Since(start)); ; {
					old := slowest.Load()
					if took <= old || slowest.CompareAndSwap(old, took) {
						break
					}
				}
			})
		}
	}
	wg.Wait()
	w.settle()
	g, f, h := measure(t)
	t.Logf("%d dials, %d failed, slowest %s; goroutines %d -> %d, files %d -> %d, heap %d -> %d KiB",
		dials.Load(), failed.Load(), time.Duration(slowest.Load()).Round(time.Millisecond), goroutines, g, files, f, heap>>10, h>>10)
	if time.Duration(slowest.Load()) > tunnel.GatewayDialTimeout {
		t.Errorf("a dial took %s, longer than it may", time.Duration(slowest.Load()))
	}
	// A connection's second socket is opened with the first move that needs it.
	if g > goroutines+4 || f > files+4 {
		t.Errorf("goroutines %d -> %d, files %d -> %d", goroutines, g, files, f)
	}
	if h > heap+8<<20 {
		t.Errorf("heap %d -> %d KiB", heap>>10, h>>10)
	}
}

// soakRound is one connection, of the kind that n says.
func soakRound(w *world, n int) error {
	c, err := w.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	switch n % 10 {
	case 7: // the node breaks it
		fmt.Fprintln(c, "reset")
		io.Copy(io.Discard, c)
		return nil
	case 8: // this end leaves half way
		fmt.Fprintln(c, "source", 1<<20)
		_, err := io.ReadFull(c, make([]byte, 1<<10))
		return err
	default:
		fmt.Fprintln(c, "source", 1<<10)
		if n, err := io.Copy(io.Discard, c); err != nil || n != 1<<10 {
			return fmt.Errorf("%d bytes: %w", n, err)
		}
		return nil
	}
}

// settle waits until nothing is carried.
func (w *world) settle() {
	w.t.Helper()
	w.eventually("nothing is carried", func() bool {
		for _, s := range w.gw.Sessions() {
			if s.Streams > 0 || s.Superseded {
				return false
			}
		}
		return true
	})
	before := runtime.NumGoroutine()
	w.eventually("goroutines have ended", func() bool {
		time.Sleep(100 * time.Millisecond) // a poll
		now := runtime.NumGoroutine()
		same := now == before
		before = now
		return same
	})
}

func measure(t *testing.T) (goroutines, files int, heap uint64) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return runtime.NumGoroutine(), len(list), m.HeapAlloc
}
