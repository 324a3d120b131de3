//go:build linux

package autonomy

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/edgewright/terraform-provider-edge/internal/e2e/rig"
	"github.com/edgewright/terraform-provider-edge/internal/edgenode"
	"github.com/edgewright/terraform-provider-edge/internal/supervise"
)

// Rounds of restarts, every second of them with all programs at once.
const (
	shortRounds = 4
	fullRounds  = 100
)

// seedVariable repeats a run's orders.
const seedVariable = "EDGE_TEST_SEED"

// restarts kills each of the node's programs and its daemon, in random orders and
// all at once: no pod dies of it.
func (l *lab) restarts(t *testing.T, running map[string]string) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(seedVariable); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedVariable, err)
		}
	}
	t.Logf("%s=%d", seedVariable, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	rounds := shortRounds
	if full() {
		rounds = fullRounds
	}
	for round := range rounds {
		programs := l.programs(t)
		random.Shuffle(len(programs), func(i, j int) { programs[i], programs[j] = programs[j], programs[i] })
		together := round%2 == 1
		took := l.restart(t, programs, together)
		names := make([]string, len(programs))
		for i, file := range programs {
			names[i] = strings.TrimSuffix(filepath.Base(file), ".json")
		}
		t.Logf("round %d: SIGKILL of %s, together: %v; back after %.1f s", round, strings.Join(names, " "), together, took.Seconds())
		// Kubelet has begun anew with what the hub holds; what it does not see
		// there it kills.
		l.kubeletSees(t)
		if now := l.servers(t); !maps.Equal(now, running) {
			t.Fatalf("containers changed (-before +now):\n%s", cmp.Diff(running, now))
		}
	}
}

// programs are the records of what runs on the node, the daemon's too.
func (l *lab) programs(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(l.dir, "run", "*", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, file := range append(files, filepath.Join(l.dir, "run", "daemon.json")) {
		if l.pid(t, file) != 0 {
			out = append(out, file)
		}
	}
	if len(out) < 5 {
		t.Fatalf("%v run, want containerd, kubelet, kube-proxy, CoreDNS and the daemon", out)
	}
	return out
}

// restart kills programs one after the other, each when the one before is back, or
// together. It returns after how long all are back and ready.
func (l *lab) restart(t *testing.T, programs []string, together bool) time.Duration {
	t.Helper()
	began := time.Now()
	killed := map[string]int{}
	for _, file := range programs {
		killed[file] = l.kill(t, file)
		if !together {
			l.back(t, file, killed[file])
		}
	}
	for _, file := range programs {
		l.back(t, file, killed[file])
	}
	l.ready(t)
	return time.Since(began)
}

// kill kills what a record names. A kubelet that finds no containerd ends by
// itself, so the record is read again where it names nothing that lives.
func (l *lab) kill(t *testing.T, file string) (pid int) {
	t.Helper()
	rig.Eventually(t, time.Minute, filepath.Base(file)+" is there to be killed", func() error {
		pid = l.pid(t, file)
		if res := l.AsRoot(t, "kill", "-KILL", fmt.Sprint(pid)); pid == 0 || res.Err != nil {
			return fmt.Errorf("pid %d: %s", pid, res.Stderr)
		}
		return nil
	})
	return pid
}

func (l *lab) back(t *testing.T, file string, pid int) {
	t.Helper()
	rig.Eventually(t, time.Minute, filepath.Base(file)+" is back", func() error {
		now := l.pid(t, file)
		if now == 0 || now == pid {
			return fmt.Errorf("pid %d", now)
		}
		return nil
	})
}

// ready waits until the daemon that runs finds all its programs ready.
func (l *lab) ready(t *testing.T) {
	t.Helper()
	rig.Eventually(t, 90*time.Second, "the daemon finds all programs ready", func() error {
		s, err := edgenode.LoadStatus(l.dir)
		if err != nil {
			return err
		}
		if daemon := l.pid(t, filepath.Join(l.dir, "run", "daemon.json")); s.DaemonPID != daemon {
			return fmt.Errorf("the status is daemon %d's, now it is %d", s.DaemonPID, daemon)
		}
		for name, state := range s.Processes {
			if state != string(supervise.StateReady) {
				return fmt.Errorf("%s is %s", name, state)
			}
		}
		if len(s.Processes) < 4 {
			return fmt.Errorf("it has started %v", slices.Sorted(maps.Keys(s.Processes)))
		}
		return nil
	})
}

// kubeletSees waits until the kubelet has its pods from the hub: it gives no logs
// of a pod that it does not know. One that took an answer of the hub for "none"
// would kill them then; whether it has is seen after each round, and much later.
func (l *lab) kubeletSees(t *testing.T) {
	t.Helper()
	rig.Eventually(t, 90*time.Second, "the kubelet has its pods", func() error {
		res := l.TryEdge(t, "node", "kubectl", "--dir", l.dir, "--request-timeout=5s", "logs", "-l", "app=web", "--tail=1", "--prefix", fmt.Sprint("--max-log-requests=", l.want))
		if seen := strings.Count(res.Stdout, "[pod/"); res.Err != nil || seen != l.want {
			return fmt.Errorf("logs of %d pods: %w %s", seen, res.Err, res.Stderr)
		}
		return nil
	})
}

func (l *lab) pid(t *testing.T, file string) int {
	t.Helper()
	res := l.AsRoot(t, "cat", file)
	var record struct {
		PID int `json:"pid"`
	}
	if res.Err != nil || json.Unmarshal([]byte(res.Stdout), &record) != nil {
		return 0
	}
	return record.PID
}
