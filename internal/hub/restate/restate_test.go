package restate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/edgewright/terraform-provider-edge/internal/hub/overlay"
	"github.com/edgewright/terraform-provider-edge/internal/hub/replica"
	"github.com/edgewright/terraform-provider-edge/internal/hub/wire"
)

var (
	nodes   = replica.Collection{Resource: corev1.SchemeGroupVersion.WithResource("nodes"), Name: "n1"}
	pods    = replica.Collection{Resource: corev1.SchemeGroupVersion.WithResource("pods"), Node: "n1"}
	theNode = overlay.Target{Resource: nodes.Resource, Name: "n1"}
)

func thePod(name string) overlay.Target {
	return overlay.Target{Resource: pods.Resource, Namespace: "shop", Name: name}
}

// site is a node in virtual time, with an apiserver that applies patches.
type site struct {
	t      *testing.T
	cache  *replica.Cache
	teller *Teller

	mu     sync.Mutex // guards what follows
	online context.Context
	cut    context.CancelFunc

	renewed, since time.Time // by kubelet

	version replica.Version
	cloud   map[overlay.Target]runtime.Object
	patches map[overlay.Target][]string
	// answer, where set, is the apiserver's in place of applying a patch.
	answer func(context.Context, overlay.Write) (overlay.Answer, error)
}

func (s *site) Online() (context.Context, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.online, s.online.Err() == nil
}

func (s *site) kubelet() (renewed, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.renewed, s.since
}

// newSite is one with its Node and the pods a and b, all of them well, whose kubelet has
// been there for a minute.
func newSite(t *testing.T) *site {
	s := &site{
		t: t, cache: replica.NewCache(), version: 10, cloud: map[overlay.Target]runtime.Object{}, patches: map[overlay.Target][]string{},
		since: time.Now(),
	}
	s.online, s.cut = context.WithCancel(t.Context())
	s.cut()
	s.teller = New(Options{
		Replica: s.cache, NodeName: "n1", Online: s.Online, Send: s.send,
		Kubelet: s.kubelet,
	})
	ready := func(c corev1.NodeConditionType, is corev1.ConditionStatus) corev1.NodeCondition {
		return corev1.NodeCondition{Type: c, Status: is, Reason: "Kubelet", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}
	}
	s.cloud[theNode] = &corev1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node"},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			ready("Other", corev1.ConditionTrue), ready(corev1.NodeReady, corev1.ConditionTrue), ready(corev1.NodeDiskPressure, corev1.ConditionFalse),
		}},
	}
	for _, name := range []string{"a", "b"} {
		s.cloud[thePod(name)] = &corev1.Pod{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name)},
			Spec: corev1.PodSpec{NodeName: "n1"},
			Status: corev1.PodStatus{
				Phase: corev1.PodRunning, PodIP: "10.1.0.1", PodIPs: []corev1.PodIP{{IP: "10.1.0.1"}},
				Conditions: []corev1.PodCondition{
					{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: "example.com/gate", Status: corev1.ConditionTrue},
				},
				ContainerStatuses: []corev1.ContainerStatus{{Name: "c", ContainerID: "containerd://1", Ready: true}},
			},
		}
	}
	s.cache.Open(nodes, corev1.SchemeGroupVersion.WithKind("Node"))
	s.cache.Open(pods, corev1.SchemeGroupVersion.WithKind("Pod"))
	s.shows()
	time.Sleep(time.Minute)
	return s
}

