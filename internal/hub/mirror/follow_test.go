package mirror

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
)

// refusing has the apiserver answer with a status; of tables that begin so only.
func (f *fakeAPI) refusing(status int, prefix string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = func(table, _ string) int {
		if strings.HasPrefix(table, prefix) {
			return status
		}
		return 0
	}
}

// asking is how many requests there were.
func (f *fakeAPI) asking() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.asked)
}

// logged are the lines of a log.
type logged struct {
	mu    sync.Mutex // guards lines
	lines []string
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(b))
	return len(b), nil
}

func (l *logged) count(level string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, "level="+level) && strings.Contains(line, "followed") {
			n++
		}
	}
	return n
}

func aPool(i int) replica.Collection {
	return replica.Collection{
		Resource: schema.GroupVersionResource{Group: "edgewright.dev", Version: "v1alpha1", Resource: "nodepools"}, Name: fmt.Sprint("p", i),
	}
}

func tableOf(c replica.Collection) string { return path(c) + " " + selector(c) }

// TestUnwellApiserver: a node asks an apiserver that answers and is unwell no more
// often than one stream would, and follows all of it soon after it has recovered.
func TestUnwellApiserver(t *testing.T) {
	for _, status := range []int{
		http.StatusInternalServerError, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusTooManyRequests, http.StatusForbidden,
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer func() { w.stop() }()
				followed := map[replica.Collection]string{ownPods: podsTable}
				for i := range 12 {
					c := aPool(i)
					followed[c] = tableOf(c)
					w.api.put(tableOf(c), c.Name, "1")
					if _, coverage := w.mirror.Cover(replica.Query(c)); coverage != replica.CoverWhole {
						t.Fatal(coverage)
					}
				}
				w.api.put(podsTable, "a", "1")
				settle(time.Minute)
				agree := func(when string) {
					t.Helper()
					for c, table := range followed {
						w.api.mu.Lock()
						want := map[string]replica.Version{}
						for name, o := range w.api.table(table).objects {
							want[name] = o.version
						}
						w.api.mu.Unlock()
						s, err := w.mirror.Snapshot(c)
						if err != nil {
							t.Fatal(err)
						}
						got := map[string]replica.Version{}
						for _, o := range s.Objects {
							got[o.Name] = o.Version
						}
						if d := cmp.Diff(want, got); d != "" {
							t.Errorf("%s: %s: %s", when, c, d)
						}
					}
				}
				agree("at first")
				for round := range 5 {
					w.api.refusing(status, "")
					w.api.breakWatches()
					settle(time.Minute)
					before := w.api.asking()
					settle(10 * time.Minute)
					if n := w.api.asking() - before; n > 10*60*2/5+1 || n < 10*60/5-1 {
						t.Errorf("%d requests in ten minutes", n)
					}
					for _, table := range followed {
						w.api.put(table, "a", fmt.Sprint(round))
					}
					w.api.refusing(0, "")
					settle(trialEvery + reconnectSpread + time.Second)
					agree("once the apiserver is well")
					if t.Failed() {
						return
					}
				}
			})
		})
	}
}

// TestRefusedForGood: a collection that is refused for good is asked for no more often
// than its own backoff has it, while all else is followed.
func TestRefusedForGood(t *testing.T) {
	for _, status := range []int{http.StatusForbidden, http.StatusInternalServerError} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer func() { w.stop() }()
				table := path(replica.Collection{Resource: core("services")})
				settle(time.Second)
				w.api.refusing(status, table)
				w.api.breakWatches()
				settle(trialsLast + 2*backoffLast)
				before := w.api.asking()
				settle(time.Hour)
				if n := w.api.asking() - before; n > 130 || n < 55 {
					t.Errorf("%d requests in an hour", n)
				}
				w.api.refusing(0, "")
				settle(2*backoffLast + time.Second)
				for _, c := range w.mirror.Collections() {
					if c.Err != nil {
						t.Errorf("%s, once it is not refused: %v", c.Collection, c.Err)
					}
				}
			})
		})
	}
}

