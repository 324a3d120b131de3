package process

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// memoryLook is how often memory is looked at: reading four figures costs
	// microseconds.
	memoryLook = 500 * time.Millisecond
	// garbageRoom is how much garbage may gather whatever is in use, and minPercent
	// and maxPercent bound that as GOGC. Nearly all of a gateway's heap is sessions,
	// which live long. With ten thousand a collection takes half a second of a core,
	// and at 20 % there are some thirty of them while all come; with few the
	// runtime's own 100 % is as well.
	garbageRoom            = 8 << 20
	minPercent, maxPercent = 20, 100
	// A look is quiet if less than a quietPart of what is in use was allocated
	// since the last: no crowd is coming and nothing large is carried.
	quietPart = 20
	// freePart of what is in use, and freeLeast at least, must be there to give
	// back for a collection to be worth it; freeEvery is the least time between two.
	freePart  = 10
	freeLeast = 4 << 20
	freeEvery = 2 * time.Second
)

// KeepMemory keeps what a gateway's process has of memory near what its sessions
// need, until ctx ends. A handshake takes some 100 KB while it lasts, more than an
// idle session keeps, and the runtime is slow to give that back where nothing is
// allocated any more: two minutes pass until the next collection, and for longer
// what ten thousand handshakes left would stay resident, as much as the sessions
// themselves. So when it has become quiet it is given back at once. GOGC in the
// environment is left in force.
func KeepMemory(ctx context.Context) {
	k := memoryKeeper{read: readUsage, free: freeMemory, percent: maxPercent}
	if os.Getenv("GOGC") == "" {
		k.set = func(percent int) { debug.SetGCPercent(percent) }
	}
	tick := time.NewTicker(memoryLook)
	defer tick.Stop()
	for {
		k.look(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// freeMemory collects twice: the first shrinks the stacks that handshakes needed
// large, and the second finds what is left of them.
func freeMemory() {
	runtime.GC()
	debug.FreeOSMemory()
}

// usage is in bytes.
type usage struct {
	live      uint64 // what the last collection found in use
	objects   uint64 // in use or garbage
	free      uint64 // neither, and not given back
	allocated uint64 // since the process began
}

func readUsage() usage {
	s := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/gc/heap/allocs:bytes"},
	}
	metrics.Read(s)
	return usage{s[0].Value.Uint64(), s[1].Value.Uint64(), s[2].Value.Uint64(), s[3].Value.Uint64()}
}

// memoryKeeper is KeepMemory's state.
type memoryKeeper struct {
	read func() usage
	set  func(percent int) // nil: it is not ours to set
	free func()

	percent   int
	allocated uint64 // at the last look
	freed     time.Time
}

func (k *memoryKeeper) look(now time.Time) {
	u := k.read()
	if p := gcPercent(u.live); k.set != nil && p != k.percent {
		k.set(p)
		k.percent = p
	}
	quiet := u.allocated-k.allocated < u.live/quietPart
	k.allocated = u.allocated
	spare := int64(u.objects) + int64(u.free) - int64(u.live) //nolint:gosec // sizes of memory
	if quiet && spare > int64(max(u.live/freePart, freeLeast)) && now.Sub(k.freed) >= freeEvery {
		k.free()
		k.freed = now
	}
}

// gcPercent is GOGC for a heap of which that much is in use.
func gcPercent(live uint64) int {
	return int(max(minPercent, min(maxPercent, garbageRoom*100/max(live, 1))))
}
