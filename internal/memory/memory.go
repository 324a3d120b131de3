// Package memory keeps what a daemon has of memory near what it needs. The runtime
// is slow to give back what a busy moment has left where nothing is allocated any
// more: two minutes pass until the next collection. So when it has become quiet
// memory is given back at once, and the more is in use the less garbage may gather
// beside it. It bounds nothing: what is in use stays.
package memory

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Policy is what suits a kind of daemon.
type Policy struct {
	// Look is how often memory is looked at, which costs microseconds and a wake-up;
	// where nothing is found to do the time doubles, up to Rest.
	Look, Rest time.Duration
	// Room is how many bytes of garbage may gather whatever is in use; MinPercent
	// and MaxPercent bound that as GOGC.
	Room                   uint64
	MinPercent, MaxPercent uint64
	// FreeLeast is how many bytes must be there to give back for a collection to be
	// worth it, besides freePart.
	FreeLeast uint64
	// Files: with that, pages of the program and of mapped files that only a busy
	// moment needs are let go of; see releaseFiles.
	Files bool
}

// Gateway is a gateway's policy. Nearly all of its heap is sessions, which live long,
// and a handshake takes some 100 KB while it lasts, more than an idle session keeps:
// what ten thousand handshakes left would stay resident for minutes, as much as the
// sessions themselves. With ten thousand a collection takes half a second of a core:
// at 20 % there are some thirty of them while all come, which is when processor is
// short, and at 50 % a dozen. With few the runtime's own 100 % is as well.
var Gateway = Policy{
	Look: 500 * time.Millisecond, Rest: 500 * time.Millisecond,
	Room: 8 << 20, MinPercent: 50, MaxPercent: 100, FreeLeast: 4 << 20,
}

// Node is the policy of a node's daemon. It mostly waits, on machines whose memory is
// short and which may run on batteries: so it is woken seldom. What is large is its
// first fill, and a component's start; a collection takes some 20 ms of a core.
var Node = Policy{
	Look: time.Second, Rest: time.Minute,
	Room: 3 << 20, MinPercent: 25, MaxPercent: 50, FreeLeast: 1 << 20, Files: true,
}

const (
	// A look is quiet if less than a quietPart of what is in use was allocated
	// since the last.
	quietPart = 20
	// freePart of what is in use must be there to give back for a collection to be
	// worth it; freeEvery is the least time between two.
	freePart  = 10
	freeEvery = 2 * time.Second
)

// Keep keeps to a policy until ctx ends. GOGC in the environment is left in force.
func Keep(ctx context.Context, p Policy) {
	k := keeper{policy: p, read: readUsage, free: freeMemory, release: func() {}}
	if p.Files {
		k.release = func() {
			if err := releaseFiles(); err != nil {
				slog.Debug("pages of files are kept", "error", err)
			}
		}
	}
	if os.Getenv("GOGC") == "" {
		k.set = func(percent int) { debug.SetGCPercent(percent) }
	}
	wait := p.Look
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if k.look(time.Now()) {
			wait = min(2*wait, p.Rest)
		} else {
			wait = p.Look
		}
		timer.Reset(wait)
	}
}

// freeMemory collects, after a busy moment twice: the first shrinks the stacks that
// were needed large, and the second finds what is left of them. With ten thousand
// sessions each takes half a second of a core.
func freeMemory(busy bool) {
	if busy {
		runtime.GC()
	}
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

// keeper is Keep's state.
type keeper struct {
	policy Policy
	read   func() usage
	set    func(percent int) // nil: it is not ours to set
	free   func(busy bool)
	// release lets go of pages of files.
	release func()

	busy      bool   // since the last release
	percent   int    // as set; 0: not yet
	allocated uint64 // at the last look
	looked    time.Time
	freed     time.Time
}

// look does what is to be done now. It returns whether that was nothing, and nothing
// is under way.
func (k *keeper) look(now time.Time) (rest bool) {
	u := k.read()
	if p := k.policy.gcPercent(u.live); k.set != nil && p != k.percent {
		k.set(p)
		k.percent = p
	}
	allocated, looks := u.allocated-k.allocated, max(1, now.Sub(k.looked)/k.policy.Look)
	quiet := allocated < u.live/quietPart
	k.allocated, k.looked = u.allocated, now
	// However much of little has come together since the last look.
	k.busy = k.busy || allocated/uint64(looks) >= u.live/quietPart
	spare := int64(u.objects) + int64(u.free) - int64(u.live) //nolint:gosec // sizes of memory
	enough := spare > int64(max(u.live/freePart, k.policy.FreeLeast))
	switch {
	case !quiet, enough && now.Sub(k.freed) < freeEvery:
		return false
	case enough:
		k.free(k.busy)
		k.freed = now
		k.busy = true // a collection is
	}
	if k.busy {
		k.release()
		k.busy = false
	}
	return !enough
}

// gcPercent is GOGC for a heap of which that much is in use.
func (p Policy) gcPercent(live uint64) int {
	return int(max(p.MinPercent, min(p.MaxPercent, p.Room*100/max(live, 1))))
}
