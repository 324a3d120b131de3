//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/edgewright/terraform-provider-edge/internal/bench"
	"github.com/edgewright/terraform-provider-edge/internal/e2e/crowd"
	"github.com/edgewright/terraform-provider-edge/internal/hub/hubload"
)

const (
	dayNode     = "day"
	dayPods     = 50
	dayServices = 500
	// dayFactor is how many times as fast as in a node's life its day passes here.
	dayFactor = 360
	// dayWatch is how many seconds a watch lasts, which the API counts in whole ones:
	// 6 minutes of that day, where a reflector asks for 5 to 10.
	dayWatch = 1
	// dayRest is how long memory, without the program's pages, must stay as it is to
	// be looked at: the hub gives back what a busy moment has left some seconds after
	// it.
	dayRest = 10 * time.Second
	// daySamples is how many equal parts the day has; memory is looked at between.
	daySamples = 4
	// dayAim is what memory may be at the day's end, of what it was.
	dayAim = 1.05
)

// day is a node on a day without its cluster.
type day struct {
	*site
	node    *hubNode
	kubelet *kubelet
	chores  []chore
	// has is what was seen before the day and after each part of it.
	has [daySamples + 1]footprint
}

// measureDay looks at a hub's memory while its node is cut off and all that a day
// brings comes in minutes.
func measureDay(ctx context.Context, w *world) (rows []bench.Row, err error) {
	err = inLaboratory(ctx, func(ctx context.Context, l *laboratory) error {
		d := &day{site: &site{laboratory: l, pools: 1}}
		if err := d.begin(ctx, w); err != nil {
			return err
		}
		if err := d.pass(ctx, w); err != nil {
			return err
		}
		rows, err = d.rows()
		return err
	})
	return rows, err
}

// begin makes a node that has all it follows and has its pods' tokens, lets it live
// through as much as is looked at at once, and cuts it off.
func (d *day) begin(ctx context.Context, w *world) (err error) {
	if d.cluster, err = w.startCluster(ctx, dayNode); err != nil {
		return err
	}
	d.atEnd(d.stop)
	for _, fill := range []func() error{
		func() error { return d.makeDefaultAccount(ctx) },
		func() error { return hubload.FillNode(ctx, d.kube, dayNode, dayPods) },
		func() error { return registered(ctx, d.kube, dayNode) },
		func() error { return hubload.FillServices(ctx, d.kube, 0, dayServices, slicesFewer) },
	} {
		if err := fill(); err != nil {
			return err
		}
	}
	if d.node, err = d.startHub(ctx, dayNode); err != nil {
		return err
	}
	own, err := d.node.config(hubload.Kubelet)
	if err != nil {
		return err
	}
	var pods []string
	for i := range dayPods {
		pods = append(pods, hubload.PodName(dayNode, i))
	}
	if d.kubelet, err = newKubelet(dayNode, pods, own); err != nil {
		return err
	}
	if _, err := d.look(ctx); err != nil { // so that the hub has everything
		return err
	}
	uids := map[string]types.UID{}
	for _, pod := range pods {
		if uids[pod], err = d.kubelet.uid(ctx, pod); err != nil {
			return err
		}
		if err := d.kubelet.tokenOf(ctx, pod, uids[pod]); err != nil {
			return fmt.Errorf("token of pod %s: %w", pod, err)
		}
	}
	// A hub that has just begun has done few things yet, and nothing has changed of
	// what it follows: it would grow without a cut as well.
	if err := d.passPart(ctx, d.kubelet.chores(uids, int(24*time.Hour/tokenEvery)), 0); err != nil {
		return fmt.Errorf("the time before the day: %w", err)
	}
	d.chores = d.kubelet.chores(uids, tokensOfPodCut)
	d.node.link.Cut()
	return d.awaitCut(ctx)
}

// awaitCut waits until the hub knows that the node is cut off: it then says so of
// what it does not hold.
func (d *day) awaitCut(ctx context.Context) error {
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		_, err := d.kubelet.kube.CoreV1().PersistentVolumes().Get(ctx, "none", metav1.GetOptions{})
		return apierrors.IsServiceUnavailable(err), nil
	})
	if err != nil {
		return fmt.Errorf("the hub does not notice that its node is cut off: %w", err)
	}
	return nil
}

