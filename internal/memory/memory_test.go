package memory

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 100, 1 << 20: 100, 8 << 20: 100, 10 << 20: 80, 16 << 20: 50, 40 << 20: 50, 1 << 30: 50} {
		if got := Gateway.gcPercent(live); got != want {
			t.Errorf("%d in use: %d", live, got)
		}
	}
}

// Memory is given back when a crowd has come, not while it comes, not for a little
// of it, and not again and again.
func TestKeeper(t *testing.T) {
	const mb = 1 << 20
	now := time.Unix(1000, 0)
	var u usage
	var did []string
	k := keeper{
		policy: Gateway, read: func() usage { return u }, percent: int(Gateway.MaxPercent),
		set: func(int) { did = append(did, "percent") },
		free: func(busy bool) {
			if busy {
				did = append(did, "collect")
			}
			did = append(did, "free")
			u.objects, u.free = u.live, 0
		},
		release: func() { did = append(did, "release") },
		looked:  now,
	}
	for _, step := range []struct {
		name           string
		live, objects  uint64
		free, allocate uint64
		after          time.Duration
		want           []string
		rest           bool
	}{
		{"begin", 4 * mb, 5 * mb, 1 * mb, 0, Gateway.Look, nil, true},
		{"a crowd comes", 200 * mb, 400 * mb, 50 * mb, 300 * mb, Gateway.Look, []string{"percent"}, false},
		{"it comes", 300 * mb, 400 * mb, 50 * mb, 100 * mb, Gateway.Look, nil, false},
		{"it is there", 400 * mb, 480 * mb, 50 * mb, 1 * mb, Gateway.Look, []string{"collect", "free", "release"}, false},
		{"idle", 400 * mb, 410 * mb, 0, 1 * mb, Gateway.Look, nil, true},
		{"more, but just given back", 400 * mb, 480 * mb, 0, 1 * mb, Gateway.Look, nil, false},
		{"more", 400 * mb, 480 * mb, 0, 1 * mb, freeEvery, []string{"free", "release"}, false},
		{"little", 400 * mb, 420 * mb, 10 * mb, 1 * mb, freeEvery, nil, true},
		{"gone", 4 * mb, 6 * mb, 300 * mb, 0, freeEvery, []string{"percent", "free", "release"}, false},
		{"little of little", 4 * mb, 6 * mb, 1 * mb, 0, freeEvery, nil, true},
		{"some work", 4 * mb, 5 * mb, 0, 1 * mb, Gateway.Look, nil, false},
		{"it is done", 4 * mb, 5 * mb, 0, 0, Gateway.Look, []string{"release"}, true},
		{"as much in a long time", 4 * mb, 5 * mb, 0, 1 * mb, 10 * Gateway.Look, nil, false},
		{"and nothing", 4 * mb, 5 * mb, 0, 0, Gateway.Look, nil, true},
	} {
		now = now.Add(step.after)
		u.live, u.objects, u.free = step.live, step.objects, step.free
		u.allocated += step.allocate
		did = nil
		if rest := k.look(now); rest != step.rest {
			t.Errorf("%s: rest %v", step.name, rest)
		}
		if d := cmp.Diff(step.want, did); d != "" {
			t.Errorf("%s: %s", step.name, d)
		}
	}
	k.set = nil
	u.live = 500 * mb
	did = nil
	k.look(now.Add(Gateway.Look))
	if len(did) > 0 {
		t.Errorf("with GOGC in the environment: %v", did)
	}
}

// What the runtime says is what is expected of it.
func TestReadUsage(t *testing.T) {
	before := readUsage()
	b := make([]byte, 1<<20)
	after := readUsage()
	if after.allocated-before.allocated < uint64(len(b)) || after.objects == 0 || after.live > after.allocated {
		t.Errorf("%+v, %+v", before, after)
	}
}