// shows makes the node show what the cloud has.
func (s *site) shows() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	content := map[replica.Collection]replica.Content{nodes: {Version: s.version}, pods: {Version: s.version}}
	order := slices.SortedFunc(maps.Keys(s.cloud), func(a, b overlay.Target) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	for _, target := range order {
		o := s.cloud[target]
		if v := o.(metav1.Object); v.GetResourceVersion() == "" {
			v.SetResourceVersion(s.version.String())
		}
		c := pods
		if target == theNode {
			c = nodes
		}
		now := content[c]
		now.Objects = append(now.Objects, s.object(o))
		content[c] = now
	}
	for c, now := range content {
		if err := s.cache.Reset(c, now); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *site) object(o runtime.Object) *replica.Object {
	s.t.Helper()
	var b bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(o, &b); err != nil {
		s.t.Fatal(err)
	}
	object, err := replica.NewObject(wire.MediaProtobuf, b.Bytes())
	if err != nil {
		s.t.Fatal(err)
	}
	return object
}

// change is one of the cloud's own; the node does not see it before shows.
func (s *site) change(target overlay.Target, change func(runtime.Object)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	o := s.cloud[target].DeepCopyObject()
	change(o)
	o.(metav1.Object).SetResourceVersion(s.version.String())
	s.cloud[target] = o
}

// lost is what the cloud's controllers make of a node that is cut off.
func (s *site) lost() {
	s.change(theNode, func(o runtime.Object) {
		n := o.(*corev1.Node)
		n.Status.Conditions[1].Status, n.Status.Conditions[2].Status = corev1.ConditionUnknown, corev1.ConditionUnknown
		n.Status.Conditions[1].Reason = "NodeStatusUnknown"
		n.Status.Conditions[0].Status = corev1.ConditionFalse
	})
	for _, name := range []string{"a", "b"} {
		s.change(thePod(name), func(o runtime.Object) {
			p := o.(*corev1.Pod)
			p.Status.Conditions[0].Status = corev1.ConditionFalse
			p.Status.Conditions[1].Status = corev1.ConditionFalse
			p.Status.NominatedNodeName = "n2"
		})
	}
}

// lay is what kubelet writes of a pod in the cut.
func (s *site) lay(name string, change func(*corev1.PodStatus)) {
	s.t.Helper()
	p := s.cloud[thePod(name)].DeepCopyObject().(*corev1.Pod)
	change(&p.Status)
	p.ResourceVersion = (replica.OverlayBase + 7).String()
	before, _, err := s.cache.Get(pods, "shop", name)
	if err != nil {
		s.t.Fatal(err)
	}
	o := s.object(p)
	if err := s.cache.Publish(pods, []*replica.Event{{Type: watch.Modified, Object: o, Previous: before}}, o.Version); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) send(ctx context.Context, w overlay.Write) (overlay.Answer, error) {
	s.mu.Lock()
	answer := s.answer
	s.mu.Unlock()
	if answer != nil {
		return answer(ctx, w)
	}
	return s.apply(w)
}

func (s *site) apply(w overlay.Write) (overlay.Answer, error) {
	s.mu.Lock()
	cloud := maps.Clone(s.cloud)
	s.mu.Unlock()
	for target, o := range cloud {
		if target.Path() != w.Path {
			continue
		}
		if w.Method != http.MethodPatch || w.Type != string(types.StrategicMergePatchType) {
			return overlay.Answer{}, fmt.Errorf("%+v", w)
		}
		before, err := json.Marshal(o)
		if err != nil {
			return overlay.Answer{}, err
		}
		merged, err := strategicpatch.StrategicMergePatch(before, w.Body, o)
		if err != nil {
			return overlay.Answer{}, err
		}
		kinds, _, err := scheme.Scheme.ObjectKinds(o)
		if err != nil {
			return overlay.Answer{}, err
		}
		after, err := scheme.Scheme.New(kinds[0])
		if err != nil {
			return overlay.Answer{}, err
		}
		if err := json.Unmarshal(merged, after); err != nil {
			return overlay.Answer{}, err
		}
		if after.(metav1.Object).GetUID() != o.(metav1.Object).GetUID() {
			return overlay.Answer{Code: http.StatusConflict}, nil
		}
		s.mu.Lock()
		s.patches[target] = append(s.patches[target], string(w.Body))
		s.mu.Unlock()
		s.change(target, func(now runtime.Object) {
			switch now := now.(type) {
			case *corev1.Node:
				now.Status = after.(*corev1.Node).Status
			case *corev1.Pod:
				now.Status = after.(*corev1.Pod).Status
			}
		})
		return overlay.Answer{Code: http.StatusOK}, nil
	}
	return overlay.Answer{Code: http.StatusNotFound}, nil
}

// returns is the link, and what of the cloud the node shows then.
func (s *site) returns() {
	s.t.Helper()
	s.mu.Lock()
	s.online, s.cut = context.WithCancel(s.t.Context())
	s.renewed = time.Now().Add(-time.Second)
	s.mu.Unlock()
	s.teller.LinkChanged(true)
}

func (s *site) run() (stop func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.teller.Run(ctx) }()
	return func() { cancel(); <-done }
}

func (s *site) pod(name string) corev1.PodStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cloud[thePod(name)].(*corev1.Pod).Status
}

func (s *site) node() []corev1.NodeCondition {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cloud[theNode].(*corev1.Node).Status.Conditions
}

// of are the patches of one object that the apiserver has taken.
func (s *site) of(target overlay.Target) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.patches[target])
}