// follows is what the node's components follow. They list and watch as those of a
// node do, which are told not to stream lists.
func (d *day) follows() hubload.Followed {
	return hubload.Followed{Node: dayNode, Pods: dayPods, Config: d.node.config, PlainLists: true}
}

// look looks at the hub with components that have just started, when it has been at
// rest for dayRest.
func (d *day) look(ctx context.Context) (f footprint, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	stop, err := hubload.Follow(ctx, d.follows())
	if err != nil {
		return f, err
	}
	defer stop()
	for at, since := 0, time.Now(); time.Since(since) < dayRest; {
		if err := pause(ctx, time.Second); err != nil {
			return f, fmt.Errorf("memory has not come to rest: %w", err)
		}
		if f.memory, err = hubload.MemoryOf(d.node.process.PID); err != nil {
			return f, err
		}
		// Pages of the program come and go.
		if change := max(f.memory.Own, at) - min(f.memory.Own, at); change > at/50 {
			at, since = f.memory.Own, time.Now()
		}
	}
	f.disk, err = hubload.DataSize(d.dataDir(dayNode))
	return f, err
}

// pass lets the day pass and looks at the hub before and after each part.
func (d *day) pass(ctx context.Context, w *world) (err error) {
	for part := range d.has {
		if part > 0 {
			if err := d.passPart(ctx, d.chores, part); err != nil {
				return fmt.Errorf("part %d of %d of the day: %w", part, daySamples, err)
			}
		}
		if d.has[part], err = d.look(ctx); err != nil {
			return err
		}
		m := d.has[part].memory
		w.say("after %d h: %d KiB are resident, %d of them of the program's file", part*24/daySamples, m.Resident(), m.Program)
	}
	return nil
}