// TestUnwellBeyondCut: what waits for an apiserver that is unwell begins anew with the
// link, and whoever waits long for another reason does not go on waiting.
func TestUnwellBeyondCut(t *testing.T) {
	for _, status := range []int{http.StatusNotFound, http.StatusServiceUnavailable} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer func() { w.stop() }()
				settle(time.Second)
				for range 10 {
					w.api.refusing(status, "")
					w.api.breakWatches()
					settle(5 * time.Minute)
					w.mirror.SetLink(false, time.Now())
					settle(time.Second)
					w.mirror.SetLink(true, time.Now())
					settle(30 * time.Second)
					w.mirror.SetLink(false, time.Now())
					w.api.put(podsTable, "a", "1")
					w.api.refusing(0, "")
					w.mirror.SetLink(true, time.Now())
					settle(returnWithin + reconnectSpread + time.Second)
					w.converged()
					if t.Failed() {
						return
					}
				}
			})
		})
	}
}

// TestUnwellSinceCut: the trials of before a cut are no reason to wait after it.
func TestUnwellSinceCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		settle(time.Second)
		for range 10 {
			w.api.refusing(http.StatusServiceUnavailable, "")
			w.api.breakWatches()
			settle(5 * time.Minute)
			w.mirror.SetLink(false, time.Now())
			w.mirror.SetLink(true, time.Now())
			settle(returnWithin + reconnectSpread + time.Second)
			w.api.put(podsTable, "a", "1")
			w.api.refusing(0, "")
			settle(trialEvery + reconnectSpread + time.Second)
			w.converged()
			if t.Failed() {
				return
			}
		}
	})
}

// TestSteadyWatches: a watch that breaks after hours in which nothing happened begins
// anew at once, however often that was so.
func TestSteadyWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		for range 20 {
			settle(time.Hour)
			w.api.breakWatches()
		}
		w.api.put(podsTable, "a", "1")
		settle(time.Second)
		w.converged()
	})
}

// TestUnfollowed: what is no longer followed though the link is there is told after
// unfollowedAfter of that, once, and when it is over.
func TestUnfollowed(t *testing.T) {
	services := replica.Collection{Resource: core("services")}
	table := path(services)
	for _, tt := range []struct {
		name        string
		fail, mend  func(*fakeAPI)
		recoversFor time.Duration
	}{
		{
			"refused",
			func(f *fakeAPI) { f.refusing(http.StatusForbidden, table); f.breakWatches() },
			func(f *fakeAPI) { f.refusing(0, "") },
			trialEvery + time.Second,
		},
		{
			// Its watch begins again and again, and ends with the same event.
			"not understood",
			func(f *fakeAPI) { f.put(table, "g", garbled) },
			func(f *fakeAPI) { f.remove(table, "g"); f.compact() },
			2*backoffLast + time.Second,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &logged{}
				w := &world{t: t, api: newFakeAPI(t), store: newMemory(), options: func(o *Options) {
					o.Logger = slog.New(slog.NewTextHandler(log, nil))
				}}
				w.start()
				defer func() { w.stop() }()
				w.api.put(table, "s", "1")
				settle(time.Minute)
				tell := func() Collection {
					t.Helper()
					for _, c := range w.mirror.Collections() {
						if c.Collection == services {
							return c
						}
						if c.Err != nil || c.Unfollowed {
							t.Errorf("%s: %v", c.Collection, c.Err)
						}
					}
					t.Fatal("it is gone")
					return Collection{}
				}
				expect := func(when string, failing, unfollowed bool, warnings, infos int) {
					t.Helper()
					c := tell()
					if !c.Complete || (c.Err != nil) != failing || c.Failing.IsZero() == failing || c.Unfollowed != unfollowed {
						t.Errorf("%s: %+v", when, c)
					}
					if warned, told := log.count("WARN"), log.count("INFO"); warned != warnings || told != infos {
						t.Errorf("%s: %d warnings and %d that it is over: %v", when, warned, told, log.lines)
					}
				}
				expect("at first", false, false, 0, 0)
				tt.fail(w.api)
				settle(unfollowedAfter - time.Second)
				expect("for less than two minutes", true, false, 0, 0)
				settle(2*backoffLast + time.Second)
				expect("for longer", true, true, 1, 0)
				settle(time.Hour)
				expect("for an hour", true, true, 1, 0)
				w.mirror.SetLink(false, time.Now())
				settle(time.Hour)
				expect("cut off", false, false, 1, 0)
				w.mirror.SetLink(true, time.Now())
				settle(unfollowedAfter - time.Second)
				expect("soon after the cut", true, false, 1, 0)
				settle(2 * time.Second)
				expect("two minutes after the cut", true, true, 1, 0)
				tt.mend(w.api)
				settle(tt.recoversFor)
				expect("mended", false, false, 1, 1)
				tt.fail(w.api)
				settle(unfollowedAfter + 2*backoffLast + time.Second)
				expect("again", true, true, 2, 1)
			})
		})
	}
}