// count is how many patches the apiserver has taken.
func (s *site) count() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.patches {
		n += len(p)
	}
	return n
}

// TestTellsAgain: a Node and pods that the cloud has given up are as kubelet knows them
// before it says so itself, and what is not kubelet's is as the cloud has it.
func TestTellsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		defer s.run()()
		s.lay("a", func(p *corev1.PodStatus) {
			p.PodIP, p.PodIPs = "10.1.0.9", []corev1.PodIP{{IP: "10.1.0.9"}}
			p.ContainerStatuses[0].ContainerID = "containerd://2"
		})
		s.returns()
		back := time.Now()
		s.shows() // as it was before the cut
		s.teller.Lifted()
		synctest.Wait()
		if got := s.pod("a"); got.PodIP != "10.1.0.9" || len(got.PodIPs) != 1 || got.PodIPs[0].IP != "10.1.0.9" || got.ContainerStatuses[0].ContainerID != "containerd://2" {
			t.Errorf("what kubelet wrote of a pod is not told at once: %+v", got)
		}
		if n := s.count(); n != 1 {
			t.Errorf("%d patches of one pod that kubelet wrote of", n)
		}
		// Now comes what the cloud has done meanwhile.
		time.Sleep(time.Second)
		s.lost()
		s.shows()
		time.Sleep(2 * lookEvery)
		s.shows()
		time.Sleep(window)
		for _, name := range []string{"a", "b"} {
			got := s.pod(name)
			if got.Conditions[0].Status != corev1.ConditionTrue || got.Conditions[1].Status != corev1.ConditionFalse || got.NominatedNodeName != "n2" || len(got.Conditions) != 2 {
				t.Errorf("pod %s: %+v", name, got)
			}
		}
		got := s.node()
		if len(got) != 3 || got[1].Status != corev1.ConditionTrue || got[1].Reason != "Kubelet" || got[2].Status != corev1.ConditionFalse || got[0].Status != corev1.ConditionFalse {
			t.Errorf("the Node: %+v", got)
		}
		if !got[1].LastHeartbeatTime.Equal(&metav1.Time{Time: s.renewed.Truncate(time.Second)}) || got[1].LastTransitionTime.Time.Before(back.Truncate(time.Second)) {
			t.Errorf("times of the Node: %+v", got[1])
		}
		if n := s.count(); n != 4 {
			t.Errorf("%d patches of a Node and two pods, one of them told twice: %v", n, s.patches)
		}
	})
}

// TestNotToBeTold: nothing is told that kubelet may not stand by, or that is no longer
// of what it spoke of.
func TestNotToBeTold(t *testing.T) {
	for name, prepare := range map[string]func(*site){
		"kubelet has just begun": func(s *site) { s.since = time.Now() },
		"kubelet is not there":   func(s *site) { s.since = time.Time{} },
		"the cut was short":      func(s *site) { s.teller.LinkChanged(false) },
		"it is another pod and node": func(s *site) {
			for target := range s.cloud {
				s.change(target, func(o runtime.Object) { o.(metav1.Object).SetUID("another") })
			}
		},
		"pods end and the node is gone": func(s *site) {
			s.change(thePod("a"), func(o runtime.Object) { o.(metav1.Object).SetDeletionTimestamp(&metav1.Time{Time: time.Now()}) })
			s.change(thePod("b"), func(o runtime.Object) { o.(*corev1.Pod).Status.Phase = corev1.PodFailed })
			delete(s.cloud, theNode)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t)
				s.lost()
				prepare(s)
				defer s.run()()
				s.returns()
				s.shows()
				time.Sleep(2 * window)
				if n := s.count(); n != 0 {
					t.Errorf("%d patches: %v", n, s.patches)
				}
			})
		})
	}
	t.Run("kubelet is long gone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(t)
			defer s.run()()
			s.lost()
			s.returns()
			s.mu.Lock()
			s.renewed = time.Now().Add(-LeaseDuration - time.Second)
			s.mu.Unlock()
			s.teller.LinkChanged(true)
			s.shows()
			time.Sleep(2 * window)
			if n := s.count(); n != 0 {
				t.Errorf("%d patches: %v", n, s.patches)
			}
		})
	})
}