// passPart does one part of a day's chores at constant rates, with watches that end
// as often as they do in a day. The first part is before the day.
func (d *day) passPart(ctx context.Context, chores []chore, part int) error {
	follows := d.follows()
	follows.WatchSeconds = func() int64 { return dayWatch }
	starting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	stop, err := hubload.Follow(starting, follows)
	if err != nil {
		return err
	}
	defer stop()
	length := 24 * time.Hour / dayFactor / daySamples
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range chores {
		g.Go(func() error { return c.do(ctx, part, length) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if took := time.Since(began); took > length*11/10 {
		return fmt.Errorf("this machine is too slow or too busy for a day in %s: what was to take %s took %s",
			24*time.Hour/dayFactor, length, took.Round(time.Millisecond))
	}
	return nil
}

// chore is something that is done so many times a day.
type chore struct {
	name  string
	times int
	once  func(ctx context.Context, i int) error
}

// do does one part of the day's, evenly over a time. What is late is made up for.
func (c chore) do(ctx context.Context, part int, length time.Duration) error {
	first, end := c.times*part/daySamples, c.times*(part+1)/daySamples
	began := time.Now()
	for i := first; i < end; i++ {
		due := length * time.Duration(i-first) / time.Duration(end-first)
		if err := pause(ctx, time.Until(began.Add(due))); err != nil {
			return err
		}
		if err := c.once(ctx, i); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// How often a pod of the day needs something.
const (
	// A kubelet asks for each pod's token whenever it looks at the pod, in a cut: it
	// is told that the one it gets has not long to live.
	tokensOfPodCut = 24 * 60
	// changesOfPod is how often each pod becomes ready or stops being it.
	changesOfPod = 24
)

// chores is what a kubelet does on a day in which its pods come and go as ready, and
// each pod's token is asked for so many times.
func (k *kubelet) chores(uids map[string]types.UID, tokensOfPod int) []chore {
	const beats, reports = int(24 * time.Hour / leaseEvery), int(24 * time.Hour / statusEvery)
	of := func(i int) string { return k.pods[i%len(k.pods)] }
	return []chore{
		{"renew the lease", beats, func(ctx context.Context, _ int) error { return k.renew(ctx) }},
		{"read the node", beats, func(ctx context.Context, _ int) error {
			_, err := k.kube.CoreV1().Nodes().Get(ctx, k.node, metav1.GetOptions{ResourceVersion: "0"})
			return err
		}},
		{"report the node's status", reports, func(ctx context.Context, _ int) error { return k.report(ctx) }},
		{"ask for a pod's token", tokensOfPod * len(k.pods), func(ctx context.Context, i int) error { return k.tokenOf(ctx, of(i), uids[of(i)]) }},
		{"report a pod's status", changesOfPod * len(k.pods), func(ctx context.Context, i int) error {
			return k.reportPod(ctx, of(i), i/len(k.pods)%2 == 1)
		}},
		{"tell an event", changesOfPod * len(k.pods), func(ctx context.Context, i int) error { return k.tell(ctx, of(i), i) }},
	}
}

// reportPod says that a pod is ready, or no longer: read first, then patched, as a
// kubelet does (pkg/kubelet/status).
func (k *kubelet) reportPod(ctx context.Context, name string, ready bool) error {
	pods := k.kube.CoreV1().Pods(metav1.NamespaceDefault)
	have, err := pods.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	is, now := corev1.ConditionFalse, metav1.Now()
	if ready {
		is = corev1.ConditionTrue
	}
	var order []map[string]string
	var conditions []corev1.PodCondition
	for _, kind := range []corev1.PodConditionType{corev1.PodReady, corev1.ContainersReady} {
		order = append(order, map[string]string{"type": string(kind)})
		conditions = append(conditions, corev1.PodCondition{Type: kind, Status: is, LastTransitionTime: now})
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": have.UID},
		"status":   map[string]any{"phase": corev1.PodRunning, "$setElementOrder/conditions": order, "conditions": conditions},
	})
	if err != nil {
		return err
	}
	_, err = pods.Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// tell tells an event of a pod and then that it has happened again.
func (k *kubelet) tell(ctx context.Context, pod string, i int) error {
	events := k.kube.CoreV1().Events(metav1.NamespaceDefault)
	now := metav1.Now()
	e, err := events.Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", pod, i), Namespace: metav1.NamespaceDefault},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: metav1.NamespaceDefault, Name: pod, FieldPath: "spec.containers{c}"},
		Reason:         "Unhealthy", Type: corev1.EventTypeWarning, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Message: "Readiness probe failed: HTTP probe failed with statuscode: 503",
		Source:  corev1.EventSource{Component: "kubelet", Host: k.node}, ReportingController: "kubelet", ReportingInstance: k.node,
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"count": 2, "lastTimestamp": metav1.Now()})
	if err != nil {
		return err
	}
	_, err = events.Patch(ctx, e.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	return err
}

// rows of the day: all that is resident, and without what it may share.
func (d *day) rows() ([]bench.Row, error) {
	const megabytes = 1024 / 1e6 // of KiB
	what := fmt.Sprintf("hub and agent, %d pods, cut off for a day: ", dayPods)
	hour := func(i int) int { return i * 24 / daySamples }
	var rows []bench.Row
	for _, m := range []struct {
		name string
		kib  func(hubload.Memory) int
	}{
		{"resident", hubload.Memory.Resident},
		{"resident without the pages of the program's file", func(m hubload.Memory) int { return m.Own }},
	} {
		at := func(i int) float64 { return float64(m.kib(d.has[i].memory)) * megabytes }
		for i := range d.has {
			rows = append(rows, bench.Row{Name: fmt.Sprintf("%s%s after %d h", what, m.name, hour(i)), Unit: "MB", Ours: at(i)})
		}
		for i := range 2 {
			row := bench.Row{Name: fmt.Sprintf("%s%s after 24 h to that after %d h", what, m.name, hour(i)), Unit: "ratio", Ours: at(daySamples) / at(i)}
			rows = append(rows, row.Aiming(dayAim))
		}
	}
	for _, i := range []int{0, daySamples} {
		rows = append(rows, bench.Row{Name: fmt.Sprintf("%sfiles of the replica after %d h", what, hour(i)), Unit: "MB", Ours: float64(d.has[i].disk) / 1e6})
	}
	peak, err := crowd.Memory(d.node.process.PID, crowd.Peak)
	if err != nil {
		return nil, err
	}
	return append(rows, bench.Row{Name: what + "resident at most, its first fill and the compressed load with it", Unit: "MB", Ours: float64(peak) * megabytes}), nil
}