// TestCutIsNoFailure: a link that comes and goes leaves nothing to tell of what is
// followed whenever it is there.
func TestCutIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		settle(time.Second)
		for range 50 {
			w.api.breakWatches() // the watches break before the link is known to be cut
			settle(time.Millisecond)
			w.mirror.SetLink(false, time.Now())
			settle(time.Minute)
			w.mirror.SetLink(true, time.Now())
			settle(5 * time.Second)
			for _, c := range w.mirror.Collections() {
				if c.Unfollowed {
					t.Fatalf("%s: %v", c.Collection, c.Err)
				}
			}
		}
		settle(unfollowedAfter)
		for _, c := range w.mirror.Collections() {
			if c.Err != nil || c.Unfollowed || !c.Failing.IsZero() {
				t.Errorf("%s: %v", c.Collection, c.Err)
			}
		}
	})
}

// TestEndlessRestart: a watch that ends as soon as it has begun is no recovery.
func TestEndlessRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		w.api.put(podsTable, "a", "1")
		settle(time.Second)
		w.api.put(podsTable, "g", garbled)
		settle(time.Hour)
		before := w.api.requests(podsTable)
		settle(time.Hour)
		if n := w.api.requests(podsTable) - before; n > int(time.Hour/backoffLast) {
			t.Errorf("the same event was read %d times in an hour", n)
		}
		if got := w.state(ownPods); len(got) != 1 {
			t.Errorf("it serves %v", got)
		}
		if err := w.mirror.stream(ownPods).tell(time.Now()).Err; err == nil || errors.Is(err, errExpired) {
			t.Errorf("it says %v", err)
		}
	})
}

// TestRefusedBegunAgain: what is refused to a stream that was dropped meanwhile does
// not take the place of the one that was begun after it.
func TestRefusedBegunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer func() { w.stop() }()
		c := aPool(0)
		w.api.put(tableOf(c), c.Name, "1")
		cover := func() {
			t.Helper()
			if _, coverage := w.mirror.Cover(replica.Query(c)); coverage != replica.CoverWhole {
				t.Fatal(coverage)
			}
			settle(time.Second)
		}
		cover()
		before := w.mirror.stream(c)
		w.mirror.mu.Lock()
		w.mirror.drop(before)
		w.mirror.mu.Unlock()
		cover()
		after := w.mirror.stream(c)
		w.mirror.refuse(before)
		if after == before || w.mirror.stream(c) != after {
			t.Error("the stream that was begun again is forgotten")
		}
		cover()
		if s, err := w.mirror.Snapshot(c); err != nil || len(s.Objects) != 1 {
			t.Errorf("it serves %v, %v", s.Objects, err)
		}
	})
}