// TestAfterAStart: of a kubelet that has just begun, what it has written since is told,
// and nothing else.
func TestAfterAStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.teller = New(s.teller.options) // with the machine, in the cut
		defer s.run()()
		s.lost()
		s.teller.Started()
		time.Sleep(10 * time.Second)
		s.since = time.Now()
		s.teller.Writes(t.Context(), thePod("a"), true)()
		s.teller.Writes(t.Context(), theNode, false)()
		s.returns()
		s.shows()
		time.Sleep(2 * window)
		if len(s.of(thePod("a"))) != 1 || len(s.of(theNode)) != 1 || s.count() != 2 {
			t.Errorf("told: %v", s.patches)
		}
	})
}

// TestCutAgain: a second cut, too short to be noticed, does not keep the first from being
// made good.
func TestCutAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		defer s.run()()
		s.returns()
		time.Sleep(time.Second)
		s.cut()
		s.teller.LinkChanged(false)
		time.Sleep(window + time.Second)
		s.lost()
		s.returns()
		s.shows()
		time.Sleep(window)
		if s.count() != 3 {
			t.Errorf("told: %v", s.patches)
		}
	})
}

// TestKubeletFirst: what kubelet writes itself is neither overtaken nor written over.
func TestKubeletFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		defer s.run()()
		s.lost()
		hold := make(chan struct{})
		s.mu.Lock()
		s.answer = func(_ context.Context, w overlay.Write) (overlay.Answer, error) {
			if w.Path == thePod("a").Path() {
				<-hold
			}
			return s.apply(w)
		}
		s.mu.Unlock()
		s.returns()
		done := s.teller.Writes(t.Context(), thePod("b"), true)
		beats := s.teller.Writes(t.Context(), theNode, false)
		s.shows()
		time.Sleep(time.Second)
		if n := len(s.of(thePod("b"))) + len(s.of(theNode)); n != 0 {
			t.Errorf("%d patches while kubelet writes", n)
		}
		done()
		beats()
		var wrote time.Time
		time.Sleep(time.Second)
		s.teller.Started() // whatever is owed or not
		var writing sync.WaitGroup
		writing.Go(func() { s.teller.Writes(t.Context(), thePod("a"), true)(); wrote = time.Now() })
		time.Sleep(time.Second)
		if !wrote.IsZero() {
			t.Error("kubelet's write passes one that is under way")
		}
		released := time.Now()
		close(hold)
		writing.Wait()
		if wrote.Before(released) {
			t.Error("kubelet's write did not wait")
		}
		time.Sleep(window)
		if n := len(s.of(thePod("b"))); n != 0 {
			t.Errorf("%d patches of what kubelet has written", n)
		}
		if n := len(s.of(theNode)); n != 1 {
			t.Errorf("%d patches of the Node, of which kubelet wrote a heartbeat", n)
		}
		if len(s.teller.writing) != 0 || len(s.teller.owed) != 0 || len(s.teller.sending) != 0 {
			t.Errorf("left: %v %v %v", s.teller.writing, s.teller.owed, s.teller.sending)
		}
	})
}

// TestGivesWay: a cloud that does not take it, or changes it each time, is not told for
// long; what has no answer does not hold up kubelet for long either.
func TestGivesWay(t *testing.T) {
	asked := func(t *testing.T, again bool, answer func(context.Context) (overlay.Answer, error)) map[string]int {
		s := newSite(t)
		defer s.run()()
		s.lost()
		n := map[string]int{}
		s.mu.Lock()
		s.answer = func(ctx context.Context, w overlay.Write) (overlay.Answer, error) {
			s.mu.Lock()
			n[w.Path]++
			s.mu.Unlock()
			return answer(ctx)
		}
		s.mu.Unlock()
		s.returns()
		for range 40 {
			if again {
				s.lost()
			}
			s.shows()
			time.Sleep(time.Second)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return n
	}
	for name, c := range map[string]struct {
		again  bool
		want   int
		answer func(context.Context) (overlay.Answer, error)
	}{
		"refused": {false, 1, func(context.Context) (overlay.Answer, error) { return overlay.Answer{Code: 403}, nil }},
		"without answer": {false, 1, func(ctx context.Context) (overlay.Answer, error) {
			<-ctx.Done()
			return overlay.Answer{}, errors.New("none")
		}},
		"changed again": {true, sends, func(context.Context) (overlay.Answer, error) { return overlay.Answer{Code: 200}, nil }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got := asked(t, c.again, c.answer)
				for _, target := range []overlay.Target{theNode, thePod("a"), thePod("b")} {
					if got[target.Path()] != c.want {
						t.Errorf("%s is told %d times, want %d", target.Name, got[target.Path()], c.want)
					}
				}
			})
		})
	}
}
