package controllers

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/edgewright/terraform-provider-edge/internal/api/v1alpha1"
)

func TestPlanKept(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	// A node's session now, what its status says of it, and since when.
	type node struct {
		is, was bool
		ago     time.Duration
	}
	lost := func(d time.Duration) node { return node{false, false, d} }
	back := func(d time.Duration) node { return node{true, true, d} }
	for name, tc := range map[string]struct {
		pools   map[string]map[string]node
		kept    []string
		keep    []string
		suspect []string
		again   time.Duration
	}{
		"all connected": {pools: map[string]map[string]node{"p": {"a": back(time.Hour), "b": back(time.Hour)}}},
		"one lost":      {pools: map[string]map[string]node{"p": {"a": lost(time.Hour), "b": back(time.Hour)}}},
		"all lost":      {pools: map[string]map[string]node{"p": {"a": lost(time.Hour), "b": lost(5 * time.Second)}}, keep: []string{"a", "b"}},
		"all lost, one just now": {
			pools: map[string]map[string]node{"p": {"a": lost(time.Hour), "b": lost(3 * time.Second)}}, again: 2 * time.Second,
		},
		"of two pools": {
			pools: map[string]map[string]node{"p": {"a": lost(time.Hour)}, "q": {"b": back(time.Hour)}}, keep: []string{"a"},
		},
		"the first is back": {
			pools: map[string]map[string]node{"p": {"a": back(10 * time.Second), "b": lost(time.Hour)}}, kept: []string{"a", "b"},
			keep: []string{"a", "b"}, again: 50 * time.Second,
		},
		"the first has been back": {
			pools: map[string]map[string]node{"p": {"a": back(time.Minute), "b": lost(time.Hour)}}, kept: []string{"a", "b"}, suspect: []string{"b"},
		},
		"all are back": {
			pools: map[string]map[string]node{"p": {"a": back(time.Minute), "b": back(time.Second)}}, kept: []string{"a", "b"},
		},
		"lost, and its status does not say so yet": {
			pools: map[string]map[string]node{"p": {"a": {false, true, time.Hour}}}, again: keptUnsure,
		},
		"the same, kept by an earlier process": {
			pools: map[string]map[string]node{"p": {"a": {false, true, time.Hour}, "b": lost(time.Hour)}}, kept: []string{"b"},
			keep: []string{"b"}, again: keptUnsure,
		},
		"back, and its status does not say so yet": {
			pools: map[string]map[string]node{"p": {"a": {true, false, time.Hour}}}, kept: []string{"a"}, keep: []string{"a"}, again: keptUnsure,
		},
		"a node that is no more": {kept: []string{"x"}},
	} {
		t.Run(name, func(t *testing.T) {
			pools, sessions := map[string][]*v1alpha1.EdgeNode{}, map[string]bool{}
			for pool, nodes := range tc.pools {
				for name, n := range nodes {
					edge := &v1alpha1.EdgeNode{ObjectMeta: metav1.ObjectMeta{Name: name}}
					edge.Status.Connected, edge.Status.LastConnected = n.was, &metav1.Time{Time: now.Add(-n.ago)}
					pools[pool], sessions[name] = append(pools[pool], edge), n.is
				}
			}
			set := func(names []string) map[string]string {
				out := map[string]string{}
				for _, name := range names {
					out[name] = ""
				}
				return out
			}
			got := planKept(pools, func(name string) bool { return sessions[name] }, set(tc.kept), now)
			if d := cmp.Diff(keptPlan{keep: set(tc.keep), suspect: tc.suspect, again: tc.again}, got, cmp.AllowUnexported(keptPlan{})); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestCutState(t *testing.T) {
	started := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		connected bool
		key       string
		lost      time.Duration // from the start of the process to the end of the session
		cut       bool          // already
		now       time.Duration // from the start of the process
		want      bool
		wait      time.Duration
	}{
		"connected":                 {connected: true, key: "k", now: time.Hour},
		"never enrolled":            {now: time.Hour},
		"lost just now":             {key: "k", lost: time.Hour, now: time.Hour, wait: 20 * time.Second},
		"lost for long enough":      {key: "k", lost: time.Hour, now: time.Hour + 20*time.Second, want: true},
		"not back after a start":    {key: "k", now: 21 * time.Second, wait: 14 * time.Second},
		"nor in the time it has":    {key: "k", now: 35 * time.Second, want: true},
		"lost soon after a start":   {key: "k", lost: 10 * time.Second, now: 30 * time.Second, wait: 5 * time.Second},
		"lost a little later":       {key: "k", lost: 20 * time.Second, now: 35 * time.Second, wait: 5 * time.Second},
		"cut before the start":      {key: "k", lost: -time.Hour, cut: true, now: time.Second, want: true},
		"cut before, and connected": {connected: true, key: "k", lost: -time.Hour, cut: true, now: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			view := &nodeView{edge: &v1alpha1.EdgeNode{}, connected: tc.connected}
			view.edge.Status.Key = tc.key
			view.edge.Status.LastConnected = &metav1.Time{Time: started.Add(tc.lost)}
			if tc.cut {
				view.edge.Status.CutSince = view.edge.Status.LastConnected
			}
			r := &nodeReconciler{started: started, clock: testClock(started.Add(tc.now))}
			got, wait := r.cutState(view)
			if got != tc.want || wait != tc.wait {
				t.Errorf("cut %v, wait %s, want %v, %s", got, wait, tc.want, tc.wait)
			}
		})
	}
}

// testClock stands still.
type testClock time.Time

func (c testClock) Now() time.Time                   { return time.Time(c) }
func (c testClock) Since(at time.Time) time.Duration { return time.Time(c).Sub(at) }

func TestWithoutEnd(t *testing.T) {
	toleration := func(key string, seconds *int64) corev1.Toleration {
		return corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: seconds}
	}
	unreachable, notReady := corev1.TaintNodeUnreachable, corev1.TaintNodeNotReady
	forEver := []corev1.Toleration{toleration(unreachable, nil), toleration(notReady, nil)}
	for name, tc := range map[string]struct{ in, want []corev1.Toleration }{
		"defaults":     {[]corev1.Toleration{toleration(notReady, ptr.To[int64](300)), toleration(unreachable, ptr.To[int64](300))}, []corev1.Toleration{toleration(notReady, nil), toleration(unreachable, nil)}},
		"none":         {nil, forEver},
		"for ever":     {forEver, forEver},
		"declared":     {[]corev1.Toleration{toleration(unreachable, ptr.To[int64](30)), toleration(notReady, nil)}, []corev1.Toleration{toleration(unreachable, ptr.To[int64](30)), toleration(notReady, nil)}},
		"everything":   {[]corev1.Toleration{{Operator: corev1.TolerationOpExists}}, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}},
		"another key":  {[]corev1.Toleration{toleration("a", ptr.To[int64](300))}, append([]corev1.Toleration{toleration("a", ptr.To[int64](300))}, forEver...)},
		"other effect": {[]corev1.Toleration{{Key: unreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}, toleration(notReady, nil)}, []corev1.Toleration{{Key: unreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}, toleration(notReady, nil), toleration(unreachable, nil)}},
	} {
		got := withoutEnd(tc.in)
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if d := cmp.Diff(got, withoutEnd(got)); d != "" {
			t.Errorf("%s, twice: %s", name, d)
		}
	}
}
